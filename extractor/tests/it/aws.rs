//! Errors of AWS: a passing one is retried, a lasting one fails the run with AWS's message.

use common::job::Results;
use common::message::EventKind;
use testkit::TIMEOUT;
use testkit::cloud::{Answer, Fault, Op, sample};
use testkit::wait_until;

use crate::fixture::{Fixture, rows_of, task};

#[tokio::test]
async fn interrupted_body_resumes_at_the_byte() {
    let (fixture, _extractor) = Fixture::started().await;
    let result = sample::clicks(5_000);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    // The first request finds the object.
    for fault in [
        Fault::Pass,
        Fault::Truncate(100_001),
        Fault::Short(50_000),
        Fault::Internal,
        Fault::Stall(70_003),
        Fault::Truncate(0),
    ] {
        fixture.cloud.fault(Op::GetObject, fault);
    }
    fixture.send(&task("broken", "SELECT 1")).await;
    assert!(matches!(
        fixture.end_of("broken").await,
        EventKind::Extracted { rows: 5_000, .. }
    ));
    assert!(rows_of(&fixture.batches().await) == result.range(0, 5_000));
    let requests = fixture.cloud.requests();
    let ranges: Vec<_> = requests
        .iter()
        .filter(|request| request.op == Op::GetObject)
        .collect();
    let first_bytes: Vec<_> = ranges[1..]
        .iter()
        .filter_map(|request| {
            request
                .range
                .as_ref()?
                .strip_prefix("bytes=")?
                .split_once('-')
                .map(|(first, _)| first.to_owned())
        })
        .collect();
    assert_eq!(
        first_bytes,
        ["0", "100001", "150001", "150001", "220004", "220004"]
    );
    assert!(ranges[1..].iter().all(|request| request.if_match.is_some()));
}

#[tokio::test]
async fn throttled_calls_are_retried() {
    let (fixture, _extractor) = Fixture::started().await;
    let result = sample::clicks(1_500);
    fixture.cloud.otherwise(Answer::rows(result.clone()));
    fixture
        .cloud
        .faults(Op::StartQueryExecution, Fault::TooManyRequests, 2);
    fixture
        .cloud
        .fault(Op::StartQueryExecution, Fault::Throttling);
    fixture
        .cloud
        .fault(Op::GetQueryExecution, Fault::Throttling);
    fixture
        .cloud
        .fault(Op::GetQueryExecution, Fault::Unavailable);
    fixture.cloud.fault(Op::GetQueryResults, Fault::Throttling);
    fixture.cloud.fault(Op::GetObject, Fault::SlowDown);
    fixture.send(&task("throttled", "SELECT 1")).await;
    assert!(matches!(
        fixture.end_of("throttled").await,
        EventKind::Extracted { rows: 1_500, .. }
    ));
    assert!(rows_of(&fixture.batches().await) == result.range(0, 1_500));
    assert_eq!(fixture.cloud.started().len(), 1);
}

#[tokio::test]
async fn expired_credentials_keep_the_task_and_make_the_service_not_ready() {
    let (fixture, extractor) = Fixture::started().await;
    fixture.cloud.otherwise(Answer::rows(sample::clicks(5)));
    fixture
        .cloud
        .always(Op::StartQueryExecution, Fault::ExpiredToken);
    fixture.send(&task("expired", "SELECT 1")).await;
    wait_until("the extractor to say why it cannot work", TIMEOUT, async || {
        matches!(extractor.readiness().await, Some((false, why)) if why.contains("ExpiredToken"))
    })
    .await;
    fixture.cloud.always(Op::StartQueryExecution, Fault::Pass);
    assert!(matches!(
        fixture.end_of("expired").await,
        EventKind::Extracted { rows: 5, .. }
    ));
    assert_eq!(
        extractor.readiness().await.map(|(ready, _)| ready),
        Some(true)
    );
}

#[tokio::test]
async fn wrong_clock_is_retried_and_fails_no_run() {
    let (fixture, extractor) = Fixture::started().await;
    fixture.cloud.otherwise(Answer::rows(sample::clicks(5)));
    fixture
        .cloud
        .always(Op::StartQueryExecution, Fault::SignatureExpired);
    fixture
        .cloud
        .always(Op::GetObject, Fault::RequestTimeTooSkewed);
    fixture.send(&task("skewed", "SELECT 1")).await;
    for (op, doing) in [
        (Op::StartQueryExecution, "starting the query"),
        (Op::GetObject, "opening s3://"),
    ] {
        wait_until("the extractor to say why it cannot work", TIMEOUT, async || {
            matches!(extractor.readiness().await, Some((false, why)) if why.contains(doing))
        })
        .await;
        fixture.cloud.always(op, Fault::Pass);
    }
    assert!(matches!(
        fixture.end_of("skewed").await,
        EventKind::Extracted { rows: 5, .. }
    ));
    assert_eq!(fixture.cloud.started().len(), 1);
}

#[tokio::test]
async fn refusal_fails_the_run_with_the_message_and_the_remedy() {
    let (fixture, extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    let mut other = task("workgroup", "SELECT 1");
    other.source.workgroup = Some("unknown".into());
    fixture.send(&other).await;
    let reason = fixture.failure_of("workgroup").await;
    assert!(
        reason.contains("WorkGroup unknown is not found"),
        "{reason}"
    );
    let strict = |run: &str| {
        let mut task = task(run, "SELECT 1");
        task.source.results = Results::S3;
        task
    };
    fixture.cloud.always(Op::GetObject, Fault::NotFound);
    fixture.send(&strict("gone")).await;
    let reason = fixture.failure_of("gone").await;
    assert!(reason.contains("NoSuchKey"), "{reason}");
    assert!(fixture.batches().await.is_empty());
    assert_eq!(
        extractor.readiness().await.map(|(ready, _)| ready),
        Some(true)
    );
    fixture.settled().await;
}

#[tokio::test]
async fn object_that_appears_after_the_query_is_found() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    fixture.cloud.faults(Op::GetObject, Fault::NotFound, 2);
    let mut task = task("delayed", "SELECT 1");
    task.source.results = Results::S3;
    fixture.send(&task).await;
    assert!(matches!(
        fixture.end_of("delayed").await,
        EventKind::Extracted { rows: 5, .. }
    ));
}

#[tokio::test]
async fn unavailable_credentials_endpoint_is_retried_and_reported_in_one_sentence() {
    let fixture = Fixture::new().await;
    let extractor = fixture
        .extractor()
        .env("AWS_ACCESS_KEY_ID", "")
        .env("AWS_SECRET_ACCESS_KEY", "")
        .env("HOME", "/nonexistent")
        .env(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "http://127.0.0.1:1/role",
        )
        .start()
        .await;
    fixture.send(&task("roleless", "SELECT 1")).await;
    wait_until(
        "the extractor to say why it cannot work",
        TIMEOUT,
        async || {
            let Some((false, why)) = extractor.readiness().await else {
                return false;
            };
            assert!(!why.contains('{'), "{why}");
            why.contains("starting the query: the AWS credentials cannot be loaded: ")
                && why.contains("Connection refused")
                && why.contains("check what provides them")
        },
    )
    .await;
}

#[tokio::test]
async fn missing_credentials_or_region_end_the_service_with_the_remedy() {
    let fixture = Fixture::new().await;
    let extractor = fixture
        .extractor()
        .env("AWS_ACCESS_KEY_ID", "")
        .env("AWS_SECRET_ACCESS_KEY", "")
        .env("HOME", "/nonexistent");
    let mut process = extractor.spawn();
    assert_eq!(process.wait(TIMEOUT).await.code(), Some(1));
    assert!(
        process.log().contains("no AWS credentials were found"),
        "{}",
        process.log()
    );
    let mut process = fixture
        .extractor()
        .env("AWS_REGION", "")
        .env("HOME", "/nonexistent")
        .spawn();
    assert_eq!(process.wait(TIMEOUT).await.code(), Some(1));
    assert!(
        process.log().contains("set AWS_REGION"),
        "{}",
        process.log()
    );
}
