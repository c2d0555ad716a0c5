//! Results and tasks that cannot be used are refused with a reason, before anything is half-done.

use common::job::Results;
use common::message::{EventKind, Limits};
use testkit::PATIENCE;
use testkit::cloud::{Answer, Column, ResultSet, Workgroup, sample};
use testkit::wait_until;

use crate::line::{Line, rows_of, task};

#[tokio::test]
async fn a_result_that_cannot_be_loaded_fails_before_the_first_batch() {
    let (line, _extractor) = Line::started().await;
    let tags = ResultSet::table(&[("tags", "array(varchar)")], &[&[Some("[a, b]")]]);
    line.cloud.answer("tags", Answer::rows(tags));
    line.ask(&task("tags", "SELECT tags")).await;
    let reason = line.failure_of("tags").await;
    assert!(reason.contains("CAST(\"tags\" AS JSON)"), "{reason}");
    let tables = ResultSet::table(&[("tab_name", "varchar")], &[&[Some("clicks")]]);
    line.cloud
        .answer("SHOW", Answer::rows(tables).without_header());
    let mut show = task("show", "SHOW TABLES");
    show.source.results = Results::Api;
    line.ask(&show).await;
    let reason = line.failure_of("show").await;
    assert!(reason.contains("column names (tab_name)"), "{reason}");
    assert!(line.batches().await.is_empty());
}

#[tokio::test]
async fn a_row_that_is_too_large_fails_the_run_and_is_named_on_both_paths() {
    let (line, _extractor) = Line::started().await;
    let columns = vec![Column::new("n", "bigint"), Column::new("text", "varchar")];
    let result = ResultSet::generated(columns, 4, |n| {
        let text = if n == 2 {
            "x".repeat(Limits::ROW_BYTES)
        } else {
            "y".into()
        };
        vec![Some(n.to_string()), Some(text)]
    });
    line.cloud.otherwise(Answer::rows(result).at_once());
    let mut reasons = Vec::new();
    for results in [Results::S3, Results::Api] {
        let mut task = task(&format!("large-{results:?}"), "SELECT 1");
        task.source.results = results;
        line.ask(&task).await;
        reasons.push(line.failure_of(task.run.as_str()).await);
    }
    assert!(
        reasons[0].contains("row 2") && reasons[0].contains("\"text\""),
        "{reasons:?}"
    );
    assert_eq!(reasons[0], reasons[1]);
}

#[tokio::test]
async fn managed_results_are_read_as_pages() {
    let (line, _extractor) = Line::started().await;
    line.cloud.workgroup(Workgroup {
        managed_results: true,
        ..Workgroup::named("managed")
    });
    let result = sample::clicks(2_000);
    line.cloud
        .otherwise(Answer::rows(result.clone()).with_empty_last_page());
    let mut task = task("auto", "SELECT 1");
    task.source.workgroup = Some("managed".into());
    line.ask(&task).await;
    let EventKind::Extracted {
        result_id,
        rows: 2_000,
        ..
    } = line.end_of("auto").await
    else {
        panic!()
    };
    assert!(result_id.ends_with(":pages"), "{result_id}");
    assert!(rows_of(&line.batches().await) == result.range(0, 2_000));
    task.run = "s3".parse().unwrap();
    task.source.results = Results::S3;
    line.ask(&task).await;
    let reason = line.failure_of("s3").await;
    assert!(reason.contains("managed query results"), "{reason}");
}

#[tokio::test]
async fn a_message_that_is_no_task_goes_to_the_dead_letters() {
    let (line, _extractor) = Line::started().await;
    line.vhost.publish("etl.extract", b"{\"half\":").await;
    wait_until("the dead letter", PATIENCE, async || {
        line.vhost.ready("etl.dead").await == 1
    })
    .await;
    let dead = line.vhost.take_all("etl.dead").await;
    assert_eq!(dead[0].body, b"{\"half\":");
    assert_eq!(dead[0].header("x-etl-stage").as_deref(), Some("extractor"));
    assert!(
        dead[0]
            .header("x-etl-reason")
            .unwrap()
            .contains("extract-task.v1")
    );
    line.settled().await;
}
