//! Sends what is in the outbox. Promises: a message is deleted only when its receiver has taken it; a channel that fails keeps no
//! other one; a message that is refused keeps no other one for long; no transaction and no lock is held while one is sent. One
//! message of a channel is sent at a time.

use std::time::Duration;

use common::backoff::{Repetition, backoff};
use common::failpoint;
use common::reason::paragraph;
use futures::future::join_all;
use ledger::Store;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::channel::Channel;

/// How often a channel with nothing to send looks for messages.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The pauses of a channel after failures in a row, and those of a message after its own.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_CHANNEL_PAUSE: Duration = Duration::from_mins(1);
const MAX_MESSAGE_PAUSE: Duration = Duration::from_hours(1);

/// How long one attempt may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a message belongs to the loader that sends it: longer than an attempt and the statement behind it.
const LEASE: Duration = Duration::from_mins(1);

/// Sends the messages of these channels, each beside the others, until the token is cancelled.
pub async fn send_all(store: &Store, channels: &[Channel], stop: &CancellationToken) {
    join_all(channels.iter().map(|channel| {
        let mut sender = Sender {
            store,
            channel,
            failures: 0,
            repetition: Repetition::default(),
        };
        async move { sender.work(stop).await }
    }))
    .await;
}

/// What sends the messages of one channel.
struct Sender<'a> {
    store: &'a Store,
    channel: &'a Channel,
    /// Failures since the last success.
    failures: u32,
    repetition: Repetition,
}

impl Sender<'_> {
    async fn work(&mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let pause = match self.send_next().await {
                Ok(true) => continue,
                Ok(false) if self.failures == 0 => POLL_INTERVAL,
                Ok(false) => backoff(self.failures - 1, FIRST_PAUSE, MAX_CHANNEL_PAUSE),
                Err(error) => {
                    let why = paragraph(&anyhow::Error::from(error));
                    tracing::debug!(error = why, "cannot look for messages to be sent now");
                    POLL_INTERVAL
                }
            };
            drop(timeout(pause, stop.cancelled()).await);
        }
    }

    /// Sends the next message. False when there is none, or it was not sent.
    async fn send_next(&mut self) -> Result<bool, ledger::Error> {
        let Some(message) = self.store.claim(&self.channel.name, LEASE).await? else {
            self.failures = 0;
            return Ok(false);
        };
        let sent = self.channel.send(&message, SEND_TIMEOUT).await;
        failpoint::reach("after_send").await;
        let result = if sent.is_ok() { "sent" } else { "failed" };
        add(&message.channel, result, 1);
        let Err(error) = sent else {
            self.store.sent(&message).await?;
            (self.failures, self.repetition) = (0, Repetition::default());
            tracing::info!(
                channel = message.channel,
                event = message.event,
                job = message.job,
                run.id = message.run_id,
                "notification sent"
            );
            return Ok(true);
        };
        let why = paragraph(&error);
        if self.repetition.is_due(&why) {
            tracing::warn!(
                channel = message.channel,
                error = why,
                "cannot send a notification; it is tried again"
            );
        }
        self.failures += 1;
        let attempt = message.attempts.unsigned_abs().saturating_sub(1);
        let pause = backoff(attempt, FIRST_PAUSE, MAX_MESSAGE_PAUSE);
        self.store.not_sent(&message, &why, pause).await?;
        Ok(false)
    }
}

fn add(channel: &str, result: &'static str, attempts: u64) {
    metrics::counter!("etl_outbox_attempts_total", "channel" => channel.to_owned(), "result" => result)
        .increment(attempts);
}

/// Shows the counters of a channel before the first attempt is counted: a rate needs a zero to begin from.
pub(crate) fn show_counters(channel: &str) {
    for result in ["sent", "failed"] {
        add(channel, result, 0);
    }
}
