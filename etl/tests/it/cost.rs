//! What queries cost is shown, limited, and not caused by what is no query.

use std::fs;

use serde_json::{Value, json};
use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;

const JOB: &str = "[target]\ntable = \"clicks\"\nmode = \"upsert\"\nkey = [\"url\"]\n";

async fn status(pipeline: &Pipeline, run: &str, price: &str) -> Value {
    let service = pipeline.service("etl").env("ETL_PRICE_PER_TB", price);
    let shown = service.arg("status").arg(run).arg("--json").run().await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    serde_json::from_str(&shown.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_has_every_query_of_a_run_with_its_cost() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(10));
    let busy = Answer::failed_by_system("Rate exceeded");
    let busy = busy.scanned(3_000_000_000_000);
    pipeline.cloud.answer_once("FROM clicks", busy);
    let large = Answer::rows(sample::clicks(10)).scanned(2_000_000_000_000);
    pipeline.cloud.answer("FROM clicks", large);
    pipeline.run("clicks", "daily").await;
    let shown = status(&pipeline, "daily", "5").await;
    assert_eq!(shown["bytes_scanned"], json!(5_000_000_000_000_i64));
    // Athena charges nothing for a query that failed.
    assert_eq!(shown["cost"], json!(10.0));
    let queries = shown["queries"].as_array().unwrap();
    let of = |name: &str| queries.iter().map(|q| q[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("state"), [json!("failed"), json!("succeeded")]);
    assert_eq!(of("attempt"), [json!(1), json!(2)]);
    let user = json!("arn:aws:iam::123456789012:user/testkit");
    assert_eq!(of("principal"), [user.clone(), user]);
    let text = pipeline.etl(&["status", "daily"]).await.stdout;
    assert!(text.contains("by 2 queries (1 failed)"), "{text}");

    // A run that fails has cost what it has cost.
    let wrong = Answer::failed_by_user("no such column").scanned(77);
    pipeline.cloud.answer("FROM clicks", wrong);
    let failed = pipeline
        .etl(&["run", "clicks", "--run-id", "failed", "--follow"])
        .await;
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    let shown = status(&pipeline, "failed", "5").await;
    assert_eq!(
        (&shown["bytes_scanned"], &shown["cost"]),
        (&json!(77), &json!(0.0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_has_scanned_its_limit_of_the_month_is_not_queried_again() {
    let pipeline = Pipeline::start().await;
    let source = |most: &str| {
        format!(
            "[source]\ndatabase = \"d\"\nsql = \"clicks.sql\"\nmax_scanned_per_month = \"{most}\"\n{JOB}"
        )
    };
    pipeline.job("clicks", &source("1 MB"), sample::clicks(10));
    // Its query scans 1,234,567 bytes.
    pipeline.run("clicks", "first").await;
    for command in [
        &["plan", "clicks"][..],
        &["run", "clicks", "--run-id", "second"],
    ] {
        let refused = pipeline.etl(command).await;
        assert_eq!(refused.code, Some(1), "{command:?}: {}", refused.stderr);
        let said = refused.stdout + &refused.stderr;
        for part in [
            "have scanned 1234567 bytes",
            "max_scanned_per_month = 1000000",
        ] {
            assert!(said.contains(part), "{command:?}: {said}");
        }
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 1);
    assert_eq!(pipeline.cloud.started().len(), 1);
    // The advice.
    pipeline.write_job("clicks", &source("10 MB"));
    pipeline.run("clicks", "second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_that_is_no_query_is_refused_before_anything_is_sent() {
    let pipeline = Pipeline::start().await;
    pipeline.write_job("clicks", JOB);
    for (sql, wanted) in [
        ("INSERT INTO t SELECT 1", "begins with INSERT"),
        (
            "WITH a AS (SELECT 1) INSERT INTO t SELECT 1",
            "begins with INSERT",
        ),
        ("CREATE TABLE t AS SELECT 1", "begins with CREATE"),
        ("UNLOAD (SELECT 1) TO 's3://b/k/'", "write the SELECT"),
        ("SHOW TABLES", "information_schema"),
        ("SELECT 1; DROP TABLE t", "several statements"),
    ] {
        fs::write(pipeline.jobs.path().join("clicks.sql"), sql).unwrap();
        for command in ["plan", "run"] {
            let refused = pipeline.etl(&[command, "clicks"]).await;
            assert_eq!(
                refused.code,
                Some(2),
                "{command} of {sql}: {}",
                refused.stderr
            );
            assert!(refused.stderr.contains(wanted), "{sql}: {}", refused.stderr);
        }
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
    assert!(pipeline.cloud.started().is_empty());
}
