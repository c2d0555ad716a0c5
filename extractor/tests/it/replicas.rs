//! What is wrong with one replica fails no run: its key, its permissions, its way to AWS.

use std::time::Duration;

use common::job::Results;
use common::message::EventKind;
use testkit::TIMEOUT;
use testkit::cloud::{Answer, Fault, Op, sample};
use testkit::process::{CLOSED_PORT, Process};
use testkit::wait_until;

use crate::fixture::{Fixture, rows_of, task};

/// Waits until a replica is not ready and says all of this.
async fn unready(extractor: &Process, wanted: &[&str]) -> String {
    let mut said = String::new();
    wait_until(&format!("/readyz to say {wanted:?}"), TIMEOUT, async || {
        let Some((false, why)) = extractor.readiness().await else {
            return false;
        };
        said = why;
        wanted.iter().all(|part| said.contains(part))
    })
    .await;
    said
}

#[tokio::test]
async fn replica_with_a_refused_key_gives_its_tasks_back_and_takes_no_more() {
    const KEY: &str = "AKIAOFANOTHERACCOUNT";
    let fixture = Fixture::new().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    fixture.cloud.on_key(KEY, Fault::UnknownClient);
    let runs = ["a", "b", "c", "d", "e"];
    for run in runs {
        fixture.send(&task(run, &format!("SELECT {run}"))).await;
    }
    let wrong = fixture.extractor().env("AWS_ACCESS_KEY_ID", KEY);
    let mut wrong = wrong.spawn();
    let code = "UnrecognizedClientException";
    let said = unready(&wrong, &[code, "access key ...OUNT", "credentials"]).await;
    assert!(!said.contains(KEY) && !said.contains("testkit"), "{said}");
    wait_until("the tasks to be given back", TIMEOUT, async || {
        fixture.vhost.ready("etl.extract").await == runs.len() as u64
    })
    .await;
    assert_eq!(fixture.vhost.ready("etl.events").await, 0);
    let _right = fixture.extractor().start().await;
    let mut extracted = 0;
    wait_until("the other replica to do the work", TIMEOUT, async || {
        let events = fixture.vhost.take_all("etl.events").await;
        for event in events {
            let event: common::message::RunEvent = serde_json::from_slice(&event.body).unwrap();
            assert!(!matches!(event.kind, EventKind::Failed { .. }), "{event:?}");
            extracted += usize::from(matches!(event.kind, EventKind::Extracted { .. }));
        }
        extracted == runs.len()
    })
    .await;
    assert_eq!(fixture.vhost.ready("etl.dead").await, 0);
    // It finds by itself that AWS accepts it.
    fixture.cloud.on_key(KEY, Fault::Pass);
    wrong.await_ready().await;
}

#[tokio::test]
async fn renewed_key_of_the_shared_credentials_file_is_read_before_anything_is_wrong() {
    let fixture = Fixture::new().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |key: &str| {
        let text =
            format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n");
        std::fs::write(file.path(), text).unwrap();
    };
    write("AKIAFIRST");
    let extractor = fixture
        .extractor()
        .without("AWS_ACCESS_KEY_ID")
        .without("AWS_SECRET_ACCESS_KEY")
        .env("AWS_SHARED_CREDENTIALS_FILE", file.path().to_str().unwrap())
        .start()
        .await;
    for (run, old, new) in [
        ("a", "AKIANONE", "AKIAFIRST"),
        ("b", "AKIAFIRST", "AKIANEXT"),
    ] {
        fixture.cloud.on_key(old, Fault::UnknownClient);
        write(new);
        fixture.send(&task(run, &format!("SELECT {run}"))).await;
        assert!(matches!(
            fixture.end_of(run).await,
            EventKind::Extracted { rows: 5, .. }
        ));
    }
    let log = extractor.log();
    assert!(!log.contains("giving the task back"), "{log}");
    // One that comes too late for the task lets the replica continue all the same.
    fixture.cloud.on_key("AKIANEXT", Fault::UnknownClient);
    fixture.send(&task("c", "SELECT c")).await;
    unready(&extractor, &["UnrecognizedClientException"]).await;
    write("AKIALAST");
    assert!(matches!(
        fixture.end_of("c").await,
        EventKind::Extracted { rows: 5, .. }
    ));
}

#[tokio::test]
async fn denial_fails_a_run_after_two_replicas_and_names_them() {
    let (fixture, first) = Fixture::started().await;
    let second = fixture.extractor().start().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    fixture.cloud.always(Op::GetObject, Fault::AccessDenied);
    let mut denied = task("denied", "SELECT 1");
    denied.source.results = Results::S3;
    fixture.send(&denied).await;
    let reason = fixture.failure_of("denied").await;
    for part in [
        "s3://results/prefix/",
        "AccessDenied",
        "access key ...TKIT",
        &format!("/{} (", first.pid()),
        &format!("/{} (", second.pid()),
    ] {
        assert!(reason.contains(part), "no {part}: {reason}");
    }
    // A job without a permission makes no replica unable.
    for extractor in [&first, &second] {
        assert_eq!(
            extractor.readiness().await.unwrap(),
            (true, "ready\n".to_owned())
        );
    }
    fixture.settled().await;
}

#[tokio::test]
async fn replica_that_is_denied_leaves_the_run_to_another() {
    const KEY: &str = "AKIAWITHOUTPERMISSION";
    let fixture = Fixture::new().await;
    let result = sample::clicks(5);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    fixture.cloud.on_key(KEY, Fault::AccessDenied);
    fixture.send(&task("r", "SELECT 1")).await;
    let denied = fixture.extractor().env("AWS_ACCESS_KEY_ID", KEY);
    let denied = denied.start().await;
    wait_until("the task to be given back", TIMEOUT, async || {
        denied.log().contains("giving the task back")
    })
    .await;
    let _other = fixture.extractor().start().await;
    assert!(matches!(
        fixture.end_of("r").await,
        EventKind::Extracted { rows: 5, .. }
    ));
    assert!(rows_of(&fixture.batches().await) == result.range(0, 5));
}

#[tokio::test]
async fn denial_and_refused_key_fail_no_run_that_is_being_read() {
    let (fixture, extractor) = Fixture::started().await;
    let result = sample::clicks(60_000);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).at_once());
    let slow = Fault::Delay(Duration::from_millis(50));
    fixture.cloud.always(Op::GetQueryResults, slow.clone());
    let mut read = task("read", "SELECT 1");
    read.source.results = Results::Api;
    read.limits.batch_rows = 1_000;
    fixture.send(&read).await;
    wait_until("some batches", TIMEOUT, async || {
        fixture.vhost.ready_with_bulk("etl.raw").await > 5
    })
    .await;
    fixture
        .cloud
        .always(Op::GetQueryResults, Fault::AccessDenied);
    wait_until("two denials", TIMEOUT, async || {
        extractor.log().matches("giving the task back").count() >= 2
    })
    .await;
    fixture.cloud.always(Op::GetQueryResults, slow);
    let before = fixture.vhost.ready_with_bulk("etl.raw").await;
    wait_until("more batches", TIMEOUT, async || {
        fixture.vhost.ready_with_bulk("etl.raw").await > before
    })
    .await;
    fixture.cloud.on_key("AKIATESTKIT", Fault::ExpiredToken);
    unready(&extractor, &["ExpiredToken"]).await;
    fixture.cloud.on_key("AKIATESTKIT", Fault::Pass);
    fixture.cloud.always(Op::GetQueryResults, Fault::Pass);
    assert!(matches!(
        fixture.end_of("read").await,
        EventKind::Extracted { rows: 60_000, .. }
    ));
    let mut batches = fixture.batches().await;
    batches.dedup();
    assert!(rows_of(&batches) == result.range(0, 60_000));
}

/// The SDK's own attempts take most of a minute.
#[tokio::test]
async fn replica_tells_at_once_that_aws_does_not_answer() {
    let fixture = Fixture::new().await;
    fixture.cloud.otherwise(Answer::rows(sample::clicks(5)));
    let closed = format!("http://127.0.0.1:{CLOSED_PORT}");
    let away = fixture.extractor().env("AWS_ENDPOINT_URL", &closed);
    let mut away = away.start().await;
    fixture.send(&task("r", "SELECT 1")).await;
    let said = tokio::time::timeout(
        Duration::from_secs(20),
        unready(&away, &["AWS does not answer", "Connection refused"]),
    );
    said.await.expect("it tells before a call has failed");
    away.kill9().await;
    let unavailable = Fault::Unavailable;
    fixture.cloud.always(Op::StartQueryExecution, unavailable);
    let mut extractor = fixture.extractor().spawn();
    let said = tokio::time::timeout(
        Duration::from_secs(20),
        unready(&extractor, &["AWS does not answer", "503"]),
    );
    said.await.expect("it tells before a call has failed");
    fixture.cloud.always(Op::StartQueryExecution, Fault::Pass);
    assert!(matches!(
        fixture.end_of("r").await,
        EventKind::Extracted { rows: 5, .. }
    ));
    extractor.await_ready().await;
}
