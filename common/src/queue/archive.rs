//! Reading the archive: the stream that keeps every raw batch for some days.
//!
//! A stream is not emptied by reading it, and has no end: whoever reads it publishes a marker first
//! and stops there. It begins where retention has left it, silently, so that a reader has to check
//! that it found what it was looking for.

use std::time::{SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::{CALL, Connection, QueueError, QueueName, RawDelivery, within, within_time};

/// Deliveries on their way. A stream wants a prefetch, and acks only for credit.
const PREFETCH: u16 = 32;

/// A reader of the archive.
pub struct ArchiveReader {
    channel: Channel,
    stream: lapin::Consumer,
}

impl ArchiveReader {
    /// Reads from this time on, or from a little earlier: a stream is entered at a chunk's beginning.
    pub async fn open(connection: &Connection, since: SystemTime) -> Result<Self, QueueError> {
        let channel = connection.channel().await?;
        within(
            "setting the prefetch",
            channel.basic_qos(PREFETCH, BasicQosOptions::default()),
        )
        .await?;
        let seconds = since
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::Timestamp(seconds));
        let consume = channel.basic_consume(
            QueueName::Archive.name().into(),
            ShortString::default(),
            BasicConsumeOptions::default(),
            arguments,
        );
        let stream = within("reading the archive", consume).await?;
        Ok(Self { channel, stream })
    }

    /// The next message, which stays in the archive.
    pub async fn next(&mut self) -> Result<RawDelivery, QueueError> {
        let next = async { Ok(self.stream.next().await) };
        let queue = QueueName::Archive;
        match within_time(CALL, "reading the archive", next).await? {
            Some(Ok(delivery)) => {
                let acked = delivery.acker.ack(BasicAckOptions::default());
                within("reading the archive", acked).await?;
                Ok(RawDelivery::new(queue, delivery))
            }
            Some(Err(source)) => Err(QueueError::broker("reading the archive", source)),
            None => Err(QueueError::ConsumerEnded {
                queue: queue.name(),
            }),
        }
    }

    /// Stops reading.
    pub async fn close(self, connection: &Connection) {
        connection.close_channel(&self.channel).await;
    }
}
