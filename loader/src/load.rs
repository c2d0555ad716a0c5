//! One transaction a batch: ledger row, rows, rejected rows, commit. A batch that is in the ledger is never loaded
//! again. After a commit with a lost answer, the ledger decides.

use std::sync::{Mutex, PoisonError};

use common::backoff::Repetition;
use common::failpoint;
use common::message::{RunEvent, RunId, ValidBatch};
use ledger::event::{self, Noted};
use ledger::{
    Counts, RunState, Standing, Store, batch as entry, beginning, bigint, cause, quarantine,
};
use sqlx::PgConnection;
use tokio::sync::Notify;

use crate::completion;
use crate::errors::{LoadError, Refused, Verdict};
use crate::parking::Parking;
use crate::target::{Prepared, Targets};

/// The outcome of a delivered batch. Each outcome can be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Loaded(Counts),
    /// The ledger already has the batch.
    Duplicate,
    /// A replay has superseded the batch.
    Stale,
    /// The run has ended without the batch.
    Ignored,
}

impl Outcome {
    /// For metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loaded(_) => "loaded",
            Self::Duplicate => "duplicate",
            Self::Stale => "stale",
            Self::Ignored => "ignored",
        }
    }
}

/// Loads a batch, once.
pub async fn load(
    store: &Store,
    targets: &Targets,
    batch: &ValidBatch,
) -> Result<Outcome, LoadError> {
    targets.index(store, batch).await?;
    let result = store
        .bounded(Box::pin(attempt(store, targets, batch)))
        .await;
    if let Err(LoadError::Target { .. }) = &result {
        targets.check_again(&batch.target);
    }
    result
}

async fn attempt(
    store: &Store,
    targets: &Targets,
    batch: &ValidBatch,
) -> Result<Outcome, LoadError> {
    let mut prepared = targets.known(batch);
    let mut tries = 0;
    loop {
        tries += 1;
        let step = load_once(store, prepared.as_deref(), batch).await?;
        match step {
            Step::Settled(Outcome::Ignored) => {
                entry::count_ignored(store, &batch.id.run).await?;
                return Ok(Outcome::Ignored);
            }
            Step::Settled(outcome) => return Ok(outcome),
            // Another session changes the run's result or the table after every check.
            Step::Prepare { .. } if tries == TRIES => {
                return Err(sqlx::Error::RowNotFound.into());
            }
            Step::Changed if tries == TRIES => {
                let failure = || format!("{} changes as fast as it is checked", batch.target.table);
                return Err(LoadError::target(failure)(sqlx::Error::RowNotFound));
            }
            Step::Prepare { .. } => {}
            Step::Changed => targets.forget(&batch.target),
        }
        let is_first = step == Step::Prepare { has_begun: false };
        prepared = match targets.prepare(store, batch, is_first).await {
            Ok(prepared) => Some(prepared),
            Err(error) if fails_run(store, batch, &error).await? => {
                completion::count(&batch.job, RunState::Failed);
                entry::count_ignored(store, &batch.id.run).await?;
                return Ok(Outcome::Ignored);
            }
            Err(error) => return Err(error),
        };
        if is_first {
            beginning::begin(store, batch).await?;
        }
    }
}

/// Whether the run failed by the refusal of its first batch: no loader could load its rows.
async fn fails_run(
    store: &Store,
    batch: &ValidBatch,
    error: &LoadError,
) -> Result<bool, LoadError> {
    match error {
        LoadError::Refused(Refused::Target(refusal)) if refusal.is_of_every_loader() => {
            let why = refusal.to_string();
            Ok(beginning::fail_before_first_batch(store, batch, &why).await?)
        }
        _ => Ok(false),
    }
}

/// The most transactions for a batch: before the check of the target, with the checked target, and with the changed
/// target.
const TRIES: u32 = 3;

/// The outcome of one transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Settled(Outcome),
    /// It is the run's first batch, or the target is not checked yet: nothing was written.
    Prepare {
        has_begun: bool,
    },
    /// The target differs from the checked table: nothing was written.
    Changed,
}

async fn load_once(
    store: &Store,
    prepared: Option<&Prepared>,
    batch: &ValidBatch,
) -> Result<Step, LoadError> {
    let mut connection = store.acquire().await?;
    let mut tx = connection.begin().await?;
    // An error drops the transaction and closes the connection: see `Connected`.
    let step = write(&mut tx, prepared, batch).await?;
    let Step::Settled(Outcome::Loaded(_)) = step else {
        tx.rollback().await?;
        connection.give_back();
        return Ok(step);
    };
    failpoint::reach("before_commit").await;
    match tx.commit().await {
        Ok(()) => connection.give_back(),
        Err(error) => {
            drop(connection);
            tracing::warn!(run.id = %batch.id.run, batch.first_row = batch.id.first_row, error = cause(&error), "commit without an answer; looking into the ledger");
            if !look_up(store, batch).await? {
                return Err(ledger::Error::postgres("cannot commit a batch")(error).into());
            }
        }
    }
    Ok(step)
}

/// Whether the ledger has the batch, read on another connection. A commit in progress is not visible; a retry waits for
/// it and finds a duplicate.
async fn look_up(store: &Store, batch: &ValidBatch) -> Result<bool, LoadError> {
    let failure = "cannot look for a batch whose commit had no answer";
    let is_recorded = store.transaction(failure, async |tx: &mut PgConnection| {
        entry::is_recorded(tx, batch).await
    });
    Ok(is_recorded.await?)
}

/// Writes everything of a batch, without the commit.
async fn write(
    tx: &mut PgConnection,
    prepared: Option<&Prepared>,
    batch: &ValidBatch,
) -> Result<Step, LoadError> {
    let run = ledger::share(tx, &batch.id.run).await?;
    match run
        .standing(batch.id.generation)
        .map_err(ledger::Error::from)?
    {
        Standing::Live => {}
        Standing::Stale => return Ok(Step::Settled(Outcome::Stale)),
        Standing::Ended if entry::is_recorded(tx, batch).await? => {
            return Ok(Step::Settled(Outcome::Duplicate));
        }
        Standing::Ended => {
            // The ledger of an ended run has every batch of its result. A batch of another result is an error, not a
            // duplicate.
            if run.state.has_all_batches() {
                run.check_result(batch).map_err(ledger::Error::from)?;
            }
            return Ok(Step::Settled(Outcome::Ignored));
        }
    }
    run.check_result(batch).map_err(ledger::Error::from)?;
    let (true, Some(prepared)) = (run.has_begun, prepared) else {
        let has_begun = run.has_begun;
        return Ok(Step::Prepare { has_begun });
    };
    if !entry::claim(tx, batch).await? {
        let recorded = entry::is_recorded(tx, batch).await?;
        let vanished = || sqlx::Error::RowNotFound.into();
        return recorded
            .then_some(Step::Settled(Outcome::Duplicate))
            .ok_or_else(vanished);
    }
    let extracted = batch.rows_extracted() as u64;
    entry::check_neighbours(tx, &batch.id, extracted).await?;
    if !prepared.is_unchanged(tx).await? {
        return Ok(Step::Changed);
    }
    let written = prepared.write(tx, batch, run.run_no).await?;
    let count =
        |count: usize| bigint("the number of rows", count as u64).map_err(ledger::Error::from);
    let counts = Counts {
        loaded: count(batch.rows.len() - written.refused.len())?,
        deduplicated: written.deduplicated,
        rejected: count(batch.rejected.len() + written.refused.len())?,
    };
    if written.deduplicated != 0 || !written.refused.is_empty() {
        entry::settle(tx, &batch.id, counts).await?;
    }
    quarantine(tx, batch, &batch.rejected).await?;
    quarantine(tx, batch, &written.refused).await?;
    Ok(Step::Settled(Outcome::Loaded(counts)))
}

/// The most connections of a loader. It handles batches, events, dead letters, commits of runs and removals at the same
/// time.
const CONNECTIONS: u32 = 15;

/// The ledger and the checked targets: the state for loading.
pub struct Loader {
    pub store: Store,
    pub targets: Targets,
    /// The channels that it has settings for.
    pub channels: Vec<String>,
    /// Which failures of removals are logged.
    repetition: Mutex<Repetition>,
    /// Rows of a run are staged completely: the sweep commits them.
    pub(crate) staged: Notify,
    pub(crate) parking: Parking,
}

impl Loader {
    /// A loader for a database, with the schemas that targets may be in.
    pub fn new(address: &ledger::Address, schemas: Vec<String>) -> Self {
        Self {
            store: Store::new(address, "etl loader", CONNECTIONS),
            targets: Targets::new(schemas),
            channels: Vec::new(),
            repetition: Mutex::default(),
            staged: Notify::new(),
            parking: Parking::default(),
        }
    }

    /// Whether a failure that repeats is to be logged now.
    pub(crate) fn is_news(&self, failure: &str) -> bool {
        let repetition = self.repetition.lock();
        repetition
            .unwrap_or_else(PoisonError::into_inner)
            .is_due(failure)
    }

    /// Loads a batch, and completes its run if it was the last one, unless its rows are staged: the sweep commits those.
    /// The delivery may be acknowledged only after that.
    pub async fn accept(&self, batch: &ValidBatch) -> Result<Outcome, LoadError> {
        self.accept_with(&self.store, batch).await
    }

    /// [`Self::accept`] for a batch that others wait behind: it takes seconds at most, and fails where it would take longer.
    pub(crate) async fn accept_briefly(&self, batch: &ValidBatch) -> Result<Outcome, LoadError> {
        self.accept_with(&self.store.briefly(), batch).await
    }

    async fn accept_with(&self, store: &Store, batch: &ValidBatch) -> Result<Outcome, LoadError> {
        let outcome = load(store, &self.targets, batch).await?;
        failpoint::reach("after_commit").await;
        self.ask(&batch.id.run).await?;
        Ok(outcome)
    }

    /// Writes an event into the ledger, and completes the run if nothing else is missing, unless its rows are staged: the
    /// sweep commits those. The delivery may be acknowledged only after that.
    pub async fn accept_event(&self, event: &RunEvent) -> Result<Noted, LoadError> {
        let noted = event::note(&self.store, event).await?;
        match noted {
            Noted::Ignored => entry::count_ignored(&self.store, &event.run).await?,
            Noted::Failed => completion::count(&event.job, RunState::Failed),
            Noted::Noted | Noted::Stale => {}
        }
        self.ask(&event.run).await?;
        Ok(noted)
    }

    /// Settles a batch of a run that has ended, or of a superseded generation, without its target. None when it has to be
    /// loaded.
    pub async fn settle(&self, batch: &ValidBatch) -> Result<Option<Outcome>, LoadError> {
        match load_once(&self.store, None, batch).await? {
            Step::Settled(outcome) => {
                if outcome == Outcome::Ignored {
                    entry::count_ignored(&self.store, &batch.id.run).await?;
                }
                Ok(Some(outcome))
            }
            Step::Prepare { .. } | Step::Changed => Ok(None),
        }
    }

    async fn ask(&self, run: &RunId) -> Result<(), LoadError> {
        if completion::ask(&self.store, run).await? {
            self.staged.notify_one();
        }
        Ok(())
    }

    /// [`Self::accept`] for a process without a sweep: commits staged rows, too.
    pub async fn handle(&self, batch: &ValidBatch) -> Result<Outcome, LoadError> {
        let outcome = self.accept(batch).await?;
        self.complete(&batch.id.run).await?;
        Ok(outcome)
    }

    /// [`Self::accept_event`] for a process without a sweep: commits staged rows, too.
    pub async fn handle_event(&self, event: &RunEvent) -> Result<Noted, LoadError> {
        let noted = self.accept_event(event).await?;
        self.complete(&event.run).await?;
        Ok(noted)
    }

    async fn complete(&self, run: &RunId) -> Result<(), LoadError> {
        match completion::try_complete(&self.store, run).await {
            Err(error) if error.verdict() == Verdict::Retry => Ok(()),
            done => done.map(drop),
        }
    }
}
