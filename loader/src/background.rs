//! What a loader does beside its sessions, on a connection of its own, while the broker is away, too: it sends what is in the outbox,
//! and looks which jobs are late. Nothing of it keeps a batch waiting.

use std::collections::HashSet;
use std::time::Duration;

use common::backoff::Repetition;
use common::reason::paragraph;
use ledger::{Address, Store};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::channel::Channel;
use crate::{completion, outbox};

/// The most connections: one to send, and one to look.
const CONNECTIONS: u32 = 2;

/// How often it looks which jobs are late, and what waits in the outbox.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Works until the token is cancelled.
pub async fn work(address: Address, channels: Vec<Channel>, stop: CancellationToken) {
    let store = Store::new(&address, "etl loader outbox", CONNECTIONS).briefly();
    // The session says what is wrong with the database, and creates the schema.
    while !matches!(store.is_current().await, Ok(true)) {
        if timeout(LOOK_INTERVAL, stop.cancelled()).await.is_ok() {
            return;
        }
    }
    for channel in &channels {
        outbox::show_counters(&channel.name);
    }
    let mut watch = Watch::new(&store, &channels);
    futures::join!(
        outbox::send_all(&store, &channels, &stop),
        watch.work(&stop)
    );
    store.close().await;
}

/// What looks at the jobs and at the outbox.
struct Watch<'a> {
    store: &'a Store,
    channels: HashSet<&'a str>,
    /// Channels of messages for which this loader has no setting, and that it has warned of.
    unknown: HashSet<String>,
    /// Jobs and channels whose gauges are shown: each is set to zero when there is nothing of it any more.
    jobs: HashSet<String>,
    shown: HashSet<String>,
    repetition: Repetition,
}

impl<'a> Watch<'a> {
    fn new(store: &'a Store, channels: &'a [Channel]) -> Self {
        Self {
            store,
            channels: channels.iter().map(|one| one.name.as_str()).collect(),
            unknown: HashSet::new(),
            jobs: HashSet::new(),
            shown: channels.iter().map(|one| one.name.clone()).collect(),
            repetition: Repetition::default(),
        }
    }

    async fn work(&mut self, stop: &CancellationToken) {
        loop {
            match self.look().await {
                Ok(()) => self.repetition.clear(),
                Err(error) => {
                    let why = paragraph(&anyhow::Error::from(error));
                    if self.repetition.is_due(&why) {
                        tracing::warn!(
                            error = why,
                            "cannot look which jobs are late; trying again"
                        );
                    }
                }
            }
            if timeout(LOOK_INTERVAL, stop.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    async fn look(&mut self) -> Result<(), ledger::Error> {
        let known = self.store.known_jobs().await?;
        self.jobs.extend(known.iter().map(|one| one.job.clone()));
        for job in &self.jobs {
            completion::show_counters(job);
            let of_it = known.iter().find(|one| one.job == *job);
            let late = of_it.and_then(|one| one.seconds_late);
            metrics::gauge!("etl_job_late_seconds", "job" => job.clone())
                .set(late.unwrap_or_default());
        }
        self.store.tell_late().await?;
        self.show_outbox().await
    }

    /// Shows what waits, and warns once of what this loader cannot send.
    async fn show_outbox(&mut self) -> Result<(), ledger::Error> {
        let waiting = self.store.outbox(None).await?;
        self.shown
            .extend(waiting.iter().map(|one| one.channel.clone()));
        for channel in &self.shown {
            let of_it = waiting.iter().find(|one| one.channel == *channel);
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            let messages = of_it.map_or(0.0, |one| one.messages as f64);
            metrics::gauge!("etl_outbox_waiting", "channel" => channel.clone()).set(messages);
        }
        for one in waiting {
            let is_unknown = !self.channels.contains(one.channel.as_str());
            if is_unknown && self.unknown.insert(one.channel.clone()) {
                let variable = one.setting();
                tracing::warn!(
                    channel = one.channel,
                    "this loader has no setting for a channel that notifications wait for; set {variable}"
                );
            }
        }
        Ok(())
    }
}
