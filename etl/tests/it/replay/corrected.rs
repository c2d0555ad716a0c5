//! A replay with a corrected rule loads the rows that the strict rule rejected. In every mode, with one query in
//! Athena.

use serde_json::Value;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

use super::{ROWS, refuses, succeeds};

/// Nine batches.
const CLICKS: u64 = 20_000;
/// In the fourth batch.
const DISLIKED: u64 = 7_000;

fn url(row: u64) -> String {
    sample::clicks(CLICKS).row(row)[2].clone().unwrap()
}

/// A job that rejects clicks without a country, or only the disliked URL, or nothing.
fn job(target: &str, countries: bool, disliked: bool) -> String {
    let country = if countries {
        "rules = [{ required = true }, { not_empty = true }]\n"
    } else {
        ""
    };
    let url = if disliked {
        format!("rules = [{{ none_of = [{:?}] }}]\n", url(DISLIKED))
    } else {
        String::new()
    };
    format!(
        "[target]\ntable = \"clicks\"\n{target}\n[[columns]]\nsource = \"country\"\n{country}[[columns]]\nsource = \"url\"\n{url}"
    )
}

/// The number of clicks with the country NULL, and with an empty country.
fn without_country() -> (i64, i64) {
    let rows = sample::clicks(CLICKS).range(0, CLICKS);
    let count = |wanted: Option<&str>| {
        let rows = rows.iter().filter(|row| row[1].as_deref() == wanted);
        i64::try_from(rows.count()).unwrap()
    };
    (count(None), count(Some("")))
}

async fn status(pipeline: &Pipeline, run: &str) -> Value {
    let shown = succeeds(pipeline, &["status", run, "--json"]).await;
    serde_json::from_str(&shown.stdout).unwrap()
}

/// The rows of the target when no row is rejected.
async fn wanted(pipeline: &Pipeline) -> Vec<String> {
    pipeline.job(
        "wanted",
        "[target]\ntable = \"wanted\"\n",
        sample::clicks(CLICKS),
    );
    pipeline.run("wanted", "wanted").await;
    pipeline.table(ROWS, "wanted").await
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn corrected_rule_loads_the_rejected_rows_batch_by_batch() {
    let pipeline = Pipeline::archiving().await;
    let wanted = wanted(&pipeline).await;
    pipeline.job("clicks", &job("", true, true), sample::clicks(CLICKS));
    let run = pipeline.run("clicks", "daily").await;
    let (null, empty) = without_country();
    assert_eq!(run["rows_rejected"], null + empty + 1, "{run}");

    let shown = succeeds(&pipeline, &["rejects", "daily"]).await.stdout;
    for (rule, rows) in [("required", null), ("not_empty", empty), ("none_of", 1)] {
        let is_counted = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.len() == 3 && words[1] == rule && words[2] == rows.to_string()
        };
        assert!(shown.lines().any(is_counted), "{rule} {rows}: {shown}");
    }

    // The rule for the country is corrected; the other one stays.
    pipeline.write_job("clicks", &job("", false, true));
    let sent = succeeds(&pipeline, &["replay", "daily", "--follow"]).await;
    assert!(
        sent.stdout
            .contains("9 batches of daily sent again, as generation 1"),
        "{}",
        sent.stdout
    );
    pipeline.assert_reconciled("daily").await;
    let run = status(&pipeline, "daily").await;
    assert_eq!(
        (&run["rows_rejected"], &run["generation"]),
        (&1.into(), &1.into())
    );

    // The other rule is corrected too: only its batch is replayed, and the others are carried forward.
    pipeline.write_job("clicks", &job("", false, false));
    let loaded = pipeline
        .table(
            "first_row, loaded_at",
            "etl.batches WHERE run_id = 'daily' AND generation = 1",
        )
        .await;
    let sent = succeeds(
        &pipeline,
        &["replay", "daily", "--rejected-only", "--follow"],
    )
    .await;
    assert!(
        sent.stdout
            .contains("1 batch of daily sent again, as generation 2"),
        "{}",
        sent.stdout
    );
    pipeline.assert_reconciled("daily").await;
    let run = status(&pipeline, "daily").await;
    assert_eq!(
        (&run["rows_rejected"], &run["rows_loaded"]),
        (&0.into(), &CLICKS.into())
    );
    let carried = pipeline
        .table(
            "first_row, loaded_at",
            "etl.batches WHERE run_id = 'daily' AND generation = 2",
        )
        .await;
    let same = carried.iter().filter(|batch| loaded.contains(batch));
    assert_eq!((carried.len(), same.count()), (9, 8));
    assert!(pipeline.table(ROWS, "clicks").await == wanted);

    // A second replay, whole or partial, changes nothing.
    let rows = pipeline.table(&format!("{ROWS}, _batch"), "clicks").await;
    let none = succeeds(&pipeline, &["replay", "daily", "--rejected-only"]).await;
    assert!(
        none.stdout.contains("no batch of daily has a rejected row"),
        "{}",
        none.stdout
    );
    let two = pipeline.rows_of_batches("daily", 2..=3).await;
    // One row stands for its batch.
    for (part, generation, sent) in [
        (&["--rows", &two][..], 3, "2 batches"),
        (&["--rows", "3000"][..], 4, "1 batch"),
        (&[][..], 5, "9 batches"),
    ] {
        let mut arguments = vec!["replay", "daily", "--follow"];
        arguments.extend(part);
        let done = succeeds(&pipeline, &arguments).await;
        let said = format!("{sent} of daily sent again");
        assert!(done.stdout.contains(&said), "{}", done.stdout);
        pipeline.assert_reconciled("daily").await;
        let run = status(&pipeline, "daily").await;
        assert_eq!(
            (&run["rows_loaded"], &run["generation"]),
            (&CLICKS.into(), &generation.into())
        );
        assert!(
            pipeline.table(&format!("{ROWS}, _batch"), "clicks").await == rows,
            "{part:?}"
        );
    }
    refuses(
        &pipeline,
        &["replay", "daily", "--rows", "8..999999"],
        2,
        &["the rows 0.."],
    )
    .await;
    refuses(
        &pipeline,
        &["replay", "daily", "--rows", "3..2"],
        2,
        &["A..B"],
    )
    .await;
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await,
        0
    );
    assert_eq!(pipeline.cloud.started().len(), 2, "one query a run");
}

/// In modes with dependent batches a partial replay covers the whole run and commits at once.
async fn assert_replayed_as_a_whole(target: &str) {
    let pipeline = Pipeline::archiving().await;
    let wanted = wanted(&pipeline).await;
    pipeline.job("clicks", &job(target, true, true), sample::clicks(CLICKS));
    let run = pipeline.run("clicks", "daily").await;
    let (null, empty) = without_country();
    assert_eq!(run["rows_rejected"], null + empty + 1, "{run}");
    pipeline.write_job("clicks", &job(target, false, false));
    let sent = succeeds(
        &pipeline,
        &["replay", "daily", "--rejected-only", "--follow"],
    )
    .await;
    assert!(
        sent.stderr.contains("the whole run is replayed"),
        "{}",
        sent.stderr
    );
    assert!(sent.stdout.contains("9 batches"), "{}", sent.stdout);
    pipeline.assert_reconciled("daily").await;
    assert_eq!(status(&pipeline, "daily").await["rows_rejected"], 0);
    assert!(pipeline.table(ROWS, "clicks").await == wanted);
    let rows = pipeline.table(&format!("{ROWS}, _batch"), "clicks").await;
    succeeds(&pipeline, &["replay", "daily", "--follow"]).await;
    pipeline.assert_reconciled("daily").await;
    let run = status(&pipeline, "daily").await;
    assert_eq!(
        (&run["rows_loaded"], &run["generation"]),
        (&CLICKS.into(), &2.into())
    );
    assert!(pipeline.table(&format!("{ROWS}, _batch"), "clicks").await == rows);
    assert_eq!(pipeline.cloud.started().len(), 2, "one query a run");
}

#[tokio::test(flavor = "multi_thread")]
async fn upsert_is_replayed_as_a_whole() {
    assert_replayed_as_a_whole("mode = \"upsert\"\nkey = [\"url\"]").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_is_replayed_as_a_whole() {
    assert_replayed_as_a_whole("mode = \"replace\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_that_cannot_replace_the_runs_rows_is_refused() {
    let pipeline = Pipeline::archiving().await;
    pipeline.job("clicks", &job("", false, false), sample::clicks(100));
    pipeline.run("clicks", "daily").await;
    refuses(&pipeline, &["replay", "absent"], 2, &["no run \"absent\""]).await;
    refuses(&pipeline, &["replay", "dai"], 2, &["no run \"dai\""]).await;
    pipeline.write_job("clicks", "[target]\ntable = \"other\"\n");
    refuses(
        &pipeline,
        &["replay", "daily"],
        1,
        &["public.clicks", "public.other", "request a new run"],
    )
    .await;
    pipeline.write_job(
        "clicks",
        "[target]\ntable = \"clicks\"\nmode = \"upsert\"\nkey = [\"url\"]\n",
    );
    refuses(&pipeline, &["replay", "daily"], 1, &["append", "upsert"]).await;
    pipeline.write_job(
        "clicks",
        "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"browser\"\n",
    );
    refuses(
        &pipeline,
        &["replay", "daily"],
        1,
        &["browser", "which the query does not return"],
    )
    .await;
    pipeline.write_job("clicks", "[target]\ntabel = \"clicks\"\n");
    refuses(&pipeline, &["replay", "daily"], 2, &["tabel"]).await;
    pipeline.write_job("clicks", &job("", false, false));
    for (state, word) in [
        ("cancelled", "is cancelled"),
        ("failed', failure = 'because", "was not read to its end"),
    ] {
        let change = format!(
            "UPDATE etl.runs SET state = '{state}', batches_expected = NULL, rows_expected = NULL, extracted_at = NULL WHERE run_id = 'daily'"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(change))
            .execute(&pipeline.database.pool)
            .await
            .unwrap();
        refuses(&pipeline, &["replay", "daily"], 1, &[word]).await;
    }
}
