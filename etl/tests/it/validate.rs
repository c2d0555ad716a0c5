//! `etl validate` finds each mistake of a job file, and says what is meant or what to do.

use std::fs;

use serde_json::Value;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

const TARGET: &str = "[target]\ntable = \"clicks\"\n";

/// Writes the job `clicks`, and expects that it is wrong with all of these words, in lines and as JSON.
async fn wrong(pipeline: &Pipeline, toml: &str, connected: &[&str], words: &[&str]) {
    pipeline.write_job("clicks", toml);
    let sql = pipeline.jobs.path().join("clicks.sql");
    fs::write(sql, "SELECT * FROM clicks").unwrap();
    let arguments = [&["validate", "clicks"], connected].concat();
    let found = pipeline.etl(&arguments).await;
    assert_eq!(
        found.code,
        Some(1),
        "{toml}: {}{}",
        found.stdout,
        found.stderr
    );
    let lines = found.stdout.lines();
    let wrong: Vec<_> = lines.filter(|line| line.starts_with("WRONG")).collect();
    assert_eq!(wrong.len(), 1, "{toml}: {}", found.stdout);
    for word in words {
        assert!(wrong[0].contains(word), "{word}: {}", found.stdout);
    }
    let json = pipeline.etl(&[&arguments[..], &["--json"]].concat()).await;
    assert_eq!(json.code, Some(1), "{}", json.stderr);
    let findings: Value = serde_json::from_str(&json.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    let levels = findings.iter().map(|one| one["level"].as_str().unwrap());
    assert_eq!(levels.filter(|level| *level == "wrong").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_the_files_are_found_without_a_server() {
    let pipeline = Pipeline::without_services().await;
    let unused = format!("[parameters]\nday = {{ type = \"date\" }}\n{TARGET}");
    wrong(
        &pipeline,
        &unused,
        &[],
        &["\"day\"", "never used", "write :day in the SQL"],
    )
    .await;
    let twice = format!(
        "{TARGET}mode = \"replace\"\nreplace_where = \"dt == '2018-04-02'\"\n[[columns]]\nsource = \"dt\"\ntype = \"date\"\n"
    );
    wrong(&pipeline, &twice, &[], &["replace_where", "==", "write ="]).await;
    let column = format!("{TARGET}replace_were = \"dt = 1\"\n");
    wrong(&pipeline, &column, &[], &["replace_were", "line"]).await;
    let rule = format!("{TARGET}[[columns]]\nsource = \"url\"\nrules = [{{ not_emty = true }}]\n");
    wrong(&pipeline, &rule, &[], &["not_emty", "not_empty"]).await;

    // A parameter of another name than that of the SQL.
    pipeline.write_job(
        "daily",
        &format!("[parameters]\nday = {{ type = \"date\" }}\n{TARGET}"),
    );
    fs::write(
        pipeline.jobs.path().join("daily.sql"),
        "SELECT * FROM t WHERE dt = :dya",
    )
    .unwrap();
    let found = pipeline.etl(&["validate", "daily"]).await;
    assert_eq!(found.code, Some(1), "{}", found.stdout);
    assert!(
        found.stdout.contains("did you mean \"day\"?"),
        "{}",
        found.stdout
    );
    assert_eq!(pipeline.cloud.started().len(), 0, "no query");
}

#[tokio::test(flavor = "multi_thread")]
async fn value_of_a_parameter_that_no_job_has_is_refused() {
    let pipeline = Pipeline::without_services().await;
    pipeline.write_job(
        "daily",
        &format!("[parameters]\nday = {{ type = \"date\" }}\n{TARGET}"),
    );
    let sql = pipeline.jobs.path().join("daily.sql");
    fs::write(sql, "SELECT * FROM t WHERE dt = :day").unwrap();
    pipeline.write_job("clicks", TARGET);
    for (job, code) in [(&["daily"][..], 0), (&[], 0), (&["clicks"], 2)] {
        let set = ["validate", "--set", "day=2018-04-02"];
        let found = pipeline.etl(&[&set[..], job].concat()).await;
        assert_eq!(found.code, Some(code), "{job:?} {}", found.stderr);
    }
    let found = pipeline.etl(&["validate", "--set", "dya=2018-04-02"]).await;
    assert_eq!(found.code, Some(2), "{}", found.stdout);
    assert!(
        found.stderr.contains("did you mean \"day\"?"),
        "{}",
        found.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn misspelt_job_is_named_with_the_one_that_is_meant() {
    let pipeline = Pipeline::without_services().await;
    pipeline.write_job("clicks", TARGET);
    let found = pipeline.etl(&["validate", "clikcs"]).await;
    assert_eq!(found.code, Some(1), "{}", found.stdout);
    assert!(
        found.stdout.contains("did you mean \"clicks\"?"),
        "{}",
        found.stdout
    );
    // The others are checked all the same.
    let found = pipeline.etl(&["validate", "clikcs", "clicks"]).await;
    assert_eq!(found.code, Some(1), "{}", found.stdout);
    assert!(found.stdout.contains("ok       clicks"), "{}", found.stdout);
    for command in ["run", "plan"] {
        let found = pipeline.etl(&[command, "clikcs"]).await;
        assert_eq!(found.code, Some(2), "{}", found.stdout);
        assert!(
            found.stderr.contains("did you mean \"clicks\"?"),
            "{}",
            found.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_about_the_query_are_found_by_asking_athena() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", TARGET, sample::clicks(10));
    let connected = ["--connected"];
    let key = format!("{TARGET}mode = \"upsert\"\nkey = [\"ulr\"]\n");
    wrong(
        &pipeline,
        &key,
        &connected,
        &["\"ulr\"", "did you mean \"url\"?"],
    )
    .await;
    let source =
        format!("{TARGET}[[columns]]\nsource = \"contry\"\nrules = [{{ required = true }}]\n");
    wrong(
        &pipeline,
        &source,
        &connected,
        &["\"contry\"", "did you mean \"country\"?"],
    )
    .await;
    let trimmed = format!("{TARGET}[[columns]]\nsource = \"visits\"\ntrim = true\n");
    wrong(
        &pipeline,
        &trimmed,
        &connected,
        &["visits", "cannot have trim"],
    )
    .await;
    // So it is before a run, where it is asked.
    let queries = pipeline.cloud.statements();
    let asked = pipeline.etl(&["run", "clicks", "--connected"]).await;
    assert_eq!(asked.code, Some(1), "{}", asked.stdout);
    assert!(
        asked.stderr.contains("cannot have trim"),
        "{}",
        asked.stderr
    );
    let more = &pipeline.cloud.statements()[queries.len()..];
    assert!(
        more.iter().all(|sql| sql.contains("LIMIT 0")),
        "no query of the job itself: {more:?}"
    );
    // The same files are right as long as nobody asks Athena.
    let files = pipeline.etl(&["validate"]).await;
    assert_eq!(files.code, Some(0), "{}", files.stdout);
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
}
