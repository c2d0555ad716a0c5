//! Whoever goes on with a task, from wherever, publishes the same batches.

use std::sync::Arc;
use std::time::Duration;

use common::job::Results;
use common::message::{
    Cursor, EventKind, ExtractTask, Message as _, RawBatch, ResultLocation, TaskState,
};
use common::schema::ResultColumn;
use testkit::PATIENCE;
use testkit::cloud::{Answer, Fault, Op, ResultSet, sample};
use testkit::wait_until;

use crate::line::{Line, rows_of, task};

/// The task as it would be handed on with `cursor`.
fn handed_on(
    line: &Line,
    task: &ExtractTask,
    result: &ResultSet,
    etag: Option<&str>,
    cursor: Cursor,
) -> ExtractTask {
    let id = line.cloud.started().pop().unwrap();
    let columns = result.columns().iter();
    let columns = columns.map(|column| ResultColumn {
        name: column.name.clone(),
        type_name: column.type_name.clone(),
    });
    let name = line.cloud.object_of(&id);
    let (bucket, key) = name.split_once('/').unwrap();
    let (bucket, key, size) = (bucket.to_owned(), key.to_owned(), result.csv().len() as u64);
    let location = match etag {
        Some(etag) => ResultLocation::S3 {
            bucket,
            key,
            etag: format!("\"{etag}\""),
            size,
        },
        None => ResultLocation::Pages,
    };
    let columns = Arc::new(columns.collect());
    let state = TaskState::Reading {
        query_execution_id: id,
        bytes_scanned: 7,
        location,
        columns,
        cursor,
    };
    ExtractTask {
        state,
        ..task.clone()
    }
}

/// The byte at which a row begins in the result's CSV.
fn offset_of(result: &ResultSet, row: u64) -> u64 {
    ResultSet::of(result.columns().to_vec(), result.range(0, row))
        .csv()
        .len() as u64
}

#[tokio::test]
async fn a_fork_from_any_checkpoint_publishes_the_same_batches() {
    let (line, _extractor) = Line::started().await;
    let result = sample::clicks(2_500);
    line.cloud.otherwise(Answer::rows(result.clone()).at_once());
    for results in [Results::S3, Results::Api] {
        let mut task = task(&format!("fork-{results:?}"), &format!("SELECT {results:?}"));
        task.source.results = results;
        task.limits.batch_rows = 333;
        line.ask(&task).await;
        let EventKind::Extracted { result_id, .. } = line.end_of(task.run.as_str()).await else {
            panic!()
        };
        let batches = line.batches().await;
        let (id, etag) = result_id.split_once(':').unwrap();
        for from in [1, 4, batches.len()] {
            let row = batches[..from]
                .iter()
                .map(|batch| batch.rows.len() as u64)
                .sum();
            let (offset, seq) = (offset_of(&result, row), u32::try_from(from).unwrap());
            let object_etag = (results == Results::S3).then_some(etag);
            for page in [
                None,
                Some(("no token".to_owned(), 0)),
                Some((format!("token/{id}/999"), 999)),
                Some((format!("token/{id}/0"), 0)),
            ] {
                // A token of a page behind the row would skip rows.
                let cursor = Cursor {
                    offset,
                    row,
                    seq,
                    page,
                };
                line.ask(&handed_on(&line, &task, &result, object_etag, cursor))
                    .await;
                let end = line.end_of(task.run.as_str()).await;
                let (total, rows) = (u32::try_from(batches.len()).unwrap(), 2_500);
                assert_eq!(
                    end,
                    EventKind::Extracted {
                        result_id: result_id.clone(),
                        batches: total,
                        rows,
                        bytes_scanned: 7,
                        result_location: object_etag
                            .map(|_| format!("s3://{}", line.cloud.object_of(id))),
                    }
                );
                assert!(
                    line.batches().await == batches[from..],
                    "from batch {from} through {results:?}"
                );
            }
        }
    }
}

/// By another one, of another size or of the same.
#[tokio::test]
async fn an_object_that_was_replaced_fails_the_run() {
    let (line, _extractor) = Line::started().await;
    let rows: Vec<_> = sample::clicks(100).range(0, 100);
    let result = ResultSet::of(sample::columns(), rows.clone());
    let backwards = rows.into_iter().rev().collect();
    for (run, other) in [
        ("longer", sample::clicks(101)),
        ("as-long", ResultSet::of(sample::columns(), backwards)),
    ] {
        let sql = format!("SELECT '{run}'");
        line.cloud
            .answer(&sql, Answer::rows(result.clone()).at_once());
        let task = task(run, &sql);
        line.ask(&task).await;
        let EventKind::Extracted { result_id, .. } = line.end_of(run).await else {
            panic!()
        };
        let (id, etag) = result_id.split_once(':').unwrap();
        line.cloud.replace_result(id, other);
        let cursor = Cursor {
            offset: offset_of(&result, 50),
            row: 50,
            seq: 1,
            page: None,
        };
        line.batches().await;
        line.ask(&handed_on(&line, &task, &result, Some(etag), cursor))
            .await;
        let reason = line.failure_of(run).await;
        assert!(
            reason.contains("was replaced") && reason.contains("s3://results/prefix/"),
            "{run}: {reason}"
        );
        assert!(line.batches().await.is_empty(), "{run}");
    }
}

#[tokio::test]
async fn killed_and_stopped_extractors_lose_nothing() {
    let line = Line::new().await;
    let result = sample::clicks(300_000);
    line.cloud.otherwise(Answer::rows(result.clone()).at_once());
    let mut task = task("killed", "SELECT 1");
    task.source.results = Results::Api;
    // So that none of them is done before the next thing happens to it.
    let slow = Fault::Delay(Duration::from_millis(20));
    line.cloud.always(Op::GetQueryResults, slow);
    line.ask(&task).await;
    let mut first = line.extractor().start().await;
    wait_until("some batches", PATIENCE, async || {
        line.vhost.ready("etl.raw").await > 10
    })
    .await;
    first.kill9().await;
    let after_first = line.vhost.ready("etl.raw").await;
    let mut second = line.extractor().start().await;
    wait_until("some more batches", PATIENCE, async || {
        line.vhost.ready("etl.raw").await > after_first + 10
    })
    .await;
    assert_eq!(second.terminate(PATIENCE).await, Some(0));
    let _third = line.extractor().start().await;
    let EventKind::Extracted {
        rows: 300_000,
        batches: count,
        ..
    } = line.end_of("killed").await
    else {
        panic!()
    };
    line.settled().await;
    assert_eq!(
        line.cloud.started().len(),
        1,
        "one execution, whoever goes on"
    );
    let mut batches = line.batches().await;
    assert!(
        batches.len() > count as usize,
        "nothing was published twice, so nobody was killed in time"
    );
    batches.dedup();
    assert!(
        batches.len() == count as usize,
        "a batch came in two versions"
    );
    assert!(rows_of(&batches) == result.range(0, 300_000));
    let archived = line.vhost.read_stream("etl.archive", batches.len()).await;
    let first = RawBatch::read(RawBatch::KIND, &archived[0].body).unwrap();
    assert!(first == batches[0], "the archive has the same");
}

#[tokio::test]
async fn a_crash_between_hand_off_and_ack_forks_the_run_and_changes_nothing() {
    let line = Line::new().await;
    let result = sample::clicks(1_000);
    line.cloud.otherwise(Answer::rows(result.clone()));
    let mut task = task("forked", "SELECT 1");
    task.limits.batch_rows = 300;
    line.ask(&task).await;
    // One consumer: another would go on with what this one has just handed off, until it is killed.
    let first = line.extractor().env("ETL_TASKS", "1");
    let mut first = first.env("ETL_FAILPOINT", "before_ack").start().await;
    wait_until("the hand-off", PATIENCE, async || {
        first.log().contains("failpoint reached")
    })
    .await;
    first.kill9().await;
    let _others = (
        line.extractor().start().await,
        line.extractor().start().await,
    );
    let ends = line.ends_of("forked", 2).await;
    assert!(
        matches!(
            ends[0],
            EventKind::Extracted {
                rows: 1_000,
                batches: 4,
                ..
            }
        ),
        "{ends:?}"
    );
    assert_eq!(ends[0], ends[1]);
    assert_eq!(line.cloud.started().len(), 1);
    let mut batches = line.batches().await;
    assert_eq!(batches.len(), 8);
    batches.dedup();
    assert!(rows_of(&batches) == result.range(0, 1_000));
}

#[tokio::test]
async fn a_task_that_comes_forward_is_never_given_up_however_often_it_comes_back() {
    // More windows than all of those who die can publish.
    const ROWS: u64 = 300_000;
    let line = Line::new().await;
    line.cloud
        .otherwise(Answer::rows(sample::clicks(ROWS)).at_once());
    line.ask(&task("interrupted", "SELECT 1")).await;
    for _ in 0..10 {
        // Each publishes a window, of a result of several, and dies at the next.
        let victim = line.extractor().env("ETL_TASKS", "1");
        let mut victim = victim.env("ETL_FAILPOINT", "after_window@2").start().await;
        wait_until("the second window", PATIENCE, async || {
            victim.log().contains("failpoint reached") || line.vhost.ready("etl.dead").await > 0
        })
        .await;
        victim.kill9().await;
    }
    assert_eq!(line.vhost.ready("etl.dead").await, 0);
    let _extractor = line.extractor().start().await;
    assert!(matches!(
        line.end_of("interrupted").await,
        EventKind::Extracted { rows: ROWS, .. }
    ));
    assert_eq!(line.vhost.ready("etl.dead").await, 0);
    assert_eq!(line.cloud.started().len(), 1);
}

#[tokio::test]
async fn a_task_that_takes_its_extractors_down_is_dead_lettered() {
    let line = Line::new().await;
    line.ask(&task("poison", "SELECT 1")).await;
    for _ in 0..7 {
        // One consumer: while a process goes down the broker may give the task to another of its.
        let victim = line.extractor().env("ETL_TASKS", "1");
        let mut victim = victim.env("ETL_FAILPOINT", "extract=panic").spawn();
        let status = victim.wait(PATIENCE).await;
        assert!(!status.success(), "a crash has to show: {status}");
    }
    let _extractor = line.extractor().start().await;
    wait_until("the dead letter", PATIENCE, async || {
        line.vhost.ready("etl.dead").await == 1
    })
    .await;
    let dead = line.vhost.take_all("etl.dead").await;
    let reason = dead[0].header("x-etl-reason").unwrap();
    assert!(reason.contains("delivered 8 times"), "{reason}");
    assert!(line.cloud.started().is_empty());
}
