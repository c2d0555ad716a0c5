//! The sweep: completes runs whose loader died after their last commit, commits runs with staged rows, and drops staging
//! tables that no run needs. It also shows an idle loader that PostgreSQL is away.
//!
//! Runs are completed side by side, so that the sweep waits for no target and for no commit. One that fails is tried again
//! after a growing pause, so that it keeps neither a place from the others nor its run from a person for long.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::backoff::backoff;
use common::lifecycle::Health;
use common::message::RunId;
use common::service::Fault;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use ledger::Store;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::SWEEP_INTERVAL;
use crate::errors::{LoadError, Verdict};
use crate::load::Loader;
use crate::{completion, target};

/// Runs that are completed at the same time at most.
const MAX_COMMITS: usize = 4;

/// The longest pause before a run that could not be completed is tried again.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// How often the role of this loader is recorded.
const ROLE_INTERVAL: Duration = Duration::from_mins(1);

/// The runs that are being completed, and those that could not be.
#[derive(Default)]
struct Runs {
    under_way: HashSet<RunId>,
    /// The failed attempts, and the time of the next one.
    failed: HashMap<RunId, (u32, Instant)>,
}

impl Runs {
    fn may_begin(&self, run: &RunId) -> bool {
        self.under_way.len() < MAX_COMMITS
            && !self.under_way.contains(run)
            && self
                .failed
                .get(run)
                .is_none_or(|(_, next)| *next <= Instant::now())
    }

    fn ended(&mut self, run: RunId, done: Result<(), LoadError>) {
        self.under_way.remove(&run);
        let Err(error) = done else {
            self.failed.remove(&run);
            return;
        };
        let attempts = self.failed.get(&run).map_or(0, |(attempts, _)| *attempts);
        if attempts == 0 {
            tracing::warn!(run.id = %run, error = error.sentence(), "the run cannot be completed now; trying again");
        }
        let pause = backoff(attempts, SWEEP_INTERVAL, MAX_PAUSE);
        self.failed
            .insert(run, (attempts + 1, Instant::now() + pause));
    }
}

/// Sweeps until the session stops, at intervals and when rows of a run are staged completely.
pub(super) async fn sweep(
    loader: &Loader,
    health: &Health,
    stop: &CancellationToken,
) -> Result<(), Fault> {
    let store = &loader.store;
    let mut runs = Runs::default();
    let mut commits = FuturesUnordered::new();
    let mut next_record = Instant::now();
    loop {
        if next_record <= Instant::now() {
            record_role(loader).await;
            next_record = Instant::now() + ROLE_INTERVAL;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some((run, done)) = commits.next() => runs.ended(run, done),
            _ = timeout(SWEEP_INTERVAL, loader.staged.notified()) => {}
        }
        let found = match look(store).await {
            Ok(found) => found,
            Err(error) => {
                let why = error.sentence();
                tracing::debug!(error = why, "cannot look for finished runs now");
                health.not_ready("database", why);
                continue;
            }
        };
        health.clear("database");
        runs.failed.retain(|run, _| found.contains(run));
        for run in found {
            if runs.may_begin(&run) {
                runs.under_way.insert(run.clone());
                commits.push(Box::pin(async move {
                    let done = completion::try_complete(store, &run).await;
                    if let Err(error) = &done
                        && let Err(error) = store.park_commit(&run, error.reason().text()).await
                    {
                        tracing::debug!(run.id = %run, %error, "the reason is not recorded");
                    }
                    (run, done.map(drop))
                }));
            }
        }
    }
    while commits.next().await.is_some() {}
    Ok(())
}

/// Records the role whose privileges `etl run` checks. Without it, `etl run` checks its own and says so.
async fn record_role(loader: &Loader) {
    if let Err(error) = loader.store.record_loader(&loader.channels).await {
        let error = LoadError::from(error);
        if loader.is_news(&error.sentence()) {
            tracing::warn!(error = error.sentence(), "the role is not recorded");
        }
    }
}

/// Drops staging tables, and returns the runs that may be complete.
async fn look(store: &Store) -> Result<Vec<RunId>, LoadError> {
    let runs = ledger::completion::candidates(store).await?;
    match target::clean_up(store).await {
        Err(error) if error.verdict() == Verdict::Pause => Err(error),
        Err(error) => {
            tracing::warn!(error = error.sentence(), "a staging table is dropped later");
            Ok(runs)
        }
        Ok(_) => Ok(runs),
    }
}
