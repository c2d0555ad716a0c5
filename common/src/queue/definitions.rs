//! The queues as RabbitMQ's definitions, for an administrator who declares them himself.

use lapin::types::AMQPValue;
use serde_json::{Map, Value, json};

use super::topology::arguments;
use super::{Connection, QueueError};
use crate::message::QueueName;
use crate::secret::SecretUrl;

/// What `rabbitmqctl import_definitions` takes: everything that [`super::declare`] declares, in the vhost of the URL.
pub fn definitions(url: &SecretUrl, with_archive: bool) -> Result<Value, QueueError> {
    let vhost = Connection::vhost(url)?;
    let queues = QueueName::ALL.into_iter();
    let queues = queues.filter(|queue| with_archive || *queue != QueueName::Archive);
    let queues: Vec<_> = queues
        .map(|queue| {
            json!({
                "name": queue.name(), "vhost": vhost, "durable": true, "auto_delete": false,
                "arguments": in_json(queue),
            })
        })
        .collect();
    let control = QueueName::Control;
    Ok(json!({
        "queues": queues,
        "exchanges": [{
            "name": control.exchange(), "vhost": vhost, "type": "fanout", "durable": true,
            "auto_delete": false, "internal": false, "arguments": {},
        }],
        "bindings": [{
            "source": control.exchange(), "vhost": vhost, "destination": control.name(),
            "destination_type": "queue", "routing_key": "", "arguments": {},
        }],
    }))
}

fn in_json(queue: QueueName) -> Map<String, Value> {
    let arguments = arguments(queue);
    let pairs = arguments.inner().iter().map(|(name, value)| {
        let value = match value {
            AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into(),
            AMQPValue::LongLongInt(number) => (*number).into(),
            AMQPValue::LongInt(number) => (*number).into(),
            AMQPValue::Boolean(value) => (*value).into(),
            other => unreachable!("no argument is a {other:?}"),
        };
        (name.to_string(), value)
    });
    pairs.collect()
}
