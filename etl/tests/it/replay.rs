//! Replays: they load rows that a corrected rule accepts and batches that were lost, with one query in Athena.

mod abandoned;
mod corrected;
mod gap;
mod missing;
mod several;
mod unfinished;

use testkit::TIMEOUT;
use testkit::pipeline::Pipeline;
use testkit::process::Finished;
use testkit::wait_until;

/// The columns of the clicks in a target, without `_batch`.
const ROWS: &str = "dt, country, url, visits, seconds, seen_at";

/// Runs `etl` with these arguments, which must succeed.
async fn succeeds(pipeline: &Pipeline, arguments: &[&str]) -> Finished {
    let done = pipeline.etl(arguments).await;
    assert_eq!(
        done.code,
        Some(0),
        "{arguments:?}\n{}\n{}",
        done.stdout,
        done.stderr
    );
    done
}

/// Checks that `etl` with these arguments fails with this code and these words, and changes nothing.
async fn refuses(pipeline: &Pipeline, arguments: &[&str], code: i32, words: &[&str]) {
    let before = (pipeline.ledger().await, replays(pipeline).await);
    let done = pipeline.etl(arguments).await;
    assert_eq!(done.code, Some(code), "{arguments:?}: {}", done.stderr);
    for word in words {
        assert!(
            done.stderr.contains(word),
            "{arguments:?} does not say {word:?}: {}",
            done.stderr
        );
    }
    assert_eq!((pipeline.ledger().await, replays(pipeline).await), before);
}

async fn replays(pipeline: &Pipeline) -> Vec<String> {
    pipeline
        .table(
            "run_id, generation, source, rows, requested_by, sent_at IS NOT NULL",
            "etl.replays",
        )
        .await
}

/// Waits until the run is complete and reconciled.
async fn completes(pipeline: &Pipeline, run: &str) {
    wait_until("the run to complete", TIMEOUT, async || {
        pipeline.etl(&["reconcile", run]).await.code == Some(0)
    })
    .await;
}
