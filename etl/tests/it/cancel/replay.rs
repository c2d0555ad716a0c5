//! A replay that is cancelled in progress: the ledger describes the rows in the target.

use serde_json::Value;
use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::process::{Finished, Signal};
use testkit::wait_until;

use super::state;

/// Enough rows for several windows; each batch has some NULL countries.
const CLICKS: u64 = 60_000;
const STRICT: &str = "[[columns]]\nsource = \"country\"\nrules = [{ required = true }]\n";

fn job(target: &str, rules: &str) -> String {
    format!("[target]\ntable = \"clicks\"\n{target}\n{rules}")
}

/// A complete run of a job that was corrected afterwards.
async fn completed(target: &str) -> Pipeline {
    let pipeline = Pipeline::archiving().await;
    pipeline.job("clicks", &job(target, STRICT), sample::clicks(CLICKS));
    let run = pipeline.run("clicks", "daily").await;
    assert!(run["rows_rejected"].as_i64() > Some(0), "{run}");
    pipeline.write_job("clicks", &job(target, ""));
    pipeline
}

/// A replay that died after sending some of its batches, which are loaded.
async fn half_replayed(target: &str) -> Pipeline {
    let mut pipeline = completed(target).await;
    // A clean shutdown: no batch of the run may be redelivered among those of the replay.
    assert_eq!(pipeline.services[1].terminate(TIMEOUT).await, Some(0));
    let replay = pipeline
        .service("etl")
        .arg("replay")
        .arg("daily")
        .env("ETL_FAILPOINT", "replay_batch@20=exit")
        .run()
        .await;
    assert_eq!(replay.code, Some(99), "{}", replay.stderr);
    let sent = i64::try_from(pipeline.vhost.ready_with_bulk("etl.raw").await).unwrap();
    assert!(0 < sent && sent < batches(&pipeline).await, "{sent}");
    pipeline.services[1] = pipeline.service("transformer").start().await;
    let replayed = "SELECT count(*) FROM etl.batches WHERE generation = 1";
    wait_until("the sent batches to be loaded", TIMEOUT, async || {
        pipeline.number(replayed).await == sent
    })
    .await;
    assert_eq!(state(&pipeline, "daily").await, "running");
    pipeline
}

async fn batches(pipeline: &Pipeline) -> i64 {
    pipeline
        .number("SELECT batches_expected::bigint FROM etl.runs")
        .await
}

/// Checks that the ledger of the live generation counts the rows of the target, batch by batch.
async fn assert_ledger_matches_the_target(pipeline: &Pipeline) {
    let ledger = pipeline
        .table(
            "b.first_row, b.rows_loaded",
            "etl.batches b JOIN etl.runs USING (run_id, generation) WHERE b.rows_loaded > 0",
        )
        .await;
    let target = pipeline
        .table(
            "etl.first_row(_batch), count(*)",
            "clicks GROUP BY etl.first_row(_batch)",
        )
        .await;
    assert_eq!(ledger, target);
    let rejected =
        "SELECT count(*) FROM etl.rejected_rows JOIN etl.runs USING (run_id, generation)";
    let counted = "SELECT rows_rejected FROM etl.run_balance";
    assert_eq!(
        pipeline.number(rejected).await,
        pipeline.number(counted).await
    );
}

async fn cancel(pipeline: &Pipeline, arguments: &[&str]) -> Finished {
    pipeline
        .etl(&[&["cancel", "daily"], arguments].concat())
        .await
}

/// The rows of the target, with their batches.
async fn rows(pipeline: &Pipeline) -> Vec<String> {
    pipeline
        .table(
            "dt, country, url, visits, seconds, seen_at, _batch",
            "clicks",
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_replay_without_batches_leaves_the_run_unchanged() {
    for target in [
        "",
        "commit = \"run\"",
        "mode = \"replace\"",
        "mode = \"insert_only\"\nkey = [\"url\"]",
    ] {
        let pipeline = completed(target).await;
        let before = rows(&pipeline).await;
        pipeline.services[1].signal(Signal::STOP);
        let sent = pipeline.etl(&["replay", "daily"]).await;
        assert_eq!(sent.code, Some(0), "{target}: {}", sent.stderr);
        let cancelled = cancel(&pipeline, &["--why", "the wrong job"]).await;
        assert_eq!(cancelled.code, Some(0), "{target}: {}", cancelled.stderr);
        for word in [
            "replay of the run daily is cancelled",
            "complete, as it was before",
        ] {
            assert!(
                cancelled.stdout.contains(word),
                "{target}: {}",
                cancelled.stdout
            );
        }
        pipeline.assert_reconciled("daily").await;
        assert_ledger_matches_the_target(&pipeline).await;
        // All batches arrive after the cancellation and change nothing.
        let ledger = pipeline.ledger().await;
        pipeline.services[1].signal(Signal::CONT);
        #[expect(clippy::cast_precision_loss, reason = "a handful of batches")]
        let batches = batches(&pipeline).await as f64;
        wait_until("all batches to be ignored", TIMEOUT, async || {
            let ignored = pipeline.counted(&pipeline.services[0], "result=\"duplicate\"");
            ignored.await >= batches
        })
        .await;
        assert_eq!(pipeline.ledger().await, ledger, "{target}");
        assert!(rows(&pipeline).await == before, "{target}");
        let why = pipeline.table("abandoned", "etl.replays").await;
        assert_eq!(why, ["(\"abandoned by tester: cancelled: the wrong job\")"]);
        let over = cancel(&pipeline, &[]).await;
        assert_eq!(over.code, Some(1), "{target}: {}", over.stdout);
        assert!(over.stderr.contains("is completed"), "{}", over.stderr);

        // The next replay loads all rows.
        let again = pipeline.etl(&["replay", "daily", "--follow"]).await;
        assert_eq!(again.code, Some(0), "{target}: {}", again.stderr);
        assert_ledger_matches_the_target(&pipeline).await;
        assert_eq!(
            pipeline.number("SELECT count(*) FROM clicks").await,
            i64::try_from(CLICKS).unwrap(),
            "{target}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_replay_keeps_replaced_batches_and_restores_the_others() {
    let pipeline = half_replayed("").await;
    let before = rows(&pipeline).await;
    let replayed = pipeline
        .number("SELECT count(*) FROM etl.batches WHERE generation = 1")
        .await;
    let cancelled = cancel(&pipeline, &[]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    let said = format!("{replayed} batches had been replaced by the replay until then");
    assert!(cancelled.stdout.contains(&said), "{}", cancelled.stdout);
    pipeline.assert_reconciled("daily").await;
    assert_ledger_matches_the_target(&pipeline).await;
    assert!(rows(&pipeline).await == before);

    // A second replay dies and is cancelled: the target has rows of three generations.
    let part = pipeline
        .service("etl")
        .arg("replay")
        .arg("daily")
        .arg("--rows")
        .arg(&pipeline.rows_of_batches("daily", 3..=5).await)
        .env("ETL_FAILPOINT", "replay_recorded=exit")
        .run()
        .await;
    assert_eq!(part.code, Some(99), "{}", part.stderr);
    assert_eq!(cancel(&pipeline, &[]).await.code, Some(0));
    pipeline.assert_reconciled("daily").await;
    assert_ledger_matches_the_target(&pipeline).await;
    assert!(rows(&pipeline).await == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_removes_the_rows_of_every_generation() {
    for target in ["", "commit = \"run\""] {
        let pipeline = half_replayed(target).await;
        let in_target = pipeline.number("SELECT count(*) FROM clicks").await;
        let undone = cancel(&pipeline, &["--undo", "--json"]).await;
        assert_eq!(undone.code, Some(0), "{target}: {}", undone.stderr);
        let json: Value = serde_json::from_str(&undone.stdout).unwrap();
        assert_eq!(json["rows_removed"], in_target, "{target}: {json}");
        assert_eq!(json["rows_dropped"], in_target, "{target}: {json}");
        assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 0);
        assert_ledger_matches_the_target(&pipeline).await;
        assert_eq!(state(&pipeline, "daily").await, "cancelled");
        let again = cancel(&pipeline, &[]).await;
        assert!(
            again.stdout.contains("none of its rows"),
            "{target}: {}",
            again.stdout
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_replay_of_an_upsert_keeps_loaded_rows() {
    let pipeline = half_replayed("mode = \"upsert\"\nkey = [\"url\"]").await;
    let before = rows(&pipeline).await;
    let cancelled = cancel(&pipeline, &[]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    assert!(
        cancelled.stdout.contains("as it was before"),
        "{}",
        cancelled.stdout
    );
    pipeline.assert_reconciled("daily").await;
    assert_ledger_matches_the_target(&pipeline).await;
    assert!(rows(&pipeline).await == before);
    wait_until("the staging table to be dropped", TIMEOUT, async || {
        pipeline.number("SELECT count(*) FROM etl.staging").await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_reports_that_the_replay_was_cancelled() {
    let pipeline = completed("").await;
    pipeline.services[1].signal(Signal::STOP);
    let follow = pipeline
        .service("etl")
        .arg("replay")
        .arg("daily")
        .arg("--follow");
    let mut follower = follow.spawn();
    wait_until("the replay to be followed", TIMEOUT, async || {
        follower.log().contains("loading: ")
    })
    .await;
    assert_eq!(cancel(&pipeline, &[]).await.code, Some(0));
    let code = follower.wait(TIMEOUT).await.code();
    assert_eq!(code, Some(1), "{}", follower.log());
    for word in [
        "completed in",
        "the replay of the run daily was not completed: abandoned by",
    ] {
        assert!(follower.log().contains(word), "{word}: {}", follower.log());
    }
    let status = pipeline.etl(&["status", "daily"]).await;
    assert!(
        status.stdout.contains("abandoned by tester"),
        "{}",
        status.stdout
    );
}
