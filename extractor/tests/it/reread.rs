//! A replay from Athena reads the result that the run was loaded from, without another query.

use common::job::Results;
use common::message::{EventKind, ExtractTask, TaskState};
use testkit::TIMEOUT;
use testkit::cloud::{Answer, Op, sample};
use testkit::wait_until;

use crate::fixture::{Fixture, task};

/// The task that `etl replay --from-athena` publishes.
fn reread(task: &ExtractTask, result_id: &str) -> ExtractTask {
    let (id, _) = result_id.split_once(':').unwrap();
    ExtractTask {
        generation: 1,
        first_generation: 0,
        state: TaskState::Reread {
            query_execution_id: id.to_owned(),
            result_id: result_id.to_owned(),
            result_location: None,
            columns: vec![],
        },
        ..task.clone()
    }
}

#[tokio::test]
async fn reread_gives_the_same_batches_without_another_query() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(1_000)).at_once());
    for (run, results) in [("object", Results::Auto), ("pages", Results::Api)] {
        let mut task = task(run, &format!("SELECT {run}"));
        task.source.results = results;
        task.limits.batch_rows = 300;
        fixture.send(&task).await;
        let first = fixture.end_of(run).await;
        let EventKind::Extracted { result_id, .. } = first.clone() else {
            panic!("{first:?}")
        };
        let batches = fixture.batches().await;
        let asked = fixture.cloud.tokens().len();
        // The job's setting does not matter any more.
        task.source.results = Results::Auto;
        fixture.send(&reread(&task, &result_id)).await;
        assert_eq!(fixture.end_of(run).await, first);
        let mut second = fixture.batches().await;
        assert!(second.iter().all(|batch| batch.id.generation == 1));
        for batch in &mut second {
            batch.id.generation = 0;
        }
        assert!(second == batches, "{run}");
        assert_eq!(fixture.cloud.tokens().len(), asked, "no query was started");
    }
    // The archive has the events as well.
    let archived = fixture.vhost.read_stream("etl.archive", 20).await;
    let kinds = archived
        .iter()
        .map(|message| message.properties.kind().clone().unwrap().to_string());
    assert_eq!(kinds.filter(|kind| kind == "run-event.v2").count(), 4);
}

#[tokio::test]
async fn object_is_read_again_after_athena_has_forgotten_the_query() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(1_000)).at_once());
    let mut task = task("r", "SELECT 1");
    task.limits.batch_rows = 300;
    fixture.send(&task).await;
    let first = fixture.end_of("r").await;
    let EventKind::Extracted {
        result_id,
        result_location,
        columns,
        ..
    } = first.clone()
    else {
        panic!("{first:?}")
    };
    let batches = fixture.batches().await;
    fixture.cloud.forget();
    let mut again = reread(&task, &result_id);
    if let TaskState::Reread {
        result_location: location,
        columns: known,
        ..
    } = &mut again.state
    {
        (*location, *known) = (result_location, columns);
    }
    fixture.send(&again).await;
    let EventKind::Extracted { rows: 1_000, .. } = fixture.end_of("r").await else {
        panic!()
    };
    let mut second = fixture.batches().await;
    for batch in &mut second {
        batch.id.generation = 0;
    }
    assert!(second == batches);
}

#[tokio::test]
async fn reread_of_a_changed_result_is_dead_lettered_and_fails_no_run() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(10)).at_once());
    let task = task("r", "SELECT 1");
    fixture.send(&task).await;
    let EventKind::Extracted { result_id, .. } = fixture.end_of("r").await else {
        panic!()
    };
    let (id, _) = result_id.split_once(':').unwrap();
    fixture.batches().await;
    fixture.cloud.replace_result(id, sample::clicks(11));
    let unknown = "11111111-0000-4000-8000-000000000000:pages".to_owned();
    for (result_id, why) in [
        (result_id.clone(), "and was"),
        (unknown, "Athena does not know the query"),
    ] {
        fixture.send(&reread(&task, &result_id)).await;
        wait_until("the dead letter", TIMEOUT, async || {
            fixture.vhost.ready("etl.dead").await == 1
        })
        .await;
        let dead = fixture.vhost.take_all("etl.dead").await.remove(0);
        let reason = dead.header("x-etl-reason").unwrap();
        assert!(
            reason.starts_with("the result cannot be read again") && reason.contains(why),
            "{reason}"
        );
        let body: ExtractTask = serde_json::from_slice(&dead.body).unwrap();
        assert_eq!(body, reread(&task, &result_id), "it can be replayed");
    }
    assert_eq!(fixture.vhost.ready("etl.events").await, 0);
    assert!(fixture.batches().await.is_empty());
    assert_eq!(fixture.cloud.count(Op::StartQueryExecution), 1);
}
