//! Reading the archive: the stream that keeps every raw batch for some days.
//!
//! It begins where retention has left it, silently, so that a reader has to check that it found what
//! it was looking for; and it is read up to a marker that the reader publishes first.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::types::AMQPValue;

use super::stream::StreamReader;
use super::{CALL, Connection, QueueError, QueueName, RawDelivery};

/// A reader of the archive.
pub struct ArchiveReader(StreamReader);

impl ArchiveReader {
    /// Reads from this time on, or from a little earlier: a stream is entered at a chunk's beginning.
    pub async fn open(connection: &Connection, since: SystemTime) -> Result<Self, QueueError> {
        let seconds = since
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let offset = AMQPValue::Timestamp(seconds);
        let reader = StreamReader::open(connection, QueueName::Archive, offset).await?;
        Ok(Self(reader))
    }

    /// The next message, which stays in the archive. There is one: the reader's own marker at least.
    pub async fn next(&mut self) -> Result<RawDelivery, QueueError> {
        let next = tokio::time::timeout(CALL, self.0.next()).await;
        next.unwrap_or_else(|_| {
            Err(QueueError::Timeout {
                doing: "reading the archive".to_owned(),
                after: CALL,
            })
        })
    }

    /// Stops reading.
    pub async fn close(self, connection: &Connection) {
        self.0.close(connection).await;
    }
}
