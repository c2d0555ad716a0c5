//! Every extractor publishes the same batches from any checkpoint, after crashes and redeliveries.

use std::sync::Arc;
use std::time::Duration;

use common::job::Results;
use common::message::{
    Cursor, EventKind, ExtractTask, Message as _, RawBatch, ResultLocation, S3Object, TaskState,
};
use common::schema::ResultColumn;
use serde_json::Value;
use testkit::TIMEOUT;
use testkit::cloud::{Answer, Fault, Op, ResultSet, sample};
use testkit::http::Method;
use testkit::wait_until;

use crate::fixture::{Fixture, rows_of, task};

/// The task as a checkpoint at `cursor` publishes it.
fn checkpoint(
    fixture: &Fixture,
    task: &ExtractTask,
    result: &ResultSet,
    etag: Option<&str>,
    cursor: Cursor,
) -> ExtractTask {
    let id = fixture.cloud.started().pop().unwrap();
    let name = fixture.cloud.object_of(&id);
    let (bucket, key) = name.split_once('/').unwrap();
    let (bucket, key, size) = (bucket.to_owned(), key.to_owned(), result.csv().len() as u64);
    let location = match etag {
        Some(etag) => ResultLocation::S3(S3Object {
            bucket,
            key,
            etag: format!("\"{etag}\""),
            size,
        }),
        None => ResultLocation::Pages,
    };
    let columns = Arc::new(columns_of(result));
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

fn columns_of(result: &ResultSet) -> Vec<ResultColumn> {
    let columns = result.columns().iter();
    let columns = columns.map(|column| ResultColumn {
        name: column.name.clone(),
        type_name: column.type_name.clone(),
    });
    columns.collect()
}

/// The byte at which a row begins in the result's CSV.
fn offset_of(result: &ResultSet, row: u64) -> u64 {
    ResultSet::new(result.columns().to_vec(), result.range(0, row))
        .csv()
        .len() as u64
}

#[tokio::test]
async fn any_checkpoint_publishes_the_same_batches() {
    let (fixture, _extractor) = Fixture::started().await;
    let result = sample::clicks(2_500);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    for results in [Results::S3, Results::Api] {
        let mut task = task(&format!("fork-{results:?}"), &format!("SELECT {results:?}"));
        task.source.results = results;
        task.limits.batch_rows = 333;
        fixture.send(&task).await;
        let EventKind::Extracted { result_id, .. } = fixture.end_of(task.run.as_str()).await else {
            panic!()
        };
        let batches = fixture.batches().await;
        let (id, etag) = result_id.split_once(':').unwrap();
        for from in [1, 4, batches.len()] {
            let row = batches[..from]
                .iter()
                .map(|batch| batch.rows.len() as u64)
                .sum();
            let (offset, before) = (offset_of(&result, row), u32::try_from(from).unwrap());
            let object_etag = (results == Results::S3).then_some(etag);
            for page in [
                None,
                Some(("no token".to_owned(), 0)),
                Some((format!("token/{id}/999"), 999)),
                Some((format!("token/{id}/0"), 0)),
            ] {
                // A token of a page behind the row must not skip rows.
                let cursor = Cursor {
                    offset,
                    row,
                    batches: before,
                    page,
                };
                fixture
                    .send(&checkpoint(&fixture, &task, &result, object_etag, cursor))
                    .await;
                let end = fixture.end_of(task.run.as_str()).await;
                let (total, rows) = (u32::try_from(batches.len()).unwrap(), 2_500);
                assert_eq!(
                    end,
                    EventKind::Extracted {
                        result_id: result_id.clone(),
                        batches: total,
                        rows,
                        bytes_scanned: 7,
                        result_location: object_etag
                            .map(|_| format!("s3://{}", fixture.cloud.object_of(id))),
                        columns: columns_of(&result),
                    }
                );
                assert!(
                    fixture.batches().await == batches[from..],
                    "from batch {from} through {results:?}"
                );
            }
        }
    }
}

/// A result of four batches is short, and its task waits for no extraction of a long one.
#[tokio::test]
async fn bulk_begins_with_the_fifth_batch() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(500)).at_once());
    for (run, batch_rows, bulk) in [("short", 125, 0), ("long", 100, 1)] {
        let mut task = task(run, &format!("SELECT {run}"));
        task.limits.batch_rows = batch_rows;
        fixture.send(&task).await;
        let end = fixture.end_of(run).await;
        assert!(matches!(end, EventKind::Extracted { rows: 500, .. }));
        let sent = (
            fixture.vhost.ready("etl.raw").await,
            fixture.vhost.ready("etl.raw.bulk").await,
        );
        assert_eq!(sent, (4, bulk), "{run}");
        fixture.vhost.purge_with_bulk("etl.raw").await;
    }
    let path = format!("queues/{}/etl.extract.bulk", fixture.vhost.name);
    let mut tasks = None;
    wait_until("the broker to count the task", TIMEOUT, async || {
        let asked = fixture.vhost.broker.call(Method::GET, &path, Value::Null);
        tasks = asked.await.1["message_stats"]["publish"].as_u64();
        tasks.is_some()
    })
    .await;
    assert_eq!(tasks, Some(1), "of the long result alone");
}

/// With an object of another size, and with one of the same size.
#[tokio::test]
async fn replaced_object_fails_the_run() {
    let (fixture, _extractor) = Fixture::started().await;
    let rows: Vec<_> = sample::clicks(100).range(0, 100);
    let result = ResultSet::new(sample::columns(), rows.clone());
    let backwards = rows.into_iter().rev().collect();
    for (run, other) in [
        ("longer", sample::clicks(101)),
        ("as-long", ResultSet::new(sample::columns(), backwards)),
    ] {
        let sql = format!("SELECT '{run}'");
        fixture
            .cloud
            .answer(&sql, Answer::rows(result.clone()).at_once());
        let task = task(run, &sql);
        fixture.send(&task).await;
        let EventKind::Extracted { result_id, .. } = fixture.end_of(run).await else {
            panic!()
        };
        let (id, etag) = result_id.split_once(':').unwrap();
        fixture.cloud.replace_result(id, other);
        let cursor = Cursor {
            offset: offset_of(&result, 50),
            row: 50,
            batches: 1,
            page: None,
        };
        fixture.batches().await;
        fixture
            .send(&checkpoint(&fixture, &task, &result, Some(etag), cursor))
            .await;
        let reason = fixture.failure_of(run).await;
        assert!(
            reason.contains("was replaced") && reason.contains("s3://results/prefix/"),
            "{run}: {reason}"
        );
        assert!(fixture.batches().await.is_empty(), "{run}");
    }
}

#[tokio::test]
async fn killed_and_stopped_extractors_lose_nothing() {
    let fixture = Fixture::new().await;
    let result = sample::clicks(300_000);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    let mut task = task("killed", "SELECT 1");
    task.source.results = Results::Api;
    // Slow enough that no extractor finishes before it is killed or stopped.
    let slow = Fault::Delay(Duration::from_millis(20));
    fixture.cloud.always(Op::GetQueryResults, slow);
    fixture.send(&task).await;
    let mut first = fixture.extractor().start().await;
    wait_until("some batches", TIMEOUT, async || {
        fixture.vhost.ready_with_bulk("etl.raw").await > 10
    })
    .await;
    first.kill9().await;
    let after_first = fixture.vhost.ready_with_bulk("etl.raw").await;
    let mut second = fixture.extractor().start().await;
    wait_until("some more batches", TIMEOUT, async || {
        fixture.vhost.ready_with_bulk("etl.raw").await > after_first + 10
    })
    .await;
    assert_eq!(second.terminate(TIMEOUT).await, Some(0));
    let _third = fixture.extractor().start().await;
    let EventKind::Extracted {
        rows: 300_000,
        batches: count,
        ..
    } = fixture.end_of("killed").await
    else {
        panic!()
    };
    fixture.settled().await;
    assert_eq!(fixture.cloud.started().len(), 1, "one execution");
    let mut batches = fixture.batches().await;
    assert!(
        batches.len() > count as usize,
        "no batch was published twice, so no extractor was killed in time"
    );
    batches.dedup();
    assert!(batches.len() == count as usize, "a batch has two versions");
    assert!(rows_of(&batches) == result.range(0, 300_000));
    let archived = fixture
        .vhost
        .read_stream("etl.archive", batches.len())
        .await;
    let first = RawBatch::read(RawBatch::KIND, &archived[0].body).unwrap();
    assert!(first == batches[0], "the archive has the same batch");
}

#[tokio::test]
async fn crash_between_checkpoint_and_ack_duplicates_batches_and_changes_none() {
    let fixture = Fixture::new().await;
    let result = sample::clicks(1_000);
    fixture.cloud.otherwise(Answer::rows(result.clone()));
    let mut task = task("forked", "SELECT 1");
    task.limits.batch_rows = 300;
    fixture.send(&task).await;
    // One consumer: a second one would continue the checkpoint until the process is killed.
    let first = fixture.extractor().env("ETL_TASKS", "1");
    let mut first = first.env("ETL_FAILPOINT", "before_ack").start().await;
    wait_until("the checkpoint", TIMEOUT, async || {
        first.log().contains("failpoint reached")
    })
    .await;
    first.kill9().await;
    let _others = (
        fixture.extractor().start().await,
        fixture.extractor().start().await,
    );
    let ends = fixture.ends_of("forked", 2).await;
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
    assert_eq!(fixture.cloud.started().len(), 1);
    let mut batches = fixture.batches().await;
    assert_eq!(batches.len(), 8);
    batches.dedup();
    assert!(rows_of(&batches) == result.range(0, 1_000));
}

#[tokio::test]
async fn redelivered_task_that_makes_progress_is_never_dead_lettered() {
    // More windows than all of the killed extractors publish.
    const ROWS: u64 = 300_000;
    let fixture = Fixture::new().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(ROWS)).at_once());
    fixture.send(&task("interrupted", "SELECT 1")).await;
    for _ in 0..10 {
        // Each publishes one window and is killed at the next.
        let victim = fixture.extractor().env("ETL_TASKS", "1");
        let mut victim = victim.env("ETL_FAILPOINT", "after_window@2").start().await;
        wait_until("the second window", TIMEOUT, async || {
            victim.log().contains("failpoint reached") || fixture.vhost.ready("etl.dead").await > 0
        })
        .await;
        victim.kill9().await;
    }
    assert_eq!(fixture.vhost.ready("etl.dead").await, 0);
    let _extractor = fixture.extractor().start().await;
    assert!(matches!(
        fixture.end_of("interrupted").await,
        EventKind::Extracted { rows: ROWS, .. }
    ));
    assert_eq!(fixture.vhost.ready("etl.dead").await, 0);
    assert_eq!(fixture.cloud.started().len(), 1);
}

#[tokio::test]
async fn task_that_crashes_its_extractors_is_dead_lettered() {
    let fixture = Fixture::new().await;
    fixture.send(&task("poison", "SELECT 1")).await;
    for _ in 0..7 {
        // One consumer: while a process exits the broker may deliver the task to its other one.
        let victim = fixture.extractor().env("ETL_TASKS", "1");
        let mut victim = victim.env("ETL_FAILPOINT", "extract=panic").spawn();
        let status = victim.wait(TIMEOUT).await;
        assert!(
            !status.success(),
            "a crash must show in the exit status: {status}"
        );
    }
    let _extractor = fixture.extractor().start().await;
    wait_until("the dead letter", TIMEOUT, async || {
        fixture.vhost.ready("etl.dead").await == 1
    })
    .await;
    let dead = fixture.vhost.take_all("etl.dead").await;
    let reason = dead[0].header("x-etl-reason").unwrap();
    assert!(
        reason.contains("interrupted 7 times without progress"),
        "{reason}"
    );
    assert!(fixture.cloud.started().is_empty());
}

/// Redelivered more often than a message may be, while Athena works: what comes back is published again, and its deliveries count anew.
#[tokio::test]
async fn task_that_waits_for_a_long_query_is_never_dead_lettered() {
    let fixture = Fixture::new().await;
    fixture.cloud.otherwise(Answer::running_for_ever());
    let task = task("interrupted", "SELECT 1");
    fixture.send(&task).await;
    let first = fixture.extractor().env("ETL_FAILPOINT", "after_start");
    let mut first = first.start().await;
    wait_until("the query", TIMEOUT, async || {
        first.log().contains("failpoint reached")
    })
    .await;
    first.kill9().await;
    wait_until("the task to return", TIMEOUT, async || {
        fixture.vhost.take_all("etl.extract").await.len() == 1
    })
    .await;
    // So long ago that the next poll is seconds away.
    let since = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(20);
    let query_execution_id = fixture.cloud.started().pop().unwrap();
    let state = TaskState::Waiting {
        attempt: 1,
        query_execution_id,
        since,
    };
    fixture.send(&ExtractTask { state, ..task }).await;
    for _ in 0..10 {
        let victim = fixture.extractor().env("ETL_TASKS", "1");
        let mut victim = victim.env("ETL_LOG", "extractor=debug,info").start().await;
        // The first ack is that of the task that came back.
        let checkpoint = wait_until("a checkpoint", TIMEOUT, async || {
            victim.log().matches("task acked").count() >= 2
        });
        // Without one it is killed, too: sooner than it would poll by itself.
        tokio::time::timeout(Duration::from_secs(3), checkpoint)
            .await
            .ok();
        victim.kill9().await;
    }
    wait_until("the task to return", TIMEOUT, async || {
        fixture.vhost.ready("etl.extract").await + fixture.vhost.ready("etl.dead").await > 0
    })
    .await;
    assert_eq!(fixture.vhost.ready("etl.dead").await, 0);
}
