//! Looking at the broker without changing anything.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use super::publisher::MAX_BODY;
use super::{Connection, QueueError, QueueName, amqp_code, within};

/// How a queue stands at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Messages that wait to be delivered.
    pub messages: u32,
    /// Who takes them.
    pub consumers: u32,
}

/// Whether a queue is as this version declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    AsWanted,
    /// Nobody has declared it yet.
    Missing,
    /// It has other arguments; the broker's own sentence says which.
    Otherwise(String),
}

/// A quorum queue that does not tell its counts within 250 ms is said to have no messages and no consumers. An answer that
/// says so and took this long tells nothing.
const UNTOLD: Duration = Duration::from_millis(200);

/// How often a queue that does not tell is asked.
const LOOKS: u32 = 8;

/// How a queue stands; none when there is no such queue.
///
/// # Errors
/// Besides those of the broker, [`QueueError::Timeout`] where the queue is too busy to tell.
pub async fn look(
    connection: &Connection,
    queue: QueueName,
) -> Result<Option<QueueState>, QueueError> {
    let doing = format!("looking at the queue {}", queue.name());
    for _ in 0..LOOKS {
        // Of its own, since a refusal closes it.
        let channel = connection.channel().await?;
        let options = QueueDeclareOptions {
            passive: true,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let asked = Instant::now();
        let declared = channel.queue_declare(queue.name().into(), options, FieldTable::default());
        let found = match within(&doing, declared).await {
            Ok(found) => found,
            Err(error) if reply(&error) == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        };
        let took = asked.elapsed();
        connection.close_channel(&channel).await;
        let state = QueueState {
            messages: found.message_count(),
            consumers: found.consumer_count(),
        };
        if state.messages > 0 || state.consumers > 0 || took < UNTOLD {
            return Ok(Some(state));
        }
    }
    Err(QueueError::Timeout {
        doing,
        after: UNTOLD * LOOKS,
    })
}

/// Whether a queue has the arguments that this version wants. Creates none that is missing.
pub async fn check(connection: &Connection, queue: QueueName) -> Result<Declared, QueueError> {
    if look(connection, queue).await?.is_none() {
        return Ok(Declared::Missing);
    }
    let channel = connection.channel().await?;
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let doing = format!("comparing the queue {}", queue.name());
    let declared = channel.queue_declare(queue.name().into(), options, queue.arguments());
    match within(&doing, declared).await {
        Ok(_) => {
            connection.close_channel(&channel).await;
            Ok(Declared::AsWanted)
        }
        Err(error) if reply(&error) == Some(406) => Ok(Declared::Otherwise(own_words(&error))),
        Err(error) => Err(error),
    }
}

/// Whether the broker takes the largest message that is ever sent: one to a queue that is not there
/// has to come back, and is kept nowhere. Otherwise the broker's own sentence.
pub async fn takes_largest(connection: &Connection) -> Result<Result<usize, String>, QueueError> {
    let channel = connection.channel().await?;
    let confirms = channel.confirm_select(ConfirmSelectOptions::default());
    within("turning confirms on", confirms).await?;
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let body = vec![b' '; MAX_BODY];
    let properties = BasicProperties::default();
    let doing = "sending the largest message to nobody";
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
        Err(error) if reply(&error) == Some(406) => Ok(Err(own_words(&error))),
        Err(error) => Err(error),
    }
}

/// The AMQP reply code, where the broker refused.
fn reply(error: &QueueError) -> Option<u16> {
    match error {
        QueueError::Broker { source, .. } | QueueError::Denied { source, .. } => amqp_code(source),
        _ => None,
    }
}

fn own_words(error: &QueueError) -> String {
    match error {
        QueueError::Broker { source, .. } | QueueError::Denied { source, .. } => {
            match source.kind() {
                lapin::ErrorKind::ProtocolError(error) => error.get_message().to_string(),
                _ => source.to_string(),
            }
        }
        other => other.to_string(),
    }
}
