//! Reading a stream over AMQP. It needs a prefetch, an offset to begin at, and acks, which only request
//! more deliveries. Reading does not empty a stream, and a stream has no end: a reader that must see all
//! earlier messages publishes a marker first.

use futures::StreamExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::{Connection, QueueError, RawDelivery, within};
use crate::message::QueueName;

/// Unacked deliveries at most.
const PREFETCH: u16 = 32;

/// A reader of a stream, on its own channel.
pub(super) struct StreamReader {
    queue: QueueName,
    channel: Channel,
    stream: lapin::Consumer,
}

impl StreamReader {
    /// Reads from `offset` on: `x-stream-offset` in one of its forms ("Streams", Consuming).
    pub(super) async fn open(
        connection: &Connection,
        queue: QueueName,
        offset: AMQPValue,
    ) -> Result<Self, QueueError> {
        let channel = connection.channel().await?;
        let qos = channel.basic_qos(PREFETCH, BasicQosOptions::default());
        within("setting the prefetch", qos).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), offset);
        let consume = channel.basic_consume(
            queue.name().into(),
            ShortString::default(),
            BasicConsumeOptions::default(),
            arguments,
        );
        let stream = within(&format!("reading {}", queue.name()), consume).await?;
        Ok(Self {
            queue,
            channel,
            stream,
        })
    }

    /// Waits for the next message, which stays in the stream.
    pub(super) async fn next(&mut self) -> Result<RawDelivery, QueueError> {
        let doing = || format!("reading {}", self.queue.name());
        match self.stream.next().await {
            Some(Ok(delivery)) => {
                let acked = delivery.acker.ack(BasicAckOptions::default());
                within(&doing(), acked).await?;
                Ok(RawDelivery::new(self.queue, delivery))
            }
            Some(Err(source)) => Err(QueueError::broker(doing(), source)),
            None => Err(QueueError::ConsumerEnded {
                queue: self.queue.name(),
            }),
        }
    }

    /// Stops reading.
    pub(super) async fn close(self, connection: &Connection) {
        connection.close_channel(&self.channel).await;
    }
}
