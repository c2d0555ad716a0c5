//! Queries: how they end, their limits, and that none is paid for twice.

use std::time::Duration;

use common::message::EventKind;
use testkit::cloud::{Answer, Fault, Op, QueryState, sample};

use crate::fixture::{Fixture, rows_of, task};

#[tokio::test]
async fn failed_query_fails_the_run_with_athenas_message() {
    let (fixture, _extractor) = Fixture::started().await;
    let message = "COLUMN_NOT_FOUND: line 1:8: Column 'x' cannot be resolved";
    fixture
        .cloud
        .answer("SELECT x", Answer::failed_by_user(message));
    fixture.send(&task("failed", "SELECT x")).await;
    let reason = fixture.failure_of("failed").await;
    assert!(
        reason.contains(message) && reason.contains("1006"),
        "{reason}"
    );
    fixture.cloud.answer(
        "SELEC 1",
        Answer::refused("line 1:1: mismatched input 'SELEC'"),
    );
    fixture.send(&task("refused", "SELEC 1")).await;
    let reason = fixture.failure_of("refused").await;
    assert!(reason.contains("mismatched input 'SELEC'"), "{reason}");
    fixture
        .cloud
        .answer("SELECT y", Answer::cancelled("Cancelled by Eve"));
    fixture.send(&task("cancelled", "SELECT y")).await;
    let reason = fixture.failure_of("cancelled").await;
    assert!(reason.contains("Cancelled by Eve"), "{reason}");
    assert!(fixture.batches().await.is_empty());
    fixture.settled().await;
}

#[tokio::test]
async fn retryable_failure_starts_another_query_up_to_the_last_attempt() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .answer_once("SELECT", Answer::failed_by_system("Rate exceeded"));
    fixture.cloud.otherwise(Answer::rows(sample::clicks(10)));
    fixture.send(&task("again", "SELECT 1")).await;
    assert!(matches!(
        fixture.end_of("again").await,
        EventKind::Extracted { rows: 10, .. }
    ));
    let tokens = fixture.cloud.tokens();
    assert!(
        fixture.cloud.started().len() == 2 && tokens[0] != tokens[1],
        "{tokens:?}"
    );
    // The third attempt is the last.
    fixture
        .cloud
        .answer("SELECT 2", Answer::failed_by_system("No capacity"));
    fixture.send(&task("never", "SELECT 2")).await;
    let reason = fixture.failure_of("never").await;
    assert!(
        reason.contains("No capacity") && fixture.cloud.started().len() == 5,
        "{reason}"
    );
}

#[tokio::test]
async fn query_beyond_a_limit_of_the_job_is_stopped_and_names_the_limit() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .answer("expensive", Answer::running_for_ever().scanned(2_000_001));
    let mut expensive = task("expensive", "SELECT expensive");
    expensive.source.max_scanned = Some(2_000_000);
    fixture.cloud.answer("slow", Answer::queued_for_ever());
    let mut slow = task("slow", "SELECT slow");
    slow.source.timeout = Duration::from_secs(1);
    fixture.send(&expensive).await;
    let reason = fixture.failure_of("expensive").await;
    assert!(
        reason.contains("max_scanned = 2000000") && reason.contains("2000001"),
        "{reason}"
    );
    fixture.send(&slow).await;
    let reason = fixture.failure_of("slow").await;
    assert!(reason.contains("timeout = 1s"), "{reason}");
    assert_eq!(fixture.cloud.states(), [QueryState::Cancelled; 2]);
    fixture.settled().await;
}

#[tokio::test]
async fn duplicate_task_starts_one_query_and_gives_the_same_batches() {
    let fixture = Fixture::new().await;
    let result = sample::clicks(1_001);
    fixture.cloud.otherwise(Answer::rows(result.clone()));
    // The answer to the first request is lost.
    fixture
        .cloud
        .fault(Op::StartQueryExecution, Fault::LoseAnswer);
    let mut task = task("twice", "SELECT 1");
    task.limits.batch_rows = 400;
    fixture.send(&task).await;
    fixture.send(&task).await;
    let _extractors = (
        fixture.extractor().start().await,
        fixture.extractor().start().await,
    );
    fixture.ends_of("twice", 2).await;
    let tokens = fixture.cloud.tokens();
    assert!(
        tokens.len() >= 3 && tokens.iter().all(|token| *token == tokens[0]),
        "{tokens:?}"
    );
    assert_eq!(fixture.cloud.started().len(), 1);
    let batches = fixture.batches().await;
    let (first, second): (Vec<_>, Vec<_>) = batches
        .chunks(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .unzip();
    assert!(first == second && rows_of(&first) == result.range(0, 1_001));
}

#[tokio::test]
async fn long_query_is_waited_for_across_checkpoints() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(3)).after(Duration::from_secs(13)));
    let mut task = task("long", "SELECT 1");
    task.source.results = common::job::Results::Api;
    fixture.send(&task).await;
    assert!(matches!(
        fixture.end_of("long").await,
        EventKind::Extracted { rows: 3, .. }
    ));
    assert_eq!(
        fixture.cloud.tokens().len(),
        1,
        "the checkpoint has the execution id"
    );
    fixture.settled().await;
}
