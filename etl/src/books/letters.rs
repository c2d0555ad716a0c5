//! Dead letters: what no stage could handle, and what a person made of it.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use common::message::RunId;
use common::schema::quoted;
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::{Books, Run};
use crate::Failure;

/// Which dead letters are meant: all, or those of this run, this job and this stage.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter {
    pub run: Option<String>,
    pub job: Option<String>,
    pub stage: Option<String>,
}

/// A dead letter with the beginning of its body.
#[derive(Debug, FromRow, Serialize)]
pub struct DeadLetter {
    pub id: i64,
    pub message_id: Option<String>,
    pub stage: String,
    pub reason: String,
    pub attempts: i32,
    pub job: Option<String>,
    pub run_id: Option<String>,
    pub queue: Option<String>,
    pub kind: Option<String>,
    pub received_at: String,
    /// How long ago that was.
    pub age_seconds: i64,
    pub resolution: Option<String>,
    /// Bytes of the body; none when it was pruned.
    pub body_bytes: Option<i32>,
    /// Its first four hundred bytes, as far as they are text.
    #[sqlx(try_from = "Start")]
    pub body_start: String,
}

/// The beginning of a body, which may be anything.
#[derive(sqlx::Type)]
#[sqlx(transparent)]
struct Start(Vec<u8>);

impl From<Start> for String {
    fn from(start: Start) -> Self {
        // A packed batch begins with a few bytes, and then with its head as it is until something in it repeats.
        let packed = start.0.iter().take(20).position(|byte| *byte == b'{');
        let from = packed.filter(|_| start.0.first().is_some_and(|byte| *byte < b' '));
        let shown = Self::from_utf8_lossy(&start.0[from.unwrap_or(0)..]);
        let until = from.and_then(|_| shown.find(|c: char| c.is_control() || c == '\u{fffd}'));
        shown[..until.unwrap_or(shown.len())]
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }
}

/// What it takes to send a dead letter again, or to give it up.
#[derive(Debug, FromRow)]
pub struct Letter {
    pub id: i64,
    pub message_id: Option<String>,
    pub run_id: Option<String>,
    pub queue: Option<String>,
    pub kind: Option<String>,
    #[sqlx(json)]
    pub headers: BTreeMap<String, String>,
    pub body: Option<Vec<u8>>,
    /// To the microsecond, as Postgres shows it: tells whether the letter came again.
    pub received_at: String,
    pub resolution: Option<String>,
}

/// A batch that is given up.
pub struct DroppedBatch {
    pub generation: i32,
    pub seq: i32,
    pub content_hash: String,
    pub result_id: String,
    pub first_row: i64,
    pub rows: i64,
}

/// What giving a batch up came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Its rows are counted as dropped.
    Counted,
    /// The books did not need it, and why.
    NotNeeded(&'static str),
}

const LETTERS: &str = r#"
    SELECT id, message_id, stage, reason, attempts, job, run_id, queue, kind, resolution,
           to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS received_at,
           greatest(0, extract(epoch FROM now() - received_at))::bigint AS age_seconds,
           length(body) AS body_bytes, coalesce(substr(body, 1, 400), '') AS body_start
    FROM etl.dead_letters
"#;

const FILTER: &str = "resolved_at IS NULL AND ($1::text IS NULL OR run_id = $1) \
    AND ($2::text IS NULL OR job = $2) AND ($3::text IS NULL OR stage = $3)";

impl Books {
    /// The dead letters of a run that nobody has dealt with, the oldest first.
    pub async fn dead_letters(
        &self,
        run: Option<&Run>,
        limit: Option<u32>,
    ) -> Result<Vec<DeadLetter>, Failure> {
        let filter = LetterFilter {
            run: run.map(|run| run.run_id.clone()),
            ..LetterFilter::default()
        };
        self.filtered_letters(&filter, limit).await
    }

    /// The dead letters that nobody has dealt with, the oldest first.
    pub async fn filtered_letters(
        &self,
        filter: &LetterFilter,
        limit: Option<u32>,
    ) -> Result<Vec<DeadLetter>, Failure> {
        let query = format!("{LETTERS} WHERE {FILTER} ORDER BY id LIMIT $4");
        let letters = sqlx::query_as(AssertSqlSafe(query))
            .bind(&filter.run)
            .bind(&filter.job)
            .bind(&filter.stage)
            .bind(limit.map(i64::from))
            .fetch_all(&self.pool)
            .await
            .context("cannot read the dead letters")?;
        Ok(letters)
    }

    /// How many dead letters nobody has dealt with.
    pub async fn count_letters(&self, filter: &LetterFilter) -> Result<i64, Failure> {
        let query = format!("SELECT count(*) FROM etl.dead_letters WHERE {FILTER}");
        let count = sqlx::query_scalar(AssertSqlSafe(query))
            .bind(&filter.run)
            .bind(&filter.job)
            .bind(&filter.stage)
            .fetch_one(&self.pool)
            .await
            .context("cannot count the dead letters")?;
        Ok(count)
    }

    /// The numbers of the dead letters that nobody has dealt with.
    pub async fn letter_ids(&self, filter: &LetterFilter) -> Result<Vec<i64>, Failure> {
        let query = format!("SELECT id FROM etl.dead_letters WHERE {FILTER} ORDER BY id");
        let ids = sqlx::query_scalar(AssertSqlSafe(query))
            .bind(&filter.run)
            .bind(&filter.job)
            .bind(&filter.stage)
            .fetch_all(&self.pool)
            .await
            .context("cannot read the dead letters")?;
        Ok(ids)
    }

    /// One dead letter to be shown, dealt with or not.
    pub async fn dead_letter(&self, id: i64) -> Result<DeadLetter, Failure> {
        let found = sqlx::query_as(AssertSqlSafe(format!("{LETTERS} WHERE id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .context("cannot read the dead letter")?;
        found.ok_or_else(|| unknown(id))
    }

    /// One dead letter with its whole body, unless that was pruned.
    pub async fn letter(&self, id: i64) -> Result<Letter, Failure> {
        let found = sqlx::query_as(
            "SELECT id, message_id, run_id, queue, kind, headers, body, received_at::text AS received_at, resolution
             FROM etl.dead_letters WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await
        .context("cannot read the dead letter")?;
        found.ok_or_else(|| unknown(id))
    }

    /// Writes down what a person did with a dead letter; unless it came back meanwhile.
    pub async fn resolve(&self, letter: &Letter, resolution: &str) -> Result<(), Failure> {
        let id = letter.id;
        let mut connection = self
            .pool
            .acquire()
            .await
            .context("cannot connect to the database")?;
        resolve(&mut connection, letter, resolution)
            .await
            .with_context(|| format!("what became of the dead letter {id} could not be written down; asking again changes nothing else"))?;
        Ok(())
    }

    /// Counts the rows of a batch as dropped, so that its run can complete without them, and resolves
    /// the letter. One transaction, under the run's lock.
    pub async fn drop_batch(
        &self,
        letter: &Letter,
        run: &RunId,
        batch: &DroppedBatch,
        by: &str,
        why: &str,
    ) -> Result<Dropped, Failure> {
        let doing = || {
            format!(
                "cannot drop the dead letter {}; nothing was changed",
                letter.id
            )
        };
        let mut tx = self.pool.begin().await.with_context(doing)?;
        let dropped = write_dropped(&mut tx, run, batch, by, why)
            .await
            .with_context(doing)?;
        let resolution = match &dropped {
            Dropped::Counted => format!("dropped by {by}, {} rows: {why}", batch.rows),
            Dropped::NotNeeded(reason) => format!("dropped by {by}: {why} ({reason})"),
        };
        resolve(&mut tx, letter, &resolution)
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(doing)?;
        Ok(dropped)
    }
}

fn unknown(id: i64) -> Failure {
    Failure::usage(anyhow!(
        "there is no dead letter {id}; `etl dead list` shows them"
    ))
}

pub(super) async fn resolve(
    connection: &mut PgConnection,
    letter: &Letter,
    resolution: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE etl.dead_letters SET resolved_at = now(), resolution = $2 WHERE id = $1 AND resolved_at IS NULL AND received_at::text = $3")
        .bind(letter.id)
        .bind(resolution)
        .bind(&letter.received_at)
        .execute(connection)
        .await
        .map(drop)
}

/// A run's row, as far as dropping one of its batches depends on it.
#[derive(FromRow)]
struct RunRow {
    run_no: i64,
    state: String,
    generation: i32,
    result_id: Option<String>,
    batches_expected: Option<i32>,
    target_table: String,
    mode: String,
    publish: String,
}

/// A replay that replaces batch by batch has left the rows of the generation before in the target until
/// the batch comes. It never will.
async fn forget_former_rows(
    tx: &mut PgConnection,
    run: &RunRow,
    seq: i32,
) -> Result<(), sqlx::Error> {
    if run.generation == 0 || run.mode != "append" || run.publish != "batch" {
        return Ok(());
    }
    let (schema, table) = run
        .target_table
        .split_once('.')
        .unwrap_or(("public", &run.target_table));
    let table = format!("{}.{}", quoted(schema), quoted(table));
    let known: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&table)
        .fetch_one(&mut *tx)
        .await?;
    if known {
        sqlx::query(AssertSqlSafe(format!(
            "DELETE FROM {table} WHERE _batch = $1"
        )))
        .bind(run.run_no << 24 | i64::from(seq))
        .execute(tx)
        .await?;
    }
    Ok(())
}

async fn write_dropped(
    tx: &mut PgConnection,
    run: &RunId,
    batch: &DroppedBatch,
    by: &str,
    why: &str,
) -> Result<Dropped, sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(loader::ledger::turn_key(run))
        .execute(&mut *tx)
        .await?;
    let found: Option<RunRow> = sqlx::query_as(
        "SELECT run_no, state, generation, result_id, batches_expected, target_table, mode, publish FROM etl.runs WHERE run_id = $1 FOR UPDATE",
    )
    .bind(run.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = found else {
        return Ok(Dropped::NotNeeded("its run is unknown here"));
    };
    let generation = row.generation;
    if !matches!(row.state.as_str(), "requested" | "running") {
        return Ok(Dropped::NotNeeded("its run was over without it"));
    }
    if batch.generation != generation {
        return Ok(Dropped::NotNeeded("a replay has superseded it"));
    }
    if row
        .result_id
        .as_ref()
        .is_some_and(|known| *known != batch.result_id)
        || row
            .batches_expected
            .is_some_and(|expected| batch.seq >= expected)
    {
        return Ok(Dropped::NotNeeded("it is of no part of the run's result"));
    }
    let inserted = sqlx::query(
        "INSERT INTO etl.batches (run_id, generation, seq, content_hash, result_id, first_row, rows_extracted, rows_loaded, rows_dropped, dropped_by, drop_reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $7, $8, $9) ON CONFLICT (run_id, generation, seq) DO NOTHING",
    )
    .bind(run.as_str())
    .bind(generation)
    .bind(batch.seq)
    .bind(&batch.content_hash)
    .bind(&batch.result_id)
    .bind(batch.first_row)
    .bind(batch.rows)
    .bind(by)
    .bind(why)
    .execute(&mut *tx)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(Dropped::NotNeeded("it was loaded after all"));
    }
    forget_former_rows(&mut *tx, &row, batch.seq).await?;
    // The run may have no result yet: this batch is of it, like the first one that is loaded.
    sqlx::query("UPDATE etl.runs SET result_id = coalesce(result_id, $2), state = 'running', started_at = coalesce(started_at, now()) WHERE run_id = $1")
        .bind(run.as_str())
        .bind(&batch.result_id)
        .execute(tx)
        .await?;
    Ok(Dropped::Counted)
}
