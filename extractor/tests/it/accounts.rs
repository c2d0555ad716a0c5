//! One extractor serves jobs of several accounts and regions.

use common::job::Account;
use common::message::EventKind;
use testkit::cloud::{Answer, Fault, Op, Request, Workgroup, sample};

use crate::fixture::{Fixture, task};

const ROLE: &str = "arn:aws:iam::999999999999:role/reader";

/// The access key of the role's sessions.
const ROLE_KEY: &str = "ASIAREADER";

fn in_other_account(external_id: Option<&str>) -> Account {
    Account {
        region: Some("us-east-2".into()),
        role_arn: Some(ROLE.into()),
        external_id: external_id.map(Into::into),
    }
}

/// The principal and the region of a run's query, as the extractor reports it.
fn reported(events: &[EventKind]) -> (String, String) {
    let started = events.iter().find_map(|kind| match kind {
        EventKind::Started {
            principal, region, ..
        } => Some((principal.clone(), region.clone())),
        _ => None,
    });
    let (principal, region) = started.unwrap();
    (principal.unwrap(), region.unwrap())
}

fn is_end(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Extracted { .. } | EventKind::Failed { .. })
}

fn signed(requests: &[Request], op: Op) -> Vec<(String, String)> {
    let of_op = requests.iter().filter(|request| request.op == op);
    of_op
        .map(|request| (request.key.clone(), request.region.clone()))
        .collect()
}

#[tokio::test]
async fn job_runs_in_its_account_and_region_beside_jobs_of_the_extractors_own() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture.cloud.role(ROLE, Some("secret-id"), ROLE_KEY);
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    let mut other = task("other", "SELECT 1");
    other.source.account = in_other_account(Some("secret-id"));
    fixture.send(&other).await;
    let events = fixture.events_until("other", is_end).await;
    assert_eq!(
        reported(&events),
        (
            "arn:aws:sts::999999999999:assumed-role/reader/session".into(),
            "us-east-2".into()
        )
    );
    let requests = fixture.cloud.requests();
    let of_role = (ROLE_KEY.to_owned(), "us-east-2".to_owned());
    for op in [
        Op::StartQueryExecution,
        Op::GetQueryExecution,
        Op::GetObject,
    ] {
        let signed = signed(&requests, op);
        assert!(
            !signed.is_empty() && signed.iter().all(|by| *by == of_role),
            "{op:?}: {signed:?}"
        );
    }
    // Another run of the account, and one of the extractor's own.
    other.run = "again".parse().unwrap();
    fixture.send(&other).await;
    fixture.events_until("again", is_end).await;
    assert_eq!(
        fixture.cloud.count(Op::AssumeRole),
        1,
        "the session is kept"
    );
    fixture.send(&task("own", "SELECT 1")).await;
    let events = fixture.events_until("own", is_end).await;
    assert_eq!(
        reported(&events),
        (
            "arn:aws:iam::123456789012:user/testkit".into(),
            "eu-central-1".into()
        )
    );
    let last = signed(&fixture.cloud.requests(), Op::GetObject)
        .pop()
        .unwrap();
    assert_eq!(last, ("AKIATESTKIT".to_owned(), "eu-central-1".to_owned()));
}

/// Runs a job of the other account, whose credentials AWS refuses, beside one of the extractor's own. Returns why it fails.
async fn refused_beside_another(fixture: &Fixture, external_id: &str) -> String {
    fixture.cloud.role(ROLE, Some("secret-id"), ROLE_KEY);
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    let mut refused = task("refused", "SELECT 1");
    refused.source.account = in_other_account(Some(external_id));
    fixture.send(&refused).await;
    fixture.send(&task("own", "SELECT 1")).await;
    let own = fixture.end_of("own").await;
    assert!(
        matches!(own, EventKind::Extracted { rows: 5, .. }),
        "{own:?}"
    );
    let reason = fixture.failure_of("refused").await;
    assert_eq!(fixture.vhost.ready("etl.dead").await, 0);
    reason
}

#[tokio::test]
async fn role_that_cannot_be_assumed_fails_its_run_and_no_other() {
    let (fixture, _extractor) = Fixture::started().await;
    let reason = refused_beside_another(&fixture, "wrong").await;
    for part in [
        "sts:AssumeRole",
        ROLE,
        "check region, role_arn and external_id",
        "AWS denied it to the extractor",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
}

/// As AWS does in a region that the account has not enabled.
#[tokio::test]
async fn account_that_aws_does_not_accept_fails_its_run_and_no_other() {
    let (fixture, extractor) = Fixture::started().await;
    fixture.cloud.on_key(ROLE_KEY, Fault::UnknownClient);
    let reason = refused_beside_another(&fixture, "secret-id").await;
    for part in ["UnrecognizedClientException", "check region, role_arn"] {
        assert!(reason.contains(part), "{reason}");
    }
    let (ready, why) = extractor.readiness().await.unwrap();
    assert!(ready, "{why}");
}

#[tokio::test]
async fn principal_that_sts_does_not_tell_is_the_access_key() {
    let fixture = Fixture::new().await;
    fixture.cloud.always(Op::GetCallerIdentity, Fault::NoAnswer);
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    let _extractor = fixture.extractor().start().await;
    fixture.send(&task("own", "SELECT 1")).await;
    let events = fixture.events_until("own", is_end).await;
    assert_eq!(reported(&events).0, "access key ...TKIT of the environment");
    // Nor does it make the extractor unready that STS is away.
    fixture
        .cloud
        .always(Op::GetCallerIdentity, Fault::Unavailable);
    let other = fixture.extractor().start().await;
    fixture.send(&task("other", "SELECT 1")).await;
    fixture.events_until("other", is_end).await;
    assert!(
        !other.log().contains("AWS does not answer"),
        "{}",
        other.log()
    );
}

#[tokio::test]
async fn bucket_of_a_result_is_read_on_the_terms_of_the_job() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    fixture.cloud.workgroup(Workgroup::named("primary"));
    let mut task = task("terms", "SELECT 1");
    task.source.expected_bucket_owner = Some("123456789012".into());
    task.source.requester_pays = true;
    fixture.send(&task).await;
    fixture.events_until("terms", is_end).await;
    let started = &fixture.cloud.start_requests()[0];
    let owner = started.pointer("/ResultConfiguration/ExpectedBucketOwner");
    assert_eq!(owner, Some(&"123456789012".into()), "{started}");
    let requests = fixture.cloud.requests();
    let gets: Vec<_> = requests.iter().filter(|r| r.op == Op::GetObject).collect();
    assert!(gets.len() >= 2);
    for get in gets {
        assert_eq!(get.expected_owner.as_deref(), Some("123456789012"));
        assert_eq!(get.payer.as_deref(), Some("requester"));
    }
}
