//! Which types of queue the broker really has. One that does not know a type may refuse it, or close the connection, or accept
//! its name and give a classic queue, which loses what this system relies on without a word.
//!
//! RabbitMQ gives no exclusive, transient queue of the types `quorum` and `stream`. So the declaration of one tells what the broker
//! has and leaves nothing behind, even where the process dies at once: what a broker creates all the same ends with its connection.

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::error::{amqp_code, text};
use super::topology::arguments;
use super::{Connection, QueueError, inspect, within};
use crate::message::QueueName;

/// Whether a broker has a type of queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Has,
    /// It accepts the name of the type, and creates another queue.
    Pretends,
    /// Its sentence.
    Lacks(String),
    /// The user may not find out.
    Unknown,
}

/// Whether the broker has a type, `quorum` or `stream`. One that has not may close the connection.
pub(super) async fn has_kind(connection: &Connection, kind: &str) -> Result<Kind, QueueError> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    // Under the names that the user has permissions for.
    let name = format!("etl.probe.{:016x}", rand::random::<u64>());
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let doing = format!("finding out whether it has queues of the type {kind}");
    let channel = connection.channel().await?;
    let declared = channel.queue_declare(name.as_str().into(), options, arguments);
    match within(&doing, declared).await {
        Ok(_) => {
            let deleted = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
            within(&doing, deleted).await?;
            connection.close_channel(&channel).await;
            Ok(Kind::Pretends)
        }
        Err(QueueError::Denied { .. }) => Ok(Kind::Unknown),
        Err(QueueError::Broker { source, .. }) if lacks(&source) => Ok(Kind::Lacks(text(&source))),
        Err(QueueError::Broker { source, .. }) if amqp_code(&source) == Some(406) => Ok(Kind::Has),
        Err(other) => Err(other),
    }
}

/// Whether a refusal is of the type and not of its properties. 541 is also the answer of a cluster that is not ready.
fn lacks(error: &lapin::Error) -> bool {
    let text = text(error);
    match amqp_code(error) {
        Some(540) => true,
        Some(541) => text.contains("feature flag"),
        Some(406) => text.contains("x-queue-type") || text.contains("queue type"),
        _ => false,
    }
}

/// A sentence where quorum queues are not what they are called. It creates no queue, and has a connection of its own: a session
/// counts each refusal on its connections as their loss.
pub async fn pretended(connection: &Connection) -> Result<Option<String>, QueueError> {
    let own = connection.another("etl probing").await?;
    let pretended = pretended_on(&own).await;
    own.close().await;
    pretended
}

async fn pretended_on(connection: &Connection) -> Result<Option<String>, QueueError> {
    let is_pretended = match has_kind(connection, "quorum").await? {
        Kind::Pretends => true,
        Kind::Has => takes_as_classic(connection, QueueName::Dead).await?,
        Kind::Lacks(_) | Kind::Unknown => false,
    };
    Ok(is_pretended.then(|| PRETENDED.to_owned()))
}

const PRETENDED: &str = "the broker only pretends to have quorum queues: it accepts the type and gives a classic queue (or its quorum_queue.property_equivalence.relaxed_checks_on_redeclaration is on). \
     A classic queue is on one node, counts no deliveries and may lose what it dead-letters; docs/managed.md says what then does not hold. Use RabbitMQ 3.10 or later with quorum queues";

/// Whether a queue is taken for a classic one when it is declared again: a quorum queue is not.
async fn takes_as_classic(connection: &Connection, queue: QueueName) -> Result<bool, QueueError> {
    let mut arguments = arguments(queue);
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("classic".into()),
    );
    if !inspect::exists(connection, queue).await? {
        return Ok(false);
    }
    let channel = connection.channel().await?;
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let doing = format!("comparing the type of {}", queue.name());
    let declared = channel.queue_declare(queue.name().into(), options, arguments);
    match within(&doing, declared).await {
        Ok(_) => {
            connection.close_channel(&channel).await;
            Ok(true)
        }
        Err(QueueError::Broker { source, .. }) if amqp_code(&source) == Some(406) => Ok(false),
        Err(QueueError::Denied { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}
