//! A range of days, one window at a time: each day once, and an interrupted backfill continues.

use std::collections::BTreeMap;

use testkit::TIMEOUT;
use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;
use testkit::wait_until;

const JOB: &str = "[source]\ndatabase = \"d\"\nsql = \"clicks.sql\"\n[parameters]\nfrom = { type = \"date\" }\nto = { type = \"date\" }\n[target]\ntable = \"clicks\"\n";

const APRIL: [&str; 8] = [
    "backfill",
    "clicks",
    "--from",
    "2018-04-01",
    "--to",
    "2018-05-01",
    "--every",
    "1d",
];

async fn pipeline() -> Pipeline {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(100));
    std::fs::write(
        pipeline.jobs.path().join("clicks.sql"),
        "SELECT * FROM clicks WHERE dt BETWEEN :from AND :to",
    )
    .unwrap();
    pipeline
}

fn with<'a>(command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [command, more].concat()
}

/// The number of queries for each day.
fn days(pipeline: &Pipeline) -> BTreeMap<String, usize> {
    let mut days = BTreeMap::new();
    for sql in pipeline.cloud.statements() {
        let bounds: Vec<_> = sql
            .split("DATE '")
            .skip(1)
            .map(|rest| &rest[..10])
            .collect();
        assert_eq!(bounds[0], bounds[1], "each day is one window: {sql}");
        *days.entry(bounds[0].to_owned()).or_default() += 1;
    }
    days
}

#[tokio::test(flavor = "multi_thread")]
async fn backfill_interrupted_by_kill_9_requests_each_day_once() {
    let pipeline = pipeline().await;
    let arguments = with(&APRIL, &["--parallel", "3"]);
    let start = || {
        let command = pipeline.service("etl");
        arguments
            .iter()
            .fold(command, |command, argument| command.arg(argument))
            .spawn()
    };
    for done in [4, 11] {
        let mut backfill = start();
        wait_until("some windows to be done", TIMEOUT, async || {
            pipeline
                .number("SELECT count(*) FROM etl.runs WHERE state = 'completed'")
                .await
                >= done
        })
        .await;
        backfill.kill9().await;
        let open = "SELECT count(*) FROM etl.runs WHERE finished_at IS NULL";
        assert!(
            pipeline.number(open).await <= 3,
            "more than three at a time"
        );
    }
    let asked = pipeline.number("SELECT count(*) FROM etl.runs").await;
    assert!(asked < 30, "it was interrupted: {asked}");
    let done = pipeline.etl(&arguments).await;
    assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
    assert!(
        done.stdout
            .contains("30 of 30 windows loaded: 3,000 rows extracted, 3,000 loaded"),
        "{}",
        done.stdout
    );
    let days = days(&pipeline);
    assert_eq!(days.len(), 30);
    assert_eq!(
        (
            days.keys().next().unwrap().as_str(),
            days.keys().last().unwrap().as_str()
        ),
        ("2018-04-01", "2018-04-30")
    );
    assert!(days.values().all(|times| *times == 1), "{days:?}");
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 3_000);
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 30);
    // The same command changes nothing.
    let ledger = pipeline.ledger().await;
    let again = pipeline.etl(&with(&arguments, &["--json"])).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    let json: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 30);
    assert_eq!(pipeline.ledger().await, ledger);
    assert_eq!(pipeline.cloud.started().len(), 30, "thirty queries");
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn failed_window_stops_the_backfill_and_is_requested_again_on_demand() {
    let pipeline = pipeline().await;
    pipeline.cloud.answer_once(
        "DATE '2018-04-03'",
        Answer::failed_by_user("SYNTAX_ERROR: no"),
    );
    let five = [
        "backfill",
        "clicks",
        "--from",
        "2018-04-01",
        "--to",
        "2018-04-06",
        "--every",
        "1d",
    ];
    let failed = pipeline.etl(&five).await;
    assert_eq!(failed.code, Some(1), "{}", failed.stdout);
    for word in ["SYNTAX_ERROR", "--retry", "clicks-20180403-"] {
        assert!(failed.stderr.contains(word), "{}", failed.stderr);
    }
    assert!(failed.stdout.contains("pending"), "{}", failed.stdout);
    assert!(
        failed.stdout.contains("2 of 5 windows loaded"),
        "{}",
        failed.stdout
    );
    // A failed window stops the backfill before the next one.
    assert_eq!(pipeline.etl(&five).await.code, Some(1));
    assert_eq!(pipeline.cloud.started().len(), 3);
    let going = pipeline.etl(&with(&five, &["--keep-going"])).await;
    assert_eq!(going.code, Some(1));
    assert!(
        going.stdout.contains("4 of 5 windows loaded"),
        "{}",
        going.stdout
    );
    let retried = pipeline.etl(&with(&five, &["--retry"])).await;
    assert_eq!(retried.code, Some(0), "{}", retried.stderr);
    assert_eq!(
        pipeline.number("SELECT count(*) FROM etl.runs JOIN etl.attempts USING (run_id) WHERE run_id LIKE 'clicks-20180403-%' AND runs.state = 'completed' AND attempts.state = 'failed'").await,
        1
    );
    assert_eq!(pipeline.etl(&with(&five, &["--retry"])).await.code, Some(0));
    assert_eq!(pipeline.cloud.started().len(), 6);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 500);
    // A day that another run has appended is not appended again.
    let day = [
        "--set",
        "from=2018-04-06",
        "--set",
        "to=2018-04-06",
        "--follow",
    ];
    assert_eq!(
        pipeline.etl(&with(&["run", "clicks"], &day)).await.code,
        Some(0)
    );
    let wider = [
        "backfill",
        "clicks",
        "--from",
        "2018-04-05",
        "--to",
        "2018-04-08",
        "--every",
        "1d",
    ];
    let wider = pipeline.etl(&wider).await;
    assert_eq!(wider.code, Some(0), "{}", wider.stderr);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn backfill_with_another_spelling_of_a_value_is_the_same_backfill() {
    let pipeline = pipeline().await;
    let job = JOB.replace("[target]", "n = { type = \"decimal\" }\n[target]");
    // An upsert may be repeated: the names of the runs alone tell that they are known.
    let mode = "\nmode = \"upsert\"\nkey = [\"url\"]\n";
    pipeline.write_job("clicks", &(job + mode));
    let two = [
        "backfill",
        "clicks",
        "--from",
        "2018-04-01",
        "--to",
        "2018-04-03",
        "--every",
        "1d",
    ];
    for n in ["n=1.5", "n=01.50"] {
        let done = pipeline.etl(&with(&two, &["--set", n])).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_weeks_and_months_cover_every_day() {
    let pipeline = pipeline().await;
    let weeks = pipeline.etl(&[
        "backfill",
        "clicks",
        "--from",
        "2018-04-01",
        "--to",
        "2018-04-17",
        "--every",
        "1w",
    ]);
    assert_eq!(weeks.await.code, Some(0));
    let exclusive = pipeline.etl(&[
        "backfill",
        "clicks",
        "--from",
        "2018-01-01",
        "--to",
        "2018-03-01",
        "--every",
        "1mo",
        "--to-is",
        "exclusive",
    ]);
    assert_eq!(exclusive.await.code, Some(0));
    let bounds: Vec<String> = pipeline
        .cloud
        .statements()
        .iter()
        .map(|sql| sql.split_once("BETWEEN ").unwrap().1.replace("DATE ", ""))
        .collect();
    assert_eq!(
        bounds,
        [
            "'2018-04-01' AND '2018-04-07'",
            "'2018-04-08' AND '2018-04-14'",
            "'2018-04-15' AND '2018-04-16'",
            "'2018-01-01' AND '2018-02-01'",
            "'2018-02-01' AND '2018-03-01'",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_backfill_is_refused_before_anything_is_sent() {
    let pipeline = pipeline().await;
    let range = |from, to| {
        [
            "backfill", "clicks", "--every", "1d", "--from", from, "--to", to,
        ]
    };
    let april = range("2018-04-01", "2018-04-03");
    for (arguments, code, word) in [
        (range("2018-04-03", "2018-04-01").to_vec(), 2, "has no day"),
        (range("2018-04-01", "2018-04-01").to_vec(), 2, "has no day"),
        (range("2018-04-31", "2018-05-01").to_vec(), 2, "2018-04-31"),
        (with(&april, &["--param-names", "since,to"]), 2, "since"),
        (with(&april, &["--set", "to=2018-04-01"]), 2, "\"to\""),
        (with(&april, &["--set", "x=1"]), 2, "\"x\""),
        (with(&april, &["--parallel", "0"]), 2, "parallel"),
    ] {
        let refused = pipeline.etl(&arguments).await;
        assert_eq!(
            refused.code,
            Some(code),
            "{arguments:?}: {}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains(word),
            "{arguments:?}: {}",
            refused.stderr
        );
        assert_eq!(refused.stdout, "");
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
    assert!(pipeline.cloud.started().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_equal_backfill_is_refused() {
    let pipeline = pipeline().await;
    pipeline
        .cloud
        .answer("FROM clicks", Answer::queued_for_ever());
    let two = [
        "backfill",
        "clicks",
        "--from",
        "2018-04-01",
        "--to",
        "2018-04-03",
        "--every",
        "1d",
    ];
    let first = two
        .iter()
        .fold(pipeline.service("etl"), |command, argument| {
            command.arg(argument)
        })
        .spawn();
    wait_until("the first window", TIMEOUT, async || {
        pipeline.number("SELECT count(*) FROM etl.runs").await == 1
    })
    .await;
    let second = pipeline.etl(&two).await;
    assert_eq!(second.code, Some(1), "{}", second.stdout);
    assert!(
        second.stderr.contains("another `etl backfill`"),
        "{}",
        second.stderr
    );
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn window_that_is_tried_again_has_each_row_once() {
    let pipeline = pipeline().await;
    let three = [
        "backfill",
        "clicks",
        "--from",
        "2018-04-01",
        "--to",
        "2018-04-04",
        "--every",
        "1d",
    ];
    let loaded = pipeline.etl(&three).await;
    assert_eq!(loaded.code, Some(0), "{}", loaded.stderr);
    // As if it had failed after it had loaded rows; and another had been cancelled so.
    let fail =
        "UPDATE etl.runs SET state = 'failed', failure = 'x' WHERE run_id LIKE 'clicks-20180402-%'";
    let cancel = "UPDATE etl.runs SET state = 'cancelled' WHERE run_id LIKE 'clicks-20180403-%'";
    for statement in [fail, cancel] {
        let ended = sqlx::query(statement).execute(&pipeline.database.pool);
        assert_eq!(ended.await.unwrap().rows_affected(), 1);
    }
    let retried = pipeline
        .etl(&with(&three, &["--retry", "--keep-going"]))
        .await;
    assert_eq!(retried.code, Some(0), "{}", retried.stderr);
    assert!(
        retried
            .stderr
            .contains("removing 100 rows that the run clicks-20180402-"),
        "{}",
        retried.stderr
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 300);
    let runs = "SELECT count(DISTINCT etl.run_no(_batch)) FROM clicks";
    assert_eq!(pipeline.number(runs).await, 3);
    // A run of another name is a person's matter.
    let cancel = "UPDATE etl.runs SET state = 'cancelled', run_id = run_id WHERE run_id LIKE 'clicks-20180401-%'";
    sqlx::query(cancel)
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let day = [
        "run",
        "clicks",
        "--set",
        "from=2018-04-01",
        "--set",
        "to=2018-04-01",
    ];
    let refused = pipeline.etl(&day).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("--retry`"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_an_older_job_are_named_and_requested_again_on_demand() {
    let pipeline = pipeline().await;
    let report = "[parameters]\nfrom = { type = \"date\" }\nto = { type = \"date\" }\n[target]\ntable = \"latest\"\nmode = \"upsert\"\nkey = [\"url\"]\n";
    pipeline.job("latest", report, sample::clicks(10));
    let two = [
        "backfill",
        "latest",
        "--from",
        "2018-04-01",
        "--to",
        "2018-04-03",
        "--every",
        "1d",
    ];
    let loaded = pipeline.etl(&two).await;
    assert_eq!(loaded.code, Some(0), "{}", loaded.stderr);
    let column = "[[columns]]\nsource = \"url\"\nrules = [{ not_empty = true }]\n";
    pipeline.write_job("latest", &format!("{report}{column}"));
    let before = pipeline.cloud.started().len();
    let same = pipeline.etl(&with(&two, &["--retry"])).await;
    assert_eq!(same.code, Some(0), "{}", same.stderr);
    for word in ["2 windows were loaded", "2018-04-01, 2018-04-02", "--all"] {
        assert!(same.stderr.contains(word), "{word}: {}", same.stderr);
    }
    assert_eq!(
        pipeline.cloud.started().len(),
        before,
        "nothing is asked again"
    );
    for (option, queries) in [("--all", 2), ("--all", 0), ("--again", 2)] {
        let before = pipeline.cloud.started().len();
        let again = pipeline.etl(&with(&two, &[option])).await;
        assert_eq!(again.code, Some(0), "{option}: {}", again.stderr);
        let asked = pipeline.cloud.started().len() - before;
        assert_eq!(asked, queries, "{option}: {}", again.stdout);
    }
    // A window without rows is loaded, and named.
    pipeline
        .cloud
        .answer("FROM latest", Answer::rows(sample::clicks(0)));
    let empty = pipeline.etl(&with(&two, &["--again"])).await;
    assert_eq!(empty.code, Some(0), "{}", empty.stderr);
    let word = "Athena returned no rows for 2018-04-01, 2018-04-02";
    assert!(empty.stderr.contains(word), "{}", empty.stderr);
}
