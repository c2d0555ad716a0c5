//! A first job: `etl init` writes it for a query, `etl validate` finds nothing wrong with it, and it loads.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;
use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;
use testkit::process::Finished;

const SQL: &str = "SELECT * FROM visits WHERE dt = :day\n";

/// A file with a query, outside the folder of the jobs.
fn query_file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("visits.sql");
    fs::write(&file, SQL).unwrap();
    (folder, file)
}

/// `etl init --from-query FILE`, with the query's parameter.
async fn init(pipeline: &Pipeline, file: &str, more: &[&str]) -> Finished {
    let query = ["init", "--from-query", file, "--database", "d"];
    pipeline.etl(&[&query[..], more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn job_of_a_query_is_valid_and_loads() {
    let pipeline = Pipeline::start().await;
    let answer = Answer::rows(sample::clicks(1_000));
    pipeline.cloud.answer("FROM visits", answer);
    let (_folder, file) = query_file();
    let file = file.to_str().unwrap();
    let made = init(
        &pipeline,
        file,
        &["--key", "url", "--set", "day=2018-04-02"],
    )
    .await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    for next in ["etl validate visits --connected", "etl run visits --follow"] {
        assert!(made.stdout.contains(next), "{next}: {}", made.stdout);
    }
    let written = fs::read_to_string(pipeline.jobs.path().join("visits.toml")).unwrap();
    for line in [
        "#:schema ./job.schema.json\n",
        "day = { type = \"date\", default = \"2018-04-02\" }\n",
        "mode  = \"upsert\" ",
        "key   = [\"url\"]\n",
        "source = \"country\"\ntype   = \"text\"    # of varchar\n",
        "source = \"visits\"\ntype   = \"bigint\"    # of bigint\n",
        "# rules = [{ required = true }]\n",
    ] {
        assert!(written.contains(line), "{line}: {written}");
    }
    let asked = pipeline.cloud.statements();
    assert!(asked[0].ends_with("LIMIT 0"), "{asked:?}");
    assert!(asked[0].contains("dt = DATE '2018-04-02'"), "{asked:?}");

    for connected in [&[][..], &["--connected"]] {
        let valid = pipeline.etl(&[&["validate"], connected].concat()).await;
        assert_eq!(valid.code, Some(0), "{}{}", valid.stdout, valid.stderr);
        assert!(!valid.stdout.contains("WRONG"), "{}", valid.stdout);
    }
    let run = pipeline.run("visits", "first").await;
    assert_eq!(run["rows_loaded"], 1_000, "{run}");
    let day = "SELECT count(*) FROM etl.runs WHERE parameters->>'day' = '2018-04-02'";
    assert_eq!(pipeline.number(day).await, 1);
    assert_eq!(pipeline.number("SELECT count(*) FROM visits").await, 1_000);
    // What is there is not overwritten.
    let again = init(&pipeline, file, &["--set", "day=2018-04-02"]).await;
    assert_eq!(again.code, Some(2), "{}", again.stdout);
    assert!(
        again.stderr.contains("choose another name"),
        "{}",
        again.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn query_that_cannot_be_answered_leaves_no_file() {
    let pipeline = Pipeline::without_services().await;
    let (_folder, file) = query_file();
    let file = file.to_str().unwrap();
    let missing = init(&pipeline, file, &[]).await;
    assert_eq!(missing.code, Some(2), "{}", missing.stdout);
    assert!(
        missing.stderr.contains("--set day=2018-04-02"),
        "{}",
        missing.stderr
    );
    let unknown = init(&pipeline, file, &["--set", "day=1", "--set", "dya=1"]).await;
    assert_eq!(unknown.code, Some(2), "{}", unknown.stdout);
    assert!(
        unknown.stderr.contains("no parameter :dya"),
        "{}",
        unknown.stderr
    );
    assert_eq!(pipeline.cloud.started().len(), 0, "nothing was sent");

    let why = "COLUMN_NOT_FOUND: Column 'dt' cannot be resolved";
    let answer = Answer::failed_by_user(why);
    pipeline.cloud.answer("FROM visits", answer);
    let wrong = init(&pipeline, file, &["--set", "day=2018-04-02", "--json"]).await;
    assert_eq!(wrong.code, Some(1), "{}", wrong.stderr);
    let said: Value = serde_json::from_str(&wrong.stdout).unwrap();
    assert!(
        said["error"]
            .as_str()
            .is_some_and(|said| said.contains(why)),
        "{said}"
    );
    // A column that Athena does not return cannot be the key.
    let answer = Answer::rows(sample::clicks(1));
    pipeline.cloud.answer("FROM visits", answer);
    let key = init(
        &pipeline,
        file,
        &["--key", "ulr", "--set", "day=2018-04-02"],
    )
    .await;
    assert_eq!(key.code, Some(1), "{}", key.stdout);
    assert!(
        key.stderr.contains("did you mean \"url\"?"),
        "{}",
        key.stderr
    );
    assert_eq!(fs::read_dir(pipeline.jobs.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn job_without_a_query_is_valid_as_it_is_written() {
    let pipeline = Pipeline::without_services().await;
    let made = pipeline.etl(&["init", "daily"]).await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    assert!(made.stdout.contains("Write the query"), "{}", made.stdout);
    let valid = pipeline.etl(&["validate", "daily"]).await;
    assert_eq!(valid.code, Some(0), "{}{}", valid.stdout, valid.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_needs_athena_says_where_its_program_is_looked_for() {
    let pipeline = Pipeline::start().await;
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(1),
    );
    let (folder, file) = query_file();
    let file = file.to_str().unwrap();
    let (empty, set) = (folder.path().to_str().unwrap(), "--set=day=2018-04-02");
    let init = ["init", "visits", "--from-query", file, set];
    for arguments in [&["validate", "--connected"][..], &init] {
        let etl = || {
            let arguments = arguments.iter();
            arguments.fold(pipeline.service("etl"), |etl, one| etl.arg(one))
        };
        let absent = etl()
            .without("ETL_EXTRACTOR")
            .env("PATH", empty)
            .run()
            .await;
        assert_eq!(absent.code, Some(1), "{}", absent.stdout);
        assert!(
            absent.stderr.contains("not in PATH") && absent.stderr.contains("set ETL_EXTRACTOR"),
            "{}",
            absent.stderr
        );
        let wrong = etl().env("ETL_EXTRACTOR", "/no/extractor").run().await;
        assert_eq!(wrong.code, Some(2), "{}", wrong.stdout);
        assert!(
            wrong.stderr.contains("ETL_EXTRACTOR is /no/extractor"),
            "{}",
            wrong.stderr
        );
    }
}
