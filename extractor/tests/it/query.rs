//! What becomes of a query: how it ends, its limits, and that nobody pays twice.

use std::time::Duration;

use common::message::EventKind;
use testkit::cloud::{Answer, Fault, Op, QueryState, sample};

use crate::line::{Line, rows_of, task};

#[tokio::test]
async fn a_query_that_fails_fails_the_run_with_athenas_own_words() {
    let (line, _extractor) = Line::started().await;
    let message = "COLUMN_NOT_FOUND: line 1:8: Column 'x' cannot be resolved";
    line.cloud
        .answer("SELECT x", Answer::failed_by_user(message));
    line.ask(&task("failed", "SELECT x")).await;
    let reason = line.failure_of("failed").await;
    assert!(
        reason.contains(message) && reason.contains("1006"),
        "{reason}"
    );
    line.cloud.answer(
        "SELEC 1",
        Answer::refused("line 1:1: mismatched input 'SELEC'"),
    );
    line.ask(&task("refused", "SELEC 1")).await;
    let reason = line.failure_of("refused").await;
    assert!(reason.contains("mismatched input 'SELEC'"), "{reason}");
    line.cloud
        .answer("SELECT y", Answer::cancelled("Cancelled by Eve"));
    line.ask(&task("cancelled", "SELECT y")).await;
    let reason = line.failure_of("cancelled").await;
    assert!(reason.contains("Cancelled by Eve"), "{reason}");
    assert!(line.batches().await.is_empty());
    line.settled().await;
}

#[tokio::test]
async fn a_failure_that_athena_calls_passing_is_asked_again_as_another_query() {
    let (line, _extractor) = Line::started().await;
    line.cloud
        .answer_once("SELECT", Answer::failed_by_system("Rate exceeded"));
    line.cloud.otherwise(Answer::rows(sample::clicks(10)));
    line.ask(&task("again", "SELECT 1")).await;
    assert!(matches!(
        line.end_of("again").await,
        EventKind::Extracted { rows: 10, .. }
    ));
    let tokens = line.cloud.tokens();
    assert!(
        line.cloud.started().len() == 2 && tokens[0] != tokens[1],
        "{tokens:?}"
    );
    // Not for ever.
    line.cloud
        .answer("SELECT 2", Answer::failed_by_system("No capacity"));
    line.ask(&task("never", "SELECT 2")).await;
    let reason = line.failure_of("never").await;
    assert!(
        reason.contains("No capacity") && line.cloud.started().len() == 5,
        "{reason}"
    );
}

#[tokio::test]
async fn a_query_beyond_the_jobs_limits_is_stopped_and_says_which() {
    let (line, _extractor) = Line::started().await;
    line.cloud
        .answer("expensive", Answer::running_for_ever().scanned(2_000_001));
    let mut expensive = task("expensive", "SELECT expensive");
    expensive.source.max_scanned = Some(2_000_000);
    line.cloud.answer("slow", Answer::queued_for_ever());
    let mut slow = task("slow", "SELECT slow");
    slow.source.timeout = Duration::from_secs(1);
    line.ask(&expensive).await;
    let reason = line.failure_of("expensive").await;
    assert!(
        reason.contains("max_scanned = 2000000") && reason.contains("2000001"),
        "{reason}"
    );
    line.ask(&slow).await;
    let reason = line.failure_of("slow").await;
    assert!(reason.contains("timeout = 1s"), "{reason}");
    assert_eq!(line.cloud.states(), [QueryState::Cancelled; 2]);
    line.settled().await;
}

#[tokio::test]
async fn a_task_that_comes_twice_starts_one_query_and_gives_the_same_batches() {
    let line = Line::new().await;
    let result = sample::clicks(1_001);
    line.cloud.otherwise(Answer::rows(result.clone()));
    // The first request's answer is lost on the way back.
    line.cloud.fault(Op::StartQueryExecution, Fault::LoseAnswer);
    let mut task = task("twice", "SELECT 1");
    task.limits.batch_rows = 400;
    line.ask(&task).await;
    line.ask(&task).await;
    let _extractors = (
        line.extractor().start().await,
        line.extractor().start().await,
    );
    line.ends_of("twice", 2).await;
    let tokens = line.cloud.tokens();
    assert!(
        tokens.len() >= 3 && tokens.iter().all(|token| *token == tokens[0]),
        "{tokens:?}"
    );
    assert_eq!(line.cloud.started().len(), 1);
    let batches = line.batches().await;
    let (first, second): (Vec<_>, Vec<_>) = batches
        .chunks(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .unzip();
    assert!(first == second && rows_of(&first) == result.range(0, 1_001));
}

#[tokio::test]
async fn a_query_that_takes_long_is_waited_for_in_turns() {
    let (line, _extractor) = Line::started().await;
    line.cloud
        .otherwise(Answer::rows(sample::clicks(3)).after(Duration::from_secs(13)));
    let mut task = task("long", "SELECT 1");
    task.source.results = common::job::Results::Api;
    line.ask(&task).await;
    assert!(matches!(
        line.end_of("long").await,
        EventKind::Extracted { rows: 3, .. }
    ));
    assert_eq!(
        line.cloud.tokens().len(),
        1,
        "the successor knows the execution"
    );
    line.settled().await;
}
