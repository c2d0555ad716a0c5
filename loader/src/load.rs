//! One batch, one transaction: ledger row, rows, rejected rows, commit. A batch that is in the
//! ledger is never loaded again; a commit whose answer was lost is settled by looking there.

use common::failpoint;
use common::message::ValidBatch;
use sqlx::{PgConnection, PgPool};

use crate::database::{self, Held, bounded};
use crate::errors::LoadError;
use crate::ledger::{self, Counts, Lock, Standing, bigint};
use crate::statements::Statements;
use crate::target::Targets;
use crate::{completion, quarantine, rows};

/// What became of a delivery of a batch. In each case it can be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Loaded(Counts),
    /// The ledger had it.
    Duplicate,
    /// A replay has superseded it.
    Stale,
    /// The run was over without it.
    Late,
}

impl Outcome {
    /// For metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loaded(_) => "loaded",
            Self::Duplicate => "duplicate",
            Self::Stale => "stale",
            Self::Late => "late",
        }
    }
}

impl From<sqlx::Error> for LoadError {
    fn from(source: sqlx::Error) -> Self {
        Self::Books {
            doing: "reached",
            source,
        }
    }
}

/// Loads a batch, once.
pub async fn load(
    pool: &PgPool,
    targets: &Targets,
    batch: &ValidBatch,
) -> Result<Outcome, LoadError> {
    targets.index(pool, batch).await?;
    let result = bounded(Box::pin(attempt(pool, targets, batch))).await;
    if let Err(LoadError::Target { .. }) = &result {
        targets.check_again(&batch.target);
    }
    result
}

async fn attempt(
    pool: &PgPool,
    targets: &Targets,
    batch: &ValidBatch,
) -> Result<Outcome, LoadError> {
    let mut statements = targets.known(batch);
    let mut tries = 0;
    loop {
        tries += 1;
        match load_once(pool, statements.as_deref(), batch).await? {
            Step::Settled(Outcome::Late) => {
                ledger::count_late(pool, &batch.id.run).await?;
                return Ok(Outcome::Late);
            }
            Step::Settled(outcome) => return Ok(outcome),
            // Somebody takes the result away, or alters the table, as fast as it is looked at.
            Step::Prepare if tries == TRIES => {
                return Err(LoadError::books("told the run's result")(
                    sqlx::Error::RowNotFound,
                ));
            }
            Step::Changed if tries == TRIES => {
                let (table, doing) = (&batch.target.table, "loaded into as it was checked");
                return Err(LoadError::target(table, doing, sqlx::Error::RowNotFound));
            }
            Step::Prepare => {}
            Step::Changed => targets.forget(&batch.target),
        }
        ledger::pin_result(pool, batch).await?;
        statements = Some(targets.prepare(pool, batch).await?);
    }
}

/// Transactions for a batch at most: without the target, with it, and with it as it is now.
const TRIES: u32 = 3;

/// How far one transaction came.
#[derive(PartialEq, Eq)]
enum Step {
    Settled(Outcome),
    /// The run has no result yet, or the target was not looked at: nothing was written.
    Prepare,
    /// The target is not the table that was looked at: nothing was written.
    Changed,
}

async fn load_once(
    pool: &PgPool,
    statements: Option<&Statements>,
    batch: &ValidBatch,
) -> Result<Step, LoadError> {
    let mut connection = Held::acquire(pool).await?;
    let mut tx = connection.begin().await?;
    // An error drops the transaction and closes the connection: see `Held`.
    let step = write(&mut tx, statements, batch).await?;
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
            tracing::warn!(run.id = %batch.id.run, batch.seq = batch.id.seq, %error, "commit without an answer; looking into the ledger");
            if !look_up(pool, batch).await? {
                return Err(LoadError::books("committed")(error));
            }
        }
    }
    Ok(step)
}

/// Whether the ledger has the batch, asked on another connection. A transaction that is still being
/// committed is not seen; trying again waits for it, and finds a duplicate.
async fn look_up(pool: &PgPool, batch: &ValidBatch) -> Result<bool, LoadError> {
    let mut connection = Held::acquire(pool).await?;
    let mut tx = connection.begin().await?;
    let recorded = ledger::is_recorded(&mut tx, batch).await?;
    tx.commit().await?;
    connection.give_back();
    Ok(recorded)
}

/// Everything of a batch but the commit.
async fn write(
    tx: &mut PgConnection,
    statements: Option<&Statements>,
    batch: &ValidBatch,
) -> Result<Step, LoadError> {
    let run = ledger::find(tx, &batch.id.run, Lock::Shared).await?;
    match run.standing(batch.id.generation)? {
        Standing::Live => {}
        Standing::Stale => return Ok(Step::Settled(Outcome::Stale)),
        Standing::Over if ledger::is_recorded(tx, batch).await? => {
            return Ok(Step::Settled(Outcome::Duplicate));
        }
        Standing::Over => {
            // A run that was counted has every batch of its result, so that this one is of no part of
            // it; whoever says otherwise is to be heard.
            if run.is_counted() {
                run.check_result(batch)?;
            }
            return Ok(Step::Settled(Outcome::Late));
        }
    }
    run.check_result(batch)?;
    let (Some(_), Some(statements)) = (&run.result_id, statements) else {
        return Ok(Step::Prepare);
    };
    if !ledger::claim(tx, batch).await? {
        let recorded = ledger::is_recorded(tx, batch).await?;
        let vanished = || LoadError::books("read")(sqlx::Error::RowNotFound);
        return recorded
            .then_some(Step::Settled(Outcome::Duplicate))
            .ok_or_else(vanished);
    }
    ledger::check_neighbours(tx, batch).await?;
    if !rows::is_as_checked(tx, statements, &batch.target.table).await? {
        return Ok(Step::Changed);
    }
    let written = rows::write(tx, statements, batch, &run).await?;
    let count = |count: usize| bigint("the number of rows", count as u64);
    let counts = Counts {
        extracted: count(batch.rows_extracted())?,
        loaded: count(batch.rows.len() - written.refused.len())?,
        collapsed: written.collapsed,
        rejected: count(batch.rejected.len() + written.refused.len())?,
    };
    if written.collapsed != 0 || !written.refused.is_empty() {
        ledger::settle(tx, &batch.id, counts).await?;
    }
    quarantine::write(tx, batch, &batch.rejected).await?;
    quarantine::write(tx, batch, &written.refused).await?;
    Ok(Step::Settled(Outcome::Loaded(counts)))
}

/// The pool and what is known of targets: what loading needs.
pub struct Loader {
    pub pool: PgPool,
    pub targets: Targets,
}

impl Loader {
    /// A loader into a database, whose targets may be in these schemas.
    pub fn new(
        url: &common::settings::SecretUrl,
        schemas: Vec<String>,
    ) -> Result<Self, sqlx::Error> {
        Ok(Self {
            pool: database::pool(url, "etl loader")?,
            targets: Targets::new(schemas),
        })
    }

    /// Loads a batch, and completes its run if it was the last one. Only then may it be acknowledged.
    pub async fn handle(&self, batch: &ValidBatch) -> Result<Outcome, LoadError> {
        let outcome = load(&self.pool, &self.targets, batch).await?;
        failpoint::reach("after_commit").await;
        completion::ask(&self.pool, &batch.id.run).await?;
        Ok(outcome)
    }
}
