//! Unusable results and tasks are refused with a reason, before the first batch.

use common::job::Results;
use common::message::{EventKind, Limits};
use testkit::TIMEOUT;
use testkit::cloud::{Answer, Column, ResultSet, Workgroup, sample};
use testkit::wait_until;

use crate::fixture::{Fixture, rows_of, task};

#[tokio::test]
async fn unloadable_result_fails_the_run_before_the_first_batch() {
    let (fixture, _extractor) = Fixture::started().await;
    let tags = ResultSet::table(&[("tags", "array(varchar)")], &[&[Some("[a, b]")]]);
    fixture.cloud.answer("tags", Answer::rows(tags));
    fixture.send(&task("tags", "SELECT tags")).await;
    let reason = fixture.failure_of("tags").await;
    assert!(reason.contains("CAST(\"tags\" AS JSON)"), "{reason}");
    let tables = ResultSet::table(&[("tab_name", "varchar")], &[&[Some("clicks")]]);
    fixture
        .cloud
        .answer("SHOW", Answer::rows(tables).without_header());
    let mut show = task("show", "SHOW TABLES");
    show.source.results = Results::Api;
    fixture.send(&show).await;
    let reason = fixture.failure_of("show").await;
    assert!(reason.contains("column names (tab_name)"), "{reason}");
    assert!(fixture.batches().await.is_empty());
}

#[tokio::test]
async fn too_large_row_is_named_alike_from_object_and_pages() {
    let (fixture, _extractor) = Fixture::started().await;
    let columns = vec![Column::new("n", "bigint"), Column::new("text", "varchar")];
    let result = ResultSet::generated(columns, 4, |n| {
        let text = if n == 2 {
            "x".repeat(Limits::ROW_BYTES)
        } else {
            "y".into()
        };
        vec![Some(n.to_string()), Some(text)]
    });
    fixture.cloud.otherwise(Answer::rows(result).at_once());
    let mut reasons = Vec::new();
    for results in [Results::S3, Results::Api] {
        let mut task = task(&format!("large-{results:?}"), "SELECT 1");
        task.source.results = results;
        fixture.send(&task).await;
        reasons.push(fixture.failure_of(task.run.as_str()).await);
    }
    assert!(
        reasons[0].contains("row 2") && reasons[0].contains("\"text\""),
        "{reasons:?}"
    );
    assert_eq!(reasons[0], reasons[1]);
}

#[tokio::test]
async fn managed_results_are_read_as_pages() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture.cloud.workgroup(Workgroup {
        managed_results: true,
        ..Workgroup::named("managed")
    });
    let result = sample::clicks(2_000);
    fixture
        .cloud
        .otherwise(Answer::rows(result.clone()).with_empty_last_page());
    let mut task = task("auto", "SELECT 1");
    task.source.workgroup = Some("managed".into());
    fixture.send(&task).await;
    let EventKind::Extracted {
        result_id,
        rows: 2_000,
        ..
    } = fixture.end_of("auto").await
    else {
        panic!()
    };
    assert!(result_id.ends_with(":pages"), "{result_id}");
    assert!(rows_of(&fixture.batches().await) == result.range(0, 2_000));
    task.run = "s3".parse().unwrap();
    task.source.results = Results::S3;
    fixture.send(&task).await;
    let reason = fixture.failure_of("s3").await;
    assert!(reason.contains("managed query results"), "{reason}");
}

#[tokio::test]
async fn refused_query_fails_the_run_with_what_to_allow() {
    let (fixture, extractor) = Fixture::started().await;
    let reason = "User: arn:aws:iam::123456789012:user/x is not authorized to perform: glue:GetTable on resource: arn:aws:glue:eu-central-1:123456789012:catalog";
    fixture.cloud.otherwise(Answer::failed_by_user(reason));
    fixture.send(&task("glue", "SELECT 1")).await;
    let said = fixture.failure_of("glue").await;
    for part in [
        reason,
        "allow glue:GetTable in the policy",
        "the database default",
    ] {
        assert!(said.contains(part), "no {part}: {said}");
    }
    let log = extractor.log();
    assert!(
        log.contains("refused by Glue") && !log.contains("user/x"),
        "{log}"
    );
}

#[tokio::test]
async fn unreadable_task_is_dead_lettered() {
    let (fixture, _extractor) = Fixture::started().await;
    fixture.vhost.publish("etl.extract", b"{\"half\":").await;
    wait_until("the dead letter", TIMEOUT, async || {
        fixture.vhost.ready("etl.dead").await == 1
    })
    .await;
    let dead = fixture.vhost.take_all("etl.dead").await;
    assert_eq!(dead[0].body, b"{\"half\":");
    assert_eq!(dead[0].header("x-etl-stage").as_deref(), Some("extractor"));
    assert!(
        dead[0]
            .header("x-etl-reason")
            .unwrap()
            .contains("extract-task.v3")
    );
    fixture.settled().await;
}
