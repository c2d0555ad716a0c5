//! The quarantine: counts by rule, filters by rule and column, and exports.

use serde_json::Value;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

const STRICT: &str = "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }, { not_empty = true }]\n";

async fn stdout(pipeline: &Pipeline, arguments: &[&str]) -> String {
    let done = pipeline.etl(arguments).await;
    assert_eq!(done.code, Some(0), "{arguments:?}: {}", done.stderr);
    done.stdout
}

/// The CSV that Postgres writes: NULL and the empty string, quotes, commas and line ends.
async fn copied(pipeline: &Pipeline, csv: &str) -> Vec<String> {
    let columns = "run_id, generation, first_row, row_number, column_name, rule, reason, dt, country, url, visits, seconds, seen_at";
    let table = columns
        .split(", ")
        .map(|name| format!("{name} text"))
        .collect::<Vec<_>>()
        .join(", ");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "DROP TABLE IF EXISTS exported; CREATE TABLE exported ({table})"
    )))
    .execute(&pipeline.database.pool)
    .await
    .unwrap();
    let mut copy = pipeline.database.pool.acquire().await.unwrap();
    let mut copy = copy
        .copy_in_raw("COPY exported FROM STDIN (FORMAT csv, HEADER true)")
        .await
        .unwrap();
    copy.send(csv.as_bytes()).await.unwrap();
    copy.finish().await.unwrap();
    pipeline
        .table("run_id, row_number, rule, country, url", "exported")
        .await
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn rejected_rows_are_filtered_counted_and_exported_unchanged() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", STRICT, sample::clicks(3_000));
    pipeline.run("clicks", "daily").await;
    let rejected = pipeline
        .number("SELECT count(*) FROM etl.rejected_rows")
        .await;
    let empty = pipeline
        .number("SELECT count(*) FROM etl.rejected_rows WHERE rule = 'not_empty'")
        .await;
    assert!(empty > 0 && rejected > empty);

    let csv = stdout(&pipeline, &["rejects", "daily", "--export", "csv"]).await;
    let exported = copied(&pipeline, &csv).await;
    let wanted = pipeline
        .table(
            "run_id, row_number, rule, raw->>'country', raw->>'url'",
            "etl.rejected_rows",
        )
        .await;
    assert_eq!(exported, wanted);
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM exported WHERE country = ''")
            .await,
        empty
    );
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM exported WHERE country IS NULL")
            .await,
        rejected - empty
    );

    let chosen = [
        "rejects",
        "daily",
        "--rule",
        "not_empty",
        "--column",
        "country",
        "--export",
        "json",
    ];
    let json: Value = serde_json::from_str(&stdout(&pipeline, &chosen).await).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!(i64::try_from(rows.len()).unwrap(), empty);
    assert!(
        rows.iter()
            .all(|row| row["raw"]["country"] == "" && row["run_id"] == "daily")
    );
    let three: Value = serde_json::from_str(
        &stdout(&pipeline, &["rejects", "daily", "--json", "--limit", "3"]).await,
    )
    .unwrap();
    assert_eq!(three.as_array().unwrap().len(), 3);
    let none = stdout(
        &pipeline,
        &["rejects", "daily", "--rule", "pattern", "--json"],
    )
    .await;
    assert_eq!(
        serde_json::from_str::<Value>(&none).unwrap(),
        Value::Array(vec![])
    );

    let of_the_job = stdout(&pipeline, &["rejects", "--job", "clicks", "--limit", "2"]).await;
    assert!(
        of_the_job.contains("runs") && of_the_job.contains(&empty.to_string()),
        "{of_the_job}"
    );
    let of_absent = pipeline.etl(&["rejects", "--job", "absent"]).await;
    assert_eq!(of_absent.code, Some(1), "{}", of_absent.stdout);
    assert!(
        of_absent.stderr.contains("nor any of a job \"absent\""),
        "{}",
        of_absent.stderr
    );
    for usage_error in [
        &["rejects"][..],
        &["rejects", "daily", "--job", "clicks"],
        &["rejects", "daily", "--export", "xml"],
    ] {
        assert_eq!(
            pipeline.etl(usage_error).await.code,
            Some(2),
            "{usage_error:?}"
        );
    }
}
