//! The arguments of the queues. Every service declares all queues before it does anything else.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use super::{Connection, QueueError, amqp_code, within};
use crate::message::QueueName;

/// The limit of `etl.raw` and of `etl.valid`, in bytes each: a stage that does not run stops the stages
/// before it long before a disk is full.
const WORK_QUEUE_BYTES: i64 = 1 << 30;

/// The limit of `etl.parked`, in bytes: a target that is locked for long fills it.
const PARKED_QUEUE_BYTES: i64 = 4 << 30;

/// The retention of the archive, by size and by age. RabbitMQ removes whole segments.
const ARCHIVE_BYTES: i64 = 20 << 30;
const ARCHIVE_AGE: &str = "7D";
const ARCHIVE_SEGMENT_BYTES: i64 = 64 << 20;

/// The retention of the control messages: tens of thousands of them, which are read within a second. An
/// extractor that misses one works in vain, and the ledger still decides.
const CONTROL_BYTES: i64 = 8 << 20;
const CONTROL_AGE: &str = "30D";
const CONTROL_SEGMENT_BYTES: i64 = 1 << 20;

/// Deliveries after which the broker itself dead-letters a message. Services dead-letter it much earlier,
/// with a reason; this limit is for a message that kills every process before the policy applies.
const DELIVERY_LIMIT: i64 = 50;

/// The arguments that this version declares a queue with.
pub(super) fn arguments(queue: QueueName) -> FieldTable {
    let mut table = FieldTable::default();
    let mut set = |name: &str, value: AMQPValue| {
        table.insert(name.into(), value);
    };
    let text = |value: &str| AMQPValue::LongString(value.into());
    match queue {
        QueueName::Archive | QueueName::Control => {
            let (age, bytes, segment) = if queue == QueueName::Archive {
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
        QueueName::Dead => {
            set("x-queue-type", text("quorum"));
            // Since 4.0 the default is 20, and -1 means 'no limit'; 3.x refuses -1.
            set("x-delivery-limit", AMQPValue::LongLongInt(1_000_000));
        }
        QueueName::Extract
        | QueueName::Raw
        | QueueName::Valid
        | QueueName::Parked
        | QueueName::Events => {
            set("x-queue-type", text("quorum"));
            set("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT));
            set("x-dead-letter-exchange", text(""));
            set("x-dead-letter-routing-key", text(QueueName::Dead.name()));
            set("x-dead-letter-strategy", text("at-least-once"));
            // At-least-once dead-lettering requires it, too.
            set("x-overflow", text("reject-publish"));
        }
    }
    let bytes = match queue {
        QueueName::Raw | QueueName::Valid => WORK_QUEUE_BYTES,
        QueueName::Parked => PARKED_QUEUE_BYTES,
        _ => return table,
    };
    table.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(bytes));
    table
}

/// Declares every queue. A queue that exists with other arguments is an error that names it.
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
            channel.queue_declare(queue.name().into(), options, arguments(queue)),
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
