//! A message of a test queue.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};
use serde_json::Value;

/// A message that a test read from a queue.
#[derive(Clone, Debug)]
pub struct Message {
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    pub routing_key: String,
    pub redelivered: bool,
}

impl Message {
    /// The header as text, whatever number or string it is.
    pub fn header(&self, name: &str) -> Option<String> {
        let value = self.properties.headers().as_ref()?.inner().get(name)?;
        Some(match value {
            AMQPValue::LongString(text) => text.to_string(),
            AMQPValue::ShortString(text) => text.to_string(),
            AMQPValue::Boolean(value) => value.to_string(),
            AMQPValue::ShortShortInt(n) => n.to_string(),
            AMQPValue::ShortShortUInt(n) => n.to_string(),
            AMQPValue::ShortInt(n) => n.to_string(),
            AMQPValue::ShortUInt(n) => n.to_string(),
            AMQPValue::LongInt(n) => n.to_string(),
            AMQPValue::LongUInt(n) => n.to_string(),
            AMQPValue::LongLongInt(n) => n.to_string(),
            other => format!("{other:?}"),
        })
    }

    pub fn message_id(&self) -> Option<&str> {
        self.properties
            .message_id()
            .as_ref()
            .map(ShortString::as_str)
    }

    /// The body as JSON. Panics when it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

impl From<Delivery> for Message {
    fn from(delivery: Delivery) -> Self {
        Self {
            body: delivery.data,
            properties: delivery.properties,
            routing_key: delivery.routing_key.to_string(),
            redelivered: delivery.redelivered,
        }
    }
}
