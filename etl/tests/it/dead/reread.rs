//! A replay whose result is missing in Athena: its task is dropped, and the run has its previous state.

use serde_json::Value;
use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

/// Replays the run from Athena, whose result is missing. Returns the number of the dead letter.
async fn failed_reread(pipeline: &Pipeline) -> String {
    let asked = pipeline.etl(&["replay", "daily", "--from-athena"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let dead_letters = "SELECT count(*) FROM etl.dead_letters WHERE resolved_at IS NULL";
    wait_until("the task to be a dead letter", TIMEOUT, async || {
        pipeline.number(dead_letters).await == 1
    })
    .await;
    let status = pipeline.etl(&["status", "daily"]).await;
    assert!(status.stdout.contains("1 dead letter"), "{}", status.stdout);
    let id = "SELECT id FROM etl.dead_letters WHERE resolved_at IS NULL";
    pipeline.number(id).await.to_string()
}

async fn drop_dead_letter(pipeline: &Pipeline, id: &str) -> String {
    let dropped = pipeline
        .etl(&["dead", "drop", id, "--why", "the object is gone"])
        .await;
    assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
    dropped.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_reread_leaves_a_completed_run_complete() {
    for target in ["", "mode = \"upsert\"\nkey = [\"url\"]\n"] {
        let pipeline = Pipeline::archiving().await;
        let job = format!("[target]\ntable = \"clicks\"\n{target}");
        let strict =
            format!("{job}[[columns]]\nsource = \"country\"\nrules = [{{ required = true }}]\n");
        pipeline.job("clicks", &strict, sample::clicks(5_000));
        let run = pipeline.run("clicks", "daily").await;
        let counts = "first_row, rows_loaded, rows_rejected, rows_dropped, loaded_at";
        let ledger = pipeline.table(counts, "etl.batches").await;
        let in_target = pipeline.table("clicks.*", "clicks").await;
        pipeline.write_job("clicks", &job);
        pipeline
            .cloud
            .delete_result(run["query_execution_id"].as_str().unwrap());

        let id = failed_reread(&pipeline).await;
        assert!(
            pipeline.table("clicks.*", "clicks").await == in_target,
            "{target}"
        );
        let said = drop_dead_letter(&pipeline, &id).await;
        assert!(said.contains("is complete, as it was before"), "{said}");
        pipeline.assert_reconciled("daily").await;
        let of_now = "etl.batches JOIN etl.runs USING (run_id, generation)";
        assert_eq!(pipeline.table(counts, of_now).await, ledger, "{target}");
        assert!(
            pipeline.table("clicks.*", "clicks").await == in_target,
            "{target}"
        );
        let rejected =
            "SELECT count(*) FROM etl.rejected_rows JOIN etl.runs USING (run_id, generation)";
        assert_eq!(
            pipeline.number(rejected).await,
            run["rows_rejected"].as_i64().unwrap()
        );
        assert_eq!(
            pipeline.table("source, abandoned", "etl.replays").await,
            ["(athena,\"abandoned by tester: the object is gone\")"]
        );

        // The archive still has the result.
        let replayed = pipeline.etl(&["replay", "daily", "--follow"]).await;
        assert_eq!(replayed.code, Some(0), "{target}: {}", replayed.stderr);
        assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 5_000);
        assert_eq!(pipeline.cloud.started().len(), 1, "one query");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_reread_fails_an_incomplete_run_and_the_ledger_has_its_rows() {
    let pipeline = Pipeline::archiving().await;
    let job = "[target]\ntable = \"clicks\"\n";
    pipeline.job("clicks", job, sample::clicks(5_000));
    let run = pipeline.run("clicks", "daily").await;
    // The state without the last batch, after a failed query.
    let cut = "DELETE FROM clicks WHERE _batch = (SELECT max(_batch) FROM clicks);
        DELETE FROM etl.batches WHERE first_row = (SELECT max(first_row) FROM etl.batches);
        UPDATE etl.runs SET state = 'failed', failure = 'a test', batches_expected = NULL, rows_expected = NULL, extracted_at = NULL";
    sqlx::raw_sql(cut)
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    pipeline
        .cloud
        .delete_result(run["query_execution_id"].as_str().unwrap());
    let id = failed_reread(&pipeline).await;
    let said = drop_dead_letter(&pipeline, &id).await;
    assert!(said.contains("has failed"), "{said}");
    let shown = pipeline.etl(&["status", "daily", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    let there = pipeline.number("SELECT count(*) FROM clicks").await;
    assert!(0 < there && there < 5_000);
    assert_eq!(
        (&shown["state"], &shown["rows_loaded"], &shown["batches"]),
        (&"failed".into(), &there.into(), &2.into())
    );
    let proof = pipeline.etl(&["reconcile", "daily"]).await;
    assert!(
        proof.stdout.contains("etl cancel daily --undo"),
        "{}",
        proof.stdout
    );
    let undone = pipeline.etl(&["cancel", "daily", "--undo", "--json"]).await;
    let undone: Value = serde_json::from_str(&undone.stdout).unwrap();
    assert_eq!(undone["rows_removed"], there, "{undone}");
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 0);
}
