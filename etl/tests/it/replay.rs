//! Replays: rows come in that a rule was too strict for, lost batches come back, and Athena is asked once.

mod corrected;
mod gap;
mod given_up;
mod lost;
mod several;
mod unfinished;

use testkit::PATIENCE;
use testkit::line::Line;
use testkit::process::Finished;
use testkit::wait_until;

/// All that a target holds of the clicks, but for what tells which batch wrote it.
const ROWS: &str = "dt, country, url, visits, seconds, seen_at";

/// `etl` with these arguments, which has to succeed.
async fn succeeds(line: &Line, arguments: &[&str]) -> Finished {
    let done = line.etl(arguments).await;
    assert_eq!(
        done.code,
        Some(0),
        "{arguments:?}\n{}\n{}",
        done.stdout,
        done.stderr
    );
    done
}

/// `etl` with these arguments, which has to refuse with this code and these words, and change nothing.
async fn refuses(line: &Line, arguments: &[&str], code: i32, words: &[&str]) {
    let before = (line.books().await, replays(line).await);
    let done = line.etl(arguments).await;
    assert_eq!(done.code, Some(code), "{arguments:?}: {}", done.stderr);
    for word in words {
        assert!(
            done.stderr.contains(word),
            "{arguments:?} does not say {word:?}: {}",
            done.stderr
        );
    }
    assert_eq!((line.books().await, replays(line).await), before);
}

async fn replays(line: &Line) -> Vec<String> {
    line.table(
        "run_id, generation, source, seqs, requested_by, sent_at IS NOT NULL",
        "etl.replays",
    )
    .await
}

/// Waits until the run is complete and proven.
async fn completes(line: &Line, run: &str) {
    wait_until("the run to complete", PATIENCE, async || {
        line.etl(&["reconcile", run]).await.code == Some(0)
    })
    .await;
}
