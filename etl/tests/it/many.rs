//! Ten thousand runs and a million batches in the ledger: every reading command stays fast.

use std::time::{Duration, Instant};

use testkit::pipeline::Pipeline;
use testkit::wait_until;

/// The longest that a command may take beside other tests on a busy machine. docs/operations.md has the times on an
/// idle machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Generated in Postgres, without the triggers of the foreign keys, which would take a minute.
const LEDGER: &str = "
    SET session_replication_role = replica;
    INSERT INTO etl.runs (run_id, job, job_hash, job_spec, parameters, sql, target_table, mode, state, batches_extracted, rows_extracted,
                          batches_expected, rows_expected, bytes_scanned, requested_at, started_at, finished_at)
    SELECT 'daily-' || n, (ARRAY['clicks', 'visits', 'users'])[n % 3 + 1], 'h', '{}', jsonb_build_object('from', (date '2000-01-01' + n)::text),
           'SELECT 1', 'public.clicks', 'append', 'completed', 100, 500000, 100, 500000, 1000000000,
           now() - (10001 - n) * interval '1 hour', now() - (10001 - n) * interval '1 hour', now() - (10000 - n) * interval '1 hour'
    FROM generate_series(1, 10000) n;
    INSERT INTO etl.batches (run_id, generation, first_row, content_hash, result_id, rows_extracted, rows_loaded, rows_rejected)
    SELECT 'daily-' || (n / 100 + 1), 0, n % 100 * 5000, md5(n::text) || md5(n::text), 'q:pages', 5000,
           5000 - (n % 10 = 0)::integer, (n % 10 = 0)::integer
    FROM generate_series(0, 999999) n;
    INSERT INTO etl.rejected_rows (run_id, generation, first_row, row_number, column_name, rule, reason, raw)
    SELECT run_id, generation, first_row, first_row, 'country', 'required', 'the value is NULL, and one is required', '{\"country\":null}'
    FROM etl.batches WHERE rows_rejected > 0;
    INSERT INTO etl.dead_letters (digest, message_id, stage, reason, run_id, job, queue, body, resolved_at, resolution)
    SELECT md5(n::text), 'daily-' || n || '/0/0', 'loader', 'why', 'daily-' || n, 'clicks', 'etl.valid', 'x', now(), 'replayed'
    FROM generate_series(1, 5000) n;
    -- A few that are not as they should be.
    UPDATE etl.runs SET state = 'running', finished_at = NULL WHERE run_id IN ('daily-9999', 'daily-5000');
    DELETE FROM etl.batches WHERE run_id = 'daily-9999' AND first_row >= 450000;
    DELETE FROM etl.batches WHERE run_id = 'daily-5000' AND first_row IN (15000, 20000, 250000);
    DELETE FROM etl.rejected_rows WHERE run_id IN ('daily-9999', 'daily-5000') AND row_number >= 450000;
    RESET session_replication_role;
    ANALYZE etl.runs, etl.batches, etl.rejected_rows, etl.dead_letters";

/// The number of sequential scans and of index scans of a table.
async fn scans(pipeline: &Pipeline, table: &str) -> (i64, i64) {
    // Postgres publishes the last counters when it ends the connection, shortly after the command ended.
    let connected = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'etl'";
    wait_until(
        "the last command to be counted",
        testkit::TIMEOUT,
        async || pipeline.number(connected).await == 0,
    )
    .await;
    let column = |column: &str| {
        format!(
            "SELECT coalesce({column}, 0) FROM pg_stat_user_tables WHERE schemaname = 'etl' AND relname = '{table}'"
        )
    };
    (
        pipeline.number(&column("seq_scan")).await,
        pipeline.number(&column("idx_scan")).await,
    )
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table of commands")]
async fn commands_are_fast_with_ten_thousand_runs_and_a_million_batches() {
    let pipeline = Pipeline::without_services().await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    sqlx::raw_sql(LEDGER)
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    for (arguments, code, said) in [
        (&["runs"][..], 0, "daily-10000"),
        (
            &[
                "runs",
                "--job",
                "users",
                "--state",
                "completed",
                "--limit",
                "50",
            ],
            0,
            "daily-9998",
        ),
        (&["runs", "--state", "open"], 0, "daily-5000"),
        (&["runs", "--state", "blocked"], 0, "no such runs"),
        (&["status"], 0, "daily-9999"),
        (&["status", "daily-77"], 0, "100 of 100"),
        (&["status", "daily-9999", "--json"], 0, "\"batches\": 90"),
        (
            &["reconcile", "daily-77"],
            0,
            "extracted = loaded + rejected",
        ),
        (
            &["reconcile", "daily-5000"],
            1,
            "rows 15000..24999, 250000..254999",
        ),
        (&["reconcile"], 0, "10,000 runs: 9,998 complete, 2 not over"),
        (&["reconcile", "--json"], 0, "\"run_id\": \"daily-10000\""),
        (&["rejects", "daily-77"], 0, "required"),
        (&["dead", "list"], 0, "no dead letters"),
        (
            &["prune", "--older-than", "400d", "--dry-run"],
            0,
            "would delete",
        ),
    ] {
        let before = scans(&pipeline, "batches").await;
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let begun = Instant::now();
            let done = pipeline.etl(arguments).await;
            best = best.min(begun.elapsed());
            assert_eq!(done.code, Some(code), "{arguments:?}: {}", done.stderr);
            assert!(
                done.stdout.contains(said),
                "{arguments:?} does not say {said:?}: {}",
                done.stdout
            );
        }
        let after = scans(&pipeline, "batches").await;
        println!(
            "etl {}: {} ms; etl.batches read whole {} times, by index {} times",
            arguments.join(" "),
            best.as_millis(),
            after.0 - before.0,
            after.1 - before.1
        );
        assert!(best < TIMEOUT, "{arguments:?} took {best:?}");
        if !matches!(arguments, ["reconcile"] | ["reconcile", "--json"]) {
            assert_eq!(after.0, before.0, "{arguments:?} read the whole ledger");
        }
    }
}
