//! The queues and their arguments, declared by every service before it does anything else.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use super::{Connection, QueueError, amqp_code, within};

/// The queues of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueName {
    /// Tasks for extractors.
    Extract,
    /// Batches as Athena gave them, for transformers.
    Raw,
    /// Batches for loaders.
    Valid,
    /// What happened to runs, for loaders.
    Events,
    /// A stream that keeps every raw batch: what a replay reads.
    Archive,
    /// A small stream of orders about runs, which every extractor reads and follows.
    Control,
    /// What could not be processed, with the reason.
    Dead,
}

/// The most that may wait in `etl.raw` and in `etl.valid`, in bytes each: a stage that is away stops
/// the stages before it long before a disk is full.
const WORK_QUEUE_BYTES: i64 = 1 << 30;

/// What the archive keeps at most, and for how long. Retention works by whole segments.
const ARCHIVE_BYTES: i64 = 20 << 30;
const ARCHIVE_AGE: &str = "7D";
const ARCHIVE_SEGMENT_BYTES: i64 = 64 << 20;

/// What the stream of orders keeps: tens of thousands of them, read within a second. Whoever has
/// forgotten one works in vain, and the books have the last word.
const CONTROL_BYTES: i64 = 8 << 20;
const CONTROL_AGE: &str = "30D";
const CONTROL_SEGMENT_BYTES: i64 = 1 << 20;

/// Deliveries after which the broker itself gives up on a message. Services dead-letter a message
/// long before, with a reason; this is for the one that kills its process every time.
const DELIVERY_LIMIT: i64 = 50;

impl QueueName {
    /// In the order in which they are declared: what others dead-letter to comes first, since a
    /// message that is dead-lettered to a queue that is not there is gone.
    pub const ALL: [Self; 7] = [
        Self::Dead,
        Self::Archive,
        Self::Control,
        Self::Extract,
        Self::Raw,
        Self::Valid,
        Self::Events,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Extract => "etl.extract",
            Self::Raw => "etl.raw",
            Self::Valid => "etl.valid",
            Self::Events => "etl.events",
            Self::Archive => "etl.archive",
            Self::Control => "etl.control",
            Self::Dead => "etl.dead",
        }
    }

    pub(super) fn arguments(self) -> FieldTable {
        let mut table = FieldTable::default();
        let mut set = |name: &str, value: AMQPValue| {
            table.insert(name.into(), value);
        };
        let text = |value: &str| AMQPValue::LongString(value.into());
        match self {
            Self::Archive | Self::Control => {
                let (age, bytes, segment) = if self == Self::Archive {
                    (ARCHIVE_AGE, ARCHIVE_BYTES, ARCHIVE_SEGMENT_BYTES)
                } else {
                    (CONTROL_AGE, CONTROL_BYTES, CONTROL_SEGMENT_BYTES)
                };
                set("x-queue-type", text("stream"));
                set("x-max-age", text(age));
                set("x-max-length-bytes", AMQPValue::LongLongInt(bytes));
                set(
                    "x-stream-max-segment-size-bytes",
                    AMQPValue::LongLongInt(segment),
                );
            }
            Self::Dead => {
                set("x-queue-type", text("quorum"));
                // -1 would be the word for 'none' since 4.0, where the default is 20; 3.x refuses it.
                set("x-delivery-limit", AMQPValue::LongLongInt(1_000_000));
            }
            Self::Extract | Self::Raw | Self::Valid | Self::Events => {
                set("x-queue-type", text("quorum"));
                set("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT));
                set("x-dead-letter-exchange", text(""));
                set("x-dead-letter-routing-key", text(Self::Dead.name()));
                set("x-dead-letter-strategy", text("at-least-once"));
                // Also what at-least-once dead-lettering demands.
                set("x-overflow", text("reject-publish"));
            }
        }
        if matches!(self, Self::Raw | Self::Valid) {
            set(
                "x-max-length-bytes",
                AMQPValue::LongLongInt(WORK_QUEUE_BYTES),
            );
        }
        table
    }
}

/// Declares every queue. One that exists with other arguments is refused with its name.
pub async fn declare(connection: &Connection) -> Result<(), QueueError> {
    let channel = connection.channel().await?;
    for queue in QueueName::ALL {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let doing = format!("declaring the queue {}", queue.name());
        within(
            &doing,
            channel.queue_declare(queue.name().into(), options, queue.arguments()),
        )
        .await
        .map_err(|error| match error {
            QueueError::Broker { source, .. } if amqp_code(&source) == Some(406) => {
                QueueError::Mismatch {
                    queue: queue.name(),
                    source,
                }
            }
            other => other,
        })?;
    }
    connection.close_channel(&channel).await;
    Ok(())
}
