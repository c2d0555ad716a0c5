//! Whether a run is complete, and its end. The loader asks after every commit, duplicate and event, and in its sweep, so that
//! no crash between a commit and the question leaves a finished run open.

use std::collections::BTreeMap;

use common::job::{JobSpec, Mode};
use common::message::RunId;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::run::{LockedRun, run_id};
use crate::state::{RunState, Transition};

/// The sums of a run whose batches are all in the ledger.
#[derive(Debug, FromRow)]
pub struct Sums {
    pub rows_extracted: i64,
    pub rows_loaded: i64,
    pub rows_rejected: i64,
    /// Why the batches are not the run's result, if they are not.
    pub contradiction: Option<String>,
}

/// How a run with all of its batches ends, with the reason for a person.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Completed,
    /// The ledger contradicts the extractor's counts.
    Failed(String),
    /// A person has to decide.
    Held(String),
    /// A later run's rows are there.
    Superseded(String),
}

/// Whether the run may be complete: the number of its rows is known, and the batch with the last one is in the ledger. A cheap
/// question, so that a big run is counted at its end only, not after each of its batches.
pub async fn may_be_complete(store: &Store, run: &RunId) -> Result<bool, Error> {
    let failure = "cannot look whether the run is complete";
    store
        .transaction(failure, async |tx: &mut PgConnection| {
            let may_be = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM etl.runs r WHERE run_id = $1 AND state IN ('requested', 'running')
                     AND rows_expected <= etl.last_row_end(run_id, generation))",
            )
            .bind(run.as_str())
            .fetch_one(tx)
            .await?;
            Ok(may_be)
        })
        .await
}

/// Open runs that may be complete: the number of their rows is known, and the batch with the last one is in the ledger.
pub async fn candidates(store: &Store) -> Result<Vec<RunId>, Error> {
    let failure = "cannot look for runs that are complete";
    store
        .transaction(failure, async |tx: &mut PgConnection| {
            let found: Vec<String> = sqlx::query_scalar(
                "SELECT run_id FROM etl.runs WHERE state IN ('requested', 'running')
                     AND rows_expected <= etl.last_row_end(run_id, generation)
                 ORDER BY run_no",
            )
            .fetch_all(tx)
            .await?;
            Ok(found.into_iter().map(run_id).collect::<Result<_, _>>()?)
        })
        .await
}

/// The tables, with their schemas, of the runs that completed in the last ten minutes.
pub async fn recently_loaded(store: &Store) -> Result<Vec<String>, Error> {
    let failure = "cannot look for runs that completed lately";
    store
        .transaction(failure, async |tx: &mut PgConnection| {
            let tables = sqlx::query_scalar(
                "SELECT DISTINCT target_table FROM etl.runs WHERE state = 'completed' AND finished_at > now() - interval '10 minutes'",
            );
            Ok(tables.fetch_all(tx).await?)
        })
        .await
}

impl LockedRun<'_> {
    /// The sums of the live generation; none while a batch is missing. Batch transactions hold the row shared, so that none is
    /// between its ledger row and its commit under this lock.
    pub async fn sums(&mut self) -> Result<Option<Sums>, Error> {
        // The batches have each row of the result once when each begins where those before it end. The sum of the rows says
        // nothing of where they were cut.
        let found = sqlx::query_as(
            "WITH placed AS (
                 SELECT r.rows_expected, b.first_row, b.rows_extracted, b.rows_loaded, b.rows_rejected,
                        b.first_row <> sum(b.rows_extracted) OVER (ORDER BY b.first_row) - b.rows_extracted AS is_misplaced
                 FROM etl.runs r JOIN etl.batches b ON b.run_id = r.run_id AND b.generation = r.generation
                 WHERE r.run_id = $1),
             ledger AS (
                 SELECT rows_expected, max(first_row + rows_extracted) AS last_end,
                        sum(rows_extracted)::bigint AS rows_extracted, sum(rows_loaded)::bigint AS rows_loaded,
                        sum(rows_rejected)::bigint AS rows_rejected, min(first_row) FILTER (WHERE is_misplaced) AS misplaced
                 FROM placed GROUP BY rows_expected)
             SELECT rows_extracted, rows_loaded, rows_rejected,
                    CASE WHEN last_end > rows_expected
                         THEN format('row %s is in the ledger, and the result has %s rows', last_end - 1, rows_expected)
                         WHEN misplaced IS NOT NULL
                         THEN format('the batch from row %s on does not begin where the batches before it end: rows were loaded twice or not at all', misplaced)
                    END AS contradiction
             FROM ledger WHERE rows_extracted >= rows_expected OR last_end > rows_expected",
        )
        .bind(self.id.as_str())
        .fetch_optional(&mut *self.tx)
        .await?;
        Ok(found)
    }

    /// Why a run without a staging table is not complete all the same: it is a replay whose every batch was dropped before any
    /// was staged, and the rows that it was to replace are in the target still.
    pub async fn why_nothing_is_staged(&mut self) -> Result<Option<String>, Error> {
        let spec: Option<Json<JobSpec>> = sqlx::query_scalar(
            "SELECT job_spec FROM etl.replays WHERE run_id = $1 AND generation = $2",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .fetch_optional(&mut *self.tx)
        .await?;
        let generation = self.row.generation_no();
        let is_staged = spec.is_some_and(|spec| spec.0.target.is_staged(generation));
        let run = &self.id;
        Ok(is_staged.then(|| {
            format!(
                "every batch of the replay was dropped, and the rows that it was to replace are in the target still; `etl discard {run} --why ...` leaves them there, `etl replay {run}` tries again"
            )
        }))
    }

    /// Ends the run, or holds it, and writes the messages about it. An approval of a run that is held again is void. A replay
    /// that fails is abandoned: the ledger says again what is in the target.
    pub async fn end(mut self, end: &End) -> Result<RunState, Error> {
        let (transition, reason) = match end {
            End::Completed => (Transition::Complete, None),
            End::Failed(reason) => (Transition::Fail, Some(reason)),
            End::Held(reason) => (Transition::Hold, Some(reason)),
            End::Superseded(reason) => (Transition::Supersede, Some(reason)),
        };
        let state = self.to(transition)?;
        match end {
            End::Failed(reason) => self.give_replay_up(reason).await?,
            End::Completed => self.advance_watermark().await?,
            End::Held(_) | End::Superseded(_) => {}
        }
        let statement = match end {
            End::Held(_) => {
                "UPDATE etl.runs SET state = $2, failure = NULL, held_because = $3, approved_at = NULL WHERE run_id = $1"
            }
            // A replay does not make it newer.
            End::Completed => {
                "UPDATE etl.runs SET state = $2, failure = $3, finished_at = now(), completed_at = coalesce(completed_at, now()) WHERE run_id = $1"
            }
            End::Failed(_) | End::Superseded(_) => {
                "UPDATE etl.runs SET state = $2, failure = $3, finished_at = now() WHERE run_id = $1"
            }
        };
        sqlx::query(statement)
            .bind(self.id.as_str())
            .bind(state.name())
            .bind(reason)
            .execute(&mut *self.tx)
            .await?;
        self.tell(end).await?;
        self.tell_end(state).await?;
        Ok(state)
    }

    /// The replaces of a table that later runs have committed, the latest first: the run, and the bounds of its window as
    /// [`Self::record_commit`] was given them.
    pub async fn later_replaces(
        &mut self,
        table: &str,
    ) -> Result<Vec<(String, serde_json::Value)>, sqlx::Error> {
        sqlx::query_as(
            "SELECT run_id, coalesce(target_bounds, '[]') FROM etl.runs
             WHERE run_no > $1 AND target_table = $2 AND mode = $3 AND committed_at IS NOT NULL ORDER BY run_no DESC",
        )
        .bind(self.row.run_no)
        .bind(table)
        .bind(Mode::Replace.name())
        .fetch_all(&mut *self.tx)
        .await
    }

    /// The latest run that wrote one of these values of `_batch`.
    pub async fn latest_of(&mut self, batch_nos: &[i64]) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT run_id FROM etl.runs WHERE run_no = (SELECT max(etl.run_no(no)) FROM unnest($1::bigint[]) AS n (no))",
        )
        .bind(batch_nos)
        .fetch_optional(&mut *self.tx)
        .await
    }

    /// Records that the staged rows are in the target: how many of each batch lost to another row of their key, by what
    /// `written` says is there (rows by `_batch`), and what part of the target was replaced.
    pub async fn record_commit(
        &mut self,
        written: &BTreeMap<i64, i64>,
        table: &str,
        (window, bounds): (&str, serde_json::Value),
        mode: &str,
    ) -> Result<(), sqlx::Error> {
        let (numbers, counts): (Vec<i64>, Vec<i64>) = written.iter().map(|(b, n)| (*b, *n)).unzip();
        sqlx::query(
            "UPDATE etl.batches b SET rows_deduplicated = b.rows_loaded - w.written
             FROM (SELECT l.first_row, coalesce(n.written, 0) AS written FROM etl.batches l
                   LEFT JOIN unnest($3::bigint[], $4::bigint[]) AS n (no, written) ON etl.first_row(n.no) = l.first_row
                   WHERE l.run_id = $1 AND l.generation = $2) w
             WHERE b.run_id = $1 AND b.generation = $2 AND b.first_row = w.first_row AND b.rows_deduplicated <> b.rows_loaded - w.written",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .bind(numbers)
        .bind(counts)
        .execute(&mut *self.tx)
        .await?;
        sqlx::query("UPDATE etl.runs SET target_table = $2, target_window = $3, target_bounds = $4, mode = $5, committed_at = now() WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(table)
            .bind(window)
            .bind(bounds)
            .bind(mode)
            .execute(&mut *self.tx)
            .await
            .map(drop)
    }
}
