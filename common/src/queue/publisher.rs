//! Publishing. A publish counts when the broker confirmed it and routed it to its queue; any other
//! outcome is published again or is an error.

use std::time::Duration;

use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::time::{Instant, sleep, timeout};

use super::{Connection, Outgoing, QueueError, RawDelivery, inspect, within};
use crate::backoff::backoff;
use crate::reason::Reason;

/// How long a confirm may take: longer than a broker's pauses, shorter than its own timeout of an
/// unacked delivery (30 minutes).
const CONFIRM_TIMEOUT: Duration = Duration::from_mins(1);

/// How long a publish waits for room in a full queue while deliveries are in hand.
const FULL_TIMEOUT: Duration = Duration::from_secs(20);

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

    /// Publishes a delivery to `etl.dead` with the stage that failed and the reason, and acks it once that is confirmed.
    pub async fn dead_letter(
        &mut self,
        delivery: RawDelivery,
        stage: &str,
        reason: &Reason,
        attempts: u32,
    ) -> Result<(), QueueError> {
        tracing::error!(
            message.id = delivery.id(),
            queue.name = delivery.queue(),
            reason = reason.logged(),
            "message dead-lettered"
        );
        let dead = Outgoing::dead(&delivery, stage, reason.text(), attempts);
        self.publish(&[dead]).await?;
        delivery.ack().await
    }

    /// Publishes a window of messages and returns when each is confirmed and routed. A message that
    /// the broker refuses because its queue is full is published again, on another channel: a channel that meets a quorum
    /// queue while its leader dies refuses what the new leader would take, for as long as the old one is away.
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
                // A user who may not look (RabbitMQ 4.3) knows no more than that it took nothing.
                let found = match inspect::look(self.connection, refused).await {
                    Err(QueueError::Denied { .. }) => {
                        return Err(QueueError::Full { queue, messages: 0 });
                    }
                    found => found?,
                };
                return Err(match found {
                    Some(state) if state.messages == 0 => QueueError::Refused { queue },
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
            self.renew().await?;
        }
        unreachable!("the attempts are endless")
    }

    /// Publishes a message, and returns whether its queue took it: false where the queue is full.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn try_publish(&mut self, message: &Outgoing) -> Result<bool, QueueError> {
        let window = std::slice::from_ref(message);
        let mut answers = self.publish_once(window, &[0]).await?;
        if !answers.nacked.is_empty() {
            self.renew().await?;
            answers = self.publish_once(window, &[0]).await?;
        }
        match answers.unroutable {
            Some(queue) => Err(QueueError::Unroutable { queue }),
            None => Ok(answers.nacked.is_empty()),
        }
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
                exchange,
                body,
                properties,
                ..
            } = &window[*index];
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let sent = self.channel.basic_publish(
                (*exchange).into(),
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
