//! A run's row and the locks on it. Nothing changes the state of a run but a [`LockedRun`], which only a lock of the run's
//! row gives.

use std::cmp::Ordering;
use std::ops::Range;

use common::job::{Commit, Mode};
use common::message::{InvalidRunId, RunId, ValidBatch};
use sqlx::{FromRow, PgConnection};

use crate::batch_no::BatchNo;
use crate::database::{lock_key, try_lock};
use crate::error::{Error, Refused};
use crate::state::{RunState, Transition};
use crate::summary::Run;

/// What decides about the messages of a run.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct RunRow {
    pub run_id: String,
    pub run_no: i64,
    pub job: String,
    #[sqlx(try_from = "String")]
    pub state: RunState,
    pub generation: i32,
    /// The generation that its query was requested with. A later one is a replay.
    pub first_generation: i32,
    pub target_table: String,
    #[sqlx(try_from = "String")]
    pub mode: Mode,
    #[sqlx(try_from = "String")]
    pub(crate) commit: Commit,
    pub result_id: Option<String>,
    pub batches_expected: Option<i32>,
    pub rows_expected: Option<i64>,
    /// Its result was read to its end, and every batch of it was published.
    pub is_extracted: bool,
    pub query_execution_id: Option<String>,
    /// The first batch of the live generation recorded the columns that it loads.
    pub has_begun: bool,
}

/// Where a batch or an event stands in its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The run takes it.
    Live,
    /// A replay has superseded its generation.
    Stale,
    /// The run has ended, or is held with all of its batches.
    Ended,
}

impl RunRow {
    /// Where something of this generation stands.
    pub fn standing(&self, generation: u32) -> Result<Standing, Refused> {
        match i64::from(generation).cmp(&i64::from(self.generation)) {
            Ordering::Less => Ok(Standing::Stale),
            Ordering::Greater => Err(Refused::FutureGeneration {
                found: generation,
                live: self.generation,
            }),
            Ordering::Equal if self.state.takes_batches() => Ok(Standing::Live),
            Ordering::Equal => Ok(Standing::Ended),
        }
    }

    /// Refuses a batch that is not part of the run's result.
    pub fn check_result(&self, batch: &ValidBatch) -> Result<(), Refused> {
        self.check_pinned(&batch.result_id)?;
        let (first_row, rows) = (batch.id.first_row, batch.rows_extracted() as u64);
        match self.rows_expected {
            Some(expected) if first_row + rows > expected.unsigned_abs() => {
                Err(Refused::BeyondResult {
                    first_row,
                    end: first_row + rows,
                    expected,
                })
            }
            _ => Ok(()),
        }
    }

    /// Refuses another result than that of the run's first batch.
    pub(crate) fn check_pinned(&self, result_id: &str) -> Result<(), Refused> {
        match &self.result_id {
            Some(pinned) if *pinned != result_id => Err(Refused::OtherResult {
                found: result_id.to_owned(),
                pinned: pinned.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The live generation.
    pub(crate) fn generation_no(&self) -> u32 {
        generation_no(self.generation)
    }

    /// Whether the live generation is a replay.
    pub fn is_replay(&self) -> bool {
        self.generation > self.first_generation
    }

    /// What the batches of this run write into `_batch`.
    pub fn batch_nos(&self) -> Range<i64> {
        BatchNo::of_run(self.run_no)
    }

    /// Whether each batch of a replay replaces its former self by itself.
    pub(crate) fn replays_by_batch(&self) -> bool {
        !self.mode.is_staged(self.commit, 1)
    }

    /// Whether rows of the live generation wait in staging until the run is complete.
    pub(crate) fn is_staged(&self) -> bool {
        self.mode.is_staged(self.commit, self.generation_no())
    }
}

/// The generation in a column of the ledger, whose checks keep it from being negative.
pub(crate) fn generation_no(column: i32) -> u32 {
    column.unsigned_abs()
}

/// The run in a column `run_id`, whose check keeps it valid.
pub(crate) fn run_id(column: String) -> Result<RunId, sqlx::Error> {
    RunId::try_from(column).map_err(|invalid| sqlx::Error::Decode(invalid.into()))
}

macro_rules! select_run {
    ($lock:literal, $for:literal) => {
        concat!(
            "WITH turn AS MATERIALIZED (SELECT ", $lock, "($2)) \
            SELECT run_id, run_no, job, state, generation, first_generation, target_table, mode, commit, result_id, batches_expected, \
                   rows_expected, extracted_at IS NOT NULL AS is_extracted, query_execution_id, \
                   CASE WHEN generation > first_generation \
                       THEN EXISTS (SELECT FROM etl.replays p WHERE p.run_id = runs.run_id AND p.generation = runs.generation AND p.target_columns IS NOT NULL) \
                       ELSE target_columns IS NOT NULL END AS has_begun \
            FROM turn, etl.runs WHERE run_id = $1 ", $for, " OF runs"
        )
    };
}

// Row locks are not fair: loaders that take the row shared one after the other would keep a transaction that wants it alone
// waiting for as long as there are batches. The advisory lock before it queues.
const SHARED: &str = select_run!("pg_advisory_xact_lock_shared", "FOR SHARE");
const ALONE: &str = select_run!("pg_advisory_xact_lock", "FOR UPDATE");

/// The key of the advisory lock that comes before the lock on a run's row.
fn turn_key(run: &RunId) -> i64 {
    lock_key("run", run.as_str())
}

async fn find(tx: &mut PgConnection, run: &RunId, select: &'static str) -> Result<RunRow, Error> {
    let found = sqlx::query_as(select)
        .bind(run.as_str())
        .bind(turn_key(run))
        .fetch_optional(tx)
        .await?;
    found.ok_or_else(|| {
        Refused::UnknownRun {
            run: run.to_string(),
        }
        .into()
    })
}

/// The run's row, which nothing changes until the transaction ends. Others may hold it like this, too.
pub async fn share(tx: &mut PgConnection, run: &RunId) -> Result<RunRow, Error> {
    find(tx, run, SHARED).await
}

/// A run that a person means: by its name alone or, where it was shown and chosen, as it was then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    pub run: RunId,
    /// Its number and generation.
    shown: Option<(i64, i32)>,
}

impl From<&RunId> for Meant {
    fn from(run: &RunId) -> Self {
        Self {
            run: run.clone(),
            shown: None,
        }
    }
}

impl TryFrom<&Run> for Meant {
    type Error = InvalidRunId;

    fn try_from(run: &Run) -> Result<Self, Self::Error> {
        Ok(Self {
            run: run.run_id.parse()?,
            shown: Some((run.run_no, run.generation)),
        })
    }
}

impl Meant {
    /// Refuses the run as it is now where it was requested or replayed again since it was shown.
    pub fn check(&self, run_no: i64, generation: i32) -> Result<(), Error> {
        if self.shown.is_none_or(|shown| shown == (run_no, generation)) {
            return Ok(());
        }
        Err(Error::NotAllowed(format!(
            "the run {} was requested or replayed again since it was shown; repeat the command",
            self.run
        )))
    }
}

/// A run whose row this transaction holds alone. Every change of a run's state is a method of it, in the file of what changes:
/// `beginning`, `event`, `completion`, `decision`, `replay`, `removal`, `retry`, `dead_letter`.
pub struct LockedRun<'t> {
    pub(crate) tx: &'t mut PgConnection,
    pub(crate) id: RunId,
    pub(crate) row: RunRow,
}

impl<'t> LockedRun<'t> {
    /// Locks the run. Waits for the loaders that are about to commit a batch of it.
    pub async fn lock(tx: &'t mut PgConnection, run: &RunId) -> Result<Self, Error> {
        let row = find(&mut *tx, run, ALONE).await?;
        Ok(Self {
            tx,
            id: run.clone(),
            row,
        })
    }

    /// Locks the run for a person: waits longer, and an unknown name is the person's error.
    pub(crate) async fn lock_for_person(
        tx: &'t mut PgConnection,
        run: &RunId,
    ) -> Result<Self, Error> {
        sqlx::query("SET LOCAL lock_timeout = '60s'")
            .execute(&mut *tx)
            .await?;
        match Self::lock(tx, run).await {
            Err(Error::Refused(Refused::UnknownRun { run })) => Err(no_such_run(&run)),
            locked => locked,
        }
    }

    /// Locks the run that a person means. Refused once another attempt or generation of it is there than the person was shown.
    pub(crate) async fn lock_meant(tx: &'t mut PgConnection, meant: &Meant) -> Result<Self, Error> {
        let locked = Self::lock_for_person(tx, &meant.run).await?;
        meant.check(locked.row.run_no, locked.row.generation)?;
        Ok(locked)
    }

    /// Locks the run unless another transaction holds it.
    pub async fn try_lock(tx: &'t mut PgConnection, run: &RunId) -> Result<Option<Self>, Error> {
        if try_lock(tx, turn_key(run)).await? {
            Self::lock(tx, run).await.map(Some)
        } else {
            Ok(None)
        }
    }

    /// The row as it was when it was locked.
    pub fn row(&self) -> &RunRow {
        &self.row
    }

    /// For statements on a target in the same transaction.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.tx
    }

    /// The state that a transition leads to; refused where the run's state does not have it.
    pub(crate) fn to(&self, transition: Transition) -> Result<RunState, Error> {
        let state = self.row.state;
        transition
            .leads_to(state)
            .ok_or_else(|| Error::NotAllowed(transition.refusal(self.id.as_str(), state)))
    }
}

pub(crate) fn no_such_run(name: &str) -> Error {
    Error::NotFound(format!(
        "there is no run {name:?}; `etl runs` lists the latest"
    ))
}

/// A `u32` as PostgreSQL's integer.
pub(crate) fn integer(what: &'static str, value: u32) -> Result<i32, Refused> {
    i32::try_from(value).map_err(|_| Refused::OutOfRange {
        what,
        value: value.into(),
    })
}

/// A `u64` as PostgreSQL's bigint.
pub fn bigint(what: &'static str, value: u64) -> Result<i64, Refused> {
    i64::try_from(value).map_err(|_| Refused::OutOfRange { what, value })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run in this state, mode and way of committing.
    pub(crate) fn run_in(state: RunState, mode: &str, commit: &str, generation: i32) -> RunRow {
        RunRow {
            run_id: "r".into(),
            run_no: 3,
            job: "clicks".into(),
            state,
            generation,
            first_generation: 0,
            target_table: "public.t".into(),
            mode: mode.to_owned().try_into().unwrap(),
            commit: commit.to_owned().try_into().unwrap(),
            result_id: Some("q:pages".into()),
            batches_expected: Some(7),
            rows_expected: Some(70),
            is_extracted: true,
            query_execution_id: None,
            has_begun: true,
        }
    }

    #[test]
    fn the_generation_decides_before_the_state() {
        let run = |state| run_in(state, "append", "batch", 2);
        assert_eq!(run(RunState::Running).standing(2).unwrap(), Standing::Live);
        assert_eq!(
            run(RunState::Requested).standing(2).unwrap(),
            Standing::Live
        );
        assert_eq!(run(RunState::Failed).standing(2).unwrap(), Standing::Ended);
        assert_eq!(
            run(RunState::Completed).standing(1).unwrap(),
            Standing::Stale
        );
        assert!(run(RunState::Running).standing(3).is_err());
    }
}
