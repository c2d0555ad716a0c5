//! Runs with their sums, for people: what commands list, follow and prove.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::database::Store;
use crate::error::{Class, Error, classify};
use crate::run::no_such_run;
use crate::state::RunState;

/// A run with its sums. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, Default, FromRow, Serialize)]
pub struct Run {
    pub run_id: String,
    pub run_no: i64,
    pub job: String,
    #[serde(skip)]
    pub job_hash: String,
    #[sqlx(json)]
    pub parameters: BTreeMap<String, String>,
    pub target_table: String,
    pub mode: String,
    /// When rows reach the target: `batch`, or `run` for all of them at once.
    pub commit: String,
    #[sqlx(try_from = "String")]
    pub state: RunState,
    pub generation: i32,
    /// The generation of the run's last retry; a later one is a replay.
    pub first_generation: i32,
    /// The job's watermark at the request and, once it is known, the one after the run.
    pub watermark_from: Option<String>,
    pub watermark_to: Option<String>,
    pub query_execution_id: Option<String>,
    pub result_id: Option<String>,
    pub bytes_scanned: Option<i64>,
    pub batches_expected: Option<i32>,
    pub rows_expected: Option<i64>,
    /// As the extractor reports it, while it reads.
    pub rows_read: i64,
    /// The ledger's sums.
    pub batches: i64,
    pub rows_extracted: i64,
    pub rows_loaded: i64,
    pub rows_deduplicated: i64,
    pub rows_rejected: i64,
    pub rows_dropped: i64,
    /// Unresolved messages of the run that no stage could process.
    pub dead_letters: i64,
    pub ignored_messages: i64,
    /// Every batch is in the ledger, and extracted = loaded + rejected + dropped.
    pub balanced: bool,
    pub failure: Option<String>,
    pub held_because: Option<String>,
    pub requested_by: Option<String>,
    pub decided_by: Option<String>,
    pub decision: Option<String>,
    pub requested_at: String,
    pub started_at: Option<String>,
    pub committed_at: Option<String>,
    pub finished_at: Option<String>,
    /// Of the replay that made the live generation: when and by whom it was requested, and why it was abandoned.
    pub replayed_at: Option<String>,
    pub replayed_by: Option<String>,
    pub replay_abandoned: Option<String>,
    /// The columns that the run before loaded and this one does not.
    pub removed_columns: Vec<String>,
    /// The job allows a run that loads none of its rows.
    #[serde(skip)]
    pub allows_all_rejected: bool,
    /// Rows of the run are to be removed from the target, and no loader has done it yet; with the last failure.
    pub removal_pending: bool,
    pub removal_failure: Option<String>,
    /// Since when no loader tries it, unless another transaction was only in the way.
    #[serde(skip)]
    pub removal_failed_at: Option<String>,
    /// Since the request, or that of the replay, up to its end or now; by the database's clock.
    #[serde(skip)]
    pub seconds: f64,
    /// The same, since Athena has its query, or since the replay.
    #[serde(skip)]
    pub working_seconds: Option<f64>,
}

impl Run {
    /// Whether nothing moves until a person acts: it is held, or one of its messages was dead-lettered.
    pub fn waits_for_a_person(&self) -> bool {
        self.state == RunState::Held || (!self.state.is_over() && self.dead_letters > 0)
    }

    /// Whether it ended without being complete, so that it can be requested again.
    pub fn has_failed(&self) -> bool {
        matches!(self.state, RunState::Failed | RunState::Cancelled)
    }

    /// Whether the live generation is a replay.
    pub fn is_replay(&self) -> bool {
        self.generation > self.first_generation
    }

    /// Whether Athena returned rows and none of them was loaded, which the job does not allow.
    pub fn loaded_nothing(&self) -> bool {
        self.state == RunState::Completed
            && self.rows_read > 0
            && self.rows_loaded == 0
            && !self.allows_all_rejected
    }

    /// Whether every row that Athena returned is accounted for.
    pub fn is_complete(&self) -> bool {
        self.state == RunState::Completed && self.balanced && self.dead_letters == 0
    }
}

/// Rows of a run's live generation that a person dropped.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct DroppedRows {
    pub dropped_by: Option<String>,
    pub reason: Option<String>,
    pub batches: i64,
    pub rows: i64,
}

/// Runs to be proven.
#[derive(Debug)]
pub struct Proven {
    pub runs: Vec<Run>,
    /// So many more are complete, and were left with the server.
    pub complete_besides: i64,
}

impl From<Run> for Proven {
    fn from(run: Run) -> Self {
        Self {
            runs: vec![run],
            complete_besides: 0,
        }
    }
}

/// Which runs to list.
#[derive(Debug, Default)]
pub struct RunFilter<'a> {
    pub job: Option<&'a str>,
    /// These states; any when empty.
    pub states: &'a [RunState],
    /// Only those that a dead letter blocks.
    pub only_blocked: bool,
    /// Only those whose live generation has a rejected row.
    pub only_with_rejects: bool,
    /// Requested at this time or later.
    pub since: Option<Timestamp>,
    /// Requested before this time.
    pub until: Option<Timestamp>,
    pub limit: u32,
}

/// What is read of a run `r` and its sums `b`, with the number of its rejected rows `q`, and of the replay `p` of its live
/// generation.
const COLUMNS: &str = r#"
    SELECT r.run_id, r.run_no, r.job, r.job_hash, r.parameters, r.target_table, r.mode, r.commit, r.state, r.generation, r.first_generation,
           r.watermark_from, r.watermark_to,
           r.query_execution_id, r.result_id, r.bytes_scanned, r.batches_expected, r.rows_expected,
           greatest(r.rows_extracted, b.rows_extracted) AS rows_read,
           b.batches, b.rows_extracted, b.rows_loaded, b.rows_deduplicated, b.rows_rejected, b.rows_dropped,
           b.dead_letters, r.ignored_messages, r.failure, r.held_because, r.requested_by, r.decided_by, r.decision,
           b.balanced AND b.rows_rejected = q.rows AS balanced,
           to_char(r.requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS requested_at,
           to_char(r.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS started_at,
           to_char(r.committed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS committed_at,
           to_char(r.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS finished_at,
           to_char(p.requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS replayed_at,
           r.removed_columns, p.requested_by AS replayed_by, p.abandoned AS replay_abandoned,
           coalesce((r.job_spec->'target'->>'allow_all_rejected')::boolean, false) AS allows_all_rejected,
           m.removal_pending, m.removal_failure, m.removal_failed_at,
           extract(epoch FROM coalesce(r.finished_at, now()) - coalesce(p.requested_at, r.requested_at))::float8 AS seconds,
           extract(epoch FROM coalesce(r.finished_at, now()) - coalesce(p.requested_at, r.started_at))::float8 AS working_seconds
"#;

/// The replay of the live generation, and the removals that no loader has executed.
const JOINED: &str =
    "LEFT JOIN etl.replays p ON p.run_id = r.run_id AND p.generation = r.generation
     CROSS JOIN LATERAL (
         SELECT count(*) > 0 AS removal_pending, max(failure) AS removal_failure, max(failed_at)::text AS removal_failed_at
         FROM etl.removals WHERE run_id = r.run_id AND finished_at IS NULL
     ) m";

/// A few runs, each through the index of its batches. `chosen` names them.
fn a_few(chosen: &str) -> String {
    format!(
        "WITH chosen AS MATERIALIZED ({chosen}) {COLUMNS}
         FROM chosen JOIN etl.runs r USING (run_id) JOIN etl.run_balance b USING (run_id) {JOINED}
         CROSS JOIN LATERAL (
             SELECT count(*) AS rows FROM etl.rejected_rows WHERE run_id = r.run_id AND generation = r.generation
         ) q ORDER BY r.run_no DESC"
    )
}

/// All runs, each table read once: the view would go through the index of the batches ten thousand times.
fn all_of_them() -> String {
    format!(
        "WITH ledger AS (
             SELECT run_id, generation, count(*) AS batches, bool_and(first_row = rows_before) AS is_whole, sum(rows_loaded)::bigint AS rows_loaded,
                    sum(rows_deduplicated)::bigint AS rows_deduplicated, sum(rows_rejected)::bigint AS rows_rejected,
                    sum(rows_dropped)::bigint AS rows_dropped, sum(rows_extracted)::bigint AS rows_extracted
             FROM (SELECT *, sum(rows_extracted) OVER (PARTITION BY run_id, generation ORDER BY first_row) - rows_extracted AS rows_before
                   FROM etl.batches) b GROUP BY run_id, generation),
         quarantine AS (SELECT run_id, generation, count(*) AS rows FROM etl.rejected_rows GROUP BY run_id, generation),
         letters AS (SELECT run_id, count(*) AS letters FROM etl.dead_letters WHERE resolved_at IS NULL GROUP BY run_id)
         {COLUMNS} FROM etl.runs r
         LEFT JOIN ledger USING (run_id, generation) LEFT JOIN quarantine USING (run_id, generation) LEFT JOIN letters USING (run_id)
         {JOINED}
         CROSS JOIN LATERAL (SELECT coalesce(quarantine.rows, 0) AS rows) q
         CROSS JOIN LATERAL (
             SELECT coalesce(ledger.batches, 0) AS batches, coalesce(ledger.rows_extracted, 0) AS rows_extracted,
                    coalesce(ledger.rows_loaded, 0) AS rows_loaded, coalesce(ledger.rows_deduplicated, 0) AS rows_deduplicated,
                    coalesce(ledger.rows_rejected, 0) AS rows_rejected, coalesce(ledger.rows_dropped, 0) AS rows_dropped,
                    coalesce(letters.letters, 0) AS dead_letters,
                    (ledger.is_whole AND ledger.rows_extracted = r.rows_expected
                     AND ledger.rows_extracted = ledger.rows_loaded + ledger.rows_rejected + ledger.rows_dropped) IS TRUE AS balanced
         ) b ORDER BY r.run_no"
    )
}

const UNREADABLE: &str = "cannot read the ledger";
const OTHER_SCHEMA: &str =
    "cannot read the ledger; is the schema etl of this version (`loader migrate`)?";

/// The run of this name.
pub(crate) async fn find_run(tx: &mut PgConnection, name: &str) -> Result<Run, Error> {
    let query = sqlx::query_as(AssertSqlSafe(a_few("SELECT $1::text AS run_id")));
    let found = query.bind(name).fetch_optional(tx).await?;
    found.ok_or_else(|| no_such_run(name))
}

impl Store {
    async fn read_runs<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let read = self.read(UNREADABLE, work).await;
        read.map_err(|error| match error {
            // An answer that was not understood tells of another schema; a server that is away does not.
            Error::Postgres { source, .. } if classify(&source) == Class::Message => {
                Error::Postgres {
                    failure: OTHER_SCHEMA.into(),
                    source,
                }
            }
            error => error,
        })
    }

    /// The run of this name and of no other: for what proves or changes something.
    pub async fn exactly(&self, name: &str) -> Result<Run, Error> {
        self.read_runs(async |tx: &mut PgConnection| find_run(tx, name).await)
            .await
    }

    /// Who dropped rows of this run, and why.
    pub async fn dropped_rows(&self, run: &Run) -> Result<Vec<DroppedRows>, Error> {
        if run.rows_dropped == 0 {
            return Ok(Vec::new());
        }
        self.read_runs(async |tx: &mut PgConnection| {
            let query = sqlx::query_as(
                "SELECT dropped_by, drop_reason AS reason, count(*) AS batches, sum(rows_dropped)::bigint AS rows
                 FROM etl.batches WHERE run_id = $1 AND generation = $2 AND rows_dropped > 0
                 GROUP BY dropped_by, drop_reason ORDER BY rows DESC, dropped_by, reason",
            );
            Ok(query.bind(&run.run_id).bind(run.generation).fetch_all(tx).await?)
        })
        .await
    }

    /// Whether the ledger has this batch of the run's live generation.
    pub async fn has_batch(&self, run: &Run, first_row: i64) -> Result<bool, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let query = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM etl.batches WHERE run_id = $1 AND generation = $2 AND first_row = $3)",
            );
            let query = query.bind(&run.run_id).bind(run.generation).bind(first_row);
            Ok(query.fetch_one(tx).await?)
        })
        .await
    }

    /// The seconds since anything of a run was noted in the ledger.
    pub async fn idle_seconds(&self, run: &Run) -> Result<i64, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let query = sqlx::query_scalar(
                "SELECT extract(epoch FROM now() - greatest(r.requested_at, r.started_at, r.extracted_at, r.approved_at, p.requested_at,
                        (SELECT max(loaded_at) FROM etl.batches b WHERE b.run_id = r.run_id AND b.generation = r.generation)))::bigint
                 FROM etl.runs r LEFT JOIN etl.replays p USING (run_id, generation) WHERE r.run_id = $1",
            );
            Ok(query.bind(&run.run_id).fetch_one(tx).await?)
        })
        .await
    }

    /// The run of this name, or the only one whose name begins so: for looking only.
    pub async fn find(&self, name: &str) -> Result<Run, Error> {
        self.read_runs(async |tx: &mut PgConnection| {
            let names: Vec<String> = sqlx::query_scalar(
                "SELECT run_id FROM etl.runs WHERE run_id = $1 OR $1 <> '' AND starts_with(run_id, $1)
                 ORDER BY run_id = $1 DESC, run_no LIMIT 4",
            )
            .bind(name)
            .fetch_all(&mut *tx)
            .await?;
            match names.as_slice() {
                [] => Err(no_such_run(name)),
                [first, ..] if first == name || names.len() == 1 => find_run(tx, first).await,
                _ => Err(Error::NotFound(format!(
                    "{name:?} is the beginning of several runs: {}; give more of the name",
                    names.join(", ")
                ))),
            }
        })
        .await
    }

    /// The latest runs, the newest first.
    pub async fn latest(&self, filter: &RunFilter<'_>) -> Result<Vec<Run>, Error> {
        let query = a_few(
            "SELECT run_id FROM etl.runs r WHERE ($1::text IS NULL OR job = $1) AND (cardinality($2::text[]) = 0 OR state = ANY ($2))
             AND (NOT $3 OR EXISTS (SELECT FROM etl.dead_letters d WHERE d.run_id = r.run_id AND d.resolved_at IS NULL))
             AND (NOT $5 OR EXISTS (SELECT FROM etl.rejected_rows q WHERE q.run_id = r.run_id AND q.generation = r.generation))
             AND ($6::text IS NULL OR requested_at >= $6::text::timestamptz)
             AND ($7::text IS NULL OR requested_at < $7::text::timestamptz)
             ORDER BY run_no DESC LIMIT $4",
        );
        let states: Vec<_> = filter.states.iter().map(|state| state.name()).collect();
        self.read_runs(async |tx: &mut PgConnection| {
            let query = sqlx::query_as(AssertSqlSafe(query))
                .bind(filter.job)
                .bind(states);
            let query = query
                .bind(filter.only_blocked)
                .bind(i64::from(filter.limit))
                .bind(filter.only_with_rejects)
                .bind(filter.since.map(|since| since.to_string()))
                .bind(filter.until.map(|until| until.to_string()));
            Ok(query.fetch_all(tx).await?)
        })
        .await
    }

    /// Those of these runs that were requested, by name.
    pub async fn named(&self, names: &[String]) -> Result<BTreeMap<String, Run>, Error> {
        let query = a_few("SELECT run_id FROM etl.runs WHERE run_id = ANY ($1)");
        let runs: Vec<Run> = self
            .read_runs(async |tx: &mut PgConnection| {
                let query = sqlx::query_as(AssertSqlSafe(query));
                Ok(query.bind(names).fetch_all(tx).await?)
            })
            .await?;
        let by_name = runs.into_iter().map(|run| (run.run_id.clone(), run));
        Ok(by_name.collect())
    }

    /// Every run, the oldest first. Where there are more than `few`, only those that are not simply complete.
    pub async fn all(&self, few: Option<i64>) -> Result<Proven, Error> {
        self.read_runs(async |tx: &mut PgConnection| {
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM etl.runs")
                .fetch_one(&mut *tx)
                .await?;
            let is_filtered = few.is_some_and(|few| count > few);
            let all = all_of_them();
            let query = if is_filtered {
                // As `Run::is_complete` says.
                format!(
                    "SELECT * FROM ({all}) every WHERE NOT (state = 'completed' AND balanced AND dead_letters = 0) ORDER BY run_no"
                )
            } else {
                all
            };
            let runs: Vec<Run> = sqlx::query_as(AssertSqlSafe(query)).fetch_all(tx).await?;
            let shown = i64::try_from(runs.len()).unwrap_or(i64::MAX);
            Ok(Proven {
                complete_besides: if is_filtered { count - shown } else { 0 },
                runs,
            })
        })
        .await
    }

    /// The rows of a run that the ledger lacks, as inclusive ranges; none while the extractor has not said how many there are.
    /// The batch of an empty result stands for one row.
    pub async fn missing(&self, run: &Run) -> Result<Vec<(i64, i64)>, Error> {
        let failure = "cannot look for missing batches";
        self.read(failure, async |tx: &mut PgConnection| {
            let ranges = sqlx::query_as(
                "SELECT ends, begins - 1 FROM (
                     SELECT first_row AS begins, coalesce(max(first_row + greatest(rows_extracted, 1)) OVER (
                                ORDER BY first_row ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS ends
                     FROM (SELECT first_row, rows_extracted FROM etl.batches WHERE run_id = $1 AND generation = $2
                           UNION ALL SELECT greatest($3, 1), 0) b
                 ) gaps WHERE begins > ends AND $3 IS NOT NULL ORDER BY 1",
            )
            .bind(&run.run_id)
            .bind(run.generation)
            .bind(run.rows_expected)
            .fetch_all(tx)
            .await?;
            Ok(ranges)
        })
        .await
    }
}
