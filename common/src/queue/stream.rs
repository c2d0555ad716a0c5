//! Reading a stream over AMQP. It needs a prefetch, an offset to begin at, and acks, which only request
//! more deliveries. Reading does not empty a stream, and a stream has no end: a reader that must see all
//! earlier messages publishes a marker first, and reads up to it.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::types::{AMQPValue, FieldTable};
use tokio::time::timeout;

use super::consumer::{Any, Consumer};
use super::{CALL_TIMEOUT, Connection, Outgoing, Publisher, QueueError, RawDelivery, amqp_code};
use crate::message::QueueName;

/// Unacked deliveries at most.
const PREFETCH: u16 = 32;

const ARCHIVE: QueueName = QueueName::Archive;

/// Where a reader enters the archive.
#[derive(Debug, Clone, Copy)]
pub enum Begin {
    /// At this time or a little earlier, at the start of a chunk.
    Time(SystemTime),
    /// At this message.
    Offset(u64),
}

/// A reader of the archive, on its own channel.
pub struct StreamReader {
    stream: Consumer<Any>,
    /// The id of the message that was published when the reader was opened.
    marker: String,
}

impl StreamReader {
    /// Reads the archive, which keeps every raw batch for some days. Retention removes the oldest batches without an error,
    /// so that the caller must check that it found every batch that it needs.
    pub async fn open_archive(connection: &Connection, begin: Begin) -> Result<Self, QueueError> {
        // "Streams", Consuming: the forms of `x-stream-offset`.
        let offset = match begin {
            Begin::Time(since) => {
                let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
                AMQPValue::Timestamp(since.as_secs())
            }
            Begin::Offset(offset) => AMQPValue::LongLongInt(offset.try_into().unwrap_or(i64::MAX)),
        };
        let marker = format!("marker/{:032x}", rand::random::<u128>());
        let mut publisher = Publisher::open(connection).await?;
        publisher
            .publish(&[Outgoing::marker(ARCHIVE, &marker)])
            .await?;
        publisher.close().await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), offset);
        let opened = Consumer::open_queue(connection, ARCHIVE, PREFETCH, arguments).await;
        let stream = opened.map_err(|error| match error {
            // The argument of a stream.
            QueueError::Broker { source, .. } if amqp_code(&source) == Some(406) => {
                QueueError::NoStream {
                    queue: ARCHIVE.name(),
                }
            }
            other => other,
        })?;
        Ok(Self { stream, marker })
    }

    /// The next message from before the reader was opened, which stays in the stream; none after the last.
    pub async fn next_earlier(&mut self) -> Result<Option<RawDelivery>, QueueError> {
        let delivery = self.next().await?;
        Ok(Some(delivery).filter(|delivery| delivery.id() != self.marker))
    }

    /// The place of the next message, which may be the reader's own.
    pub(super) async fn next_offset(&mut self) -> Result<Option<u64>, QueueError> {
        Ok(self.next().await?.offset())
    }

    /// The marker is confirmed, so that a delivery must come.
    async fn next(&mut self) -> Result<RawDelivery, QueueError> {
        let next = timeout(CALL_TIMEOUT, self.stream.next_of_any()).await;
        let delivery = next.map_err(|_| QueueError::Timeout {
            doing: format!("reading {} to its end", ARCHIVE.name()),
            after: CALL_TIMEOUT,
        })??;
        if delivery.offset().is_none() {
            // Another broker ignores the argument, and acks delete what any other queue has.
            return Err(QueueError::NoStream {
                queue: ARCHIVE.name(),
            });
        }
        // What arrived before the connection was lost is read, so that the reader knows where to continue: an ack only
        // requests more.
        if let Err(error) = delivery.settle().await {
            tracing::debug!(%error, "no more of the stream can be requested");
        }
        Ok(delivery)
    }

    /// Stops reading.
    pub async fn close(self, connection: &Connection) {
        self.stream.close(connection).await;
    }
}
