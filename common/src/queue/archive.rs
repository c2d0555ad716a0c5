//! Reading the archive: the stream that keeps every raw batch for some days.
//!
//! Retention removes the oldest batches without an error, so that a reader must check that it found
//! every batch that it needs. A stream has no end: the reader publishes a marker first, and reads up to it.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::types::AMQPValue;

use super::stream::StreamReader;
use super::{CALL_TIMEOUT, Connection, QueueError, RawDelivery};
use crate::message::QueueName;

/// A reader of the archive.
pub struct ArchiveReader(StreamReader);

impl ArchiveReader {
    /// Reads from this time on, or from a little earlier: a reader enters a stream at the start of a chunk.
    pub async fn open(connection: &Connection, since: SystemTime) -> Result<Self, QueueError> {
        let seconds = since
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let offset = AMQPValue::Timestamp(seconds);
        let reader = StreamReader::open(connection, QueueName::Archive, offset).await?;
        Ok(Self(reader))
    }

    /// The next message, which stays in the archive. The reader's own marker guarantees that there is one.
    pub async fn next(&mut self) -> Result<RawDelivery, QueueError> {
        let next = tokio::time::timeout(CALL_TIMEOUT, self.0.next()).await;
        next.unwrap_or_else(|_| {
            Err(QueueError::Timeout {
                doing: "reading the archive".to_owned(),
                after: CALL_TIMEOUT,
            })
        })
    }

    /// Stops reading.
    pub async fn close(self, connection: &Connection) {
        self.0.close(connection).await;
    }
}
