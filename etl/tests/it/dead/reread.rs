//! A result that was to be read again and is gone: the letter of its task is dropped, and the run is what it was before.

use serde_json::Value;
use testkit::PATIENCE;
use testkit::cloud::sample;
use testkit::line::Line;
use testkit::wait_until;

/// Asks for the run's result once more, which is not there any more: the number of the dead letter.
async fn reread_in_vain(line: &Line) -> String {
    let asked = line.etl(&["replay", "daily", "--from-athena"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let letters = "SELECT count(*) FROM etl.dead_letters WHERE resolved_at IS NULL";
    wait_until("the task to be a dead letter", PATIENCE, async || {
        line.number(letters).await == 1
    })
    .await;
    let status = line.etl(&["status", "daily"]).await;
    assert!(status.stdout.contains("1 dead letter"), "{}", status.stdout);
    let id = "SELECT id FROM etl.dead_letters WHERE resolved_at IS NULL";
    line.number(id).await.to_string()
}

async fn drop_it(line: &Line, id: &str) -> String {
    let dropped = line
        .etl(&["dead", "drop", id, "--why", "the object is gone"])
        .await;
    assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
    dropped.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_run_is_complete_again_with_the_rows_that_it_had() {
    for target in ["", "mode = \"upsert\"\nkey = [\"url\"]\n"] {
        let line = Line::start().await;
        let job = format!("[target]\ntable = \"clicks\"\n{target}");
        let strict =
            format!("{job}[[columns]]\nsource = \"country\"\nrules = [{{ required = true }}]\n");
        line.job("clicks", &strict, sample::clicks(5_000));
        let run = line.run("clicks", "daily").await;
        let counts = "seq, rows_loaded, rows_rejected, rows_dropped, loaded_at";
        let ledger = line.table(counts, "etl.batches").await;
        let in_target = line.table("clicks.*", "clicks").await;
        line.write_job("clicks", &job);
        line.cloud
            .delete_result(run["query_execution_id"].as_str().unwrap());

        let id = reread_in_vain(&line).await;
        assert!(
            line.table("clicks.*", "clicks").await == in_target,
            "{target}"
        );
        let said = drop_it(&line, &id).await;
        assert!(said.contains("is complete, as it was before"), "{said}");
        line.assert_reconciled("daily").await;
        let of_now = "etl.batches JOIN etl.runs USING (run_id, generation)";
        assert_eq!(line.table(counts, of_now).await, ledger, "{target}");
        assert!(
            line.table("clicks.*", "clicks").await == in_target,
            "{target}"
        );
        let rejected =
            "SELECT count(*) FROM etl.rejected_rows JOIN etl.runs USING (run_id, generation)";
        assert_eq!(
            line.number(rejected).await,
            run["rows_rejected"].as_i64().unwrap()
        );
        assert_eq!(
            line.table("source, abandoned", "etl.replays").await,
            ["(athena,\"given up by unknown user: the object is gone\")"]
        );

        // The archive still has it.
        let replayed = line.etl(&["replay", "daily", "--follow"]).await;
        assert_eq!(replayed.code, Some(0), "{target}: {}", replayed.stderr);
        assert_eq!(line.number("SELECT count(*) FROM clicks").await, 5_000);
        assert_eq!(line.cloud.started().len(), 1, "Athena was asked once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_not_complete_fails_and_the_books_say_which_of_its_rows_are_there() {
    let line = Line::start().await;
    let job = "[target]\ntable = \"clicks\"\n";
    line.job("clicks", job, sample::clicks(5_000));
    let run = line.run("clicks", "daily").await;
    // As if its last batch had never come, and the query had failed.
    let cut = "DELETE FROM clicks WHERE etl.seq(_batch) = 2; DELETE FROM etl.batches WHERE seq = 2;
        UPDATE etl.runs SET state = 'failed', failure = 'a test', batches_expected = NULL, rows_expected = NULL";
    sqlx::raw_sql(cut)
        .execute(&line.database.pool)
        .await
        .unwrap();
    line.cloud
        .delete_result(run["query_execution_id"].as_str().unwrap());
    let id = reread_in_vain(&line).await;
    let said = drop_it(&line, &id).await;
    assert!(said.contains("has failed"), "{said}");
    let shown = line.etl(&["status", "daily", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    let there = line.number("SELECT count(*) FROM clicks").await;
    assert!(0 < there && there < 5_000);
    assert_eq!(
        (&shown["state"], &shown["rows_loaded"], &shown["batches"]),
        (&"failed".into(), &there.into(), &2.into())
    );
    let proof = line.etl(&["reconcile", "daily"]).await;
    assert!(
        proof.stdout.contains("etl cancel daily --undo"),
        "{}",
        proof.stdout
    );
    let undone = line.etl(&["cancel", "daily", "--undo", "--json"]).await;
    let undone: Value = serde_json::from_str(&undone.stdout).unwrap();
    assert_eq!(undone["rows_removed"], there, "{undone}");
    assert_eq!(line.number("SELECT count(*) FROM clicks").await, 0);
}
