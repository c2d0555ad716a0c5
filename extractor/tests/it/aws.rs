//! AWS at its worst: what passes is endured, what does not fails the run with AWS's own words.

use common::job::Results;
use common::message::EventKind;
use testkit::PATIENCE;
use testkit::cloud::{Answer, Fault, Op, sample};
use testkit::wait_until;

use crate::line::{Line, rows_of, task};

#[tokio::test]
async fn a_body_that_breaks_off_is_read_on_at_the_byte() {
    let (line, _extractor) = Line::started().await;
    let result = sample::clicks(5_000);
    line.cloud.otherwise(Answer::rows(result.clone()).at_once());
    // The first request only looks for the object.
    for fault in [
        Fault::Pass,
        Fault::Truncate(100_001),
        Fault::Short(50_000),
        Fault::Internal,
        Fault::Stall(70_003),
        Fault::Truncate(0),
    ] {
        line.cloud.fault(Op::GetObject, fault);
    }
    line.ask(&task("broken", "SELECT 1")).await;
    assert!(matches!(
        line.end_of("broken").await,
        EventKind::Extracted { rows: 5_000, .. }
    ));
    assert!(rows_of(&line.batches().await) == result.range(0, 5_000));
    let requests = line.cloud.requests();
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
async fn throttling_in_every_shape_is_waited_out() {
    let (line, _extractor) = Line::started().await;
    let result = sample::clicks(1_500);
    line.cloud.otherwise(Answer::rows(result.clone()));
    line.cloud
        .faults(Op::StartQueryExecution, Fault::TooManyRequests, 2);
    line.cloud.fault(Op::StartQueryExecution, Fault::Throttling);
    line.cloud.fault(Op::GetQueryExecution, Fault::Throttling);
    line.cloud.fault(Op::GetQueryExecution, Fault::Unavailable);
    line.cloud.fault(Op::GetQueryResults, Fault::Throttling);
    line.cloud.fault(Op::GetObject, Fault::SlowDown);
    line.ask(&task("throttled", "SELECT 1")).await;
    assert!(matches!(
        line.end_of("throttled").await,
        EventKind::Extracted { rows: 1_500, .. }
    ));
    assert!(rows_of(&line.batches().await) == result.range(0, 1_500));
    assert_eq!(line.cloud.started().len(), 1);
}

#[tokio::test]
async fn expired_credentials_keep_the_task_and_make_the_service_not_ready() {
    let (line, extractor) = Line::started().await;
    line.cloud.otherwise(Answer::rows(sample::clicks(5)));
    line.cloud
        .always(Op::StartQueryExecution, Fault::ExpiredToken);
    line.ask(&task("expired", "SELECT 1")).await;
    wait_until("the extractor to say why it cannot work", PATIENCE, async || {
        matches!(extractor.readiness().await, Some((false, why)) if why.contains("ExpiredToken"))
    })
    .await;
    line.cloud.always(Op::StartQueryExecution, Fault::Pass);
    assert!(matches!(
        line.end_of("expired").await,
        EventKind::Extracted { rows: 5, .. }
    ));
    assert_eq!(
        extractor.readiness().await.map(|(ready, _)| ready),
        Some(true)
    );
}

#[tokio::test]
async fn a_wrong_clock_is_waited_for_and_fails_no_run() {
    let (line, extractor) = Line::started().await;
    line.cloud.otherwise(Answer::rows(sample::clicks(5)));
    line.cloud
        .always(Op::StartQueryExecution, Fault::SignatureExpired);
    line.cloud
        .always(Op::GetObject, Fault::RequestTimeTooSkewed);
    line.ask(&task("skewed", "SELECT 1")).await;
    for (op, doing) in [
        (Op::StartQueryExecution, "starting the query"),
        (Op::GetObject, "opening s3://"),
    ] {
        wait_until("the extractor to say why it cannot work", PATIENCE, async || {
            matches!(extractor.readiness().await, Some((false, why)) if why.contains(doing))
        })
        .await;
        line.cloud.always(op, Fault::Pass);
    }
    assert!(matches!(
        line.end_of("skewed").await,
        EventKind::Extracted { rows: 5, .. }
    ));
    assert_eq!(line.cloud.started().len(), 1);
}

#[tokio::test]
async fn what_aws_refuses_fails_the_run_with_its_words_and_what_to_do() {
    let (line, extractor) = Line::started().await;
    line.cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    line.cloud
        .fault(Op::StartQueryExecution, Fault::UnknownClient);
    line.ask(&task("unknown", "SELECT 1")).await;
    let reason = line.failure_of("unknown").await;
    assert!(
        reason.contains("UnrecognizedClientException")
            && reason.contains("check the AWS credentials"),
        "{reason}"
    );
    let mut other = task("workgroup", "SELECT 1");
    other.source.workgroup = Some("nobody".into());
    line.ask(&other).await;
    let reason = line.failure_of("workgroup").await;
    assert!(reason.contains("WorkGroup nobody is not found"), "{reason}");
    line.cloud.always(Op::GetObject, Fault::AccessDenied);
    line.ask(&task("denied", "SELECT 1")).await;
    let reason = line.failure_of("denied").await;
    assert!(
        reason.contains("s3://results/prefix/") && reason.contains("AccessDenied"),
        "{reason}"
    );
    line.cloud.always(Op::GetObject, Fault::NotFound);
    line.ask(&task("gone", "SELECT 1")).await;
    let reason = line.failure_of("gone").await;
    assert!(reason.contains("NoSuchKey"), "{reason}");
    assert!(line.batches().await.is_empty());
    assert_eq!(
        extractor.readiness().await.map(|(ready, _)| ready),
        Some(true)
    );
    line.settled().await;
}

#[tokio::test]
async fn a_result_that_appears_late_is_found() {
    let (line, _extractor) = Line::started().await;
    line.cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    line.cloud.faults(Op::GetObject, Fault::NotFound, 2);
    let mut task = task("late", "SELECT 1");
    task.source.results = Results::S3;
    line.ask(&task).await;
    assert!(matches!(
        line.end_of("late").await,
        EventKind::Extracted { rows: 5, .. }
    ));
}

#[tokio::test]
async fn a_roles_endpoint_that_is_away_is_waited_for_and_said_in_a_sentence() {
    let line = Line::new().await;
    let extractor = line
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
    line.ask(&task("roleless", "SELECT 1")).await;
    wait_until(
        "the extractor to say why it cannot work",
        PATIENCE,
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
async fn without_credentials_it_ends_with_a_sentence() {
    let line = Line::new().await;
    let extractor = line
        .extractor()
        .env("AWS_ACCESS_KEY_ID", "")
        .env("AWS_SECRET_ACCESS_KEY", "")
        .env("HOME", "/nonexistent");
    let mut process = extractor.spawn();
    assert_eq!(process.wait(PATIENCE).await.code(), Some(1));
    assert!(
        process.log().contains("no AWS credentials were found"),
        "{}",
        process.log()
    );
    let mut process = line
        .extractor()
        .env("AWS_REGION", "")
        .env("HOME", "/nonexistent")
        .spawn();
    assert_eq!(process.wait(PATIENCE).await.code(), Some(1));
    assert!(
        process.log().contains("set AWS_REGION"),
        "{}",
        process.log()
    );
}
