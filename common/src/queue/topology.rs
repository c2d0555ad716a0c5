//! The queues and their arguments. Every service declares all queues before it does anything else, and decides by the same rule
//! whether there is an archive: all programs with the same broker find the same.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use serde::Deserialize;

use super::kind::{Kind, has_kind};
use super::{Connection, QueueError, amqp_code, inspect, within};
use crate::message::QueueName;

/// The limit of each queue of batches, in bytes: a stage that does not run stops the stages
/// before it long before a disk is full.
const WORK_QUEUE_BYTES: i64 = 1 << 30;

/// The limit of `etl.parked`, in bytes: a target that is locked for long fills it.
const PARKED_QUEUE_BYTES: i64 = 4 << 30;

/// The retention of the archive, by size and by age. RabbitMQ removes whole segments.
pub const ARCHIVE_BYTES: u64 = 20 << 30;
pub(super) const ARCHIVE_DAYS: u32 = 7;
pub(super) const ARCHIVE_SEGMENT_BYTES: usize = 64 << 20;

/// The retention of the control messages: thousands of them, which are read within a second; the oldest go
/// first. An extractor that misses one works in vain, and the ledger still decides.
const CONTROL_MESSAGES: i64 = 10_000;
const CONTROL_AGE: Duration = Duration::from_hours(30 * 24);

/// More than `etl.control` keeps, with those that arrive while it is read: its reader has all in hand at once.
pub(super) const CONTROL_PREFETCH: u16 = 30_000;

/// The members of the archive on a cluster, each with a copy. That of a quorum queue is RabbitMQ's default.
const MEMBERS: i32 = 3;

/// Deliveries after which the broker itself dead-letters a message. Services dead-letter it much earlier,
/// with a reason; this limit is for a message that kills every process before the policy applies.
const DELIVERY_LIMIT: i64 = 50;

/// Deliveries after which the broker moves a dead letter to `etl.unreadable`: no loader can receive or store it, and the
/// others must not wait behind it.
const DEAD_DELIVERY_LIMIT: i64 = 50;

/// The limit of the queues that nobody empties: by default there is one since RabbitMQ 4.0, and without a queue to
/// dead-letter to it would delete messages. 3.x refuses -1, 'no limit'.
const NO_DELIVERY_LIMIT: i64 = 1_000_000;

/// The arguments that this version declares a queue with.
pub(super) fn arguments(queue: QueueName) -> FieldTable {
    let mut table = FieldTable::default();
    let mut set = |name: &str, value: AMQPValue| {
        table.insert(name.into(), value);
    };
    let text = |value: &str| AMQPValue::LongString(value.into());
    let number = AMQPValue::LongLongInt;
    let is_stream = queue == QueueName::Archive;
    set(
        "x-queue-type",
        text(if is_stream { "stream" } else { "quorum" }),
    );
    // By default all leaders are on the node that the first client happens to be connected to.
    set("x-queue-leader-locator", text("balanced"));
    match queue {
        QueueName::Archive => {
            // As many as a quorum queue has; else every node of the cluster gets one.
            set("x-initial-cluster-size", AMQPValue::LongInt(MEMBERS));
            set("x-max-age", text(&format!("{ARCHIVE_DAYS}D")));
            set("x-max-length-bytes", number(ARCHIVE_BYTES.cast_signed()));
            set(
                "x-stream-max-segment-size-bytes",
                number((ARCHIVE_SEGMENT_BYTES as u64).cast_signed()),
            );
        }
        QueueName::Control => {
            let age = i64::try_from(CONTROL_AGE.as_millis()).unwrap_or(i64::MAX);
            set("x-delivery-limit", number(NO_DELIVERY_LIMIT));
            set("x-message-ttl", number(age));
            set("x-max-length", number(CONTROL_MESSAGES));
            set("x-overflow", text("drop-head"));
            // A quorum queue ignores that a consumer is exclusive.
            set("x-single-active-consumer", AMQPValue::Boolean(true));
        }
        QueueName::Unreadable => {
            set("x-delivery-limit", number(NO_DELIVERY_LIMIT));
        }
        QueueName::Dead
        | QueueName::Extract
        | QueueName::ExtractBulk
        | QueueName::Raw
        | QueueName::RawBulk
        | QueueName::Valid
        | QueueName::ValidBulk
        | QueueName::Parked
        | QueueName::Events => {
            let (limit, next) = if queue == QueueName::Dead {
                (DEAD_DELIVERY_LIMIT, QueueName::Unreadable)
            } else {
                (DELIVERY_LIMIT, QueueName::Dead)
            };
            set("x-delivery-limit", number(limit));
            set("x-dead-letter-exchange", text(""));
            set("x-dead-letter-routing-key", text(next.name()));
            set("x-dead-letter-strategy", text("at-least-once"));
            // At-least-once dead-lettering requires it, too.
            set("x-overflow", text("reject-publish"));
        }
    }
    if let Some(bytes) = max_bytes(queue) {
        set("x-max-length-bytes", number(bytes));
    }
    table
}

/// The limit of a queue in bytes, where it has one.
fn max_bytes(queue: QueueName) -> Option<i64> {
    match queue {
        QueueName::Raw | QueueName::RawBulk | QueueName::Valid | QueueName::ValidBulk => {
            Some(WORK_QUEUE_BYTES)
        }
        QueueName::Parked => Some(PARKED_QUEUE_BYTES),
        _ => None,
    }
}

/// Whether batches are kept for replays (`ETL_ARCHIVE`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Archive {
    /// In the stream `etl.archive`, where the broker has streams.
    #[default]
    Auto,
    /// In the stream, or the process ends.
    Stream,
    /// Not at all: a replay reads the query's result again.
    Off,
}

impl TryFrom<String> for Archive {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "stream" => Ok(Self::Stream),
            "off" => Ok(Self::Off),
            _ => Err("it is none of auto, stream and off"),
        }
    }
}

/// Who declares the queues (`ETL_DECLARE`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Declare {
    /// Each process that connects.
    #[default]
    Create,
    /// Somebody else, since the user may not: `etl topology` prints the definitions.
    Skip,
}

impl TryFrom<String> for Declare {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "create" => Ok(Self::Create),
            "skip" => Ok(Self::Skip),
            _ => Err("it is neither create nor skip"),
        }
    }
}

/// What the settings say about the queues.
#[derive(Debug, Clone, Copy, Default)]
pub struct Topology {
    pub archive: Archive,
    pub declare: Declare,
}

/// Whether there is an archive, as a process found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archived {
    /// The stream `etl.archive` keeps each batch.
    Yes,
    /// Nothing does, and why.
    No(String),
}

impl Archived {
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }
}

/// Declares every queue, or looks whether it is there. A queue that exists with other arguments is an error that names it.
pub async fn declare(connection: &Connection, topology: Topology) -> Result<Archived, QueueError> {
    let archived = archived(connection, topology).await?;
    let has = |queue| queue != QueueName::Archive || archived.is_yes();
    let wanted = QueueName::ALL.into_iter().filter(|queue| has(*queue));
    if topology.declare == Declare::Skip {
        for queue in wanted {
            expect(connection, queue).await?;
        }
        expect_exchange(connection).await?;
        return Ok(archived);
    }
    let channel = connection.channel().await?;
    for queue in wanted {
        declare_queue(&channel, queue).await?;
    }
    declare_control(&channel).await?;
    connection.close_channel(&channel).await;
    Ok(archived)
}

/// Whether there is an archive. That its queue is missing is no reason against it, only a broker without streams is.
async fn archived(connection: &Connection, topology: Topology) -> Result<Archived, QueueError> {
    if topology.archive == Archive::Off {
        return Ok(Archived::No("ETL_ARCHIVE is off".to_owned()));
    }
    let skips = topology.declare == Declare::Skip;
    if skips {
        return Ok(Archived::Yes);
    }
    match inspect::exists(connection, QueueName::Archive).await {
        // Who may not look may not declare it either, and is told that with the remedy.
        Ok(true) | Err(QueueError::Denied { .. }) => return Ok(Archived::Yes),
        Ok(false) => {}
        Err(error) => return Err(error),
    }
    let why = match has_streams(connection).await? {
        Kind::Has | Kind::Unknown => return Ok(Archived::Yes),
        Kind::Pretends => "it accepts the type and gives another queue".to_owned(),
        Kind::Lacks(why) => why,
    };
    if topology.archive == Archive::Stream {
        return Err(QueueError::NoStreams { why });
    }
    Ok(Archived::No(format!("the broker has no streams: {why}")))
}

/// Whether the broker has streams, on a connection of its own: one that has none closes it.
pub async fn has_streams(connection: &Connection) -> Result<Kind, QueueError> {
    let connection = connection.another("etl probing").await?;
    let found = has_kind(&connection, "stream").await;
    connection.close().await;
    found
}

async fn declare_queue(channel: &Channel, queue: QueueName) -> Result<(), QueueError> {
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let doing = format!("declaring the queue {}", queue.name());
    let declared = channel.queue_declare(queue.name().into(), options, arguments(queue));
    let declared = within(&doing, declared).await;
    declared.map(drop).map_err(|error| match error {
        QueueError::Broker { source, .. } if amqp_code(&source) == Some(406) => {
            let queue = queue.name();
            QueueError::Mismatch { queue, source }
        }
        QueueError::Denied { source, .. } => QueueError::MayNotDeclare { doing, source },
        other => other,
    })
}

/// Looks whether a queue is there. Since RabbitMQ 4.3 a user who may not declare it may not even look, and finds out when it
/// uses the queue.
async fn expect(connection: &Connection, queue: QueueName) -> Result<(), QueueError> {
    match inspect::exists(connection, queue).await {
        Ok(true) | Err(QueueError::Denied { .. }) => Ok(()),
        Ok(false) => Err(QueueError::Absent {
            queue: queue.name(),
        }),
        Err(error) => Err(error),
    }
}

/// The same for the exchange of the control messages.
async fn expect_exchange(connection: &Connection) -> Result<(), QueueError> {
    let exchange = QueueName::Control.exchange();
    let channel = connection.channel().await?;
    let options = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let (kind, none) = (ExchangeKind::Fanout, FieldTable::default());
    let doing = format!("looking for the exchange {exchange}");
    let declared = channel.exchange_declare(exchange.into(), kind, options, none);
    match within(&doing, declared).await {
        Ok(()) => {
            connection.close_channel(&channel).await;
            Ok(())
        }
        Err(QueueError::Denied { .. }) => Ok(()),
        Err(QueueError::Broker { source, .. }) if amqp_code(&source) == Some(404) => {
            Err(QueueError::Absent { queue: EXCHANGE })
        }
        Err(error) => Err(error),
    }
}

/// How an error names it.
const EXCHANGE: &str = "etl.control, an exchange,";

/// Declares the exchange of the control messages, and binds the queue that keeps them.
async fn declare_control(channel: &Channel) -> Result<(), QueueError> {
    let exchange = QueueName::Control.exchange();
    let doing = format!("declaring the exchange {exchange}");
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let (kind, none) = (ExchangeKind::Fanout, FieldTable::default());
    let declared = channel.exchange_declare(exchange.into(), kind, options, none);
    within(&doing, declared).await?;
    bind_control(channel, QueueName::Control.name()).await
}

async fn bind_control(channel: &Channel, queue: &str) -> Result<(), QueueError> {
    let exchange = QueueName::Control.exchange();
    let doing = format!("binding the queue {queue} to the exchange {exchange}");
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    let bound = channel.queue_bind(queue.into(), exchange.into(), "".into(), options, none);
    within(&doing, bound).await
}

/// Declares a queue of this connection alone, which gets every control message from now on, and ends with the
/// connection.
pub(super) async fn declare_control_follower(
    connection: &Connection,
) -> Result<String, QueueError> {
    let channel = connection.channel().await?;
    // Named here: the broker's own names match no permission on `etl.*`.
    let name = format!("etl.control.{:016x}", rand::random::<u64>());
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    let most = AMQPValue::LongLongInt(CONTROL_MESSAGES);
    arguments.insert("x-max-length".into(), most);
    let doing = format!("declaring the queue {name}");
    let declared = channel.queue_declare(name.as_str().into(), options, arguments);
    within(&doing, declared).await?;
    bind_control(&channel, &name).await?;
    connection.close_channel(&channel).await;
    Ok(name)
}
