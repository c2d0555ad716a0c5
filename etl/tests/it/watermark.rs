//! Incremental loads: a run reads what is new since the run before.

use serde_json::Value;
use testkit::cloud::{Answer, ResultSet};
use testkit::pipeline::Pipeline;

const APPEND: &str = "[parameters]\nsince = { type = \"timestamp\", watermark = \"at\", initial = \"2018-04-01\", lag = \"3h\" }\nuntil = { type = \"timestamp\", end_of = \"since\" }\n[target]\ntable = \"events\"\n";

const UPSERT: &str = "[parameters]\nsince = { type = \"timestamp\", watermark = \"at\", initial = \"2018-04-01\", lag = \"3h\" }\n[target]\ntable = \"latest\"\nmode = \"upsert\"\nkey = [\"n\"]\n";

fn events(rows: &[(&str, &str)]) -> ResultSet {
    let rows: Vec<Vec<_>> = rows
        .iter()
        .map(|(n, at)| vec![Some(*n), Some(*at)])
        .collect();
    let rows: Vec<_> = rows.iter().map(Vec::as_slice).collect();
    ResultSet::table(&[("n", "bigint"), ("at", "timestamp(3)")], &rows)
}

fn answer(pipeline: &Pipeline, job: &str, rows: &[(&str, &str)]) {
    let part = format!("FROM {job}");
    pipeline
        .cloud
        .answer_once(&part, Answer::rows(events(rows)));
}

async fn json(pipeline: &Pipeline, arguments: &[&str]) -> Value {
    let finished = pipeline.etl(&[arguments, &["--json"]].concat()).await;
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", finished.stdout, finished.stderr))
}

async fn watermark(pipeline: &Pipeline, job: &str) -> String {
    let state = json(pipeline, &["watermark", job]).await;
    state["watermark"].as_str().unwrap().to_owned()
}

/// Runs a job to its end; the run as JSON.
async fn run(pipeline: &Pipeline, job: &str, more: &[&str]) -> Value {
    json(pipeline, &[&["run", job, "--follow"], more].concat()).await
}

/// Makes the end of the next range another one: it ends a lag before now.
async fn set(pipeline: &Pipeline, job: &str, value: &str) {
    let set = ["watermark", job, "--set", value, "--why", "a test"];
    let set = pipeline.etl(&set).await;
    assert_eq!(set.code, Some(0), "{}", set.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_reads_from_the_end_of_the_run_before() {
    let pipeline = Pipeline::start().await;
    pipeline.job("events", APPEND, events(&[]));
    assert_eq!(watermark(&pipeline, "events").await, "2018-04-01 00:00:00");
    answer(
        &pipeline,
        "events",
        &[
            ("1", "2018-04-01 00:00:00.000"),
            ("2", "2018-04-02 10:00:00.123"),
        ],
    );
    let first = run(&pipeline, "events", &[]).await;
    assert_eq!(first["state"], "completed", "{first}");
    // The next watermark is the end of the range, whatever its rows are.
    let moved = watermark(&pipeline, "events").await;
    assert_eq!(first["parameters"]["until"], moved.as_str());
    assert_eq!(first["watermark_from"], "2018-04-01 00:00:00");
    assert_eq!(first["watermark_to"], moved.as_str());
    let statements = pipeline.cloud.statements();
    for literal in [
        "TIMESTAMP '2018-04-01 00:00:00'".to_owned(),
        format!("TIMESTAMP '{moved}'"),
    ] {
        assert!(statements[0].contains(&literal), "{}", statements[0]);
    }
    // Tried again with its values by hand, as an operator writes them, it still reads on.
    retried_by_hand(&pipeline).await;
    // A run that fails moves nothing, and the next one reads its range again.
    set(&pipeline, "events", "2018-05-01 00:00:00").await;
    pipeline
        .cloud
        .answer_once("FROM events", Answer::failed_by_user("no"));
    let failed = run(&pipeline, "events", &["--again"]).await;
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_eq!(watermark(&pipeline, "events").await, "2018-05-01 00:00:00");
    answer(&pipeline, "events", &[("3", "2018-05-01 00:00:00.000")]);
    // The first run has read there: without --again its rows would be there twice.
    let refused = pipeline.etl(&["run", "events"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("has loaded at from"),
        "{}",
        refused.stderr
    );
    let second = run(&pipeline, "events", &["--again"]).await;
    assert_eq!(second["parameters"]["since"], "2018-05-01 00:00:00");
    assert_eq!(pipeline.number("SELECT count(*) FROM events").await, 3);
    // A range that is given by hand moves nothing.
    let before = watermark(&pipeline, "events").await;
    let by_hand = ["--set", "since=2018-03-01", "--set", "until=2018-04-01"];
    let by_hand = run(&pipeline, "events", &by_hand).await;
    assert_eq!(
        (&by_hand["state"], &by_hand["watermark_from"]),
        (&"completed".into(), &Value::Null)
    );
    assert_eq!(watermark(&pipeline, "events").await, before);
    nothing_is_new(&pipeline).await;
}

/// A job with another target has read nothing, however new its rows are.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_another_target_is_refused_before_nothing_is_new() {
    let pipeline = Pipeline::start().await;
    pipeline.job("events", APPEND, events(&[]));
    set(&pipeline, "events", "9999-01-01 00:00:00").await;
    pipeline.write_job(
        "events",
        &APPEND.replace("table = \"events\"", "table = \"others\""),
    );
    let sql = "SELECT * FROM events WHERE at >= :since AND at < :until";
    std::fs::write(pipeline.jobs.path().join("events.sql"), sql).unwrap();
    let refused = pipeline.etl(&["run", "events"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("is public.others"),
        "{}",
        refused.stderr
    );
    // A range by hand without a value in it is a mistake.
    let swapped = [
        "run",
        "events",
        "--set",
        "since=2018-04-02",
        "--set",
        "until=2018-04-01",
    ];
    let refused = pipeline.etl(&swapped).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("has no value in it"),
        "{}",
        refused.stderr
    );
}

/// Before the range would have a second.
async fn nothing_is_new(pipeline: &Pipeline) {
    set(pipeline, "events", "9999-01-01 00:00:00").await;
    let queries = pipeline.cloud.started().len();
    let nothing = pipeline.etl(&["run", "events", "--follow"]).await;
    assert_eq!(nothing.code, Some(0), "{}", nothing.stderr);
    assert!(
        nothing.stderr.contains("nothing is new yet"),
        "{}",
        nothing.stderr
    );
    assert_eq!(pipeline.cloud.started().len(), queries);
}

async fn retried_by_hand(pipeline: &Pipeline) {
    set(pipeline, "events", "2018-04-20 00:00:00").await;
    pipeline
        .cloud
        .answer_once("FROM events", Answer::failed_by_user("no"));
    let failed = run(pipeline, "events", &["--run-id", "by-hand", "--again"]).await;
    let value = |name: &str| format!("{name}={}", failed["parameters"][name].as_str().unwrap());
    let (since, until) = (value("since"), value("until"));
    let values = [
        "--run-id", "by-hand", "--retry", "--again", "--set", &since, "--set", &until,
    ];
    let done = run(pipeline, "events", &values).await;
    assert_eq!(done["state"], "completed", "{done}");
    assert_eq!(
        done["parameters"]["until"],
        watermark(pipeline, "events").await.as_str()
    );
}

/// `BETWEEN` in the SQL would load the rows at the end of a range with this run and with the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_outside_of_the_range_is_rejected() {
    let pipeline = Pipeline::start().await;
    pipeline.job("events", APPEND, events(&[]));
    set(&pipeline, "events", "2018-04-02 00:00:00").await;
    let rows = [
        ("1", "2018-04-01 23:59:59.999"),
        ("2", "2018-04-02 00:00:00.000"),
        ("3", "2099-01-01 00:00:00.000"),
    ];
    answer(&pipeline, "events", &rows);
    let run = run(&pipeline, "events", &[]).await;
    let counts = (&run["rows_loaded"], &run["rows_rejected"]);
    assert_eq!(counts, (&1.into(), &2.into()), "{run}");
    let rejected = "SELECT count(*) FROM etl.rejected_rows WHERE rule = 'watermark'";
    assert_eq!(pipeline.number(rejected).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_a_run_reads_from_the_latest_value_on() {
    let pipeline = Pipeline::start().await;
    let rule = "[[columns]]\nsource = \"n\"\nrules = [{ max = 8 }]\n";
    pipeline.job("latest", &format!("{UPSERT}{rule}"), events(&[]));
    // The latest value is of a row that is rejected, and one of the future does not count.
    let rows = [
        ("1", "2018-04-02 10:00:00.123"),
        ("9", "2018-04-02 12:00:00.500"),
        ("2", "2018-04-02 11:00:00.000"),
    ];
    answer(&pipeline, "latest", &rows);
    let first = run(&pipeline, "latest", &[]).await;
    assert_eq!(first["state"], "completed", "{first}");
    assert_eq!(
        watermark(&pipeline, "latest").await,
        "2018-04-02 12:00:00.5"
    );
    answer(&pipeline, "latest", &[("1", "2018-04-02 12:00:00.500")]);
    let second = run(&pipeline, "latest", &[]).await;
    assert_eq!(
        second["parameters"]["since"], "2018-04-02 09:00:00.5",
        "less the lag"
    );
    assert_eq!(
        watermark(&pipeline, "latest").await,
        "2018-04-02 12:00:00.5"
    );
    // Nothing was new: it stays.
    answer(&pipeline, "latest", &[]);
    run(&pipeline, "latest", &[]).await;
    assert_eq!(
        watermark(&pipeline, "latest").await,
        "2018-04-02 12:00:00.5"
    );
    answer(&pipeline, "latest", &[("3", "2999-01-01 00:00:00.000")]);
    let future = run(&pipeline, "latest", &[]).await;
    assert_eq!(future["state"], "completed", "{future}");
    assert!(
        watermark(&pipeline, "latest").await.as_str() < "2100",
        "not beyond the request"
    );
    let reset = pipeline
        .etl(&["watermark", "latest", "--reset", "--why", "a test"])
        .await;
    assert_eq!(reset.code, Some(0), "{}", reset.stderr);
    assert_eq!(watermark(&pipeline, "latest").await, "2018-04-01 00:00:00");
    let jobs = json(&pipeline, &["jobs"]).await;
    assert_eq!(jobs[0]["watermark"], "2018-04-01 00:00:00");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_at_a_time_reads_on_and_what_a_former_one_left_is_taken_back() {
    let pipeline = Pipeline::start().await;
    pipeline.job("events", APPEND, events(&[]));
    pipeline
        .cloud
        .answer_once("FROM events", Answer::queued_for_ever());
    let first = pipeline.etl(&["run", "events", "--run-id", "first"]).await;
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    for command in [
        &["run", "events"][..],
        &["plan", "events"],
        &["watermark", "events", "--reset", "--why", "x"],
    ] {
        let refused = pipeline.etl(command).await;
        assert_eq!(refused.code, Some(1), "{command:?} {}", refused.stdout);
        let said = refused.stderr + &refused.stdout;
        assert!(
            said.contains("the run first of the job events"),
            "{command:?} {said}"
        );
    }
    assert_eq!(pipeline.etl(&["cancel", "first"]).await.code, Some(0));
    // As if it had been cancelled after it had loaded rows.
    answer(&pipeline, "events", &[("1", "2018-04-01 00:00:00.000")]);
    let second = pipeline.run("events", "second").await;
    assert_eq!(second["rows_loaded"], 1);
    let undone = "DELETE FROM etl.watermarks; UPDATE etl.runs SET state = 'cancelled' WHERE run_id = 'second'";
    sqlx::raw_sql(undone)
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    answer(
        &pipeline,
        "events",
        &[
            ("1", "2018-04-01 00:00:00.000"),
            ("2", "2018-04-01 00:00:00.000"),
        ],
    );
    let third = pipeline
        .etl(&["run", "events", "--run-id", "third", "--follow"])
        .await;
    assert_eq!(third.code, Some(0), "{}", third.stderr);
    assert!(
        third
            .stderr
            .contains("removing 1 row that the run second has left"),
        "{}",
        third.stderr
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM events").await, 2);
    // Its range was read: the cancelled run cannot be tried again.
    let retried = pipeline
        .etl(&["run", "events", "--run-id", "second", "--retry"])
        .await;
    assert_eq!(retried.code, Some(1), "{}", retried.stdout);
    assert!(
        retried.stderr.contains("the run third has moved it"),
        "{}",
        retried.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_does_not_grow_fails_the_run_before_its_first_batch() {
    let pipeline = Pipeline::start().await;
    pipeline.job("events", APPEND, events(&[]));
    let text = ResultSet::table(
        &[("n", "bigint"), ("at", "varchar")],
        &[&[Some("1"), Some("x")]],
    );
    pipeline
        .cloud
        .answer_once("FROM events", Answer::rows(text));
    let run = run(&pipeline, "events", &[]).await;
    assert_eq!(run["state"], "failed", "{run}");
    let why = run["failure"].as_str().unwrap();
    assert!(
        why.contains("varchar") && why.contains("timestamp"),
        "{why}"
    );
}
