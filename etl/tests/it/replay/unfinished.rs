//! A killed replay is resumed by the same command; two operators cannot replay one run at once.

use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::process::Process;
use testkit::wait_until;

use super::{ROWS, completes, refuses, replays, succeeds};

const JOB: &str = "[target]\ntable = \"clicks\"\n";

/// A pipeline with the completed run `daily` of nine batches.
async fn completed() -> Pipeline {
    let pipeline = Pipeline::archiving().await;
    pipeline.job("clicks", JOB, sample::clicks(20_000));
    pipeline.run("clicks", "daily").await;
    pipeline
}

/// `etl replay daily`, paused at this failpoint.
async fn waiting_at(pipeline: &Pipeline, place: &str) -> Process {
    let replay = pipeline
        .service("etl")
        .arg("replay")
        .arg("daily")
        .env("ETL_FAILPOINT", place)
        .env("ETL_LOG", "info")
        .spawn();
    wait_until("the replay to reach its failpoint", TIMEOUT, async || {
        replay.log().contains("failpoint reached")
    })
    .await;
    replay
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_replay_is_resumed_by_the_same_command() {
    let pipeline = completed().await;
    let rows = pipeline.table(&format!("{ROWS}, _batch"), "clicks").await;
    for (place, generation) in [
        ("replay_recorded", 1),
        ("replay_batch@7", 2),
        ("replay_sent", 3),
    ] {
        let mut killed = waiting_at(&pipeline, place).await;
        killed.kill9().await;
        assert_eq!(
            pipeline
                .number("SELECT count(*) FROM etl.replays WHERE sent_at IS NULL")
                .await,
            1,
            "{place}"
        );
        if generation < 3 {
            // The broker may have the first of the nine batches and lacks the last one: the run stays open until a
            // person acts. The ledger is not compared, since the sent batches are being loaded.
            let part = pipeline
                .etl(&["replay", "daily", "--rows", "6000..9000"])
                .await;
            assert_eq!(part.code, Some(1), "{place}: {}", part.stderr);
            for word in ["0..19999", "unfinished", "etl replay daily"] {
                assert!(part.stderr.contains(word), "{place}: {}", part.stderr);
            }
            let resumed = succeeds(&pipeline, &["replay", "daily", "--follow"]).await;
            let said = format!("9 batches of daily sent again, as generation {generation}");
            assert!(
                resumed.stdout.contains(&said),
                "{place}: {}",
                resumed.stdout
            );
        }
        completes(&pipeline, "daily").await;
        assert_eq!(
            pipeline
                .number("SELECT generation::bigint FROM etl.runs")
                .await,
            generation,
            "{place}"
        );
        assert!(
            pipeline.table(&format!("{ROWS}, _batch"), "clicks").await == rows,
            "{place}"
        );
    }
    // The last replay was sent completely: the next command is a new replay.
    succeeds(&pipeline, &["replay", "daily", "--follow"]).await;
    assert_eq!(
        pipeline
            .number("SELECT generation::bigint FROM etl.runs")
            .await,
        4
    );
    assert!(pipeline.table(&format!("{ROWS}, _batch"), "clicks").await == rows);
    assert_eq!(pipeline.cloud.started().len(), 1, "one query");
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_partial_replay_is_superseded_by_the_corrected_job_or_by_a_whole_replay() {
    let pipeline = completed().await;
    let rows = pipeline.rows_of_batches("daily", 3..=5).await;
    // Rows within these batches.
    let (first, last) = rows.split_once("..").unwrap();
    let [first, last] = [first, last].map(|row| row.parse::<u32>().unwrap());
    let some = format!("{}..{}", first + 5, last - 5);
    let part = pipeline
        .service("etl")
        .arg("replay")
        .arg("daily")
        .arg("--rows")
        .arg(&some)
        .env("ETL_FAILPOINT", "replay_recorded=exit")
        .run()
        .await;
    assert_eq!(part.code, Some(99), "{}", part.stderr);
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.batches WHERE generation = 1")
            .await,
        6
    );
    refuses(
        &pipeline,
        &[
            "replay",
            "daily",
            "--rows",
            &pipeline.rows_of_batches("daily", 4..=8).await,
        ],
        1,
        &[&format!("--rows {rows}")],
    )
    .await;
    // The same part with a corrected job: a generation has one job.
    pipeline.write_job(
        "clicks",
        "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"url\"\ntype = \"text\"\n",
    );
    let sent = succeeds(&pipeline, &["replay", "daily", "--rows", &some, "--follow"]).await;
    assert!(
        sent.stdout
            .contains("3 batches of daily sent again, as generation 2"),
        "{}",
        sent.stdout
    );
    pipeline.assert_reconciled("daily").await;
    let (first, last) = rows.split_once("..").unwrap();
    let range = format!("{{[{first},{})}}", last.parse::<i64>().unwrap() + 1);
    assert_eq!(
        replays(&pipeline).await,
        [
            format!("(daily,1,archive,\"{range}\",tester,f)"),
            format!("(daily,2,archive,\"{range}\",tester,t)")
        ]
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_replay_of_one_run_is_refused() {
    let pipeline = completed().await;
    let mut first = waiting_at(&pipeline, "replay_recorded").await;
    for part in [
        &["replay", "daily"][..],
        &["replay", "daily", "--force"],
        &["replay", "daily", "--from-athena"],
        &["replay", "daily", "--missing"],
    ] {
        refuses(
            &pipeline,
            part,
            1,
            &["another process is replaying the run daily"],
        )
        .await;
    }
    first.kill9().await;
    succeeds(&pipeline, &["replay", "daily", "--follow"]).await;
    pipeline.assert_reconciled("daily").await;
    assert_eq!(
        pipeline
            .number("SELECT generation::bigint FROM etl.runs")
            .await,
        1
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_of_an_open_run_needs_force() {
    let mut pipeline = completed().await;
    // Without a loader, the replay does not end.
    pipeline.services[0].kill9().await;
    succeeds(&pipeline, &["replay", "daily"]).await;
    for again in [
        &["replay", "daily"][..],
        &["replay", "daily", "--from-athena"],
    ] {
        refuses(&pipeline, again, 1, &["the run daily is running"]).await;
    }
    succeeds(&pipeline, &["replay", "daily", "--force"]).await;
    pipeline.services[0] = pipeline.service("loader").start().await;
    completes(&pipeline, "daily").await;
    assert_eq!(
        pipeline
            .number("SELECT generation::bigint FROM etl.runs")
            .await,
        2
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await,
        0
    );
}
