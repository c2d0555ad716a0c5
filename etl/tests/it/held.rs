//! A run with too many rejected rows is held: none of its rows is in the target until a person approves or discards it.

use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

/// About 2 % of the sample's clicks have no country.
const JOB: &str = "[target]\ntable = \"clicks\"\ncommit = \"run\"\nmax_rejected = \"1%\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }, { not_empty = true }]\n";

const STAGING: &str = "SELECT count(*) FROM pg_tables WHERE schemaname = 'etl_staging'";

async fn held(pipeline: &Pipeline, run: &str) {
    let done = pipeline
        .etl(&["run", "clicks", "--again", "--run-id", run, "--follow"])
        .await;
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    for said in [
        "is held, and none of its rows",
        "max_rejected",
        "etl approve",
        "etl discard",
    ] {
        assert!(done.stdout.contains(said), "{said}: {}", done.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn held_run_is_approved_and_another_discarded() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(5_000));
    held(&pipeline, "first").await;
    let in_target = "SELECT CASE WHEN to_regclass('clicks') IS NULL THEN 0
        ELSE (xpath('/row/c/text()', query_to_xml('SELECT count(*) AS c FROM clicks', false, true, '')))[1]::text::bigint END";
    assert_eq!(pipeline.number(in_target).await, 0);
    let status = pipeline.etl(&["status", "first"]).await;
    assert!(status.stdout.contains("state  held: "), "{}", status.stdout);
    assert!(
        pipeline
            .etl(&["runs", "--state", "held"])
            .await
            .stdout
            .contains("first")
    );
    assert_eq!(pipeline.etl(&["reconcile", "first"]).await.code, Some(1));
    assert_eq!(
        pipeline.etl(&["reconcile"]).await.code,
        Some(0),
        "it is not over yet"
    );
    // Until the decision, an equal request is refused, and the run is not cancelled.
    let refused = pipeline.etl(&["run", "clicks", "--again"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("is held"), "{}", refused.stderr);
    let refused = pipeline.etl(&["cancel", "first"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("etl discard first"),
        "{}",
        refused.stderr
    );

    let approved = pipeline
        .etl(&[
            "approve",
            "first",
            "--why",
            "the source is like that",
            "--follow",
        ])
        .await;
    assert_eq!(
        approved.code,
        Some(0),
        "{}{}",
        approved.stdout,
        approved.stderr
    );
    pipeline.assert_reconciled("first").await;
    let loaded = pipeline.number("SELECT count(*) FROM clicks").await;
    let ledger = pipeline
        .number("SELECT sum(rows_loaded)::bigint FROM etl.batches")
        .await;
    assert!(loaded > 4_000 && loaded == ledger, "{loaded} and {ledger}");
    assert_eq!(
        pipeline.etl(&["approve", "first"]).await.code,
        Some(1),
        "once is enough"
    );

    held(&pipeline, "second").await;
    let discarded = pipeline
        .etl(&["discard", "second", "--why", "too many"])
        .await;
    assert_eq!(discarded.code, Some(0), "{}", discarded.stderr);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, loaded);
    let decided = pipeline.table("state, decision", "etl.runs").await;
    assert_eq!(
        decided,
        [
            "(cancelled,\"discarded: too many\")",
            "(completed,\"approved: the source is like that\")"
        ]
    );
    let dropped = "SELECT sum(rows_dropped)::bigint FROM etl.batches WHERE run_id = 'second' AND rows_loaded = 0 AND drop_reason = 'discarded: too many'";
    assert_eq!(pipeline.number(dropped).await, loaded);
    assert_eq!(pipeline.etl(&["reconcile"]).await.code, Some(0));
    assert_eq!(
        pipeline
            .etl(&["discard", "second", "--why", "no"])
            .await
            .code,
        Some(1)
    );
    wait_until("the staging tables to be dropped", TIMEOUT, async || {
        pipeline.number(STAGING).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_held_replay_keeps_the_previous_rows() {
    let pipeline = Pipeline::start().await;
    let lenient = "[target]\ntable = \"clicks\"\n";
    pipeline.job("clicks", lenient, sample::clicks(5_000));
    pipeline.run("clicks", "daily").await;
    // The first run committed batch by batch; the replay commits as a whole.
    pipeline.write_job("clicks", JOB);
    let replayed = pipeline.etl(&["replay", "daily", "--follow"]).await;
    assert_eq!(replayed.code, Some(1), "{}", replayed.stderr);
    assert!(replayed.stdout.contains("is held"), "{}", replayed.stdout);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 5_000);
    let discarded = pipeline
        .etl(&["discard", "daily", "--why", "the rule is wrong"])
        .await;
    assert_eq!(discarded.code, Some(0), "{}", discarded.stderr);
    assert!(
        discarded.stdout.contains("complete, as it was before")
            && discarded.stdout.contains("5,000 rows"),
        "{}",
        discarded.stdout
    );
    pipeline.assert_reconciled("daily").await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 5_000);
    let count =
        "SELECT rows_loaded FROM etl.run_balance WHERE rows_rejected = 0 AND rows_dropped = 0";
    assert_eq!(pipeline.number(count).await, 5_000);
}
