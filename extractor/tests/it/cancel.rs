//! Cancelled runs: the extractor stops at once in any state of a task, and stops the query.

use std::time::Duration;

use common::job::Results;
use common::message::{Command, Control, EventKind, RunEvent};
use common::queue::Outgoing;
use testkit::TIMEOUT;
use testkit::cloud::{Answer, Fault, Op, QueryState, sample};
use testkit::wait_until;

use crate::fixture::{Fixture, rows_of, task};

/// Long after the request of every [`task`], by the ledger's clock.
const CANCELLED_AT: &str = "2018-04-02T00:00:00Z";

impl Fixture {
    async fn cancel(&self, run: &str, generation: u32) {
        let control = Control {
            run: run.parse().unwrap(),
            run_no: 1,
            generation,
            at: CANCELLED_AT.parse().unwrap(),
            job: "clicks".into(),
            command: Command::Cancel,
        };
        self.publish(&[Outgoing::of(&control).unwrap()]).await;
    }
}

#[tokio::test]
async fn run_cancelled_before_its_task_starts_no_query() {
    let fixture = Fixture::new().await;
    fixture.cloud.otherwise(Answer::rows(sample::clicks(5)));
    fixture.cancel("early", 0).await;
    // An unreadable message is skipped.
    fixture.vhost.publish("etl.control", b"{\"half\":").await;
    fixture.cancel("early-2", 0).await;
    for run in ["early", "early-2", "other"] {
        fixture.send(&task(run, "SELECT 1")).await;
    }
    let extractor = fixture.extractor().start().await;
    assert!(matches!(
        fixture.end_of("other").await,
        EventKind::Extracted { rows: 5, .. }
    ));
    fixture.settled().await;
    assert_eq!(fixture.cloud.started().len(), 1, "the other run's query");
    assert_eq!(fixture.cloud.count(Op::StartQueryExecution), 1);
    assert!(extractor.log().contains("the run was cancelled"));
    assert_eq!(fixture.vhost.ready("etl.dead").await, 0);
    // Nobody takes a message, so that the next extractor finds it.
    assert_eq!(fixture.vhost.ready("etl.control").await, 3);
}

#[tokio::test]
async fn cancel_stops_running_and_queued_queries_and_drops_their_tasks() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture.cloud.answer("runs", Answer::running_for_ever());
    fixture.cloud.answer("waits", Answer::queued_for_ever());
    for run in ["runs", "waits"] {
        fixture.send(&task(run, &format!("SELECT {run}"))).await;
    }
    wait_until("both queries", TIMEOUT, async || {
        fixture.cloud.started().len() == 2 && fixture.vhost.ready("etl.events").await == 2
    })
    .await;
    // Throttled stops are retried: a query costs money until it is stopped.
    fixture
        .cloud
        .faults(Op::StopQueryExecution, Fault::Throttling, 9);
    fixture.cancel("runs", 0).await;
    fixture.cancel("waits", 0).await;
    wait_until("both queries to be stopped", TIMEOUT, async || {
        fixture.cloud.states() == [QueryState::Cancelled; 2]
    })
    .await;
    fixture.settled().await;
    let events = fixture.vhost.take_all("etl.events").await;
    let events = events.iter().map(|event| {
        let event: RunEvent = serde_json::from_slice(&event.body).unwrap();
        event.kind
    });
    assert!(events.into_iter().all(|kind| matches!(
        kind,
        EventKind::Started { .. } | EventKind::QueryEnded { .. }
    )));
}

#[tokio::test]
async fn cancel_stops_the_query_of_a_killed_extractor() {
    let fixture = Fixture::new().await;
    fixture.cloud.otherwise(Answer::running_for_ever());
    fixture.send(&task("orphan", "SELECT 1")).await;
    let mut first = fixture
        .extractor()
        .env("ETL_FAILPOINT", "after_start")
        .start()
        .await;
    wait_until("the query", TIMEOUT, async || {
        first.log().contains("failpoint reached")
    })
    .await;
    first.kill9().await;
    fixture.cancel("orphan", 0).await;
    let _second = fixture.extractor().start().await;
    wait_until("the query to be stopped", TIMEOUT, async || {
        fixture.cloud.states() == [QueryState::Cancelled]
    })
    .await;
    fixture.settled().await;
    assert_eq!(fixture.cloud.started().len(), 1);
}

#[tokio::test]
async fn cancel_interrupts_reading() {
    let fixture = Fixture::new().await;
    let result = sample::clicks(400_000);
    fixture
        .cloud
        .answer("long", Answer::rows(result.clone()).at_once());
    fixture
        .cloud
        .answer("short", Answer::rows(sample::clicks(10)).at_once());
    let mut long = task("long", "SELECT long");
    long.source.results = Results::Api;
    fixture.send(&long).await;
    let extractor = fixture.extractor().env("ETL_TASKS", "1").start().await;
    wait_until("some batches", TIMEOUT, async || {
        fixture.vhost.ready_with_bulk("etl.raw").await > 5
    })
    .await;
    // From here on no page arrives: only the cancellation can end the read.
    fixture.cloud.always(Op::GetQueryResults, Fault::NoAnswer);
    fixture.cancel("long", 0).await;
    let mut short = task("short", "SELECT short");
    short.source.results = Results::S3;
    wait_until(
        "the task to be dropped",
        // Long before the SDK gives up.
        Duration::from_secs(25),
        async || extractor.log().contains("the run was cancelled"),
    )
    .await;
    fixture.cloud.always(Op::GetQueryResults, Fault::Pass);
    fixture.batches().await;
    fixture.send(&short).await;
    assert!(matches!(
        fixture.end_of("short").await,
        EventKind::Extracted { rows: 10, .. }
    ));
    assert!(rows_of(&fixture.batches().await) == sample::clicks(10).range(0, 10));
    fixture.settled().await;
    assert_eq!(
        fixture.cloud.count(Op::StopQueryExecution),
        0,
        "the query had ended"
    );
}

#[tokio::test]
async fn cancellation_survives_a_reconnect_and_spares_a_later_generation() {
    let (fixture, extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    fixture.cancel("r", 0).await;
    // Ends its consumers, so that it starts a new session.
    fixture.vhost.delete_queue("etl.extract").await;
    wait_until("the extractor to connect again", TIMEOUT, async || {
        extractor.log().matches("connected to the broker").count() >= 2
    })
    .await;
    fixture.send(&task("r", "SELECT 1")).await;
    wait_until("the task to be dropped", TIMEOUT, async || {
        extractor.log().contains("the run was cancelled")
    })
    .await;
    assert_eq!(fixture.cloud.count(Op::StartQueryExecution), 0);
    let mut later = task("r", "SELECT 1");
    later.generation = 1;
    fixture.send(&later).await;
    assert!(matches!(
        fixture.end_of("r").await,
        EventKind::Extracted { rows: 5, .. }
    ));
}

/// A ledger that is restored gives a name and a number a second time.
#[tokio::test]
async fn cancellation_spares_a_later_request_of_the_same_name() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .answer_once("SELECT", Answer::running_for_ever());
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    let first = task("r", "SELECT 1");
    fixture.send(&first).await;
    wait_until("the query", TIMEOUT, async || {
        fixture.cloud.started().len() == 1
    })
    .await;
    fixture.cancel("r", 0).await;
    wait_until("the query to be stopped", TIMEOUT, async || {
        fixture.cloud.states() == [QueryState::Cancelled]
    })
    .await;
    fixture.settled().await;
    let mut restored = first.clone();
    restored.requested_at = "2018-04-02T00:00:00.000001Z".parse().unwrap();
    let mut other = task("r", "SELECT 2");
    other.run_no = 2;
    // The first of them finds the stopped execution under its own token.
    for request in [restored, other] {
        fixture.send(&request).await;
        assert!(matches!(
            fixture.end_of("r").await,
            EventKind::Extracted { rows: 5, .. }
        ));
    }
    assert_eq!(fixture.cloud.started().len(), 3);
}
