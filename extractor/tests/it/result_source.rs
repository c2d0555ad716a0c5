//! The source of a result: the object in S3 and the pages of `GetQueryResults` give the same batches,
//! and `results = "auto"` takes the one that works.

use common::job::Results;
use common::message::{EventKind, Limits, RawBatch};
use testkit::TIMEOUT;
use testkit::cloud::{Answer, Fault, Op, ResultSet, Workgroup, sample};
use testkit::process::Process;
use testkit::wait_until;

use crate::fixture::{Fixture, rows_of, task};

#[tokio::test]
async fn object_and_pages_give_every_row_in_the_same_batches() {
    let (fixture, _extractor) = Fixture::started().await;
    for rows in [0, 1, 999, 1_000, 1_001, 1_670] {
        let result = sample::clicks(rows);
        fixture.cloud.otherwise(Answer::rows(result.clone()));
        let mut both: Vec<Vec<RawBatch>> = Vec::new();
        for results in [Results::S3, Results::Api] {
            let mut task = task(
                &format!("rows-{rows}-{results:?}"),
                &format!("SELECT {rows}"),
            );
            task.source.results = results;
            task.limits = Limits {
                batch_rows: 300,
                batch_bytes: 20_000,
            };
            fixture.send(&task).await;
            let end = fixture.end_of(task.run.as_str()).await;
            let batches = fixture.batches().await;
            let id = fixture.cloud.started().pop().unwrap();
            let EventKind::Extracted {
                result_id,
                batches: count,
                rows: total,
                bytes_scanned,
                result_location,
                ..
            } = end
            else {
                panic!("{end:?}")
            };
            assert_eq!(
                (count as usize, total, bytes_scanned),
                (batches.len(), rows, 1_234_567)
            );
            let object = format!("s3://{}", fixture.cloud.object_of(&id));
            assert_eq!(result_location, (results != Results::Api).then_some(object));
            assert!(
                batches.iter().all(|batch| batch.result_id == result_id),
                "{result_id}"
            );
            assert_eq!(
                result_id == format!("{id}:pages"),
                results == Results::Api,
                "{result_id}"
            );
            assert!(
                rows_of(&batches) == result.range(0, rows),
                "{rows} rows through {results:?}"
            );
            both.push(batches);
        }
        let contents = |batches: &[RawBatch]| {
            batches
                .iter()
                .map(|batch| batch.rows.clone())
                .collect::<Vec<_>>()
        };
        assert!(contents(&both[0]) == contents(&both[1]), "{rows} rows");
    }
    fixture.settled().await;
}

#[tokio::test]
async fn million_rows_take_little_memory_from_object_and_pages() {
    const ROWS: u64 = 1_000_000;
    let (fixture, extractor) = Fixture::started().await;
    fixture.cloud.otherwise(Answer::rows(sample::clicks(ROWS)));

    for results in [Results::S3, Results::Api] {
        let mut task = task(
            &format!("million-{results:?}"),
            &format!("SELECT {results:?}"),
        );
        task.source.results = results;
        fixture.send(&task).await;
        let EventKind::Extracted { rows, batches, .. } = fixture.end_of(task.run.as_str()).await
        else {
            panic!()
        };
        assert_eq!(
            (rows, fixture.vhost.ready_with_bulk("etl.raw").await),
            (ROWS, u64::from(batches))
        );
        fixture.vhost.purge_with_bulk("etl.raw").await;
        let peak = extractor.peak_memory();
        assert!(peak < 48 << 10, "{peak} KiB after {results:?}");
    }
}

/// Extracts with `auto`, and returns the batches, which must come from the pages, and their result id.
async fn from_pages(
    fixture: &Fixture,
    extractor: &Process,
    run: &str,
    result: &ResultSet,
) -> Vec<RawBatch> {
    let mut task = task(run, "SELECT 1");
    task.limits.batch_rows = 400;
    fixture.send(&task).await;
    let end = fixture.end_of(run).await;
    let id = fixture.cloud.started().pop().unwrap();
    let EventKind::Extracted {
        result_id,
        result_location: None,
        ..
    } = end
    else {
        panic!("{run}: {end:?}\n{}", extractor.log())
    };
    assert_eq!(result_id, format!("{id}:pages"));
    let batches = fixture.batches().await;
    assert!(batches.iter().all(|batch| batch.result_id == result_id));
    assert!(rows_of(&batches) == result.range(0, result.rows()), "{run}");
    batches
}

#[tokio::test]
async fn auto_reads_pages_when_the_object_is_missing_or_denied() {
    let (fixture, extractor) = Fixture::started().await;
    let result = sample::clicks(1_001);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    let other = |status, code, message| Fault::Other {
        status,
        code,
        message,
    };
    for (run, fault, logged) in [
        ("missing", Fault::NotFound, "NoSuchKey"),
        ("denied", Fault::AccessDenied, "AccessDenied"),
        (
            "no-bucket",
            other(404, "NoSuchBucket", "The specified bucket does not exist"),
            "NoSuchBucket",
        ),
    ] {
        fixture.cloud.always(Op::GetObject, fault);
        from_pages(&fixture, &extractor, run, &result).await;
        let log = extractor.log();
        assert!(
            log.contains("reading the result as pages: its object in S3 cannot be read")
                && log.contains(logged),
            "{run}: {log}"
        );
    }
    fixture.settled().await;
    assert_eq!(fixture.vhost.ready("etl.dead").await, 0);
}

#[tokio::test]
async fn result_that_athena_encrypts_itself_is_read_as_pages() {
    let (fixture, extractor) = Fixture::started().await;
    let result = sample::clicks(1_001);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    fixture.cloud.workgroup(Workgroup {
        client_encrypted: true,
        ..Workgroup::named("primary")
    });
    from_pages(&fixture, &extractor, "auto", &result).await;
    let mut by_s3 = task("s3", "SELECT 1");
    by_s3.source.results = Results::S3;
    fixture.send(&by_s3).await;
    let reason = fixture.failure_of("s3").await;
    assert!(
        reason.contains("CSE_KMS") && reason.contains("set results = \"auto\""),
        "{reason}"
    );
    assert!(fixture.batches().await.is_empty());
    // The object itself says so, where the query does not.
    fixture.cloud.workgroup(Workgroup::named("primary"));
    fixture.cloud.client_encrypted_objects(true);
    from_pages(&fixture, &extractor, "by-the-object", &result).await;
}

#[tokio::test]
async fn auto_retries_when_s3_is_unavailable() {
    let (fixture, _extractor) = Fixture::started().await;
    let result = sample::clicks(10);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    fixture.cloud.faults(Op::GetObject, Fault::Unavailable, 9);
    fixture.send(&task("away", "SELECT 1")).await;
    let EventKind::Extracted {
        result_location: Some(_),
        ..
    } = fixture.end_of("away").await
    else {
        panic!()
    };
}

#[tokio::test]
async fn auto_keeps_its_decision_across_checkpoints_and_crashes() {
    let fixture = Fixture::new().await;
    let result = sample::clicks(300_000);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    fixture.cloud.always(Op::GetObject, Fault::NotFound);
    let slow = Fault::Delay(std::time::Duration::from_millis(20));
    fixture.cloud.always(Op::GetQueryResults, slow);
    fixture.send(&task("kept", "SELECT 1")).await;
    let mut first = fixture.extractor().start().await;
    wait_until("some batches", TIMEOUT, async || {
        fixture.vhost.ready_with_bulk("etl.raw").await > 10
    })
    .await;
    first.kill9().await;
    // The object can be read from now on.
    fixture.cloud.always(Op::GetObject, Fault::Pass);
    let before = fixture.cloud.count(Op::GetObject);
    let _second = fixture.extractor().start().await;
    let EventKind::Extracted {
        result_id,
        rows: 300_000,
        result_location: None,
        ..
    } = fixture.end_of("kept").await
    else {
        panic!()
    };
    let id = fixture.cloud.started().pop().unwrap();
    assert_eq!(result_id, format!("{id}:pages"));
    assert_eq!(fixture.cloud.count(Op::GetObject), before);
    let mut batches = fixture.batches().await;
    assert!(batches.iter().all(|batch| batch.result_id == result_id));
    batches.dedup();
    assert!(rows_of(&batches) == result.range(0, 300_000));
}

#[tokio::test]
async fn query_without_output_location_fails_the_run_naming_the_settings() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture.cloud.otherwise(Answer::rows(sample::clicks(5)));
    fixture.cloud.workgroup(Workgroup {
        output_location: None,
        ..Workgroup::named("primary")
    });
    fixture.send(&task("nowhere", "SELECT 1")).await;
    let reason = fixture.failure_of("nowhere").await;
    assert!(
        reason.contains("No output location provided")
            && reason.contains("set workgroup or output_location in the job's [source]"),
        "{reason}"
    );
}
