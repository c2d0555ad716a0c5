//! Batches missing from the ledger are replayed in the same generation, after a queue was purged or an older backup of
//! the database was restored.

use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

use super::{ROWS, completes, refuses, succeeds};

/// Once nothing was noted of it for a while, the command that repairs it is named.
async fn assert_named_as_lost(pipeline: &Pipeline) {
    // A message may still be in hand; after a while none is.
    let status = pipeline.etl(&["status", "daily"]).await;
    assert!(!status.stdout.contains("--missing"), "{}", status.stdout);
    let later = "UPDATE etl.runs SET requested_at = requested_at - interval '1 hour', started_at = started_at - interval '1 hour',
        extracted_at = extracted_at - interval '1 hour'";
    let made = sqlx::query(later).execute(&pipeline.database.pool);
    made.await.unwrap();
    let status = pipeline.etl(&["status", "daily"]).await;
    assert!(
        status.stdout.contains("nothing of it is in any queue")
            && status.stdout.contains("`etl replay daily --missing`"),
        "{}",
        status.stdout
    );
    let proof = pipeline.etl(&["reconcile", "--json"]).await;
    assert!(
        proof
            .stdout
            .contains("not over yet, the rows 0..19999 are pending; nothing of it is in any queue")
            && proof.stdout.contains("`etl replay daily --missing`"),
        "{}",
        proof.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn purged_batches_are_replayed_from_the_archive() {
    let mut pipeline = Pipeline::archiving().await;
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(20_000),
    );
    let batches = 9;
    pipeline.services[0].kill9().await;
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until("every batch to wait for a loader", TIMEOUT, async || {
        pipeline.vhost.ready_with_bulk("etl.valid").await == batches
    })
    .await;
    pipeline.vhost.purge_with_bulk("etl.valid").await;
    pipeline.services[0] = pipeline.service("loader").start().await;
    wait_until(
        "the ledger to have the number of batches",
        TIMEOUT,
        async || {
            pipeline
                .number("SELECT count(*) FROM etl.runs WHERE batches_expected = 9")
                .await
                == 1
        },
    )
    .await;
    let lost = pipeline.etl(&["reconcile", "daily"]).await;
    assert_eq!(lost.code, Some(1), "{}", lost.stdout);
    assert_named_as_lost(&pipeline).await;

    let replayed = pipeline.etl(&["replay", "daily", "--missing"]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert!(replayed.stdout.contains("9 batches"), "{}", replayed.stdout);
    wait_until("the run to complete", TIMEOUT, async || {
        pipeline.etl(&["reconcile", "daily"]).await.code == Some(0)
    })
    .await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
    assert_eq!(pipeline.cloud.started().len(), 1, "one query");

    let ledger = pipeline.ledger().await;
    let again = pipeline.etl(&["replay", "daily", "--missing"]).await;
    assert!(
        again.stdout.contains("no batch of daily is missing"),
        "{}",
        again.stdout
    );
    assert_eq!(pipeline.ledger().await, ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn gap_in_the_archive_is_named_and_nothing_is_sent() {
    let pipeline = Pipeline::archiving().await;
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(1_000),
    );
    pipeline.run("clicks", "daily").await;
    let forgotten = "DELETE FROM etl.batches; UPDATE etl.runs SET state = 'running', finished_at = NULL, rows_expected = 3000";
    sqlx::raw_sql(forgotten)
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let refused = pipeline.etl(&["replay", "daily", "--missing"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("1000..2999") && refused.stderr.contains("nothing was sent"),
        "{}",
        refused.stderr
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.batches").await, 0);
}

/// Restores the database to the state shortly after the request, or after some batches were loaded.
async fn restore(pipeline: &Pipeline, kept: &str) {
    let forget = format!(
        "CREATE TEMPORARY TABLE kept AS SELECT first_row FROM (
             SELECT first_row, row_number() OVER (ORDER BY first_row) - 1 AS place FROM etl.batches) b WHERE place IN ({kept});
         DELETE FROM clicks WHERE etl.first_row(_batch) NOT IN (SELECT first_row FROM kept);
         DELETE FROM etl.rejected_rows WHERE first_row NOT IN (SELECT first_row FROM kept);
         DELETE FROM etl.batches WHERE first_row NOT IN (SELECT first_row FROM kept);
         DROP TABLE kept;
         UPDATE etl.runs SET state = CASE WHEN EXISTS (SELECT FROM etl.batches) THEN 'running' ELSE 'requested' END, finished_at = NULL,
             batches_expected = NULL, rows_expected = NULL, batches_extracted = 0, rows_extracted = 0, bytes_scanned = NULL, extracted_at = NULL,
             result_id = (SELECT max(result_id) FROM etl.batches), result_location = NULL, query_execution_id = NULL"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(forget))
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_missing_from_a_restored_database_are_replayed_with_the_end_of_the_result() {
    let pipeline = Pipeline::archiving().await;
    let strict = "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }]\n";
    pipeline.job("clicks", strict, sample::clicks(20_000));
    let run = pipeline.run("clicks", "daily").await;
    let rows = pipeline.table(&format!("{ROWS}, _batch"), "clicks").await;
    // The job of the run applies, not the current one: missing batches are loaded as before.
    pipeline.write_job("clicks", "[target]\ntable = \"clicks\"\n");
    for (kept, lost) in [("1, 4, 8", 6), ("-1", 9)] {
        restore(&pipeline, kept).await;
        assert_eq!(pipeline.etl(&["reconcile", "daily"]).await.code, Some(1));
        refuses(&pipeline, &["replay", "daily"], 1, &["--missing"]).await;
        let back = succeeds(&pipeline, &["replay", "daily", "--missing", "--follow"]).await;
        let said = format!("{lost} batches of daily sent again");
        assert!(back.stdout.contains(&said), "{}", back.stdout);
        pipeline.assert_reconciled("daily").await;
        let now = succeeds(&pipeline, &["status", "daily", "--json"])
            .await
            .stdout;
        let now: serde_json::Value = serde_json::from_str(&now).unwrap();
        for sum in [
            "rows_loaded",
            "rows_rejected",
            "rows_expected",
            "batches_expected",
            "result_id",
            "bytes_scanned",
            "generation",
        ] {
            assert_eq!(now[sum], run[sum], "{kept}: {sum}");
        }
        assert!(
            pipeline.table(&format!("{ROWS}, _batch"), "clicks").await == rows,
            "{kept}"
        );
    }
    assert_eq!(pipeline.cloud.started().len(), 1, "one query");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_batches_of_a_replay_are_sent_again_with_the_replays_job() {
    let mut pipeline = Pipeline::archiving().await;
    let strict = "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }]\n";
    pipeline.job("clicks", strict, sample::clicks(20_000));
    pipeline.run("clicks", "daily").await;
    pipeline.write_job("clicks", "[target]\ntable = \"clicks\"\n");
    // A clean shutdown: no batch of the run may be redelivered among those of the replay.
    assert_eq!(pipeline.services[0].terminate(TIMEOUT).await, Some(0));
    succeeds(&pipeline, &["replay", "daily"]).await;
    wait_until("every batch to wait for a loader", TIMEOUT, async || {
        pipeline.vhost.ready_with_bulk("etl.valid").await == 9
    })
    .await;
    pipeline.vhost.purge_with_bulk("etl.valid").await;
    pipeline.services[0] = pipeline.service("loader").start().await;
    // A generation keeps its job, whatever the current job is.
    pipeline.write_job("clicks", strict);
    succeeds(&pipeline, &["replay", "daily", "--missing", "--follow"]).await;
    completes(&pipeline, "daily").await;
    assert_eq!(
        pipeline
            .number("SELECT generation::bigint FROM etl.runs")
            .await,
        1
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.rejected_rows WHERE generation = 1")
            .await,
        0
    );
}
