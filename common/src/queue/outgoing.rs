//! Messages on their way out: each kind with its queue, its id and its headers. Pure.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::consumer::MAX_VALUE;
use super::{MAX_BODY, RawDelivery, TRACEPARENT};
use crate::message::{Message, QueueName};

/// Bytes at most of a reason in the headers.
const MAX_REASON: usize = 4_000;

/// Headers of parked messages and of dead letters.
pub(super) const ATTEMPTS: &str = "x-etl-attempts";
pub(super) const PARKED_AT: &str = "x-etl-parked-at";

/// PERSISTENT, the delivery mode of the AMQP specification that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A message that no publisher can send.
#[derive(Debug, thiserror::Error)]
pub enum Unsendable {
    #[error("the {kind} {id} is not consistent: {problem}")]
    Inconsistent {
        kind: &'static str,
        id: String,
        problem: String,
    },
    #[error("the {kind} {id} cannot be written")]
    Encoding {
        kind: &'static str,
        id: String,
        source: serde_json::Error,
    },
    #[error(
        "the {kind} {id} has {bytes} bytes, more than the {MAX_BODY} that a broker accepts; its rows are too large, select fewer columns or shorter values"
    )]
    TooLarge {
        kind: &'static str,
        id: String,
        bytes: usize,
    },
}

/// A message ready to be published, bound to its queue by its type.
#[derive(Clone)]
pub struct Outgoing {
    pub(super) queue: QueueName,
    pub(super) exchange: &'static str,
    pub(super) id: String,
    pub(super) body: Vec<u8>,
    pub(super) properties: BasicProperties,
}

impl Outgoing {
    /// The AMQP `type` of a marker.
    pub(super) const MARKER: &'static str = "marker.v1";

    /// A message to its queue.
    pub fn of<M: Message>(message: &M) -> Result<Self, Unsendable> {
        let (kind, id) = (M::KIND, message.id());
        if let Err(problem) = message.check() {
            return Err(Unsendable::Inconsistent { kind, id, problem });
        }
        let body = message.write().map_err(|source| Unsendable::Encoding {
            kind,
            id: id.clone(),
            source,
        })?;
        if body.bytes.len() > MAX_BODY {
            return Err(Unsendable::TooLarge {
                kind,
                id,
                bytes: body.bytes.len(),
            });
        }
        let mut headers = FieldTable::default();
        headers.insert("run".into(), text(message.run().as_str()));
        // A body may have a name of any length.
        headers.insert("job".into(), text(beginning(message.job(), MAX_VALUE)));
        let mut properties = BasicProperties::default()
            .with_content_type(body.content_type.into())
            .with_type(M::KIND.into())
            .with_headers(headers);
        if let Some(encoding) = body.content_encoding {
            properties = properties.with_content_encoding(encoding.into());
        }
        let queue = message.queue();
        Ok(Self {
            exchange: queue.exchange(),
            ..Self::new(queue, id, body.bytes, properties)
        })
    }

    /// A copy of a batch or an event for the archive, which keeps it for replays.
    #[must_use]
    pub fn archived(&self) -> Self {
        Self {
            queue: QueueName::Archive,
            ..self.clone()
        }
    }

    /// A task whose run is paused, for `etl.parked`.
    #[must_use]
    pub fn paused(self) -> Self {
        Self {
            queue: QueueName::Parked,
            ..self
        }
    }

    /// A delivery for the tail of this queue, unchanged.
    pub fn again_to(delivery: &RawDelivery, queue: QueueName) -> Self {
        let (headers, _) = delivery.bounded_headers();
        Self::copy(delivery, queue, headers)
    }

    /// A delivery for the tail of `etl.parked`, unchanged, with its target and why the target cannot take it. The attempts
    /// and the first time travel with it.
    pub fn parked(delivery: &RawDelivery, target: &str, reason: &str) -> Self {
        let (mut headers, _) = delivery.bounded_headers();
        headers.insert("x-etl-target".into(), text(target));
        headers.insert("x-etl-reason".into(), text(beginning(reason, MAX_REASON)));
        let attempts = delivery.parked_attempts() + 1;
        headers.insert(ATTEMPTS.into(), AMQPValue::LongUInt(attempts));
        let since = delivery.parked_at().unwrap_or_else(jiff::Timestamp::now);
        headers.insert(PARKED_AT.into(), text(&since.to_string()));
        Self::copy(delivery, QueueName::Parked, headers)
    }

    /// A marker in a queue: a reader that reaches it has read all that was there before.
    pub(super) fn marker(queue: QueueName, id: &str) -> Self {
        let properties = BasicProperties::default().with_type(Self::MARKER.into());
        Self::new(queue, id.to_owned(), Vec::new(), properties)
    }

    /// So many bytes of nothing, for the archive.
    pub(super) fn padding(id: &str, bytes: usize) -> Self {
        let properties = BasicProperties::default().with_type("padding.v1".into());
        Self::new(
            QueueName::Archive,
            id.to_owned(),
            vec![0; bytes],
            properties,
        )
    }

    /// A delivery for `etl.dead`, with its body unchanged, the stage that failed, a reason for a person, and the number
    /// of attempts. Its headers are bounded, whatever the message's own are: a dead letter must fit where a message fits.
    pub fn dead(delivery: &RawDelivery, stage: &str, reason: &str, attempts: u32) -> Self {
        let (mut headers, omitted) = delivery.bounded_headers();
        if omitted > 0 {
            headers.insert("x-etl-omitted".into(), AMQPValue::LongUInt(omitted));
        }
        headers.insert("x-etl-stage".into(), text(stage));
        headers.insert("x-etl-queue".into(), text(delivery.queue()));
        headers.insert("x-etl-reason".into(), text(beginning(reason, MAX_REASON)));
        headers.insert(ATTEMPTS.into(), AMQPValue::LongUInt(attempts));
        headers.insert(
            "x-etl-dead-at".into(),
            text(&jiff::Timestamp::now().to_string()),
        );
        Self::copy(delivery, QueueName::Dead, headers)
    }

    /// A dead letter for the queue that it came from, under its own id, so that a service which has
    /// handled it meanwhile recognises it. None when it came from no work queue.
    pub fn again(
        queue: &str,
        id: &str,
        kind: &str,
        headers: &BTreeMap<String, String>,
        body: Vec<u8>,
    ) -> Option<Self> {
        let queue = QueueName::ALL
            .into_iter()
            .find(|known| known.name() == queue)?;
        if matches!(
            queue,
            QueueName::Archive | QueueName::Control | QueueName::Dead | QueueName::Unreadable
        ) {
            return None;
        }
        let mut own = FieldTable::default();
        for (name, value) in headers.iter().filter(|(name, _)| !name.starts_with("x-")) {
            own.insert(ShortString::try_new(name.as_str()).ok()?, text(value));
        }
        let properties = BasicProperties::default()
            .with_type(ShortString::try_new(kind).ok()?)
            .with_headers(own);
        Some(Self::new(queue, id.to_owned(), body, properties))
    }

    fn copy(delivery: &RawDelivery, queue: QueueName, headers: FieldTable) -> Self {
        Self::new(
            queue,
            delivery.id().to_owned(),
            delivery.body().to_vec(),
            described(delivery, headers),
        )
    }

    fn new(queue: QueueName, id: String, body: Vec<u8>, properties: BasicProperties) -> Self {
        // An AMQP short string has at most 255 bytes, and the id of a foreign message may be longer.
        let short = ShortString::try_new(id.as_str()).unwrap_or_default();
        Self {
            queue,
            exchange: "",
            id,
            body,
            properties: properties
                .with_message_id(short)
                .with_delivery_mode(PERSISTENT),
        }
    }

    /// Adds the header `traceparent`, where there is one.
    #[must_use]
    pub fn traced(self, traceparent: Option<&str>) -> Self {
        match traceparent {
            Some(traceparent) => self.with_header(TRACEPARENT, traceparent),
            None => self,
        }
    }

    /// Adds a header. Names that begin with `x-etl-` are about the way of the message, and a dead letter that is sent
    /// again is without them.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), text(value));
        self.properties = self.properties.with_headers(headers);
        self
    }

    /// The length of the body in bytes, for windows.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The beginning of a text, of at most so many bytes.
fn beginning(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// The properties that describe the body of a delivery, and headers. No other property of a foreign message is kept: an
/// expiration would delete the copy, and another user's name would close the channel.
fn described(delivery: &RawDelivery, headers: FieldTable) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_type(delivery.kind().into())
        .with_headers(headers);
    if let Some(encoding) = delivery.properties().content_encoding() {
        properties = properties.with_content_encoding(encoding.clone());
    }
    if let Some(content_type) = delivery.properties().content_type() {
        properties = properties.with_content_type(content_type.clone());
    }
    properties
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
