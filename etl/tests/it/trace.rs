//! `etl trace` leads from a row of a target to its query and object.

use serde_json::Value;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

#[tokio::test(flavor = "multi_thread")]
async fn row_leads_to_its_batch_run_query_and_object() {
    let pipeline = Pipeline::start().await;
    let job = "[parameters]\nfrom = { type = \"date\", default = \"2018-04-02\" }\n[target]\ntable = \"clicks\"\n";
    pipeline.job("clicks", job, sample::clicks(5_000));
    let run = pipeline.run("clicks", "daily").await;
    let url = sample::clicks(5_000).row(4_321)[2].clone().unwrap();
    let condition = format!("url = '{}' -- a comment", url.replace('\'', "''"));
    let trace = ["trace", "--table", "clicks", "--where", &condition];
    let shown = pipeline.etl(&trace).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let query = run["query_execution_id"].as_str().unwrap();
    let object = pipeline.number("SELECT count(*) FROM etl.runs WHERE result_location LIKE 's3://%' || query_execution_id || '%'").await;
    assert_eq!(object, 1);
    for word in [
        query,
        run["result_id"].as_str().unwrap(),
        "daily",
        "s3://",
        "SELECT * FROM clicks",
        "from=2018-04-02",
        "rows 2,252 to 4,506 of the result",
    ] {
        assert!(shown.stdout.contains(word), "no {word:?}: {}", shown.stdout);
    }
    let json = pipeline.etl(&[&trace[..], &["--json"]].concat()).await;
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["rows"][0]["row"]["url"], url.as_str());
    let origin = &json["origins"][0];
    assert_eq!(origin["run_id"], "daily");
    let first = origin["first_row"].as_i64().unwrap();
    let end = first + origin["rows_extracted"].as_i64().unwrap();
    assert!((first..end).contains(&4_321), "{origin}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_changes_nothing_and_reports_what_is_missing() {
    let pipeline = Pipeline::start().await;
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(10),
    );
    pipeline.run("clicks", "daily").await;
    sqlx::raw_sql("CREATE TABLE plain (a text); CREATE SEQUENCE counter")
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let trace = async |table: &str, condition: &str| {
        pipeline
            .etl(&["trace", "--table", table, "--where", condition])
            .await
    };
    for (table, condition, code, word) in [
        ("nowhere", "true", 2, "there is no table"),
        ("plain", "true", 2, "no column _batch"),
        ("clicks", "nonsense = 1", 2, "nonsense"),
        ("clicks", "url = = 1", 2, "syntax error at or near \"=\""),
        ("clicks", "nextval('public.counter') > 0", 2, "read-only"),
        ("clicks", "true); DROP TABLE clicks; --", 2, "clicks"),
        ("clicks", "url = ''", 1, "no row meets the condition"),
    ] {
        let done = trace(table, condition).await;
        assert_eq!(done.code, Some(code), "{condition}: {}", done.stderr);
        assert!(done.stderr.contains(word), "{condition}: {}", done.stderr);
        assert!(
            !done.stderr.contains(" at line "),
            "{condition}: {}",
            done.stderr
        );
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 10);
    // A row of another program.
    sqlx::raw_sql("INSERT INTO clicks (url, _batch) VALUES ('by hand', 7)")
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let foreign = trace("public.clicks", "url = 'by hand'").await;
    assert_eq!(foreign.code, Some(1), "{}", foreign.stdout);
    assert!(
        foreign.stderr.contains("not from a batch of this ledger"),
        "{}",
        foreign.stderr
    );
}
