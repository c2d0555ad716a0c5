//! Abandoned replays, and a replay with every batch dropped: the run and its rows are as before.

use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

const JOB: &str = "[target]\ntable = \"clicks\"\n";
const ROWS: &str = "dt, country, url, visits, seconds, seen_at, _batch";

/// A pipeline with the completed run `daily`.
async fn completed(job: &str, rows: u64) -> Pipeline {
    let pipeline = Pipeline::archiving().await;
    pipeline.job("clicks", job, sample::clicks(rows));
    pipeline.run("clicks", "daily").await;
    pipeline
}

/// Checks that `etl` with these arguments exits with this code and prints this.
async fn assert_output(pipeline: &Pipeline, arguments: &[&str], code: i32, said: &str) {
    let done = pipeline.etl(arguments).await;
    let all = format!("{}{}", done.stdout, done.stderr);
    assert_eq!(done.code, Some(code), "{arguments:?}: {all}");
    assert!(
        all.contains(said),
        "{arguments:?} does not say {said:?}: {all}"
    );
}

async fn state(pipeline: &Pipeline) -> String {
    pipeline
        .table("state, generation", "etl.runs")
        .await
        .join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_abandoned_replays_leave_the_run_complete() {
    let pipeline = completed(JOB, 5_000).await;
    let query = pipeline.table("query_execution_id", "etl.runs").await[0].clone();
    pipeline.cloud.delete_result(query.trim_matches(['(', ')']));
    let dead_letters = "SELECT count(*) FROM etl.dead_letters";
    for (number, force) in [(1, &[][..]), (2, &["--force"])] {
        let replay = [&["replay", "daily", "--from-athena"], force].concat();
        assert_output(&pipeline, &replay, 0, "read again").await;
        wait_until("its task to be dead-lettered", TIMEOUT, async || {
            pipeline.number(dead_letters).await == number
        })
        .await;
    }
    for (number, said) in [("1", "is unchanged"), ("2", "complete, as it was before")] {
        assert_output(
            &pipeline,
            &["dead", "drop", number, "--why", "the result is gone"],
            0,
            said,
        )
        .await;
    }
    assert_eq!(state(&pipeline).await, "(completed,2)");
    pipeline.assert_reconciled("daily").await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_with_every_batch_dropped_is_held() {
    let upsert = format!("{JOB}mode = \"upsert\"\nkey = [\"url\"]\n");
    let pipeline = completed(&upsert, 1_000).await;
    let rows = pipeline.table(ROWS, "clicks").await;
    let other = format!("{upsert}[[columns]]\nsource = \"visits\"\ntype = \"text\"\n");
    pipeline.write_job("clicks", &other);
    assert_output(&pipeline, &["replay", "daily"], 1, "the job makes it text").await;
    // What the ledger does not know is not found before.
    let unknown = "UPDATE etl.runs SET result_columns = NULL";
    let pool = &pipeline.database.pool;
    sqlx::query(unknown).execute(pool).await.unwrap();
    assert_output(&pipeline, &["replay", "daily"], 0, "sent again").await;
    let dead_letters = "SELECT count(*) FROM etl.dead_letters";
    wait_until("its batch to be dead-lettered", TIMEOUT, async || {
        pipeline.number(dead_letters).await == 1
    })
    .await;
    assert_output(
        &pipeline,
        &["dead", "drop", "1", "--why", "a mistake"],
        0,
        "the batch from row 0 of daily",
    )
    .await;
    wait_until("the run to be held", TIMEOUT, async || {
        state(&pipeline).await == "(held,1)"
    })
    .await;
    assert_output(
        &pipeline,
        &["reconcile", "daily"],
        1,
        "every batch of the replay was dropped",
    )
    .await;
    assert_output(
        &pipeline,
        &["discard", "daily", "--why", "a mistake"],
        0,
        "as it was before",
    )
    .await;
    pipeline.assert_reconciled("daily").await;
    assert!(pipeline.table(ROWS, "clicks").await == rows);
}
