//! Following `etl.control`, the small stream of control messages about runs. An extractor first reads
//! all earlier messages, and then follows the stream for as long as it works.

use lapin::types::AMQPValue;

use super::stream::StreamReader;
use super::{Connection, Delivery, Outgoing, QueueError};
use crate::message::{Control, QueueName};
use crate::reason::Reason;

/// A reader of `etl.control` that has applied every message from before it was opened.
pub struct ControlReader(StreamReader);

impl ControlReader {
    /// Reads the stream up to now and calls `apply` with each message, oldest first. `consuming` and
    /// `publishing` may be the same.
    pub async fn open(
        consuming: &Connection,
        publishing: &Connection,
        mut apply: impl FnMut(Control),
    ) -> Result<Self, QueueError> {
        let offset = AMQPValue::LongString("first".into());
        let mut reader =
            StreamReader::open(consuming, publishing, QueueName::Control, offset).await?;
        while let Some(delivery) = reader.next_earlier().await? {
            if let Some(control) = read(&delivery.into()) {
                apply(control);
            }
        }
        Ok(Self(reader))
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
            let problem = Reason::from(problem);
            tracing::warn!(
                message.id = delivery.id(),
                problem = problem.logged(),
                "control message skipped: it cannot be read"
            );
            None
        }
    }
}
