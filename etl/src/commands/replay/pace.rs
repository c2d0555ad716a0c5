//! The pace of a replay: as an extraction, it waits while much waits for its target, so that it fills neither `etl.parked` nor the
//! queues that all jobs share.

use std::time::Duration;

use anyhow::bail;
use common::settings;
use ledger::{Store, Subject};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::output::note;

/// How often the ledger is looked at while the replay waits.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait.
const PATIENCE: Duration = Duration::from_mins(5);

/// The setting that the loader has, too.
#[derive(Deserialize)]
struct Settings {
    #[serde(default = "ledger::default_parked_bytes")]
    parked_bytes: u64,
}

/// The batches of a replay, as they are sent.
pub(super) struct Pace<'a> {
    store: &'a Store,
    target: &'a str,
    limit: u64,
    /// Bytes that were sent since the last look.
    sent: u64,
}

impl<'a> Pace<'a> {
    pub(super) fn of(store: &'a Store, subject: &'a Subject) -> anyhow::Result<Self> {
        Ok(Self {
            store,
            target: &subject.run.target_table,
            limit: settings::load::<Settings>()?.parked_bytes,
            sent: 0,
        })
    }

    /// Waits before the next batch of so many bytes is sent. An error when the target takes none for long.
    pub(super) async fn wait(&mut self, bytes: usize) -> anyhow::Result<()> {
        self.sent += bytes as u64;
        if self.sent < self.limit / 8 {
            return Ok(());
        }
        self.sent = 0;
        Box::pin(self.until_room()).await
    }

    async fn until_room(&self) -> anyhow::Result<()> {
        let target = self.target;
        if self.store.waiting_bytes(target).await? <= self.limit {
            return Ok(());
        }
        note(&format!(
            "too much waits for {target}, and `etl status` says why; going on when it takes rows again"
        ));
        let since = Instant::now();
        while self.store.waiting_bytes(target).await? > self.limit / 2 {
            if since.elapsed() > PATIENCE {
                bail!(
                    "{target} takes no rows, and the batches sent so far wait for it; `etl status` says why"
                );
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}
