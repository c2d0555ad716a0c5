//! A run that is cancelled: whatever an extractor is at, it stops at once, and so does Athena.

use std::time::Duration;

use common::job::Results;
use common::message::{Control, EventKind, RunEvent};
use common::queue::Outgoing;
use testkit::PATIENCE;
use testkit::cloud::{Answer, Fault, Op, QueryState, sample};
use testkit::wait_until;

use crate::line::{Line, rows_of, task};

impl Line {
    async fn cancel(&self, run: &str, generation: u32) {
        let order = Control::cancel(run.parse().unwrap(), generation, "clicks");
        self.publish(&[Outgoing::of(&order).unwrap()]).await;
    }
}

#[tokio::test]
async fn a_run_that_was_cancelled_before_its_task_was_taken_never_reaches_athena() {
    let line = Line::new().await;
    line.cloud.otherwise(Answer::rows(sample::clicks(5)));
    line.cancel("early", 0).await;
    // What nobody understands is skipped, in a stream that nothing can be taken out of.
    line.vhost.publish("etl.control", b"{\"half\":").await;
    line.cancel("early-2", 0).await;
    for run in ["early", "early-2", "other"] {
        line.ask(&task(run, "SELECT 1")).await;
    }
    let extractor = line.extractor().start().await;
    assert!(matches!(
        line.end_of("other").await,
        EventKind::Extracted { rows: 5, .. }
    ));
    line.settled().await;
    assert_eq!(line.cloud.started().len(), 1, "the other's");
    assert_eq!(line.cloud.count(Op::StartQueryExecution), 1);
    assert!(extractor.log().contains("the run was cancelled"));
    assert_eq!(line.vhost.ready("etl.dead").await, 0);
}

#[tokio::test]
async fn a_query_that_runs_or_waits_is_stopped_and_the_task_dropped() {
    let (line, _extractor) = Line::started().await;
    line.cloud.answer("runs", Answer::running_for_ever());
    line.cloud.answer("waits", Answer::queued_for_ever());
    for run in ["runs", "waits"] {
        line.ask(&task(run, &format!("SELECT {run}"))).await;
    }
    wait_until("both queries", PATIENCE, async || {
        line.cloud.started().len() == 2 && line.vhost.ready("etl.events").await == 2
    })
    .await;
    // Athena is throttled at first: a query costs until it is stopped.
    line.cloud
        .faults(Op::StopQueryExecution, Fault::Throttling, 9);
    line.cancel("runs", 0).await;
    line.cancel("waits", 0).await;
    wait_until("both queries to be stopped", PATIENCE, async || {
        line.cloud.states() == [QueryState::Cancelled; 2]
    })
    .await;
    line.settled().await;
    let events = line.vhost.take_all("etl.events").await;
    let events = events.iter().map(|event| {
        let event: RunEvent = serde_json::from_slice(&event.body).unwrap();
        event.kind
    });
    assert!(
        events
            .into_iter()
            .all(|kind| matches!(kind, EventKind::Started { .. }))
    );
}

#[tokio::test]
async fn a_query_of_an_extractor_that_died_is_found_and_stopped() {
    let line = Line::new().await;
    line.cloud.otherwise(Answer::running_for_ever());
    line.ask(&task("orphan", "SELECT 1")).await;
    let mut first = line
        .extractor()
        .env("ETL_FAILPOINT", "after_start")
        .start()
        .await;
    wait_until("the query", PATIENCE, async || {
        first.log().contains("failpoint reached")
    })
    .await;
    first.kill9().await;
    line.cancel("orphan", 0).await;
    let _second = line.extractor().start().await;
    wait_until("the query to be stopped", PATIENCE, async || {
        line.cloud.states() == [QueryState::Cancelled]
    })
    .await;
    line.settled().await;
    assert_eq!(line.cloud.started().len(), 1);
}

#[tokio::test]
async fn a_result_that_is_being_read_is_left_at_once() {
    let line = Line::new().await;
    let result = sample::clicks(400_000);
    line.cloud
        .answer("long", Answer::rows(result.clone()).at_once());
    line.cloud
        .answer("short", Answer::rows(sample::clicks(10)).at_once());
    let mut long = task("long", "SELECT long");
    long.source.results = Results::Api;
    line.ask(&long).await;
    let extractor = line.extractor().env("ETL_TASKS", "1").start().await;
    wait_until("some batches", PATIENCE, async || {
        line.vhost.ready("etl.raw").await > 5
    })
    .await;
    // From here on nothing comes any more: only who is interrupted goes on.
    line.cloud.always(Op::GetQueryResults, Fault::NoAnswer);
    line.cancel("long", 0).await;
    let mut short = task("short", "SELECT short");
    short.source.results = Results::S3;
    wait_until(
        "the task to be dropped",
        // Less than the thirty after which the SDK gives the silent call up.
        Duration::from_secs(25),
        async || extractor.log().contains("the run was cancelled"),
    )
    .await;
    line.cloud.always(Op::GetQueryResults, Fault::Pass);
    line.vhost.take_all("etl.raw").await;
    line.ask(&short).await;
    assert!(matches!(
        line.end_of("short").await,
        EventKind::Extracted { rows: 10, .. }
    ));
    assert!(rows_of(&line.batches().await) == sample::clicks(10).range(0, 10));
    line.settled().await;
    assert_eq!(line.cloud.count(Op::StopQueryExecution), 0, "it had ended");
}

#[tokio::test]
async fn orders_are_read_again_after_a_reconnect_and_a_later_generation_is_another_matter() {
    let (line, extractor) = Line::started().await;
    line.cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    line.cancel("r", 0).await;
    // Its consumers end, and it begins anew.
    line.vhost.delete_queue("etl.extract").await;
    wait_until("the extractor to connect again", PATIENCE, async || {
        extractor.log().matches("connected to the broker").count() >= 2
    })
    .await;
    line.ask(&task("r", "SELECT 1")).await;
    wait_until("the task to be dropped", PATIENCE, async || {
        extractor.log().contains("the run was cancelled")
    })
    .await;
    assert_eq!(line.cloud.count(Op::StartQueryExecution), 0);
    let mut later = task("r", "SELECT 1");
    later.generation = 1;
    line.ask(&later).await;
    assert!(matches!(
        line.end_of("r").await,
        EventKind::Extracted { rows: 5, .. }
    ));
}
