//! The run's row and the ledger of its batches. Which batch may be loaded is decided here, by plain
//! data read under the run's lock.

use common::message::{BatchId, RunId, ValidBatch};
use sqlx::{PgConnection, PgPool};

use crate::database::transaction;
use crate::errors::{LoadError, Refused};
use crate::statements::lock_key;

/// What the books know of a run.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Run {
    pub run_no: i64,
    pub state: String,
    pub generation: i32,
    pub result_id: Option<String>,
    pub batches_expected: Option<i32>,
    pub rows_expected: Option<i64>,
    pub query_execution_id: Option<String>,
}

/// Where a batch or an event stands in its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The run is open and this is its live generation.
    Live,
    /// A replay has superseded it.
    Stale,
    /// The run is over.
    Over,
}

/// A batch's row in the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub extracted: i64,
    pub loaded: i64,
    pub collapsed: i64,
    pub rejected: i64,
}

impl Run {
    /// Where something of this generation stands.
    pub fn standing(&self, generation: u32) -> Result<Standing, Refused> {
        match i64::from(generation).cmp(&i64::from(self.generation)) {
            std::cmp::Ordering::Less => Ok(Standing::Stale),
            std::cmp::Ordering::Greater => Err(Refused::FutureGeneration {
                found: generation,
                live: self.generation,
            }),
            std::cmp::Ordering::Equal if self.is_over() => Ok(Standing::Over),
            std::cmp::Ordering::Equal => Ok(Standing::Live),
        }
    }

    /// Whether nothing is expected of the run any more: it came to a terminal state, or is held with
    /// all of its batches.
    pub fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "requested" | "running")
    }

    /// Whether this may be the query of a run that is over and of which the books know no query. A result's id begins
    /// with that of its query.
    pub fn may_be_of(&self, query_execution_id: &str) -> bool {
        let is_known_result = |id: &String| {
            let rest = id.strip_prefix(query_execution_id);
            rest.is_some_and(|rest| rest.starts_with(':'))
        };
        self.query_execution_id.is_none()
            && (self.is_counted() || self.state == "failed")
            && self.result_id.as_ref().is_none_or(is_known_result)
    }

    /// Whether the ledger has every batch of its result.
    pub fn is_counted(&self) -> bool {
        matches!(self.state.as_str(), "completed" | "held" | "superseded")
    }

    /// Refuses a batch that is of no part of the run's result.
    pub fn check_result(&self, batch: &ValidBatch) -> Result<(), Refused> {
        if let Some(pinned) = self
            .result_id
            .as_ref()
            .filter(|pinned| **pinned != batch.result_id)
        {
            return Err(Refused::OtherResult {
                found: batch.result_id.clone(),
                pinned: pinned.clone(),
            });
        }
        match self.batches_expected {
            Some(expected) if i64::from(batch.id.seq) >= i64::from(expected) => {
                Err(Refused::BeyondResult {
                    seq: batch.id.seq,
                    expected,
                })
            }
            _ => Ok(()),
        }
    }

    /// What a batch of this run writes into `_batch`.
    pub fn batch_number(&self, seq: u32) -> i64 {
        self.run_no << 24 | i64::from(seq)
    }

    /// What the batches of this run write into `_batch`, as a range whose end is excluded.
    pub fn batch_numbers(&self) -> (i64, i64) {
        batch_numbers(self.run_no)
    }
}

/// What the batches of a run write into `_batch`, as a range whose end is excluded.
pub fn batch_numbers(run_no: i64) -> (i64, i64) {
    (run_no << 24, (run_no + 1) << 24)
}

/// A `u32` as Postgres' integer.
pub(crate) fn integer(what: &'static str, value: u32) -> Result<i32, Refused> {
    i32::try_from(value).map_err(|_| Refused::OutOfRange {
        what,
        value: value.into(),
    })
}

/// A `u64` as Postgres' bigint.
pub(crate) fn bigint(what: &'static str, value: u64) -> Result<i64, Refused> {
    i64::try_from(value).map_err(|_| Refused::OutOfRange { what, value })
}

/// Whether nobody else may change a run's row until the transaction ends.
#[derive(Debug, Clone, Copy)]
pub enum Lock {
    /// Others may hold it like this, too.
    Shared,
    /// Nobody else may hold it.
    Alone,
}

// Row locks are not fair: loaders that take the row shared one after the other would keep whoever
// wants it alone waiting for as long as there are batches. The advisory lock before it queues.
const SHARED: &str = "WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared($2)) \
    SELECT run_no, state, generation, result_id, batches_expected, rows_expected, query_execution_id \
    FROM turn, etl.runs WHERE run_id = $1 FOR SHARE OF runs";
const ALONE: &str = "WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock($2)) \
    SELECT run_no, state, generation, result_id, batches_expected, rows_expected, query_execution_id \
    FROM turn, etl.runs WHERE run_id = $1 FOR UPDATE OF runs";

/// The key of the advisory lock that comes before the lock on a run's row.
pub fn turn_key(run: &RunId) -> i64 {
    lock_key("run", run.as_str())
}

/// The run's row, locked.
pub async fn find(tx: &mut PgConnection, run: &RunId, lock: Lock) -> Result<Run, LoadError> {
    let select = match lock {
        Lock::Shared => SHARED,
        Lock::Alone => ALONE,
    };
    let found: Option<Run> = sqlx::query_as(select)
        .bind(run.as_str())
        .bind(turn_key(run))
        .fetch_optional(tx)
        .await
        .map_err(LoadError::books("read"))?;
    found.ok_or_else(|| {
        Refused::UnknownRun {
            run: run.to_string(),
        }
        .into()
    })
}

/// Makes the batch's result the run's, if it has none yet. Its own small transaction: a loader that
/// holds the row shared and wants to change it would deadlock with another that does the same.
pub async fn pin_result(pool: &PgPool, batch: &ValidBatch) -> Result<(), LoadError> {
    let generation = integer("the generation", batch.id.generation)?;
    let pin = transaction(pool, async |tx: &mut PgConnection| {
        sqlx::query(
            "UPDATE etl.runs SET result_id = $2, state = 'running', started_at = coalesce(started_at, now())
             WHERE run_id = $1 AND generation = $3 AND result_id IS NULL AND state IN ('requested', 'running')",
        )
        .bind(batch.id.run.as_str())
        .bind(&batch.result_id)
        .bind(generation)
        .execute(tx)
        .await
    });
    pin.await
        .map(drop)
        .map_err(LoadError::books("told the run's result"))
}

/// Claims a batch's place in the ledger. False when it is taken; waits for a transaction that is
/// about to take it.
pub async fn claim(tx: &mut PgConnection, batch: &ValidBatch) -> Result<bool, LoadError> {
    let (loaded, rejected) = (batch.rows.len() as u64, batch.rejected.len() as u64);
    let claimed = sqlx::query(
        "INSERT INTO etl.batches (run_id, generation, seq, content_hash, result_id, first_row, rows_extracted, rows_loaded, rows_rejected)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (run_id, generation, seq) DO NOTHING",
    )
    .bind(batch.id.run.as_str())
    .bind(integer("the generation", batch.id.generation)?)
    .bind(integer("the seq", batch.id.seq)?)
    .bind(batch.content_hash.as_str())
    .bind(&batch.result_id)
    .bind(bigint("the first row", batch.first_row)?)
    .bind(bigint("the number of rows", loaded + rejected)?)
    .bind(bigint("the number of rows", loaded)?)
    .bind(bigint("the number of rows", rejected)?)
    .execute(tx)
    .await;
    claimed
        .map(|done| done.rows_affected() == 1)
        .map_err(LoadError::books("written"))
}

/// Refuses a batch that does not begin where the one before it ends, or end where the next begins.
/// Neighbours that are not in the ledger yet look at this one when they come; of two that are being
/// loaded at the same time neither may see the other, and the question whether the run is done does.
pub async fn check_neighbours(tx: &mut PgConnection, batch: &ValidBatch) -> Result<(), LoadError> {
    let neighbours: Vec<(i32, i64, i64)> = sqlx::query_as(
        "SELECT seq, first_row, first_row + rows_extracted FROM etl.batches WHERE run_id = $1 AND generation = $2 AND seq IN ($3 - 1, $3 + 1)",
    )
    .bind(batch.id.run.as_str())
    .bind(integer("the generation", batch.id.generation)?)
    .bind(integer("the seq", batch.id.seq)?)
    .fetch_all(tx)
    .await
    .map_err(LoadError::books("read"))?;
    let end = batch.first_row + batch.rows_extracted() as u64;
    match contradiction(batch.id.seq, batch.first_row, end, &neighbours) {
        None => Ok(()),
        Some(contradiction) => Err(Refused::OutOfLine {
            id: batch.id.to_string(),
            first_row: batch.first_row,
            end,
            contradiction,
        }
        .into()),
    }
}

/// What speaks against a batch with these rows. `neighbours`: seq, first row, end.
fn contradiction(
    seq: u32,
    first_row: u64,
    end: u64,
    neighbours: &[(i32, i64, i64)],
) -> Option<String> {
    if seq == 0 && first_row != 0 {
        return Some("cannot be for the first batch".to_owned());
    }
    neighbours.iter().find_map(|&(other, begins, ends)| {
        let is_before = i64::from(other) < i64::from(seq);
        if is_before && u64::try_from(ends) != Ok(first_row) {
            return Some(format!(
                "does not follow batch {other}, which ends at {ends}"
            ));
        }
        (!is_before && u64::try_from(begins) != Ok(end))
            .then(|| format!("does not lead to batch {other}, which begins at {begins}"))
    })
}

/// One of these values of `_batch` that no batch in the ledger has written.
pub(crate) async fn first_unknown(
    tx: &mut PgConnection,
    numbers: &[i64],
) -> Result<Option<i64>, LoadError> {
    if numbers.is_empty() {
        return Ok(None);
    }
    sqlx::query_scalar(
        "SELECT number FROM unnest($1::bigint[]) AS n (number) WHERE NOT EXISTS (
             SELECT FROM etl.runs r JOIN etl.batches b USING (run_id) WHERE r.run_no = number >> 24 AND b.seq = (number & 16777215)) LIMIT 1",
    )
    .bind(numbers)
    .fetch_optional(tx)
    .await
    .map_err(LoadError::books("read"))
}

/// Corrects a claimed row once it is known what became of the rows.
pub async fn settle(tx: &mut PgConnection, id: &BatchId, counts: Counts) -> Result<(), LoadError> {
    sqlx::query("UPDATE etl.batches SET rows_loaded = $4, rows_collapsed = $5, rows_rejected = $6 WHERE run_id = $1 AND generation = $2 AND seq = $3")
        .bind(id.run.as_str())
        .bind(integer("the generation", id.generation)?)
        .bind(integer("the seq", id.seq)?)
        .bind(counts.loaded)
        .bind(counts.collapsed)
        .bind(counts.rejected)
        .execute(tx)
        .await
        .map(drop)
        .map_err(LoadError::books("written"))
}

/// Whether the ledger has this batch. Other contents under the same identity are refused.
pub async fn is_recorded(
    connection: &mut PgConnection,
    batch: &ValidBatch,
) -> Result<bool, LoadError> {
    let found: Option<(String,)> = sqlx::query_as(
        "SELECT content_hash FROM etl.batches WHERE run_id = $1 AND generation = $2 AND seq = $3",
    )
    .bind(batch.id.run.as_str())
    .bind(integer("the generation", batch.id.generation)?)
    .bind(integer("the seq", batch.id.seq)?)
    .fetch_optional(connection)
    .await
    .map_err(LoadError::books("read"))?;
    match found {
        None => Ok(false),
        Some((hash,)) if hash == batch.content_hash.as_str() => Ok(true),
        Some((ledger,)) => Err(Refused::OtherContent {
            id: batch.id.to_string(),
            ledger,
            found: batch.content_hash.to_string(),
        }
        .into()),
    }
}

/// Counts a message that came after the end of its run.
pub async fn count_late(pool: &PgPool, run: &RunId) -> Result<(), LoadError> {
    let count = transaction(pool, async |tx: &mut PgConnection| {
        sqlx::query("UPDATE etl.runs SET late_messages = late_messages + 1 WHERE run_id = $1")
            .bind(run.as_str())
            .execute(tx)
            .await
    });
    count
        .await
        .map(drop)
        .map_err(LoadError::books("told of a late message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(state: &str) -> Run {
        Run {
            run_no: 3,
            state: state.into(),
            generation: 2,
            result_id: Some("q:pages".into()),
            batches_expected: Some(7),
            rows_expected: Some(70),
            query_execution_id: None,
        }
    }

    #[test]
    fn the_generation_decides_before_the_state() {
        assert_eq!(run("running").standing(2).unwrap(), Standing::Live);
        assert_eq!(run("requested").standing(2).unwrap(), Standing::Live);
        assert_eq!(run("failed").standing(2).unwrap(), Standing::Over);
        assert_eq!(run("completed").standing(1).unwrap(), Standing::Stale);
        assert!(run("running").standing(3).is_err());
    }

    #[test]
    fn a_batch_begins_where_the_one_before_ends_and_ends_where_the_next_begins() {
        assert_eq!(contradiction(0, 0, 5, &[(1, 5, 9)]), None);
        assert_eq!(contradiction(1, 5, 9, &[(0, 0, 5), (2, 9, 9)]), None);
        assert_eq!(contradiction(7, 70, 80, &[]), None);
        for (seq, neighbours) in [
            (0, &[][..]),
            (3, &[(2, 0, 4)]),
            (3, &[(2, 0, 6)]),
            (3, &[(2, 0, 5), (4, 8, 12)]),
            (3, &[(4, 10, 12)]),
        ] {
            let found = contradiction(seq, 5, 9, neighbours);
            assert!(found.is_some(), "{seq} {neighbours:?}");
        }
    }

    #[test]
    fn batches_of_a_run_are_ordered_within_it_and_after_older_runs() {
        assert_eq!(run("running").batch_number(5), 3 * 16_777_216 + 5);
    }
}
