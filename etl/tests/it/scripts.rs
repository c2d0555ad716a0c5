//! What programs get from `etl`: errors as JSON, and names for the completions of a shell.

use serde_json::Value;
use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;

const JOB: &str = "[parameters]\nday = { type = \"date\" }\n[target]\ntable = \"clicks\"\n";

/// The job `clicks` with the parameter `day`.
async fn pipeline() -> Pipeline {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(10));
    let sql = pipeline.jobs.path().join("clicks.sql");
    std::fs::write(sql, "SELECT * FROM clicks WHERE dt = :day").unwrap();
    pipeline
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_also_json_where_json_is_asked_for() {
    let pipeline = pipeline().await;
    for (arguments, code, word) in [
        (&["status", "nothing", "--json"][..], 2, "nothing"),
        (&["run", "clikcs", "--json"], 2, "did you mean \"clicks\"?"),
        (&["run", "clicks", "--json"], 2, "--set day="),
        (
            &["run", "clicks", "--json", "--set", "day"],
            2,
            "NAME=VALUE",
        ),
        (&["run", "clicks", "--json", "--folow"], 2, "--folow"),
        (&["approve", "--json"], 2, "required"),
        (&["approve", "--job", "clicks", "--json"], 1, "no such run"),
        (&["stauts", "--json"], 2, "stauts"),
    ] {
        let failed = pipeline.etl(arguments).await;
        assert_eq!(failed.code, Some(code), "{arguments:?}: {}", failed.stderr);
        let said: Value = serde_json::from_str(&failed.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", failed.stdout));
        assert_eq!(said["exit_code"], code, "{said}");
        let why = said["error"].as_str().unwrap();
        assert!(why.contains(word), "{arguments:?}: {why}");
        assert!(!failed.stderr.is_empty(), "{arguments:?}");
    }
    pipeline
        .cloud
        .answer_once("FROM clicks", Answer::failed_by_user("no"));
    let run = [
        "run",
        "clicks",
        "--set",
        "day=2018-04-02",
        "--run-id",
        "bad",
        "--json",
    ];
    pipeline.etl(&[&run[..], &["--follow"]].concat()).await;
    let failed = pipeline.etl(&run).await;
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    let said: Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!(
        (&said["run_id"], &said["state"]),
        (&"bad".into(), &"failed".into())
    );
    assert!(
        said["error"].as_str().unwrap().contains("--retry"),
        "{said}"
    );
    let failed = pipeline.etl(&["status", "nothing"]).await;
    assert_eq!(failed.stdout, "", "a person reads standard error");
}

#[tokio::test(flavor = "multi_thread")]
async fn shell_completes_names_of_jobs_parameters_and_runs() {
    let pipeline = pipeline().await;
    pipeline.write_job("daily", "[target]\ntable = \"daily\"\n");
    pipeline
        .cloud
        .answer("FROM clicks", Answer::queued_for_ever());
    let set = ["run", "clicks", "--set", "day=2018-04-02", "--run-id"];
    let asked = pipeline.etl(&[&set[..], &["a-run"]].concat()).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let offered = async |words: &[&str]| {
        let etl = pipeline.service("etl").env("COMPLETE", "bash");
        let etl = etl
            .env("_CLAP_COMPLETE_INDEX", &words.len().to_string())
            .env("_CLAP_IFS", "\n")
            .arg("--")
            .arg("etl");
        let etl = words.iter().fold(etl, |etl, word| etl.arg(word));
        let done = etl.run().await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        done.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(offered(&["run", "c"]).await, ["clicks"]);
    assert_eq!(offered(&["validate", "clicks", "d"]).await, ["daily"]);
    assert_eq!(offered(&["run", "clicks", "--set", ""]).await, ["day="]);
    for command in ["status", "cancel", "approve", "reconcile"] {
        assert_eq!(offered(&[command, "a"]).await, ["a-run"], "{command}");
        assert!(offered(&[command, "b"]).await.is_empty(), "{command}");
    }
    assert_eq!(offered(&["val"]).await, ["validate"]);
}
