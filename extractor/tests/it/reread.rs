//! A replay from Athena: the result that the run was loaded from, once more, and no other query.

use common::job::Results;
use common::message::{EventKind, ExtractTask, TaskState};
use testkit::PATIENCE;
use testkit::cloud::{Answer, Op, sample};
use testkit::wait_until;

use crate::line::{Line, task};

/// The task that `etl replay --from-athena` sends.
fn again(task: &ExtractTask, result_id: &str) -> ExtractTask {
    let (id, _) = result_id.split_once(':').unwrap();
    ExtractTask {
        generation: 1,
        state: TaskState::Reread {
            query_execution_id: id.to_owned(),
            result_id: result_id.to_owned(),
        },
        ..task.clone()
    }
}

#[tokio::test]
async fn a_result_is_read_again_in_the_same_batches_and_without_another_query() {
    let (line, _extractor) = Line::started().await;
    line.cloud
        .otherwise(Answer::rows(sample::clicks(1_000)).at_once());
    for (run, results) in [("object", Results::Auto), ("pages", Results::Api)] {
        let mut task = task(run, &format!("SELECT {run}"));
        task.source.results = results;
        task.limits.batch_rows = 300;
        line.ask(&task).await;
        let first = line.end_of(run).await;
        let EventKind::Extracted { result_id, .. } = first.clone() else {
            panic!("{first:?}")
        };
        let batches = line.batches().await;
        let asked = line.cloud.tokens().len();
        // Whatever the job says by now.
        task.source.results = Results::Auto;
        line.ask(&again(&task, &result_id)).await;
        assert_eq!(line.end_of(run).await, first);
        let mut second = line.batches().await;
        assert!(second.iter().all(|batch| batch.id.generation == 1));
        for batch in &mut second {
            batch.id.generation = 0;
        }
        assert!(second == batches, "{run}");
        assert_eq!(line.cloud.tokens().len(), asked, "no query was asked for");
    }
    // The archive has the ends, too.
    let archived = line.vhost.read_stream("etl.archive", 20).await;
    let kinds = archived
        .iter()
        .map(|message| message.properties.kind().clone().unwrap().to_string());
    assert_eq!(kinds.filter(|kind| kind == "run-event.v1").count(), 4);
}

#[tokio::test]
async fn another_result_is_refused_to_the_dead_letters_and_fails_no_run() {
    let (line, _extractor) = Line::started().await;
    line.cloud
        .otherwise(Answer::rows(sample::clicks(10)).at_once());
    let task = task("r", "SELECT 1");
    line.ask(&task).await;
    let EventKind::Extracted { result_id, .. } = line.end_of("r").await else {
        panic!()
    };
    let (id, _) = result_id.split_once(':').unwrap();
    line.batches().await;
    line.cloud.replace_result(id, sample::clicks(11));
    let nobody = "11111111-0000-4000-8000-000000000000:pages".to_owned();
    for (result_id, why) in [(result_id.clone(), "and was"), (nobody, "not found")] {
        line.ask(&again(&task, &result_id)).await;
        wait_until("the dead letter", PATIENCE, async || {
            line.vhost.ready("etl.dead").await == 1
        })
        .await;
        let dead = line.vhost.take_all("etl.dead").await.remove(0);
        let reason = dead.header("x-etl-reason").unwrap();
        assert!(
            reason.starts_with("the result cannot be read again") && reason.contains(why),
            "{reason}"
        );
        let body: ExtractTask = serde_json::from_slice(&dead.body).unwrap();
        assert_eq!(body, again(&task, &result_id), "it can be sent again");
    }
    assert_eq!(line.vhost.ready("etl.events").await, 0);
    assert!(line.batches().await.is_empty());
    assert_eq!(line.cloud.count(Op::StartQueryExecution), 1);
}
