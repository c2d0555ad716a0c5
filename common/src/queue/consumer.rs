//! Consuming. A delivery is settled once, by value, after its effects are durable.

use std::marker::PhantomData;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};

use super::outgoing::{ATTEMPTS, PARKED_AT};
use super::policy::DELIVERY_LIMIT;
use super::{Connection, QueueError, TRACEPARENT, within};
use crate::message::{Message, QueueName, RunId};
use crate::reason::Reason;

/// Bytes at most of the text of a header that a dead letter keeps, and of all that it keeps.
pub(super) const MAX_VALUE: usize = 1 << 10;
const MAX_HEADERS: usize = 8 << 10;

/// Bytes of a `traceparent` at most; the specification's has 55.
const MAX_TRACEPARENT: usize = 128;

/// Whether a header is the sender's and says something: the broker's own begin with `x-`, as far as they are not ours, and it
/// would send copies to the queues that `CC` and `BCC` name.
fn is_senders(name: &str) -> bool {
    (!name.starts_with("x-") || name.starts_with("x-etl-")) && !matches!(name, "CC" | "BCC")
}

/// Why a delivery cannot be read. It is the message's fault, and every reader finds the same.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error(
        "the message has the type {found:?}, and this version reads {wanted}; upgrade the service that reads it, then replay it"
    )]
    Kind { found: String, wanted: String },
    #[error("the body is not a {kind}: {problem}")]
    Body { kind: String, problem: String },
}

impl From<Unreadable> for Reason {
    fn from(unreadable: Unreadable) -> Self {
        let text = unreadable.to_string();
        match unreadable {
            // The parser quotes what it does not expect.
            Unreadable::Body { kind, .. } => {
                Self::quoting(text, format!("the body is not a {kind}"))
            }
            Unreadable::Kind { .. } => text.into(),
        }
    }
}

/// A consumer of one queue, on its own channel.
pub struct Consumer<M> {
    queue: QueueName,
    channel: Channel,
    stream: lapin::Consumer,
    message: PhantomData<fn() -> M>,
}

/// The message type of a consumer of `etl.dead` or of a stream, where a message may have any type.
pub enum Any {}

/// Takes messages of a queue one by one, on its own channel. Unlike a consumer it has no prefetched deliveries.
pub struct Puller {
    queue: QueueName,
    channel: Channel,
}

/// A delivery of a message that should be an `M`.
pub struct Delivery<M> {
    raw: RawDelivery,
    message: PhantomData<fn() -> M>,
}

/// A delivery whose body has not been read.
pub struct RawDelivery {
    queue: QueueName,
    id: String,
    inner: lapin::message::Delivery,
}

/// The broker's record of a message that it dead-lettered itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    pub queue: String,
    pub reason: String,
    pub count: i64,
}

impl<M: Message> Consumer<M> {
    /// Starts consuming the queue of `M` with at most `prefetch` deliveries in hand.
    pub async fn open(connection: &Connection, prefetch: u16) -> Result<Self, QueueError> {
        Self::open_from(connection, M::QUEUE, prefetch).await
    }

    /// The same of one of its queues.
    pub(super) async fn open_from(
        connection: &Connection,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Self, QueueError> {
        Self::open_queue(connection, queue, prefetch, FieldTable::default()).await
    }

    /// Waits for the next delivery. A stream that ends is an error. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Delivery<M>, QueueError> {
        self.next_raw().await.map(Delivery::from)
    }

    /// A delivery that has already arrived.
    pub fn try_next(&mut self) -> Option<Result<Delivery<M>, QueueError>> {
        self.next().now_or_never()
    }
}

impl Consumer<Any> {
    /// Starts consuming `etl.dead`.
    pub async fn open_dead(connection: &Connection, prefetch: u16) -> Result<Self, QueueError> {
        Self::open_queue(connection, QueueName::Dead, prefetch, FieldTable::default()).await
    }

    /// Waits for the next dead letter.
    pub async fn next_dead(&mut self) -> Result<RawDelivery, QueueError> {
        self.next_raw().await
    }
}

impl<M> Consumer<M> {
    pub(super) async fn open_queue(
        connection: &Connection,
        queue: QueueName,
        prefetch: u16,
        arguments: FieldTable,
    ) -> Result<Self, QueueError> {
        Self::open_named(connection, queue, queue.name(), prefetch, arguments).await
    }

    /// Consumes the queue `name`, which gets messages of `queue`.
    pub(super) async fn open_named(
        connection: &Connection,
        queue: QueueName,
        name: &str,
        prefetch: u16,
        arguments: FieldTable,
    ) -> Result<Self, QueueError> {
        let channel = connection.channel().await?;
        within(
            "setting the prefetch",
            channel.basic_qos(prefetch, BasicQosOptions::default()),
        )
        .await?;
        let doing = format!("consuming {name}");
        let consume = channel.basic_consume(
            name.into(),
            ShortString::default(),
            BasicConsumeOptions::default(),
            arguments,
        );
        let stream = within(&doing, consume).await?;
        Ok(Self {
            queue,
            channel,
            stream,
            message: PhantomData,
        })
    }

    pub(super) async fn next_raw(&mut self) -> Result<RawDelivery, QueueError> {
        let delivery = self.next_of_any().await?;
        // After a connection broke, the stream still yields prefetched deliveries. They cannot be acked, and are
        // redelivered.
        if !delivery.inner.acker.usable() {
            return Err(QueueError::ConsumerEnded {
                queue: self.queue.name(),
            });
        }
        // Each reader of the control messages returns them.
        if delivery.inner.redelivered && self.queue != QueueName::Control {
            metrics::counter!("etl_redeliveries_total", "queue" => self.queue.name()).increment(1);
        }
        Ok(delivery)
    }

    /// The next delivery, which can perhaps not be acked any more.
    pub(super) async fn next_of_any(&mut self) -> Result<RawDelivery, QueueError> {
        let queue = self.queue;
        match self.stream.next().await {
            Some(Ok(inner)) => Ok(RawDelivery::new(queue, inner)),
            None => Err(QueueError::ConsumerEnded {
                queue: queue.name(),
            }),
            Some(Err(source)) => Err(QueueError::broker(
                format!("consuming {}", queue.name()),
                source,
            )),
        }
    }

    /// Takes no more deliveries. Those in hand can still be acked.
    pub(super) async fn cancel(&self) -> Result<(), QueueError> {
        let doing = format!("ending the consumer of {}", self.queue.name());
        let options = BasicCancelOptions::default();
        let cancelled = self.channel.basic_cancel(self.stream.tag(), options);
        within(&doing, cancelled).await
    }

    /// Stops consuming. Deliveries that were not acked return to the queue.
    pub async fn close(self, connection: &Connection) {
        connection.close_channel(&self.channel).await;
    }
}

impl Puller {
    pub async fn open(connection: &Connection, queue: QueueName) -> Result<Self, QueueError> {
        let channel = connection.channel().await?;
        Ok(Self { queue, channel })
    }

    /// The first message of the queue; none when it is empty.
    pub async fn next(&self) -> Result<Option<RawDelivery>, QueueError> {
        let doing = format!("taking a message of {}", self.queue.name());
        let name = self.queue.name().into();
        let taken = self.channel.basic_get(name, BasicGetOptions::default());
        let taken = within(&doing, taken).await?;
        Ok(taken.map(|message| RawDelivery::new(self.queue, message.delivery)))
    }

    /// Returns what was not acked to the queue.
    pub async fn close(self, connection: &Connection) {
        connection.close_channel(&self.channel).await;
    }
}

impl<M: Message> Delivery<M> {
    /// The message, parsed and checked.
    pub fn read(&self) -> Result<M, Unreadable> {
        read_body(self.raw.kind(), self.raw.body())
    }
}

/// Parses and checks a message from its AMQP `type` and its body.
pub fn read_body<M: Message>(kind: &str, body: &[u8]) -> Result<M, Unreadable> {
    if !M::reads(kind) {
        let before = M::KIND_BEFORE.map(|kind| format!(" and {kind:?}"));
        return Err(Unreadable::Kind {
            found: kind.to_owned(),
            wanted: format!("{:?}{}", M::KIND, before.unwrap_or_default()),
        });
    }
    let unreadable = |problem: String| Unreadable::Body {
        kind: kind.to_owned(),
        problem,
    };
    let message = M::read(kind, body).map_err(unreadable)?;
    message.check().map_err(unreadable)?;
    Ok(message)
}

impl<M> Delivery<M> {
    /// Settles this delivery. An ack that cannot be sent is no error: the message is redelivered, and
    /// the ledger recognises it.
    pub async fn ack(self) -> Result<(), QueueError> {
        self.raw.ack().await
    }
}

impl<M> Delivery<M> {
    /// The delivery without its type.
    pub fn into_raw(self) -> RawDelivery {
        self.raw
    }
}

impl<M> From<RawDelivery> for Delivery<M> {
    fn from(raw: RawDelivery) -> Self {
        Self {
            raw,
            message: PhantomData,
        }
    }
}

impl<M> std::ops::Deref for Delivery<M> {
    type Target = RawDelivery;

    fn deref(&self) -> &RawDelivery {
        &self.raw
    }
}

impl RawDelivery {
    fn new(queue: QueueName, inner: lapin::message::Delivery) -> Self {
        let id = inner.properties.message_id().as_ref();
        let id = id.map(ToString::to_string).unwrap_or_default();
        Self { queue, id, inner }
    }

    /// The `message_id`, or an empty text.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name of its queue.
    pub fn queue(&self) -> &'static str {
        self.queue.name()
    }

    /// The AMQP property `type`, or an empty text.
    pub fn kind(&self) -> &str {
        self.inner
            .properties
            .kind()
            .as_ref()
            .map(ShortString::as_str)
            .unwrap_or_default()
    }

    /// The body as it was delivered.
    pub fn body(&self) -> &[u8] {
        &self.inner.data
    }

    /// The run in the headers, if any.
    pub fn run(&self) -> Option<RunId> {
        self.header("run")?.parse().ok()
    }

    /// The header `traceparent`, if any: the span that the message comes from.
    pub fn traceparent(&self) -> Option<String> {
        // It travels on with the messages that follow from this one.
        self.header(TRACEPARENT)
            .filter(|context| context.len() <= MAX_TRACEPARENT)
    }

    /// The number of deliveries of this message, this one included.
    pub fn deliveries(&self) -> u32 {
        let counted = match self.field("x-delivery-count") {
            Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).ok(),
            Some(AMQPValue::LongInt(count)) => u32::try_from(*count).ok(),
            Some(AMQPValue::LongUInt(count)) => Some(*count),
            _ => None,
        };
        1 + counted.unwrap_or(u32::from(self.inner.redelivered))
    }

    /// Whether its broker delivered it so often that it is not handled again.
    pub fn is_over_limit(&self) -> bool {
        self.deliveries() >= DELIVERY_LIMIT
    }

    /// How often it was parked.
    pub fn parked_attempts(&self) -> u32 {
        let attempts = self
            .parked_at()
            .and_then(|_| self.header(ATTEMPTS)?.parse().ok());
        attempts.unwrap_or(0)
    }

    /// How long it has been parked.
    pub fn parked_for(&self) -> Duration {
        let since = self.parked_at().unwrap_or_else(jiff::Timestamp::now);
        let waited = jiff::Timestamp::now().duration_since(since);
        waited.try_into().unwrap_or_default()
    }

    /// When it was parked first, if it is parked.
    pub(super) fn parked_at(&self) -> Option<jiff::Timestamp> {
        self.header(PARKED_AT)?.parse().ok()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.field(name)? {
            AMQPValue::LongString(text) => {
                Some(String::from_utf8_lossy(text.as_bytes()).into_owned())
            }
            AMQPValue::ShortString(text) => Some(text.to_string()),
            AMQPValue::LongUInt(number) => Some(number.to_string()),
            AMQPValue::LongInt(number) => Some(number.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            AMQPValue::Boolean(value) => Some(value.to_string()),
            _ => None,
        }
    }

    /// The place in a stream.
    pub fn offset(&self) -> Option<u64> {
        match self.field("x-stream-offset")? {
            AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
            _ => None,
        }
    }

    /// The headers that have a text form, by name.
    pub fn headers(&self) -> std::collections::BTreeMap<String, String> {
        let table = self.inner.properties.headers().as_ref();
        let names = table.into_iter().flat_map(|table| table.inner().keys());
        names
            .filter_map(|name| Some((name.to_string(), self.header(name.as_str())?)))
            .collect()
    }

    /// The broker's record, where the broker dead-lettered the message.
    pub fn death(&self) -> Option<Death> {
        let AMQPValue::FieldArray(deaths) = self.field("x-death")? else {
            return None;
        };
        let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else {
            return None;
        };
        let text = |name: &str| match newest.inner().get(name) {
            Some(AMQPValue::LongString(text)) => {
                String::from_utf8_lossy(text.as_bytes()).into_owned()
            }
            _ => String::new(),
        };
        let count = match newest.inner().get("count") {
            Some(AMQPValue::LongLongInt(count)) => *count,
            _ => 1,
        };
        Some(Death {
            queue: text("queue"),
            reason: text("reason"),
            count,
        })
    }

    pub(super) fn properties(&self) -> &BasicProperties {
        &self.inner.properties
    }

    /// The headers of the sender that have a text form and are not too long, up to [`MAX_HEADERS`] bytes together, and the
    /// number of the others. Without the broker's own, which the broker refuses from a client. The run, the job and the
    /// trace come first.
    pub(super) fn bounded_headers(&self) -> (FieldTable, u32) {
        let names = self.inner.properties.headers().iter();
        let mut names: Vec<_> = names.flat_map(|table| table.inner().keys()).collect();
        names.retain(|name| is_senders(name.as_str()));
        names.sort_by_key(|name| !matches!(name.as_str(), "run" | "job" | TRACEPARENT));
        let (mut kept, mut bytes, mut omitted) = (FieldTable::default(), 0, 0);
        for name in names {
            let value = self.header(name.as_str());
            let size = value
                .as_ref()
                .map(|value| name.as_str().len() + value.len());
            match (value, size) {
                (Some(value), Some(size))
                    if value.len() <= MAX_VALUE && bytes + size <= MAX_HEADERS =>
                {
                    bytes += size;
                    kept.insert(name.clone(), AMQPValue::LongString(value.into()));
                }
                _ => omitted += 1,
            }
        }
        (kept, omitted)
    }

    fn field(&self, name: &str) -> Option<&AMQPValue> {
        self.inner.properties.headers().as_ref()?.inner().get(name)
    }

    /// As [`Delivery::ack`].
    pub async fn ack(self) -> Result<(), QueueError> {
        self.settle().await
    }

    /// An ack by which the delivery stays at hand: for a stream, where acks only request more.
    pub(super) async fn settle(&self) -> Result<(), QueueError> {
        let doing = format!("acking a delivery of {}", self.queue.name());
        if !within(&doing, self.inner.acker.ack(BasicAckOptions::default())).await? {
            tracing::debug!(
                queue.name = self.queue.name(),
                message.id = self.id,
                "ack not sent; the message is redelivered"
            );
        }
        Ok(())
    }
}
