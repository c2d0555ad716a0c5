//! Jobs that are late, and channels that no loader has: what `etl` says of them, and what the loader exports.

use serde_json::Value;
use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;
use testkit::process::Finished;
use testkit::{TIMEOUT, wait_until};

/// A pipeline whose loader has the channel `data`, and a job that names it and another one.
async fn pipeline(file: &str) -> Pipeline {
    let mut pipeline = Pipeline::without_services().await;
    for name in ["loader", "transformer", "extractor"] {
        let service = pipeline.service(name);
        let service = service.env("ETL_NOTIFY_DATA_COMMAND", &format!("cat >>'{file}'"));
        pipeline.services.push(service.start().await);
    }
    let toml = "notify = [\"data\", \"datas\"]\nexpected_every = \"1d\"\n[source]\ndatabase = \"d\"\nsql = \"clicks.sql\"\n[target]\ntable = \"clicks\"\n";
    pipeline.job("clicks", toml, sample::clicks(10));
    pipeline
}

async fn says(pipeline: &Pipeline, arguments: &[&str]) -> Finished {
    let done = pipeline.etl(arguments).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    done
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn late_job_and_channel_without_a_setting_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("told");
    let pipeline = pipeline(file.to_str().unwrap()).await;
    let pool = &pipeline.database.pool;
    pipeline.run("clicks", "first").await;
    let doctor = says(&pipeline, &["doctor"]).await.stdout;
    assert!(!doctor.contains("late"), "{doctor}");
    let unknown = "the channel \"datas\" is in no loader's settings, and what it is to be told waits; set ETL_NOTIFY_DATAS_URL or ETL_NOTIFY_DATAS_COMMAND for the loaders; did you mean \"data\"?";
    assert!(doctor.contains(unknown), "{doctor}");
    let validated = says(&pipeline, &["validate", "clicks", "--connected"])
        .await
        .stdout;
    assert!(validated.contains(unknown), "{validated}");

    pipeline.cloud.answer(
        "FROM clicks",
        Answer::failed_by_user("SYNTAX_ERROR: line 1:1"),
    );
    let failed = pipeline
        .etl(&["run", "clicks", "--run-id", "second", "--again", "--follow"])
        .await;
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    let told = async |lines: usize| {
        wait_until("the channel to be told", TIMEOUT, async || {
            let told = std::fs::read_to_string(&file).unwrap_or_default();
            told.lines().count() == lines
        })
        .await;
    };
    told(1).await;
    let status = says(&pipeline, &["status", "second"]).await.stdout;
    assert!(
        status.contains("notify  1 message waits for the channel datas"),
        "{status}"
    );
    let doctor = says(&pipeline, &["doctor"]).await.stdout;
    assert!(
        doctor.contains("1 message waits for the channel datas"),
        "{doctor}"
    );

    let day_ago = "UPDATE etl.jobs SET expected_since = now() - interval '3 days'";
    let ended =
        "UPDATE etl.runs SET completed_at = now() - interval '30 hours' WHERE run_id = 'first'";
    for statement in [day_ago, ended] {
        sqlx::query(statement).execute(pool).await.unwrap();
    }
    told(2).await;
    let doctor = says(&pipeline, &["doctor"]).await.stdout;
    let late = "clicks is expected every 24 h and is late by 6 h; its latest run second is failed; `etl runs --job clicks` shows its runs";
    assert!(doctor.contains(late), "{doctor}");
    let jobs = says(&pipeline, &["jobs"]).await.stdout;
    assert!(jobs.contains("failed, late"), "{jobs}");
    let jobs = says(&pipeline, &["jobs", "--json"]).await.stdout;
    let jobs: Value = serde_json::from_str(&jobs).unwrap();
    assert!(
        jobs[0]["last"]["seconds_late"].as_f64() > Some(21_000.0),
        "{jobs}"
    );
    let loader = &pipeline.services[0];
    wait_until("the metric", TIMEOUT, async || {
        loader.metric("etl_job_late_seconds").await > Some(21_000.0)
    })
    .await;
    let (_, page) = loader.get("/metrics").await.unwrap();
    assert!(
        page.contains("etl_runs_total{service=\"loader\",job=\"clicks\",state=\"failed\"} 1"),
        "{page}"
    );
    let log = loader.log();
    assert_eq!(
        log.matches("has no setting for a channel").count(),
        1,
        "{log}"
    );

    std::fs::remove_file(pipeline.jobs.path().join("clicks.toml")).unwrap();
    let doctor = says(&pipeline, &["doctor"]).await.stdout;
    assert!(doctor.contains("`etl jobs --retire clicks`"), "{doctor}");
    let retired = says(&pipeline, &["jobs", "--retire", "clicks"]).await;
    assert_eq!(retired.code, Some(0), "{}", retired.stderr);
    let again = pipeline.etl(&["jobs", "--retire", "clicks"]).await;
    assert_eq!(again.code, Some(1), "{}", again.stdout);
    wait_until("the metric to be zero", TIMEOUT, async || {
        loader.metric("etl_job_late_seconds").await == Some(0.0)
    })
    .await;
    let older = "UPDATE etl.outbox SET created_at = now() - interval '2 days'";
    sqlx::query(older).execute(pool).await.unwrap();
    let pruned = says(&pipeline, &["prune", "--older-than", "1d", "--unsent"])
        .await
        .stdout;
    assert!(
        pruned.contains("and 2 messages that nobody was told"),
        "{pruned}"
    );
    told(2).await;
}
