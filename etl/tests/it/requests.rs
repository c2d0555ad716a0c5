//! Which requests of a run are accepted, which are refused, and how `etl run --follow` ends.

use testkit::cloud::{Answer, QueryState, sample};
use testkit::pipeline::Pipeline;

const APPEND: &str = "[parameters]\nfrom = { type = \"date\", default = \"2018-04-02\" }\n[target]\ntable = \"clicks\"\n";

const UPSERT: &str = "[target]\ntable = \"latest\"\nmode = \"upsert\"\nkey = [\"url\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn equal_request_is_refused_until_the_open_run_is_cancelled() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", APPEND, sample::clicks(10));
    pipeline
        .cloud
        .answer_once("FROM clicks", Answer::queued_for_ever());
    let first = pipeline.etl(&["run", "clicks", "--run-id", "first"]).await;
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    for again in [&["run", "clicks"][..], &["run", "clicks", "--again"]] {
        let refused = pipeline.etl(again).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
        for word in ["the run first", "etl cancel first", "nothing was sent"] {
            assert!(refused.stderr.contains(word), "{}", refused.stderr);
        }
    }
    // An equal name is the same request; other parameters make another one.
    let same = pipeline.etl(&["run", "clicks", "--run-id", "first"]).await;
    assert_eq!(same.code, Some(0), "{}", same.stderr);
    let other = pipeline
        .etl(&["run", "clicks", "--set", "from=2018-04-03", "--follow"])
        .await;
    assert_eq!(other.code, Some(0), "{}", other.stderr);
    let cancelled = pipeline.etl(&["cancel", "first"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    pipeline.run("clicks", "second").await;
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn completed_append_is_repeated_only_with_again() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", APPEND, sample::clicks(10));
    pipeline.job("latest", UPSERT, sample::clicks(10));
    pipeline.run("clicks", "first").await;
    let refused = pipeline.etl(&["run", "clicks", "--follow"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    for word in ["first", "--again", "nothing was sent"] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    assert_eq!(pipeline.cloud.started().len(), 1, "no query");
    let plan = pipeline.etl(&["plan", "clicks"]).await;
    assert_eq!(plan.code, Some(1), "{}", plan.stdout);
    assert!(plan.stdout.contains("--again"), "{}", plan.stdout);
    // Another version of the job may return the same rows or additional ones.
    let column = "[[columns]]\nsource = \"url\"\nrules = [{ not_empty = true }]\n";
    pipeline.write_job("clicks", &format!("{APPEND}{column}"));
    let refused = pipeline.etl(&["run", "clicks"]).await;
    assert!(
        refused.stderr.contains("older version"),
        "{}",
        refused.stderr
    );
    let again = pipeline
        .etl(&["run", "clicks", "--again", "--follow"])
        .await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20);
    // An upsert duplicates no row, so its request is not refused.
    for _ in 0..2 {
        let done = pipeline.etl(&["run", "latest", "--follow"]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
    // A cancelled or failed run left no rows that a new run would duplicate.
    pipeline
        .cloud
        .answer_once("FROM clicks", Answer::failed_by_user("no"));
    let failing = ["run", "clicks", "--set", "from=2018-05-01", "--follow"];
    assert_eq!(pipeline.etl(&failing).await.code, Some(1));
    assert_eq!(pipeline.etl(&failing).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn request_with_other_spellings_of_the_same_values_is_the_same_request() {
    let pipeline = Pipeline::start().await;
    let parameters = "[parameters]\nn = { type = \"integer\", default = 7 }\nx = { type = \"decimal\", default = \"1.5\" }\nat = { type = \"timestamp\", default = \"2018-04-02 00:00:00\" }\n[target]\ntable = \"clicks\"\n";
    pipeline.job("clicks", parameters, sample::clicks(10));
    let sql = pipeline.jobs.path().join("clicks.sql");
    std::fs::write(sql, "SELECT :n, :x, :at FROM clicks").unwrap();
    pipeline.run("clicks", "first").await;
    for set in ["n=07", "x=1.50", "at=2018-04-02T00:00:00", "at=2018-04-02"] {
        let refused = pipeline.etl(&["run", "clicks", "--set", set]).await;
        assert_eq!(refused.code, Some(1), "{set}: {}", refused.stdout);
        assert!(
            refused.stderr.contains("the run first has loaded the same"),
            "{set}: {}",
            refused.stderr
        );
        let named = [
            "run", "clicks", "--set", set, "--run-id", "first", "--follow",
        ];
        let known = pipeline.etl(&named).await;
        assert_eq!(known.code, Some(0), "{set}: {}", known.stderr);
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 10);
    assert_eq!(
        pipeline.cloud.statements(),
        ["SELECT 7, DECIMAL '1.5', TIMESTAMP '2018-04-02 00:00:00' FROM clicks"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_equal_requests_start_one_run() {
    let pipeline = Pipeline::without_services().await;
    let mut loader = pipeline.service("loader").start().await;
    assert_eq!(
        loader.terminate(std::time::Duration::from_secs(30)).await,
        Some(0)
    );
    pipeline.job("clicks", APPEND, sample::clicks(10));
    let (one, two, three, four) = tokio::join!(
        pipeline.etl(&["run", "clicks"]),
        pipeline.etl(&["run", "clicks"]),
        pipeline.etl(&["run", "clicks", "--run-id", "mine"]),
        pipeline.etl(&["run", "clicks", "--run-id", "mine"]),
    );
    let answers = [one, two, three, four];
    let taken = answers.iter().filter(|done| done.code == Some(0)).count();
    let is_mine = pipeline
        .number("SELECT count(*) FROM etl.runs WHERE run_id = 'mine'")
        .await;
    // Two requests for `mine` are one request.
    assert_eq!(taken, if is_mine == 1 { 2 } else { 1 }, "{answers:?}");
    assert!(
        answers
            .iter()
            .all(|done| done.code == Some(0) || done.stderr.contains("of the same job")),
        "{answers:?}"
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 1);
    let tasks: std::collections::BTreeSet<_> = pipeline
        .vhost
        .take_all("etl.extract")
        .await
        .iter()
        .map(|task| task.message_id().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(tasks.len(), 1, "{tasks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_ends_at_its_timeout_and_the_run_continues() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", APPEND, sample::clicks(10));
    pipeline
        .cloud
        .answer_once("FROM clicks", Answer::queued_for_ever());
    let follow = ["run", "clicks", "--run-id", "slow", "--follow"];
    let waited = pipeline
        .etl(&[&follow[..], &["--wait-timeout", "1s"]].concat())
        .await;
    assert_eq!(waited.code, Some(1), "{}", waited.stdout);
    for word in ["slow is still", "after 1s", "goes on"] {
        assert!(waited.stderr.contains(word), "{}", waited.stderr);
    }
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.runs WHERE finished_at IS NULL")
            .await,
        1
    );
    assert!(
        pipeline
            .cloud
            .states()
            .iter()
            .all(|state| !matches!(state, QueryState::Cancelled))
    );
    let usage_error = pipeline
        .etl(&["run", "clicks", "--wait-timeout", "1s"])
        .await;
    assert_eq!(
        usage_error.code,
        Some(2),
        "without --follow: {}",
        usage_error.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_batch_size_is_refused_with_its_variable() {
    let pipeline = Pipeline::start().await;
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(1),
    );
    for (name, value, range) in [
        ("ETL_BATCH_ROWS", "0", "from 1 to 20000"),
        ("ETL_BATCH_ROWS", "20001", "from 1 to 20000"),
        ("ETL_BATCH_BYTES", "0", "from 1 to 4194304"),
        ("ETL_BATCH_BYTES", "5000000000", "from 1 to 4194304"),
    ] {
        let ask = pipeline
            .service("etl")
            .env(name, value)
            .arg("run")
            .arg("clicks");
        let done = ask.run().await;
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(
            done.stderr.contains(name) && done.stderr.contains(range),
            "{}",
            done.stderr
        );
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_variable_is_logged_without_its_value() {
    let pipeline = Pipeline::without_services().await;
    let misspelt = |name: &str| pipeline.service(name).env("ETL_DATABSE_URL", "secret");
    let migrated = misspelt("loader").arg("migrate").run().await;
    let listed = misspelt("etl").arg("runs").run().await;
    let right = pipeline.etl(&["runs"]).await;
    for done in [&migrated, &listed] {
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let said = &done.stderr;
        assert!(
            said.contains("ETL_DATABSE_URL is no setting")
                && said.contains("is ETL_DATABASE_URL meant?")
                && !said.contains("secret"),
            "{said}"
        );
    }
    assert_eq!((right.code, right.stderr.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn run_that_loads_none_of_its_rows_is_complete_and_no_success() {
    let pipeline = Pipeline::start().await;
    let job = "[parameters]\nfrom = { type = \"date\", default = \"2018-04-02\" }\nto = { type = \"date\", default = \"2018-04-02\" }\n[target]\ntable = \"clicks\"\n";
    let rule = "[[columns]]\nsource = \"url\"\nrules = [{ one_of = [\"nothing\"] }]\n";
    pipeline.job("clicks", &format!("{job}{rule}"), sample::clicks(10));
    let follow = ["run", "clicks", "--run-id", "none", "--follow"];
    let backfill = [
        "backfill",
        "clicks",
        "--from",
        "2018-05-01",
        "--to",
        "2018-05-02",
        "--every",
        "1d",
    ];
    for command in [&follow[..], &backfill] {
        let done = pipeline.etl(command).await;
        assert_eq!(done.code, Some(1), "{}\n{}", done.stdout, done.stderr);
        for word in ["0 of 10 rows", "allow_all_rejected = true"] {
            assert!(done.stderr.contains(word), "{}", done.stderr);
        }
        assert!(done.stdout.contains("completed"), "{}", done.stdout);
    }
    pipeline.assert_reconciled("none").await;
    pipeline.write_job("clicks", &format!("{job}allow_all_rejected = true\n{rule}"));
    let from = ["--set", "from=2018-06-01", "--follow"];
    let allowed = pipeline
        .etl(&[&["run", "clicks"][..], &from].concat())
        .await;
    assert_eq!(allowed.code, Some(0), "{}", allowed.stderr);
    assert!(!allowed.stderr.contains("0 of 10"), "{}", allowed.stderr);
}
