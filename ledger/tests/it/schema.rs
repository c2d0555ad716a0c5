//! The schema refuses what no program could read.

use common::message::RunId;

use crate::support::ledger;

#[tokio::test]
async fn ledger_accepts_the_ids_that_a_run_can_have_and_no_other() {
    let (database, _store) = ledger().await;
    let (short, long) = ("a".repeat(100), "a".repeat(101));
    for id in [
        "a",
        "7",
        "daily-2018.04_02",
        &short,
        "",
        &long,
        "-a",
        ".a",
        "_a",
        "a/b",
        "a b",
        "a\n",
        "\na",
        "é",
        "a'b",
    ] {
        let inserted = sqlx::query(
            "INSERT INTO etl.runs (run_id, job, job_hash, job_spec, sql, target_table, mode)
             VALUES ($1, 'job', 'hash', '{}', 'SELECT 1', 'public.t', 'append')",
        )
        .bind(id)
        .execute(&database.pool)
        .await;
        assert_eq!(inserted.is_ok(), id.parse::<RunId>().is_ok(), "{id:?}");
    }
}
