//! Replays: what a run is like before one, the lock that makes them one at a time, and the transaction that comes before the
//! first message.

use std::sync::Arc;

use common::command::user;
use common::job::JobSpec;
use common::message::{Limits, RunId};
use common::schema::ResultColumn;
use jiff::Timestamp;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::lineage::Occurrence;
use crate::removal::check_no_removal;
use crate::request::{commit_of, lock_requests};
use crate::row_ranges::RowRanges;
use crate::run::{LockedRun, generation_no};
use crate::session_lock::SessionLock;
use crate::state::Transition;
use crate::summary::{Run, find_run};

/// A run, with what only a replay has to know.
pub struct Subject {
    pub run: Run,
    /// The job at the time of the request.
    pub first_spec: JobSpec,
    /// To the microsecond: a column may be filled with it.
    pub requested_at: Timestamp,
    pub sql: String,
    pub limits: Limits,
    /// `s3://bucket/key` of the result's object, and its columns, as far as the ledger knows them.
    pub result_location: Option<String>,
    pub result_columns: Vec<ResultColumn>,
    /// The replay that made the live generation.
    pub replay: Option<Replay>,
}

/// A replay as the ledger has it.
#[derive(FromRow)]
pub struct Replay {
    pub source: String,
    #[sqlx(try_from = "Json<Vec<(i64, i64)>>")]
    pub rows: RowRanges,
    pub job_hash: String,
    #[sqlx(json, rename = "job_spec")]
    pub spec: Arc<JobSpec>,
    pub requested_by: String,
    pub sent: bool,
}

impl From<Json<Vec<(i64, i64)>>> for RowRanges {
    fn from(ranges: Json<Vec<(i64, i64)>>) -> Self {
        Self::from_ledger(ranges.0)
    }
}

impl Subject {
    /// The run's name.
    pub fn id(&self) -> &str {
        &self.run.run_id
    }

    /// The live generation.
    pub fn generation(&self) -> u32 {
        generation_no(self.run.generation)
    }

    /// How many rows the result has, once it was read to its end.
    pub fn rows(&self) -> Option<u64> {
        self.run.rows_expected.map(i64::unsigned_abs)
    }

    /// The rows that the unfinished replay sends, as far as the result has them: it may be older than their number.
    pub fn unfinished_rows(&self) -> Option<RowRanges> {
        let rows = &self.unfinished()?.rows;
        Some(self.rows().map_or_else(
            || rows.clone(),
            |all| rows.clone().within(&RowRanges::first(all)),
        ))
    }

    /// The replay of the live generation, if it was not sent to its end and may still be needed.
    pub fn unfinished(&self) -> Option<&Replay> {
        self.replay
            .as_ref()
            .filter(|replay| !replay.sent && !self.run.state.is_over())
    }

    /// The job of the live generation.
    pub fn live_spec(&self) -> Arc<JobSpec> {
        self.replay.as_ref().map_or_else(
            || Arc::new(self.first_spec.with_requested_at(self.requested_at)),
            |replay| Arc::clone(&replay.spec),
        )
    }

    /// Refuses a state that cannot be replayed. A run that is under way needs `force`.
    pub fn check_state(&self, force: bool) -> Result<(), Error> {
        let (id, state) = (self.id(), self.run.state);
        if Transition::Replay.leads_to(state).is_none() {
            return Err(Error::NotAllowed(Transition::Replay.refusal(id, state)));
        }
        if state.takes_batches() && self.unfinished().is_none() && !force {
            return Err(Error::NotAllowed(format!(
                "the run {id} is {state}: `etl status {id}` tells what it waits for. If nothing works on it any more, because the database was restored or a queue was lost, `etl replay {id} --missing` sends what the ledger lacks, and --force replays it all the same"
            )));
        }
        Ok(())
    }
}

/// What a replay writes into the ledger before it sends anything.
pub struct NewReplay {
    /// `archive` or `athena`.
    pub source: &'static str,
    pub rows: RowRanges,
    /// Whether the other batches are carried forward.
    pub partial: bool,
    pub job_hash: String,
    pub spec: Arc<JobSpec>,
}

impl SessionLock {
    /// Takes a run, so that two operators do not replay it at the same time.
    pub async fn take_replay(&mut self, name: &str) -> Result<(), Error> {
        if self.take("replay", name).await? {
            return Ok(());
        }
        Err(Error::NotAllowed(format!(
            "another process is replaying the run {name} at this moment: look at it with `etl status {name}` once that has ended"
        )))
    }
}

#[derive(FromRow)]
struct SubjectRow {
    #[sqlx(json)]
    job_spec: JobSpec,
    sql: String,
    result_location: Option<String>,
    #[sqlx(json)]
    result_columns: Vec<ResultColumn>,
}

impl Store {
    /// The run of this name with all that a replay has to know.
    pub async fn subject(&self, name: &str) -> Result<Subject, Error> {
        let failure = format!("cannot read the run {name} and its replays");
        let (run, row, replay) = self
            .read(failure, async |tx: &mut PgConnection| {
                let run = find_run(tx, name).await?;
                let row: SubjectRow =
                    sqlx::query_as("SELECT job_spec, sql, result_location, coalesce(result_columns, '[]') AS result_columns FROM etl.runs WHERE run_id = $1")
                        .bind(name)
                        .fetch_one(&mut *tx)
                        .await?;
                let replay = sqlx::query_as(
                    "SELECT source, job_hash, job_spec, requested_by, sent_at IS NOT NULL AS sent,
                            to_json(ARRAY(SELECT json_build_array(lower(r), upper(r) - 1) FROM unnest(rows) AS r)) AS rows
                     FROM etl.replays WHERE run_id = $1 AND generation = $2",
                )
                .bind(name)
                .bind(run.generation)
                .fetch_optional(tx)
                .await?;
                Ok((run, row, replay))
            })
            .await?;
        let settled = self.settled(&parsed(name)?).await?;
        Ok(Subject {
            run,
            first_spec: row.job_spec,
            requested_at: settled.requested_at,
            sql: row.sql,
            result_location: row.result_location,
            result_columns: row.result_columns,
            limits: settled.limits,
            replay,
        })
    }

    /// Writes a replay and raises the run's generation: the new one's number. From here on batches of the generations before are
    /// stale.
    pub async fn begin_replay(&self, subject: &Subject, replay: &NewReplay) -> Result<u32, Error> {
        let name = subject.id();
        let id = parsed(name)?;
        let failure =
            format!("cannot write the replay of {name} into the ledger; nothing was sent");
        self.transaction(failure, async |tx: &mut PgConnection| {
            lock_requests(tx, &id).await?;
            let run = LockedRun::lock_for_person(tx, &id).await?;
            run.begin_replay(subject, replay).await
        })
        .await
    }

    /// Records that every message of the live generation's replay is with the broker.
    pub async fn replay_sent(&self, name: &str, generation: u32) -> Result<(), Error> {
        let failure = format!(
            "the replay of {name} was sent, and that cannot be recorded; repeat the command: sending it twice changes nothing"
        );
        self.transaction(failure, async |tx: &mut PgConnection| {
            sqlx::query("UPDATE etl.replays SET sent_at = now() WHERE run_id = $1 AND generation = $2 AND sent_at IS NULL")
                .bind(name)
                .bind(i32::try_from(generation).unwrap_or(i32::MAX))
                .execute(tx)
                .await?;
            Ok(())
        })
        .await
    }

    /// The rows of the batches that have one of these rows: those of the live generation, and those that an unfinished replay is
    /// to replace.
    pub async fn batches_with(&self, run: &Run, rows: &RowRanges) -> Result<RowRanges, Error> {
        let failure = format!("cannot look for the batches of {}", run.run_id);
        let found: Vec<(i64, i64)> = self
            .read(failure, async |tx: &mut PgConnection| {
                let query = sqlx::query_as(
                    "SELECT DISTINCT first_row, first_row + rows_extracted - 1 FROM etl.batches
                     WHERE run_id = $1 AND generation BETWEEN $4 AND $2 AND int8range(first_row, first_row + rows_extracted) && $3::text::int8multirange",
                );
                let query = query.bind(&run.run_id).bind(run.generation).bind(rows.multirange());
                let query = query.bind(run.first_generation);
                Ok(query.fetch_all(tx).await?)
            })
            .await?;
        Ok(RowRanges::from_ledger(found))
    }

    /// The rows of the batches of the live generation that have a rejected row.
    pub async fn batches_with_rejects(&self, run: &Run) -> Result<RowRanges, Error> {
        let failure = format!("cannot look for the rejected rows of {}", run.run_id);
        let rows: Vec<(i64, i64)> = self
            .read(failure, async |tx: &mut PgConnection| {
                let query = sqlx::query_as(
                    "SELECT first_row, first_row + rows_extracted - 1 FROM etl.batches WHERE run_id = $1 AND generation = $2 AND rows_rejected > 0",
                );
                Ok(query.bind(&run.run_id).bind(run.generation).fetch_all(tx).await?)
            })
            .await?;
        Ok(RowRanges::from_ledger(rows))
    }
}

fn parsed(name: &str) -> Result<RunId, Error> {
    name.parse()
        .map_err(|_| Error::NotFound(format!("{name:?} is not the name of a run")))
}

impl LockedRun<'_> {
    /// Refused when the run is not as it was when the checks were made.
    async fn begin_replay(mut self, subject: &Subject, replay: &NewReplay) -> Result<u32, Error> {
        let (name, checked) = (&self.id, &subject.run);
        if self.row.state != checked.state || self.row.generation != checked.generation {
            return Err(Error::NotAllowed(format!(
                "the run {name} has changed meanwhile: it was {} and is {}; repeat the command",
                checked.state, self.row.state
            )));
        }
        check_no_removal(self.tx, &self.row.target_table).await?;
        self.check_no_other(replay.spec.target.mode).await?;
        self.check_reads_on().await?;
        let state = self.to(Transition::Replay)?;
        let generation = self.row.generation + 1;
        self.tell_abandoned().await?;
        if replay.partial {
            sqlx::query(
                "UPDATE etl.batches SET generation = $3 WHERE run_id = $1 AND generation = $2 AND NOT $4::text::int8multirange @> first_row",
            )
            .bind(self.id.as_str())
            .bind(self.row.generation)
            .bind(generation)
            .bind(replay.rows.multirange())
            .execute(&mut *self.tx)
            .await?;
        }
        self.write_replay(replay, generation).await?;
        // What a person decided was about the generation before.
        sqlx::query(
            "UPDATE etl.runs SET generation = $2, state = $3, finished_at = NULL, failure = NULL, commit = $4,
                 held_because = NULL, approved_at = NULL, decided_by = NULL, decision = NULL WHERE run_id = $1",
        )
        .bind(self.id.as_str())
        .bind(generation)
        .bind(state.name())
        .bind(commit_of(&replay.spec.target).name())
        .execute(&mut *self.tx)
        .await?;
        self.resolve_replayed(replay, generation).await?;
        self.tell_lineage(Occurrence::Start).await?;
        Ok(generation_no(generation))
    }

    async fn write_replay(
        &mut self,
        replay: &NewReplay,
        generation: i32,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO etl.replays (run_id, generation, source, rows, job_hash, job_spec, state_before, requested_by)
             VALUES ($1, $2, $3, $4::text::int8multirange, $5, $6, $7, $8)",
        )
        .bind(self.id.as_str())
        .bind(generation)
        .bind(replay.source)
        .bind(replay.rows.multirange())
        .bind(&replay.job_hash)
        .bind(Json(&replay.spec))
        .bind(self.row.state.name())
        .bind(user())
        .execute(&mut *self.tx)
        .await
        .map(drop)
    }

    /// Dead letters of batches that are replayed are of no use any more.
    async fn resolve_replayed(
        &mut self,
        replay: &NewReplay,
        generation: i32,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            r"UPDATE etl.dead_letters SET resolved_at = now(), resolution = $5
              WHERE run_id = $1 AND resolved_at IS NULL AND (kind LIKE 'raw-batch.%' OR kind LIKE 'valid-batch.%')
                  AND CASE WHEN message_id ~ '^[^/]+/\d{1,9}/\d{1,11}$' AND split_part(message_id, '/', 1) = $1
                      THEN split_part(message_id, '/', 2)::integer < $2 AND (NOT $3 OR $4::text::int8multirange @> split_part(message_id, '/', 3)::bigint)
                      ELSE false END",
        )
        .bind(self.id.as_str())
        .bind(generation)
        .bind(replay.partial)
        .bind(replay.rows.multirange())
        .bind(format!("superseded by replay {generation} of {}", user()))
        .execute(&mut *self.tx)
        .await
        .map(drop)
    }
}
