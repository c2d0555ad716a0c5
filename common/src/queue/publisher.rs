//! Publishing. A publish counts when the broker confirmed it and routed it to its queue; any other
//! outcome is published again or is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::time::{Instant, sleep, timeout};

use super::{Connection, MAX_BODY, QueueError, RawDelivery, TRACEPARENT, inspect, within};
use crate::backoff::backoff;
use crate::message::{Message, QueueName};

/// How long a confirm may take: longer than a broker's pauses, shorter than its own timeout of an
/// unacked delivery (30 minutes).
const CONFIRM_TIMEOUT: Duration = Duration::from_mins(1);

/// How long a publish waits for room in a full queue while deliveries are in hand.
const FULL_TIMEOUT: Duration = Duration::from_secs(20);

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
    queue: QueueName,
    id: String,
    body: Vec<u8>,
    properties: BasicProperties,
}

impl Outgoing {
    /// The AMQP `type` of a marker in a stream.
    pub(super) const MARKER: &'static str = "marker.v1";

    /// A message to its type's queue.
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
        headers.insert("job".into(), text(message.job()));
        let mut properties = BasicProperties::default()
            .with_content_type(body.content_type.into())
            .with_type(M::KIND.into())
            .with_headers(headers);
        if let Some(encoding) = body.content_encoding {
            properties = properties.with_content_encoding(encoding.into());
        }
        Ok(Self::new(M::QUEUE, id, body.bytes, properties))
    }

    /// A copy of a batch or an event for the archive, which keeps it for replays.
    #[must_use]
    pub fn archived(&self) -> Self {
        Self {
            queue: QueueName::Archive,
            ..self.clone()
        }
    }

    /// An archived batch for the transformers again, unchanged.
    pub fn restored(archived: &RawDelivery) -> Self {
        let headers = archived.own_headers();
        let properties = archived.properties().clone().with_headers(headers);
        Self::new(
            QueueName::Raw,
            archived.id().to_owned(),
            archived.body().to_vec(),
            properties,
        )
    }

    /// A marker in a stream: a reader that reaches it has read all that was there before.
    pub(super) fn marker(stream: QueueName, id: &str) -> Self {
        let properties = BasicProperties::default().with_type(Self::MARKER.into());
        Self::new(stream, id.to_owned(), Vec::new(), properties)
    }

    /// A delivery for `etl.dead`, with its body and headers unchanged, the stage that failed, a
    /// reason for a person, and the number of attempts.
    pub fn dead(delivery: &RawDelivery, stage: &str, reason: &str, attempts: u32) -> Self {
        // The headers must fit into one frame of the connection.
        let reason: String = reason.chars().take(4_000).collect();
        let mut headers = delivery.own_headers();
        headers.insert("x-etl-stage".into(), text(stage));
        headers.insert("x-etl-queue".into(), text(delivery.queue()));
        headers.insert("x-etl-reason".into(), text(&reason));
        headers.insert("x-etl-attempts".into(), AMQPValue::LongUInt(attempts));
        headers.insert(
            "x-etl-dead-at".into(),
            text(&jiff::Timestamp::now().to_string()),
        );
        // No other property of a foreign message is kept: an expiration would delete the dead letter,
        // and another user's name would close the channel.
        let mut properties = BasicProperties::default()
            .with_type(delivery.kind().into())
            .with_headers(headers);
        if let Some(encoding) = delivery.properties().content_encoding() {
            properties = properties.with_content_encoding(encoding.clone());
        }
        if let Some(content_type) = delivery.properties().content_type() {
            properties = properties.with_content_type(content_type.clone());
        }
        Self::new(
            QueueName::Dead,
            delivery.id().to_owned(),
            delivery.body().to_vec(),
            properties,
        )
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
            QueueName::Archive | QueueName::Control | QueueName::Dead
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

    fn new(queue: QueueName, id: String, body: Vec<u8>, properties: BasicProperties) -> Self {
        // An AMQP short string has at most 255 bytes, and the id of a foreign message may be longer.
        let short = ShortString::try_new(id.as_str()).unwrap_or_default();
        Self {
            queue,
            id,
            body,
            properties: properties
                .with_message_id(short)
                .with_delivery_mode(PERSISTENT),
        }
    }

    /// Adds the header `traceparent`, where there is one.
    #[must_use]
    pub fn traced(mut self, traceparent: Option<&str>) -> Self {
        if let Some(traceparent) = traceparent {
            let mut headers = self.properties.headers().clone().unwrap_or_default();
            headers.insert(TRACEPARENT.into(), text(traceparent));
            self.properties = self.properties.with_headers(headers);
        }
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

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A channel with confirms on, for one publishing task.
pub struct Publisher<'a> {
    connection: &'a Connection,
    channel: Channel,
}

/// How the broker answered a window of messages.
#[derive(Default)]
struct Answers {
    nacked: Vec<usize>,
    /// The name of a queue that does not exist.
    unroutable: Option<String>,
}

impl Answers {
    fn returned(&mut self, message: &BasicReturnMessage) {
        self.unroutable = Some(message.delivery.routing_key.to_string());
    }
}

impl<'a> Publisher<'a> {
    /// Opens a channel with confirms on. There is no other way to get a publisher.
    pub async fn open(connection: &'a Connection) -> Result<Self, QueueError> {
        let channel = connection.channel().await?;
        within(
            "turning publisher confirms on",
            channel.confirm_select(ConfirmSelectOptions::default()),
        )
        .await?;
        Ok(Self {
            connection,
            channel,
        })
    }

    /// Publishes a window of messages and returns when each is confirmed and routed. A message that
    /// the broker refuses because its queue is full is published again.
    ///
    /// # Errors
    /// After any error the outcome is unknown: the broker may have accepted some of the messages.
    /// Publish all of them again under the same ids, on another connection.
    pub async fn publish(&mut self, window: &[Outgoing]) -> Result<(), QueueError> {
        let mut pending: Vec<usize> = (0..window.len()).collect();
        let started = Instant::now();
        for attempt in 0.. {
            let answers = self.publish_once(window, &pending).await?;
            if let Some(queue) = answers.unroutable {
                return Err(QueueError::Unroutable { queue });
            }
            let Some(refused) = answers.nacked.first().map(|index| window[*index].queue) else {
                return Ok(());
            };
            if started.elapsed() > FULL_TIMEOUT {
                let queue = refused.name();
                return Err(match inspect::look(self.connection, refused).await? {
                    Some(state) => QueueError::Full {
                        queue,
                        messages: state.messages,
                    },
                    None => QueueError::Unroutable {
                        queue: queue.to_owned(),
                    },
                });
            }
            metrics::counter!("etl_publishes_refused_total", "queue" => refused.name())
                .increment(answers.nacked.len() as u64);
            metrics::counter!("etl_retries_total", "cause" => "queue_full")
                .increment(answers.nacked.len() as u64);
            pending = answers.nacked;
            sleep(backoff(
                attempt,
                Duration::from_millis(50),
                Duration::from_secs(2),
            ))
            .await;
        }
        unreachable!("the attempts are endless")
    }

    /// Sends the messages at `pending`, and returns their pending confirms.
    async fn send(
        &self,
        window: &[Outgoing],
        pending: &[usize],
    ) -> Result<Vec<(usize, PublisherConfirm)>, QueueError> {
        let mut confirms = Vec::with_capacity(pending.len());
        for index in pending {
            let Outgoing {
                queue,
                body,
                properties,
                ..
            } = &window[*index];
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let sent = self.channel.basic_publish(
                "".into(),
                queue.name().into(),
                options,
                body,
                properties.clone(),
            );
            confirms.push((
                *index,
                within(&format!("publishing to {}", queue.name()), sent).await?,
            ));
        }
        Ok(confirms)
    }

    /// One attempt at the messages at `pending`. The refused ones are known only after every confirm:
    /// lapin may attach a returned message to the confirm of another message of the window.
    async fn publish_once(
        &self,
        window: &[Outgoing],
        pending: &[usize],
    ) -> Result<Answers, QueueError> {
        let started = Instant::now();
        let confirms = self.send(window, pending).await?;
        let mut answers = Answers::default();
        for (index, confirm) in confirms {
            let queue = window[index].queue.name();
            let doing = || format!("confirming a message to {queue}");
            match timeout(CONFIRM_TIMEOUT, confirm).await {
                Err(_) if self.connection.is_blocked() => {
                    return Err(QueueError::Blocked {
                        reason: "it blocked this connection".to_owned(),
                    });
                }
                Err(_) => {
                    return Err(QueueError::Timeout {
                        doing: doing(),
                        after: CONFIRM_TIMEOUT,
                    });
                }
                Ok(Err(source)) => return Err(QueueError::broker(doing(), source)),
                Ok(Ok(Confirmation::Ack(None))) => {
                    metrics::histogram!("etl_confirm_seconds", "queue" => queue)
                        .record(started.elapsed());
                }
                Ok(Ok(Confirmation::Ack(Some(returned)))) => answers.returned(&returned),
                Ok(Ok(Confirmation::Nack(returned))) => {
                    if let Some(returned) = returned {
                        answers.returned(&returned);
                    }
                    answers.nacked.push(index);
                }
                Ok(Ok(Confirmation::NotRequested)) => {
                    return Err(QueueError::Broker {
                        doing: doing(),
                        source: lapin::ErrorKind::FutureCompleted.into(),
                    });
                }
            }
        }
        Ok(answers)
    }

    /// Opens another channel, after the caller dropped a publish half-way: confirms that nothing waits
    /// for arrive on the old one.
    pub async fn renew(&mut self) -> Result<(), QueueError> {
        let old = std::mem::replace(self, Self::open(self.connection).await?);
        old.close().await;
        Ok(())
    }

    /// Waits until the broker accepts messages. The probe is a message to a queue that does not exist,
    /// which must return. During an alarm the broker connects, declares and delivers as always, and
    /// only a publish shows the alarm: it blocks the connection, even where it is still confirmed.
    pub async fn probe(&mut self) -> Result<(), QueueError> {
        loop {
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let sent = self.channel.basic_publish(
                "".into(),
                "etl.probe".into(),
                options,
                b"",
                BasicProperties::default(),
            );
            let confirm = within("publishing a probe", sent).await?;
            let answer = within("confirming a probe", confirm).await;
            if !self.connection.is_blocked() {
                return answer.map(drop);
            }
            // A new connection would be blocked like this one.
            self.connection.until_unblocked().await?;
        }
    }

    /// Closes the channel.
    pub async fn close(self) {
        self.connection.close_channel(&self.channel).await;
    }
}
