//! Following `etl.control`: the small stream of orders about runs. Whoever has to obey them reads
//! what was ordered before, all of it, and then follows for as long as it works.

use lapin::types::AMQPValue;
use tokio::time::timeout;

use super::stream::StreamReader;
use super::{CALL, Connection, Delivery, Outgoing, Publisher, QueueError, QueueName};
use crate::message::Control;

/// A reader of `etl.control` that has seen all that was there when it was opened.
pub struct ControlReader(StreamReader);

impl ControlReader {
    /// Reads the stream up to now, and hands each order to `obey`, oldest first. An empty stream has
    /// an end, too: a marker that is published first. `consuming` and `publishing` may be the same.
    pub async fn open(
        consuming: &Connection,
        publishing: &Connection,
        mut obey: impl FnMut(Control),
    ) -> Result<Self, QueueError> {
        let end = format!("marker/{:032x}", rand::random::<u128>());
        let mut publisher = Publisher::open(publishing).await?;
        publisher.publish(&[Outgoing::control_marker(&end)]).await?;
        publisher.close().await;
        let offset = AMQPValue::LongString("first".into());
        let mut reader = StreamReader::open(consuming, QueueName::Control, offset).await?;
        loop {
            // The marker is confirmed: something has to come.
            let next = timeout(CALL, reader.next()).await;
            let delivery = next.map_err(|_| QueueError::Timeout {
                doing: format!("reading {} to its end", QueueName::Control.name()),
                after: CALL,
            })??;
            if delivery.id() == end {
                return Ok(Self(reader));
            }
            if let Some(order) = read(&delivery.into()) {
                obey(order);
            }
        }
    }

    /// The next order; waits for it, for as long as it takes.
    pub async fn next(&mut self) -> Result<Control, QueueError> {
        loop {
            if let Some(order) = read(&self.0.next().await?.into()) {
                return Ok(order);
            }
        }
    }
}

/// None for somebody's marker, and for what is no order that this version knows: it cannot be given
/// back, and the books decide without it.
fn read(delivery: &Delivery<Control>) -> Option<Control> {
    if delivery.kind() == Outgoing::MARKER {
        return None;
    }
    match delivery.read() {
        Ok(order) => Some(order),
        Err(problem) => {
            tracing::warn!(message.id = delivery.id(), %problem, "an order is not understood, and skipped");
            None
        }
    }
}
