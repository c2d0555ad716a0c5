//! What the tests share: a ledger, and runs in any state.

use common::job::Job;
use common::message::RunId;
use ledger::{Address, RunState, Store, migrate};
use sqlx::{AssertSqlSafe, PgPool};
use testkit::servers::{Database, database};

/// A database with schema `etl`, and the ledger in it.
pub(crate) async fn ledger() -> (Database, Store) {
    let database = database().await;
    let address = Address::new(&database.url.parse().unwrap()).unwrap();
    migrate::run(&address).await.unwrap();
    let store = Store::new(&address, "test", 4);
    (database, store)
}

/// Writes a run in this state, of one batch with two rows, in mode append, with the values that the state requires.
/// Returns its id.
pub(crate) async fn run_in(pool: &PgPool, name: &str, state: RunState) -> RunId {
    let finished = if state.is_over() { "now()" } else { "NULL" };
    let completed = if state == RunState::Completed {
        "now()"
    } else {
        "NULL"
    };
    let expected = if state.has_all_batches() {
        "1, 2"
    } else {
        "NULL, NULL"
    };
    let state = state.name();
    execute(
        pool,
        &format!(
            "INSERT INTO etl.runs (run_id, job, job_hash, job_spec, sql, target_table, mode, state, finished_at, completed_at, failure, held_because,
                                   batches_expected, rows_expected)
             VALUES ('{name}', 'job', 'hash', '{{\"name\": \"job\", \"target\": {{\"table\": \"t\"}}}}', 'SELECT 1', 'public.t', 'append',
                     '{state}', {finished}, {completed}, 'because', 'because', {expected})"
        ),
    )
    .await;
    name.parse().unwrap()
}

/// Gives the run's only batch its ledger row: two rows, loaded.
pub(crate) async fn loaded(pool: &PgPool, run: &RunId) {
    execute(
        pool,
        &format!(
            "INSERT INTO etl.batches (run_id, generation, first_row, content_hash, result_id, rows_extracted, rows_loaded)
             VALUES ('{run}', 0, 0, 'hash', 'q:pages', 2, 2)"
        ),
    )
    .await;
}

pub(crate) async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// One value, as text; NULL is an empty string.
pub(crate) async fn text(pool: &PgPool, sql: &str) -> String {
    let found: Option<String> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT ({sql})::text")))
        .fetch_one(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    found.unwrap_or_default()
}

pub(crate) async fn state_of(pool: &PgPool, run: &RunId) -> String {
    let state = format!("SELECT state FROM etl.runs WHERE run_id = '{run}'");
    text(pool, &state).await
}

/// A job that appends to the table `t`.
pub(crate) fn job_into_t(name: &str) -> Job {
    let jobs = tempfile::tempdir().unwrap();
    std::fs::write(jobs.path().join("all.sql"), "SELECT 1").unwrap();
    let toml = "[source]\ndatabase = \"d\"\nsql = \"all.sql\"\n[target]\ntable = \"t\"\n";
    std::fs::write(jobs.path().join(format!("{name}.toml")), toml).unwrap();
    Job::read(jobs.path(), name).unwrap()
}
