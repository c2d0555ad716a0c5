//! `etl run --retry`: a run goes on under its name, for schedulers that repeat a command.

use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;

const APPEND: &str = "[parameters]\nday = { type = \"date\", default = \"2018-04-02\" }\n[target]\ntable = \"clicks\"\n";

const NIGHTLY: [&str; 5] = ["run", "clicks", "--run-id", "nightly", "--follow"];

async fn retry(pipeline: &Pipeline) -> testkit::process::Finished {
    pipeline.etl(&[&NIGHTLY[..], &["--retry"]].concat()).await
}

/// As if the run had failed after it had loaded its rows.
async fn fail(pipeline: &Pipeline, run: &str) {
    let failed =
        sqlx::query("UPDATE etl.runs SET state = 'failed', failure = 'x' WHERE run_id = $1")
            .bind(run)
            .execute(&pipeline.database.pool);
    assert_eq!(failed.await.unwrap().rows_affected(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_query_is_asked_again_under_the_same_name() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", APPEND, sample::clicks(100));
    // The first request and the first retry fail: a retry that fails is no replay, and ends the run.
    for attempt in 0..2 {
        let why = format!("SYNTAX_ERROR: no {attempt}");
        pipeline
            .cloud
            .answer_once("FROM clicks", Answer::failed_by_user(&why));
        let failed = retry(&pipeline).await;
        assert_eq!(failed.code, Some(1), "{}", failed.stderr);
        assert!(failed.stdout.contains(&why), "{}", failed.stdout);
    }
    let unasked = pipeline.etl(&NIGHTLY).await;
    assert_eq!(unasked.code, Some(1), "{}", unasked.stdout);
    let done = retry(&pipeline).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        done.stderr.contains("was failed and is requested again"),
        "{}",
        done.stderr
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 100);
    pipeline.assert_reconciled("nightly").await;
    // Each attempt has a query of its own, and the first ones are kept.
    let mut tokens = pipeline.cloud.tokens();
    tokens.sort();
    tokens.dedup();
    assert_eq!((pipeline.cloud.started().len(), tokens.len()), (3, 3));
    let attempts = "SELECT count(*) FROM etl.attempts WHERE state = 'failed' AND failure LIKE '%SYNTAX_ERROR%'";
    assert_eq!(pipeline.number(attempts).await, 2);
    let queries = "SELECT count(DISTINCT generation) FROM etl.queries";
    assert_eq!(pipeline.number(queries).await, 3);
    let status = pipeline.etl(&["status", "nightly", "--json"]).await;
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["attempts"].as_array().unwrap().len(), 2);
    // Completed, it is not asked again.
    let again = retry(&pipeline).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(pipeline.cloud.started().len(), 3);
    // A replay of it is one of the last attempt.
    let replayed = pipeline
        .etl(&["replay", "nightly", "--follow", "--from-athena"])
        .await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_former_attempt_are_taken_back_first() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", APPEND, sample::clicks(100));
    pipeline.run("clicks", "nightly").await;
    fail(&pipeline, "nightly").await;
    // Another request under its name takes nothing away.
    let other = ["--retry", "--set", "day=2018-04-03"];
    let refused = pipeline.etl(&[&NIGHTLY[..], &other].concat()).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("the parameter day was"),
        "{}",
        refused.stderr
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 100);
    // The data has changed meanwhile.
    pipeline
        .cloud
        .answer("FROM clicks", Answer::rows(sample::clicks(70)));
    let done = retry(&pipeline).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("removing 100 rows"), "{}", done.stderr);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 70);
    let of_run = "SELECT count(*) FROM clicks JOIN etl.runs ON etl.run_no(_batch) = run_no WHERE run_id = 'nightly'";
    assert_eq!(pipeline.number(of_run).await, 70);
    pipeline.assert_reconciled("nightly").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_would_lose_rows_of_other_runs_names_their_replays() {
    for (mode, replayed) in [("upsert", "first"), ("insert_only", "later")] {
        let pipeline = Pipeline::start().await;
        let toml = format!("[target]\ntable = \"clicks\"\nmode = \"{mode}\"\nkey = [\"url\"]\n");
        pipeline.job("clicks", &toml, sample::clicks(30));
        // Upsert: the attempt overwrites the rows of the first. Insert only: the rows of the later one give way to it.
        if mode == "upsert" {
            pipeline.run("clicks", "first").await;
        }
        pipeline.run("clicks", "nightly").await;
        fail(&pipeline, "nightly").await;
        if mode == "insert_only" {
            pipeline.run("clicks", "later").await;
        }
        let refused = retry(&pipeline).await;
        assert_eq!(refused.code, Some(1), "{mode}: {}", refused.stdout);
        let advice = format!("etl replay {replayed}");
        assert!(
            refused.stderr.contains(&advice),
            "{mode}: {}",
            refused.stderr
        );
        assert_eq!(
            pipeline.number("SELECT count(*) FROM etl.attempts").await,
            0
        );
        // The advice, followed.
        let replay = pipeline.etl(&["replay", replayed, "--follow"]).await;
        assert_eq!(replay.code, Some(0), "{mode}: {}", replay.stderr);
        let done = retry(&pipeline).await;
        assert_eq!(done.code, Some(0), "{mode}: {}", done.stderr);
        assert_eq!(
            pipeline.number("SELECT count(*) FROM clicks").await,
            30,
            "{mode}"
        );
        for run in [replayed, "nightly"] {
            pipeline.assert_reconciled(run).await;
        }
    }
}

/// A replace keeps the rows of before until the new ones are there.
#[tokio::test(flavor = "multi_thread")]
async fn a_replace_is_tried_again() {
    let pipeline = Pipeline::start().await;
    let toml = "[target]\ntable = \"clicks\"\nmode = \"replace\"\n";
    pipeline.job("clicks", toml, sample::clicks(30));
    pipeline.run("clicks", "before").await;
    pipeline
        .cloud
        .answer_once("FROM clicks", Answer::failed_by_user("no"));
    assert_eq!(retry(&pipeline).await.code, Some(1));
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 30);
    pipeline
        .cloud
        .answer("FROM clicks", Answer::rows(sample::clicks(20)));
    let done = retry(&pipeline).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20);
    pipeline.assert_reconciled("nightly").await;
}
