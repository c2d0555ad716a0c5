//! Reading the state of the broker without changing it.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::consumer::{Any, Consumer};
use super::error::{amqp_code, text};
use super::topology::arguments;
use super::{Connection, MAX_BODY, QueueError, within};
use crate::message::QueueName;

/// The counts of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Messages that are ready.
    pub messages: u32,
    /// Its consumers.
    pub consumers: u32,
}

/// How a queue compares with what this version declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    AsWanted,
    /// It does not exist.
    Missing,
    /// It has other arguments; the broker's sentence names them.
    Otherwise(String),
    /// It exists, and this user may not compare its arguments.
    Unknown,
}

/// A quorum queue that does not report its counts within 250 ms is reported as empty, without consumers. An empty answer
/// that took this long is therefore ignored.
const MAX_ANSWER_TIME: Duration = Duration::from_millis(200);

/// Attempts to read the counts of a queue.
const MAX_ATTEMPTS: u32 = 8;

/// The counts of a queue, or none when it does not exist.
///
/// # Errors
/// Besides those of the broker, [`QueueError::Timeout`] where the queue is too busy to report them.
pub async fn look(
    connection: &Connection,
    queue: QueueName,
) -> Result<Option<QueueState>, QueueError> {
    let doing = format!("reading the counts of the queue {}", queue.name());
    for _ in 0..MAX_ATTEMPTS {
        let asked = Instant::now();
        let Some(state) = counts(connection, queue, &doing).await? else {
            return Ok(None);
        };
        let took = asked.elapsed();
        if state.messages > 0 || state.consumers > 0 || took < MAX_ANSWER_TIME {
            return Ok(Some(state));
        }
    }
    Err(QueueError::Timeout {
        doing,
        after: MAX_ANSWER_TIME * MAX_ATTEMPTS,
    })
}

/// Whether a queue exists. However long the broker takes to say so, unlike the counts.
pub async fn exists(connection: &Connection, queue: QueueName) -> Result<bool, QueueError> {
    let doing = format!("looking for the queue {}", queue.name());
    Ok(counts(connection, queue, &doing).await?.is_some())
}

async fn counts(
    connection: &Connection,
    queue: QueueName,
    doing: &str,
) -> Result<Option<QueueState>, QueueError> {
    // A refusal closes the channel, so that each attempt has its own.
    let channel = connection.channel().await?;
    let options = QueueDeclareOptions {
        passive: true,
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(queue.name().into(), options, FieldTable::default());
    let found = match within(doing, declared).await {
        Ok(found) => found,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    connection.close_channel(&channel).await;
    Ok(Some(QueueState {
        messages: found.message_count(),
        consumers: found.consumer_count(),
    }))
}

/// How long a queue may take to deliver its first message before it counts as empty.
const DELIVERY_TIMEOUT: Duration = Duration::from_millis(500);

/// Whether a client can receive the first message of a queue; true for an empty queue. It counts as a delivery of the
/// message, and where it is false, the connection is gone.
pub async fn is_receivable(connection: &Connection, queue: QueueName) -> Result<bool, QueueError> {
    let first = async {
        let arguments = FieldTable::default();
        let mut consumer = Consumer::<Any>::open_queue(connection, queue, 1, arguments).await?;
        match timeout(DELIVERY_TIMEOUT, consumer.next_raw()).await {
            Ok(delivered) => delivered.map(drop),
            Err(_) => Ok(()),
        }
    };
    match first.await {
        Ok(()) => Ok(true),
        Err(QueueError::Unreceivable { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Compares the arguments of a queue with those that this version declares. Creates no queue.
pub async fn check(connection: &Connection, queue: QueueName) -> Result<Declared, QueueError> {
    if !exists(connection, queue).await? {
        return Ok(Declared::Missing);
    }
    let channel = connection.channel().await?;
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let doing = format!("comparing the queue {}", queue.name());
    let declared = channel.queue_declare(queue.name().into(), options, arguments(queue));
    match within(&doing, declared).await {
        Ok(_) => {
            connection.close_channel(&channel).await;
            Ok(Declared::AsWanted)
        }
        Err(error) if reply(&error) == Some(406) => Ok(Declared::Otherwise(broker_text(&error))),
        Err(QueueError::Denied { .. }) => Ok(Declared::Unknown),
        Err(error) => Err(error),
    }
}

/// Whether the broker accepts the largest message that is ever sent, or the broker's sentence why not.
/// The message goes to a queue that does not exist, so that it returns and no queue keeps it.
pub async fn takes_largest(connection: &Connection) -> Result<Result<usize, String>, QueueError> {
    let channel = connection.channel().await?;
    let confirms = channel.confirm_select(ConfirmSelectOptions::default());
    within("turning publisher confirms on", confirms).await?;
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let body = vec![b' '; MAX_BODY];
    let properties = BasicProperties::default();
    let doing = "publishing the largest message as a probe";
    let sent = channel.basic_publish("".into(), "etl.probe".into(), options, &body, properties);
    let answer = match within(doing, sent).await {
        Ok(confirm) => within(doing, confirm).await.map(drop),
        Err(error) => Err(error),
    };
    match answer {
        Ok(()) => {
            connection.close_channel(&channel).await;
            Ok(Ok(MAX_BODY))
        }
        Err(error) if reply(&error) == Some(406) => Ok(Err(broker_text(&error))),
        Err(error) => Err(error),
    }
}

/// Whether a queue does not exist. On a cluster, 404 `NOT_FOUND` is also the answer for a queue whose members are away.
fn is_missing(error: &QueueError) -> bool {
    reply(error) == Some(404) && broker_text(error).contains("no queue")
}

/// The AMQP reply code of a refusal.
fn reply(error: &QueueError) -> Option<u16> {
    match error {
        QueueError::Broker { source, .. } | QueueError::Denied { source, .. } => amqp_code(source),
        _ => None,
    }
}

/// The sentence of the broker in a refusal.
fn broker_text(error: &QueueError) -> String {
    match error {
        QueueError::Broker { source, .. } | QueueError::Denied { source, .. } => text(source),
        other => other.to_string(),
    }
}
