//! `etl jobs` lists the folder with the ledger's latest runs; `etl schema` prints the schema of the files.

use serde_json::Value;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

const TARGET: &str = "[target]\ntable = \"clicks\"\n";

/// The line of a table that begins with this word.
fn line<'a>(table: &'a str, word: &str) -> &'a str {
    let mut lines = table.lines();
    let found = lines.find(|line| line.split_whitespace().next() == Some(word));
    found.unwrap_or_else(|| panic!("no line of {word}: {table}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_with_their_latest_runs() {
    let pipeline = Pipeline::start().await;
    let none = pipeline.etl(&["jobs"]).await;
    assert_eq!(none.code, Some(0), "{}", none.stderr);
    assert!(
        none.stdout.contains("`etl init` writes one"),
        "{}",
        none.stdout
    );

    pipeline.job("clicks", TARGET, sample::clicks(100));
    pipeline.write_job("idle", "[target]\ntable = \"idle\"\nmode = \"replace\"\n");
    pipeline.write_job("wrong", "[target]\ntabel = \"idle\"\n");
    pipeline.run("clicks", "first").await;
    pipeline.run("clicks", "second").await;
    let listed = pipeline.etl(&["jobs"]).await;
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let clicks = line(&listed.stdout, "clicks");
    for word in ["append", "public.clicks", "second", "completed", "ago"] {
        assert!(clicks.contains(word), "{word}: {clicks}");
    }
    let idle = line(&listed.stdout, "idle");
    assert!(
        idle.contains("replace") && idle.contains("never run"),
        "{idle}"
    );
    assert!(line(&listed.stdout, "wrong").contains("`etl validate` says why"));

    let json = pipeline.etl(&["jobs", "--json"]).await;
    let jobs: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(jobs[0]["job"], "clicks");
    assert_eq!(jobs[0]["last"]["run_id"], "second");
    assert_eq!(jobs[0]["last"]["state"], "completed");
    assert_eq!(jobs[1]["last"], Value::Null);
    assert!(
        jobs[2]["problem"]
            .as_str()
            .is_some_and(|why| why.contains("tabel")),
        "{jobs}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_of_the_job_files_needs_no_server() {
    let printed = testkit::process::Service::new("etl")
        .arg("schema")
        .run()
        .await;
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let schema: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!(schema["title"], "Job");
    assert!(schema["properties"]["target"].is_object(), "{schema}");
    assert_eq!(
        schema["additionalProperties"], false,
        "a misspelt name is marked"
    );
}
