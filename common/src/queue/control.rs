//! Following `etl.control`, the small stream of control messages about runs. An extractor first reads
//! all earlier messages, and then follows the stream for as long as it works.

use lapin::types::AMQPValue;
use tokio::time::timeout;

use super::stream::StreamReader;
use super::{CALL_TIMEOUT, Connection, Delivery, Outgoing, Publisher, QueueError};
use crate::message::{Control, QueueName};

/// A reader of `etl.control` that has applied every message from before it was opened.
pub struct ControlReader(StreamReader);

impl ControlReader {
    /// Reads the stream up to now and calls `apply` with each message, oldest first. A marker, published
    /// first, is the end to read to. `consuming` and `publishing` may be the same.
    pub async fn open(
        consuming: &Connection,
        publishing: &Connection,
        mut apply: impl FnMut(Control),
    ) -> Result<Self, QueueError> {
        let end = format!("marker/{:032x}", rand::random::<u128>());
        let mut publisher = Publisher::open(publishing).await?;
        publisher.publish(&[Outgoing::control_marker(&end)]).await?;
        publisher.close().await;
        let offset = AMQPValue::LongString("first".into());
        let mut reader = StreamReader::open(consuming, QueueName::Control, offset).await?;
        loop {
            // The marker is confirmed, so that a delivery must come.
            let next = timeout(CALL_TIMEOUT, reader.next()).await;
            let delivery = next.map_err(|_| QueueError::Timeout {
                doing: format!("reading {} to its end", QueueName::Control.name()),
                after: CALL_TIMEOUT,
            })??;
            if delivery.id() == end {
                return Ok(Self(reader));
            }
            if let Some(control) = read(&delivery.into()) {
                apply(control);
            }
        }
    }

    /// Waits for the next control message, without a timeout.
    pub async fn next(&mut self) -> Result<Control, QueueError> {
        loop {
            if let Some(control) = read(&self.0.next().await?.into()) {
                return Ok(control);
            }
        }
    }
}

/// None for a marker, and for a message that this version cannot read: a stream takes nothing back, and
/// the ledger decides without it.
fn read(delivery: &Delivery<Control>) -> Option<Control> {
    if delivery.kind() == Outgoing::MARKER {
        return None;
    }
    match delivery.read() {
        Ok(control) => Some(control),
        Err(problem) => {
            tracing::warn!(message.id = delivery.id(), %problem, "control message skipped: it cannot be read");
            None
        }
    }
}
