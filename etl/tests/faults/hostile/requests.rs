//! Hostile arguments of `etl`, from a person or a script.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

use super::{assert_unharmed, plain};

#[tokio::test(flavor = "multi_thread")]
async fn invalid_names_of_jobs_and_runs_are_refused() {
    let mut pipeline = Pipeline::start().await;
    pipeline.job("clicks", &plain("clicks"), sample::clicks(1));
    let long = "x".repeat(101);
    let hostile = [
        "",
        " ",
        "..",
        "../clicks",
        "/etc/passwd",
        "a/b",
        "'; DROP TABLE etl.runs; --",
        "$(id)",
        "clicks\n",
        "ä",
        "%",
        &long,
    ];
    for name in hostile {
        let job = pipeline.etl(&["run", name]).await;
        assert_eq!(job.code, Some(2), "job {name:?}: {}", job.stderr);
        let run = pipeline.etl(&["run", "clicks", "--run-id", name]).await;
        assert_eq!(run.code, Some(2), "run {name:?}: {}", run.stderr);
        for command in ["status", "reconcile", "rejects"] {
            let done = pipeline.etl(&[command, name]).await;
            assert_eq!(
                done.code,
                Some(2),
                "{command} {name:?}: {}{}",
                done.stdout,
                done.stderr
            );
        }
        for done in [job, run] {
            assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
        }
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
    assert!(pipeline.cloud.started().is_empty());
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parameter_of_any_text_is_a_literal() {
    let mut pipeline = Pipeline::start().await;
    let toml = format!(
        "[parameters]\nwho = {{ type = \"text\" }}\n{}",
        plain("clicks")
    );
    pipeline.job("clicks", &toml, sample::clicks(1));
    std::fs::write(
        pipeline.jobs.path().join("clicks.sql"),
        "SELECT * FROM clicks WHERE who = :who",
    )
    .unwrap();
    let texts = [
        "'; DROP TABLE x; --",
        "''",
        "\\'",
        ":who",
        "--",
        "/*",
        "\n",
        "a' OR 'a'='a",
        "$$",
        "ä😀",
    ];
    for (n, text) in texts.into_iter().enumerate() {
        let (run, set) = (format!("run-{n}"), format!("who={text}"));
        let done = pipeline
            .etl(&["run", "clicks", "--run-id", &run, "--set", &set, "--follow"])
            .await;
        assert_eq!(done.code, Some(0), "{text:?}: {}", done.stderr);
        let wanted = format!(
            "SELECT * FROM clicks WHERE who = '{}'",
            text.replace('\'', "''")
        );
        assert_eq!(pipeline.cloud.statements()[n], wanted);
    }
    assert_unharmed(&mut pipeline).await;
}
