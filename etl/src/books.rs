//! The books in Postgres, as `etl` reads and writes them: the only file here that knows SQL.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use common::job::{Job, Mode};
use common::message::RunId;
use common::schema::TargetColumn;
use common::settings::{self, SecretUrl};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, FromRow, PgConnection, PgPool};
use tokio::time::timeout;

use crate::Failure;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Settings {
    database_url: Option<SecretUrl>,
}

/// The books, open.
pub(crate) struct Books {
    pool: PgPool,
}

/// A run with its sums. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, FromRow, Serialize)]
#[expect(
    clippy::struct_field_names,
    reason = "the books' own names, and those of the JSON"
)]
pub(crate) struct Run {
    pub(crate) run_id: String,
    pub(crate) run_no: i64,
    pub(crate) job: String,
    #[serde(skip)]
    pub(crate) job_hash: String,
    #[sqlx(json)]
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) target_table: String,
    pub(crate) mode: String,
    pub(crate) state: String,
    pub(crate) generation: i32,
    pub(crate) query_execution_id: Option<String>,
    pub(crate) result_id: Option<String>,
    pub(crate) bytes_scanned: Option<i64>,
    pub(crate) batches_expected: Option<i32>,
    pub(crate) rows_expected: Option<i64>,
    /// As the extractor reports it, while it reads.
    pub(crate) rows_read: i64,
    /// The ledger's sums.
    pub(crate) batches: i64,
    pub(crate) rows_extracted: i64,
    pub(crate) rows_loaded: i64,
    pub(crate) rows_collapsed: i64,
    pub(crate) rows_rejected: i64,
    pub(crate) rows_dropped: i64,
    /// Messages of the run that no stage could handle and nobody has dealt with.
    pub(crate) dead_letters: i64,
    pub(crate) late_messages: i64,
    /// Every batch is in the ledger, and extracted = loaded + rejected + dropped.
    pub(crate) balanced: bool,
    pub(crate) failure: Option<String>,
    pub(crate) requested_at: String,
    pub(crate) finished_at: Option<String>,
}

impl Run {
    /// Whether the run is over.
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "requested" | "running")
    }

    /// Whether every row that Athena returned is accounted for.
    pub(crate) fn is_complete(&self) -> bool {
        self.state == "completed" && self.balanced && self.dead_letters == 0
    }
}

/// How many rows of a run broke a rule.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct RejectCount {
    pub(crate) column_name: Option<String>,
    pub(crate) rule: String,
    pub(crate) rows: i64,
}

/// A row in quarantine.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct RejectedRow {
    pub(crate) row_number: i64,
    pub(crate) seq: i32,
    pub(crate) column_name: Option<String>,
    pub(crate) rule: String,
    pub(crate) reason: String,
    pub(crate) raw: Option<Json<Box<serde_json::value::RawValue>>>,
}

/// A dead letter, without its body.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct DeadLetter {
    pub(crate) id: i64,
    pub(crate) message_id: Option<String>,
    pub(crate) stage: String,
    pub(crate) reason: String,
    pub(crate) attempts: i32,
    pub(crate) job: Option<String>,
    pub(crate) run_id: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) received_at: String,
    pub(crate) resolution: Option<String>,
}

/// What it takes to send a dead letter again.
#[derive(Debug, FromRow)]
pub(crate) struct Letter {
    pub(crate) id: i64,
    pub(crate) message_id: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) kind: Option<String>,
    #[sqlx(json)]
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Option<Vec<u8>>,
    /// To the microsecond, as Postgres shows it: tells whether the letter came again.
    pub(crate) received_at: String,
}

/// What became of the wish to write a run into the books.
pub(crate) enum Requested {
    New,
    /// The same request was made before.
    Known(Box<Run>),
}

const RUNS: &str = r#"
    SELECT r.run_id, r.run_no, r.job, r.job_hash, r.parameters, r.target_table, r.mode, r.state, r.generation,
           r.query_execution_id, r.result_id, r.bytes_scanned, r.batches_expected, r.rows_expected,
           greatest(r.rows_extracted, b.rows_extracted) AS rows_read,
           b.batches, b.rows_extracted, b.rows_loaded, b.rows_collapsed, b.rows_rejected, b.rows_dropped,
           b.dead_letters, r.late_messages, r.failure,
           b.balanced AND b.rows_rejected = (SELECT count(*) FROM etl.rejected_rows q
               WHERE q.run_id = r.run_id AND q.generation = r.generation) AS balanced,
           to_char(r.requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS requested_at,
           to_char(r.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS finished_at
    FROM etl.runs r JOIN etl.run_books b USING (run_id)
"#;

impl Books {
    /// Connects to the database that `ETL_DATABASE_URL` names.
    pub(crate) async fn open() -> Result<Self, Failure> {
        let settings: Settings = settings::load().map_err(Failure::misuse)?;
        let url = settings.database_url.ok_or_else(|| {
            Failure::misuse(anyhow!(
                "ETL_DATABASE_URL is not set; set it to postgres://user:password@host:5432/database"
            ))
        })?;
        let options = PgConnectOptions::from_str(url.expose().as_str())
            .with_context(|| format!("ETL_DATABASE_URL ({url}) is not the URL of a database"))
            .map_err(Failure::Misuse)?
            .application_name("etl");
        // By hand first: a pool would try again for as long as it may, and say only that it did.
        let remedy = || {
            format!(
                "cannot connect to the database {url}; check that it runs and that ETL_DATABASE_URL is right"
            )
        };
        timeout(CONNECT, PgConnection::connect_with(&options))
            .await
            .with_context(remedy)?
            .with_context(remedy)?;
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(CONNECT)
            .connect_lazy_with(options);
        let (migrated,): (bool,) =
            sqlx::query_as("SELECT to_regclass('etl.run_books') IS NOT NULL")
                .fetch_one(&pool)
                .await
                .context("cannot look for the books")?;
        if !migrated {
            return Err(anyhow!(
                "the database {url} has no books yet; run `loader migrate`, or start a loader"
            )
            .into());
        }
        Ok(Self { pool })
    }

    /// Whether a run of this name was asked for.
    pub(crate) async fn knows(&self, run: &RunId) -> Result<bool, Failure> {
        let known = sqlx::query_scalar("SELECT EXISTS (SELECT FROM etl.runs WHERE run_id = $1)")
            .bind(run.as_str())
            .fetch_one(&self.pool)
            .await
            .context("cannot read the books")?;
        Ok(known)
    }

    /// Refuses a job whose rows could not be loaded, as far as that can be known before the query ran.
    pub(crate) async fn check_target(&self, job: &Job, schemas: &[String]) -> Result<(), Failure> {
        let declared = job.spec.columns.iter().filter_map(|column| {
            Some(TargetColumn {
                name: column.name.clone().unwrap_or_else(|| column.source.clone()),
                pg_type: column.pg_type?,
                athena_type: String::new(),
            })
        });
        let declared: Vec<_> = declared.collect();
        let target = &job.spec.target;
        let refused = loader::target::inspect(&self.pool, target, &declared, schemas)
            .await
            .with_context(|| format!("cannot look at the target {}", target.table))?;
        refused
            .with_context(|| format!("cannot run the job {}", job.spec.name))
            .map_err(Failure::Misuse)
    }

    /// Writes a run into the books, before anything of it is sent.
    pub(crate) async fn request(
        &self,
        run: &RunId,
        job: &Job,
        request: &common::job::Request,
    ) -> Result<Requested, Failure> {
        let (schema, table) = job.spec.target.schema_and_table();
        let mode = match job.spec.target.mode {
            Mode::Append => "append",
            Mode::Upsert => "upsert",
        };
        let hash = job.hash();
        let written = sqlx::query(
            "INSERT INTO etl.runs (run_id, job, job_hash, job_spec, parameters, sql, target_table, mode)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (run_id) DO NOTHING",
        )
        .bind(run.as_str())
        .bind(&job.spec.name)
        .bind(&hash)
        .bind(Json(&job.spec))
        .bind(Json(&request.parameters))
        .bind(&request.sql)
        .bind(format!("{schema}.{table}"))
        .bind(mode)
        .execute(&self.pool)
        .await
        .with_context(|| format!("cannot write the run {run} into the books"))?;
        if written.rows_affected() == 1 {
            return Ok(Requested::New);
        }
        let known = self.exactly(run.as_str()).await?;
        if known.job != job.spec.name
            || known.parameters != request.parameters
            || known.job_hash != hash
        {
            return Err(Failure::misuse(anyhow!(
                "the run {run} was asked for before, with another job, other parameters or an older version of the job; choose another --run-id"
            )));
        }
        Ok(Requested::Known(Box::new(known)))
    }

    /// The run of this name and of no other: for whatever proves or changes something.
    pub(crate) async fn exactly(&self, name: &str) -> Result<Run, Failure> {
        let found = self
            .read(format!("{RUNS} WHERE r.run_id = $1"), name)
            .await?;
        found.into_iter().next().ok_or_else(|| {
            Failure::misuse(anyhow!(
                "there is no run {name:?}; `etl status` lists the latest"
            ))
        })
    }

    /// The run of this name, or the only one whose name begins so: for looking only.
    pub(crate) async fn find(&self, name: &str) -> Result<Run, Failure> {
        let query = format!(
            "{RUNS} WHERE r.run_id = $1 OR $1 <> '' AND starts_with(r.run_id, $1) ORDER BY r.run_id = $1 DESC, r.run_no LIMIT 4"
        );
        let mut found: Vec<Run> = self.read(query, name).await?;
        if found.first().is_some_and(|run| run.run_id == name) || found.len() == 1 {
            return Ok(found.swap_remove(0));
        }
        if found.is_empty() {
            return Err(Failure::misuse(anyhow!(
                "there is no run {name:?}; `etl status` lists the latest"
            )));
        }
        let names: Vec<_> = found.into_iter().map(|run| run.run_id).collect();
        Err(Failure::misuse(anyhow!(
            "{name:?} is the beginning of several runs: {}; say more of the name",
            names.join(", ")
        )))
    }

    /// The latest runs, the newest first.
    pub(crate) async fn latest(&self) -> Result<Vec<Run>, Failure> {
        self.read(
            format!("{RUNS} WHERE $1 = '' ORDER BY r.run_no DESC LIMIT 20"),
            "",
        )
        .await
    }

    /// Every run, the oldest first.
    pub(crate) async fn all(&self) -> Result<Vec<Run>, Failure> {
        self.read(format!("{RUNS} WHERE $1 = '' ORDER BY r.run_no"), "")
            .await
    }

    async fn read(&self, query: String, name: &str) -> Result<Vec<Run>, Failure> {
        let query = sqlx::query_as(AssertSqlSafe(query)).bind(name);
        Ok(query.fetch_all(&self.pool).await.context(
            "cannot read the books; is the schema etl of this version (`loader migrate`)?",
        )?)
    }

    /// The seqs of a run that the books lack, as inclusive ranges; none while the extractor has not
    /// said how many there are.
    pub(crate) async fn missing(&self, run: &Run) -> Result<Vec<(i32, i32)>, Failure> {
        let ranges = sqlx::query_as(
            "SELECT min(seq), max(seq) FROM (
                 SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island
                 FROM generate_series(0, $3::integer - 1) AS seq
                 WHERE NOT EXISTS (SELECT FROM etl.batches b WHERE b.run_id = $1 AND b.generation = $2 AND b.seq = seq.seq)
             ) AS gaps GROUP BY island ORDER BY 1",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .bind(run.batches_expected.unwrap_or(0))
        .fetch_all(&self.pool)
        .await
        .context("cannot look for missing batches")?;
        Ok(ranges)
    }

    /// How many rows of a run broke which rule, the most first.
    pub(crate) async fn reject_counts(&self, run: &Run) -> Result<Vec<RejectCount>, Failure> {
        let counts = sqlx::query_as(
            "SELECT column_name, rule, count(*) AS rows FROM etl.rejected_rows
             WHERE run_id = $1 AND generation = $2 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .fetch_all(&self.pool)
        .await
        .context("cannot count the rejected rows")?;
        Ok(counts)
    }

    /// The first rejected rows of a run, in the result's order.
    pub(crate) async fn rejected_rows(
        &self,
        run: &Run,
        limit: Option<u32>,
    ) -> Result<Vec<RejectedRow>, Failure> {
        let rows = sqlx::query_as(
            "SELECT row_number, seq, column_name, rule, reason, raw FROM etl.rejected_rows
             WHERE run_id = $1 AND generation = $2 ORDER BY row_number LIMIT $3",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .bind(limit.map(i64::from))
        .fetch_all(&self.pool)
        .await
        .context("cannot read the rejected rows")?;
        Ok(rows)
    }

    /// The dead letters that nobody has dealt with, the oldest first; of one run, or all.
    pub(crate) async fn dead_letters(
        &self,
        run: Option<&Run>,
        limit: Option<u32>,
    ) -> Result<Vec<DeadLetter>, Failure> {
        let query = format!(
            "{LETTERS} WHERE resolved_at IS NULL AND ($1::text IS NULL OR run_id = $1) ORDER BY id LIMIT $2"
        );
        let letters = sqlx::query_as(AssertSqlSafe(query))
            .bind(run.map(|run| &run.run_id))
            .bind(limit.map(i64::from))
            .fetch_all(&self.pool)
            .await
            .context("cannot read the dead letters")?;
        Ok(letters)
    }

    /// One dead letter, dealt with or not, and its body unless that was pruned.
    pub(crate) async fn dead_letter(&self, id: i64) -> Result<(DeadLetter, Letter), Failure> {
        let shown = sqlx::query_as(AssertSqlSafe(format!("{LETTERS} WHERE id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .context("cannot read the dead letter")?;
        let whole = sqlx::query_as(
            "SELECT id, message_id, queue, kind, headers, body, received_at::text AS received_at FROM etl.dead_letters WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await
        .context("cannot read the dead letter")?;
        shown.zip(whole).ok_or_else(|| {
            Failure::misuse(anyhow!(
                "there is no dead letter {id}; `etl dead list` shows them"
            ))
        })
    }

    /// Writes down that a dead letter was sent again, and by whom; unless it came back meanwhile.
    pub(crate) async fn resolve(
        &self,
        id: i64,
        received_at: &str,
        resolution: &str,
    ) -> Result<(), Failure> {
        sqlx::query("UPDATE etl.dead_letters SET resolved_at = now(), resolution = $2 WHERE id = $1 AND resolved_at IS NULL AND received_at::text = $3")
            .bind(id)
            .bind(resolution)
            .bind(received_at)
            .execute(&self.pool)
            .await
            .with_context(|| format!("the dead letter {id} was sent again, but that could not be written down; sending it twice changes nothing"))?;
        Ok(())
    }
}

/// `0..3, 7`: seqs in order as inclusive ranges, the first twenty of them.
pub(crate) fn ranges(seqs: impl IntoIterator<Item = i32>) -> String {
    let mut seqs: Vec<i32> = seqs.into_iter().collect();
    seqs.sort_unstable();
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for seq in seqs {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == seq => *last = seq,
            _ => ranges.push((seq, seq)),
        }
    }
    shown(&ranges)
}

/// The first twenty ranges as text.
pub(crate) fn shown(ranges: &[(i32, i32)]) -> String {
    let mut text: Vec<_> = ranges
        .iter()
        .take(20)
        .map(|(from, to)| {
            if from == to {
                from.to_string()
            } else {
                format!("{from}..{to}")
            }
        })
        .collect();
    if ranges.len() > text.len() {
        text.push(format!("and {} ranges more", ranges.len() - text.len()));
    }
    text.join(", ")
}

const LETTERS: &str = r#"
    SELECT id, message_id, stage, reason, attempts, job, run_id, queue, kind, resolution,
           to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS received_at
    FROM etl.dead_letters
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seqs_are_shown_as_ranges() {
        assert_eq!(ranges([7, 0, 2, 1]), "0..2, 7");
        assert_eq!(ranges([]), "");
        assert!(ranges((0..100).map(|n| n * 2)).ends_with("and 80 ranges more"));
    }
}
