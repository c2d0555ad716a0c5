//! Shared helpers: a database with the ledger, runs, and batches by the row.

use common::job::{Commit, Mode, Target};
use common::message::{BatchId, ContentHash, EventKind, RejectedRow, RunEvent, RunId, ValidBatch};
use common::schema::{ResultColumn, TargetColumn};
use common::settings::SecretUrl;
use common::{Rows, service};
use ledger::Address;
use loader::load::{Loader, Outcome};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use testkit::servers::{Database, database};

pub(crate) type Value<'a> = Option<&'a str>;

/// The address of a database in the services' type.
pub(crate) fn address(database: &str) -> Address {
    Address::new(&url(database)).unwrap()
}

/// The URL in the services' type.
pub(crate) fn url(text: &str) -> SecretUrl {
    url::Url::parse(text).unwrap().into()
}

/// An empty database with schema `etl` in it.
pub(crate) async fn ledger_database() -> Database {
    let database = database().await;
    ledger::migrate::run(&address(&database.url)).await.unwrap();
    database
}

/// A loader into this database.
pub(crate) fn loader(database: &Database) -> Loader {
    service::install_tls();
    Loader::new(&address(&database.url), vec!["public".to_owned()])
}

/// Writes the row of a requested run.
pub(crate) async fn request(pool: &PgPool, run: &str) {
    sqlx::query("INSERT INTO etl.runs (run_id, job, job_hash, job_spec, sql, target_table, mode) VALUES ($1, 'job', 'hash', '{\"name\": \"job\", \"target\": {\"table\": \"t\"}}', 'SELECT 1', 't', 'append')")
        .bind(run)
        .execute(pool)
        .await
        .unwrap();
}

/// Writes the row of a requested run with this target.
pub(crate) async fn request_for(pool: &PgPool, run: &str, target: &Target) {
    request(pool, run).await;
    let (schema, table) = target.schema_and_table();
    let is_staged = target.is_staged(0);
    sqlx::query("UPDATE etl.runs SET job_spec = $2, target_table = $3, mode = $4, commit = $5 WHERE run_id = $1")
        .bind(run)
        .bind(json!({ "name": "job", "target": target }))
        .bind(format!("{schema}.{table}"))
        .bind(target.mode.name())
        .bind(if is_staged { Commit::Run } else { Commit::Batch }.name())
        .execute(pool)
        .await
        .unwrap();
}

/// Executes a statement like a person. The tests' user is named like the ledger's schema, which would otherwise take
/// new tables.
pub(crate) async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(format!("SET search_path = public; {sql}")))
        .execute(pool)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// One value, as text; NULL is an empty string.
pub(crate) async fn text(pool: &PgPool, sql: &str) -> String {
    let found: Option<String> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT ({sql})::text")))
        .fetch_one(pool)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
    found.unwrap_or_default()
}

/// Loads a batch, or says why its target does not take it. A run that failed by that is requested again, as by a retry.
pub(crate) async fn load_or_refusal(
    loader: &Loader,
    pool: &PgPool,
    batch: &ValidBatch,
) -> Result<(), String> {
    match loader.handle(batch).await {
        Ok(Outcome::Ignored) => {
            let again = "UPDATE etl.runs r SET state = 'requested', failure = NULL, finished_at = NULL
                 FROM etl.runs old WHERE r.run_id = old.run_id AND r.run_id = $1 AND r.state = 'failed' RETURNING old.failure";
            let again = sqlx::query_scalar(again).bind(batch.id.run.as_str());
            let failure: String = again.fetch_one(pool).await.unwrap();
            let (why, _) = failure.split_once("; nothing of the run was").unwrap();
            Err(why.to_owned())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.sentence()),
    }
}

/// Why a target does not take a batch.
pub(crate) async fn refusal(loader: &Loader, pool: &PgPool, batch: &ValidBatch) -> String {
    load_or_refusal(loader, pool, batch).await.unwrap_err()
}

/// The balance of a run: state, expected and extracted rows, loaded, deduplicated, rejected, balanced.
pub(crate) async fn balance_of(pool: &PgPool, run: &str) -> String {
    text(
        pool,
        &format!(
            "SELECT concat_ws(' ', state, 'expected', rows_expected, 'extracted', rows_extracted, 'loaded', rows_loaded,
                              'deduplicated', rows_deduplicated, 'rejected', rows_rejected, CASE WHEN balanced THEN 'balanced' END)
             FROM etl.run_balance WHERE run_id = '{run}'"
        ),
    )
    .await
}

/// Everything that a redelivery must not change: every row of the ledger and of the table.
pub(crate) async fn everything(pool: &PgPool, table: &str) -> String {
    let mut all = String::new();
    for table in [
        "etl.runs",
        "etl.batches",
        "etl.rejected_rows",
        "etl.dead_letters",
        table,
    ] {
        all += &text(
            pool,
            &format!("SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM {table} t"),
        )
        .await;
    }
    all
}

/// The columns and the target of a job, from which batches are made.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) target: Target,
    pub(crate) columns: Vec<TargetColumn>,
}

/// A target of these columns, `name type` each; with a key it is an upsert.
pub(crate) fn shape(table: &str, columns: &[&str], key: &[&str]) -> Shape {
    let mode = if key.is_empty() {
        Mode::Append
    } else {
        Mode::Upsert
    };
    let columns = columns.iter().map(|column| {
        let (name, pg_type) = column
            .rsplit_once(" : ")
            .unwrap_or_else(|| column.split_once(' ').unwrap());
        TargetColumn {
            name: name.into(),
            pg_type: pg_type.parse().unwrap(),
            athena_type: "varchar".into(),
        }
    });
    Shape {
        target: Target {
            table: table.into(),
            mode,
            key: key.iter().map(|key| (*key).into()).collect(),
            ..Target::default()
        },
        columns: columns.collect(),
    }
}

impl Shape {
    /// A batch of a run, whose rows begin at `first_row` of the result.
    pub(crate) fn batch(&self, run: &str, first_row: u64, values: &[Vec<Value<'_>>]) -> ValidBatch {
        let mut rows = Rows::new(self.columns.len());
        for row in values {
            rows.push(row.iter().copied());
        }
        let columns: Vec<_> = self
            .columns
            .iter()
            .map(|column| ResultColumn {
                name: column.name.clone(),
                type_name: column.athena_type.clone(),
            })
            .collect();
        ValidBatch {
            id: BatchId {
                run: run.parse().unwrap(),
                generation: 0,
                first_row,
            },
            is_bulk: false,
            result_id: "query:pages".into(),
            content_hash: ContentHash::of(&columns, &rows),
            job: "job".into(),
            target: self.target.clone(),
            columns: self.columns.clone(),
            row_offsets: (0..u32::try_from(values.len()).unwrap()).collect(),
            rows,
            rejected: Vec::new(),
            watermark: None,
        }
    }
}

/// Adds a row that the transformer rejected, behind the batch's rows.
pub(crate) fn with_rejected(
    mut batch: ValidBatch,
    rule: &str,
    raw: &[(&str, Value<'_>)],
) -> ValidBatch {
    let raw = raw
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned)));
    batch.rejected.push(RejectedRow {
        row: batch.id.first_row + batch.rows_extracted() as u64,
        reject: common::message::Reject {
            column: Some(batch.columns[0].name.clone()),
            rule: rule.into(),
            reason: "because".into(),
        },
        raw: raw.collect(),
    });
    batch
}

/// The same batch in another generation of its run.
pub(crate) fn with_generation(batch: &ValidBatch, generation: u32) -> ValidBatch {
    let mut batch = batch.clone();
    batch.id.generation = generation;
    batch
}

/// Writes the change of `etl replay` for a whole run.
pub(crate) async fn replayed(pool: &PgPool, run: &str) {
    for statement in [
        "INSERT INTO etl.replays (run_id, generation, source, rows, job_hash, job_spec, state_before, requested_by)
         SELECT run_id, generation + 1, 'archive', '{[0,68719476736)}', job_hash, job_spec, state, 'me' FROM etl.runs WHERE run_id = $1",
        "UPDATE etl.runs SET generation = generation + 1, state = 'running', finished_at = NULL WHERE run_id = $1",
    ] {
        sqlx::query(statement).bind(run).execute(pool).await.unwrap();
    }
}

/// Writes the change of `etl approve`.
pub(crate) async fn approved(pool: &PgPool, run: &str) {
    sqlx::query("UPDATE etl.runs SET state = 'running', approved_at = now(), decided_by = 'me', decision = 'approved' WHERE run_id = $1 AND state = 'held'")
        .bind(run)
        .execute(pool)
        .await
        .unwrap();
}

/// Checks that the run has its time of commit.
pub(crate) async fn assert_committed(pool: &PgPool, run: &str) {
    let committed = format!("SELECT committed_at IS NOT NULL FROM etl.runs WHERE run_id = '{run}'");
    assert_eq!(text(pool, &committed).await, "true");
}

pub(crate) fn event(run: &str, kind: EventKind) -> RunEvent {
    RunEvent {
        run: run.parse::<RunId>().unwrap(),
        generation: 0,
        job: "job".into(),
        kind,
    }
}

pub(crate) fn extracted(run: &str, batches: u32, rows: u64) -> RunEvent {
    event(
        run,
        EventKind::Extracted {
            result_id: "query:pages".into(),
            batches,
            rows,
            bytes_scanned: 10,
            result_location: None,
            columns: vec![],
        },
    )
}
