//! The quarantine: counted by rule, chosen by rule and column, and given away whole.

use serde_json::Value;
use testkit::cloud::sample;
use testkit::line::Line;

const STRICT: &str = "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }, { not_empty = true }]\n";

async fn stdout(line: &Line, arguments: &[&str]) -> String {
    let done = line.etl(arguments).await;
    assert_eq!(done.code, Some(0), "{arguments:?}: {}", done.stderr);
    done.stdout
}

/// Postgres' own idea of the CSV: NULL and the empty string, quotes, commas and line ends.
async fn copied(line: &Line, csv: &str) -> Vec<String> {
    let columns = "run_id, generation, seq, row_number, column_name, rule, reason, dt, country, url, visits, seconds, seen_at";
    let table = columns
        .split(", ")
        .map(|name| format!("{name} text"))
        .collect::<Vec<_>>()
        .join(", ");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "DROP TABLE IF EXISTS exported; CREATE TABLE exported ({table})"
    )))
    .execute(&line.database.pool)
    .await
    .unwrap();
    let mut copy = line.database.pool.acquire().await.unwrap();
    let mut copy = copy
        .copy_in_raw("COPY exported FROM STDIN (FORMAT csv, HEADER true)")
        .await
        .unwrap();
    copy.send(csv.as_bytes()).await.unwrap();
    copy.finish().await.unwrap();
    line.table("run_id, row_number, rule, country, url", "exported")
        .await
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn rejected_rows_are_chosen_counted_and_exported_as_they_are() {
    let line = Line::start().await;
    line.job("clicks", STRICT, sample::clicks(3_000));
    line.run("clicks", "daily").await;
    let rejected = line.number("SELECT count(*) FROM etl.rejected_rows").await;
    let empty = line
        .number("SELECT count(*) FROM etl.rejected_rows WHERE rule = 'not_empty'")
        .await;
    assert!(empty > 0 && rejected > empty);

    let csv = stdout(&line, &["rejects", "daily", "--export", "csv"]).await;
    let exported = copied(&line, &csv).await;
    let wanted = line
        .table(
            "run_id, row_number, rule, raw->>'country', raw->>'url'",
            "etl.rejected_rows",
        )
        .await;
    assert_eq!(exported, wanted);
    assert_eq!(
        line.number("SELECT count(*) FROM exported WHERE country = ''")
            .await,
        empty
    );
    assert_eq!(
        line.number("SELECT count(*) FROM exported WHERE country IS NULL")
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
    let json: Value = serde_json::from_str(&stdout(&line, &chosen).await).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!(i64::try_from(rows.len()).unwrap(), empty);
    assert!(
        rows.iter()
            .all(|row| row["raw"]["country"] == "" && row["run_id"] == "daily")
    );
    let three: Value =
        serde_json::from_str(&stdout(&line, &["rejects", "daily", "--json", "--limit", "3"]).await)
            .unwrap();
    assert_eq!(three.as_array().unwrap().len(), 3);
    let none = stdout(&line, &["rejects", "daily", "--rule", "pattern", "--json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&none).unwrap(),
        Value::Array(vec![])
    );

    let of_the_job = stdout(&line, &["rejects", "--job", "clicks", "--limit", "2"]).await;
    assert!(
        of_the_job.contains("runs") && of_the_job.contains(&empty.to_string()),
        "{of_the_job}"
    );
    let of_nobody = stdout(&line, &["rejects", "--job", "nobody"]).await;
    assert!(
        of_nobody.contains("no row of the job nobody was rejected"),
        "{of_nobody}"
    );
    for misuse in [
        &["rejects"][..],
        &["rejects", "daily", "--job", "clicks"],
        &["rejects", "daily", "--export", "xml"],
    ] {
        assert_eq!(line.etl(misuse).await.code, Some(2), "{misuse:?}");
    }
}
