//! What each query of a run has cost is reported, however the query and the run ended.

use std::time::Duration;

use common::message::{Command, Control, EventKind, QueryEnd};
use common::queue::Outgoing;
use testkit::TIMEOUT;
use testkit::cloud::{Answer, Op, QueryState, sample};
use testkit::wait_until;

use crate::fixture::{Fixture, task};

/// The ends of queries among events: how each ended, and what it scanned.
fn ends(events: &[EventKind]) -> Vec<(QueryEnd, u64, bool)> {
    let of = |kind: &EventKind| match kind {
        EventKind::QueryEnded {
            end,
            bytes_scanned,
            reused,
            ..
        } => Some((*end, *bytes_scanned, *reused)),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn is_extracted(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Extracted { .. })
}

fn is_failed(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Failed { .. })
}

#[tokio::test]
async fn every_attempt_is_reported_with_what_it_scanned() {
    let (fixture, _extractor) = Fixture::started().await;
    let busy = Answer::failed_by_system("Rate exceeded").scanned(11);
    fixture.cloud.answer_once("SELECT", busy);
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).scanned(22));
    fixture.send(&task("again", "SELECT 1")).await;
    let events = fixture.events_until("again", is_extracted).await;
    assert_eq!(
        ends(&events),
        [
            (QueryEnd::Failed, 11, false),
            (QueryEnd::Succeeded, 22, false)
        ]
    );
    let attempts: Vec<_> = events
        .iter()
        .filter_map(|kind| match kind {
            EventKind::Started { attempt, .. } => Some(*attempt),
            _ => None,
        })
        .collect();
    assert_eq!(attempts, [1, 2]);
    // A failed run, and one that is stopped at a limit.
    fixture
        .cloud
        .answer("SELECT x", Answer::failed_by_user("no x").scanned(33));
    fixture.send(&task("failed", "SELECT x")).await;
    let events = fixture.events_until("failed", is_failed).await;
    assert_eq!(ends(&events), [(QueryEnd::Failed, 33, false)]);
    fixture
        .cloud
        .answer("SELECT y", Answer::running_for_ever().scanned(44));
    let mut slow = task("slow", "SELECT y");
    slow.source.timeout = Duration::from_millis(10);
    fixture.send(&slow).await;
    let events = fixture.events_until("slow", is_failed).await;
    assert_eq!(ends(&events), [(QueryEnd::Stopped, 44, false)]);
}

#[tokio::test]
async fn query_of_a_cancelled_run_is_reported_when_it_is_stopped() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::running_for_ever().scanned(55));
    fixture.send(&task("cancelled", "SELECT 1")).await;
    wait_until("the query to run", TIMEOUT, async || {
        fixture.cloud.states() == [QueryState::Running]
    })
    .await;
    let cancel = Control {
        run: "cancelled".parse().unwrap(),
        run_no: 1,
        generation: 0,
        at: "2018-04-02T00:00:00Z".parse().unwrap(),
        job: "clicks".into(),
        command: Command::Cancel,
    };
    fixture.publish(&[Outgoing::of(&cancel).unwrap()]).await;
    let is_end = |kind: &EventKind| matches!(kind, EventKind::QueryEnded { .. });
    let events = fixture.events_until("cancelled", is_end).await;
    assert_eq!(ends(&events), [(QueryEnd::Stopped, 55, false)]);
    fixture.settled().await;
}

#[tokio::test]
async fn earlier_result_is_reused_only_where_the_job_says_so() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).scanned(66).at_once());
    let reuse = Some(Duration::from_hours(1));
    for (run, reuse, wanted) in [
        ("first", None, (QueryEnd::Succeeded, 66, false)),
        ("second", None, (QueryEnd::Succeeded, 66, false)),
        ("third", reuse, (QueryEnd::Succeeded, 0, true)),
    ] {
        let mut task = task(run, "SELECT 1");
        task.source.reuse_results = reuse;
        fixture.send(&task).await;
        let events = fixture.events_until(run, is_extracted).await;
        assert_eq!(ends(&events), [wanted], "{run}");
        assert_eq!(fixture.batches().await.len(), 1, "{run}");
    }
    let requests = fixture.cloud.start_requests();
    let age = "/ResultReuseConfiguration/ResultReuseByAgeConfiguration/MaxAgeInMinutes";
    let ages = requests.iter().map(|request| request.pointer(age).cloned());
    assert_eq!(ages.collect::<Vec<_>>(), [None, None, Some(60.into())]);
}

#[tokio::test]
async fn statement_that_changes_something_is_stopped_and_never_repeated() {
    let (fixture, _extractor) = Fixture::started().await;
    for (run, answer) in [
        ("insert", Answer::running_for_ever().substatement("INSERT")),
        (
            "unload",
            Answer::rows(sample::clicks(5)).substatement("UNLOAD"),
        ),
    ] {
        fixture.cloud.otherwise(answer);
        // As an extractor gets it of who does not use `etl`.
        fixture.send(&task(run, "SELECT 1")).await;
        let events = fixture.events_until(run, is_failed).await;
        let Some(EventKind::Failed { reason }) = events.last() else {
            panic!("{events:?}")
        };
        assert!(reason.contains("is not a query"), "{reason}");
    }
    // Athena says that it failed, and what it was, in the first answer.
    let failing = Answer::failed_by_system("Rate exceeded").substatement("MERGE");
    fixture.cloud.otherwise(failing.at_once());
    fixture.send(&task("merge", "SELECT 1")).await;
    fixture.events_until("merge", is_failed).await;
    assert_eq!(fixture.cloud.count(Op::StartQueryExecution), 3);
    assert_eq!(fixture.cloud.states()[0], QueryState::Cancelled);
    assert!(fixture.batches().await.is_empty());
}
