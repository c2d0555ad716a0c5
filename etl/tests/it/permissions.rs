//! The broker's users as the documentation names them: one that declares its queues, and one that may configure nothing.

use serde_json::{Value, json};
use testkit::cloud::{Answer, Op, sample};
use testkit::http::Method;
use testkit::pipeline::Pipeline;
use testkit::process::Service;
use testkit::{TIMEOUT, wait_until};

const DOCUMENT: &str = include_str!("../../../docs/managed.md");

const JOB: &str = "[target]\ntable = \"clicks\"\n";

/// The three regular expressions of the documented `rabbitmqctl set_permissions` of a user.
fn documented(user: &str) -> Value {
    let start = format!("rabbitmqctl set_permissions -p VHOST {user} '");
    let line = DOCUMENT
        .lines()
        .find_map(|line| line.trim().strip_prefix(&start));
    let line = line.unwrap_or_else(|| panic!("docs/managed.md has no line {start}"));
    let parts: Vec<_> = line.trim_end_matches('\'').split("' '").collect();
    let [configure, write, read] = parts[..] else {
        panic!("{line}")
    };
    json!({ "configure": configure, "write": write, "read": read })
}

/// Creates the user, and returns the URL for it.
async fn create(pipeline: &Pipeline, documented_name: &str) -> String {
    let (broker, vhost) = (&pipeline.vhost.broker, &pipeline.vhost.name);
    let name = format!("{vhost}-{documented_name}");
    let put = async |path: String, body: Value| {
        let (status, answer) = broker.call(Method::PUT, &path, body).await;
        assert!(status.is_success(), "{answer}");
    };
    put(
        format!("users/{name}"),
        json!({ "password": "secret", "tags": "" }),
    )
    .await;
    put(
        format!("permissions/{vhost}/{name}"),
        documented(documented_name),
    )
    .await;
    let (_, server) = pipeline.vhost.amqp_url.split_once('@').unwrap();
    format!("amqp://{name}:secret@{server}")
}

/// A run, its replay, and a run that is cancelled while Athena works on it.
async fn assert_works(pipeline: &mut Pipeline, with: impl Fn(Service) -> Service) {
    for name in ["loader", "transformer", "extractor"] {
        let service = with(pipeline.service(name)).start().await;
        pipeline.services.push(service);
    }
    pipeline.job("clicks", JOB, sample::clicks(20_000));
    pipeline.job(
        "slow",
        "[target]\ntable = \"slow\"\n",
        sample::clicks(1_000),
    );
    let etl = async |arguments: &[&str]| {
        let command = arguments
            .iter()
            .fold(with(pipeline.service("etl")), |command, one| {
                command.arg(one)
            });
        let done = command.run().await;
        assert_eq!(
            done.code,
            Some(0),
            "{arguments:?}: {}\n{}",
            done.stdout,
            done.stderr
        );
        done
    };
    etl(&["run", "clicks", "--run-id", "daily", "--follow"]).await;
    etl(&["replay", "daily", "--follow"]).await;
    etl(&["reconcile", "daily"]).await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
    pipeline
        .cloud
        .answer_once("FROM slow", Answer::queued_for_ever());
    etl(&["run", "slow", "--run-id", "slow"]).await;
    wait_until("the query", TIMEOUT, async || {
        pipeline.cloud.started().len() == 2
    })
    .await;
    etl(&["cancel", "slow"]).await;
    wait_until("the query to be stopped", TIMEOUT, async || {
        pipeline.cloud.count(Op::StopQueryExecution) > 0
    })
    .await;
    etl(&["doctor"]).await;
    for service in &pipeline.services {
        assert!(!service.log().contains("refused"), "{}", service.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_user_can_do_everything() {
    let mut pipeline = Pipeline::without_services().await;
    let url = create(&pipeline, "etl").await;
    assert_works(&mut pipeline, |service| service.env("ETL_AMQP_URL", &url)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_who_may_configure_nothing_works_with_declared_queues() {
    let mut pipeline = Pipeline::without_services().await;
    let url = create(&pipeline, "etl_runtime").await;
    // Without the setting: a sentence with both ways out.
    let mut refused = pipeline.service("loader").env("ETL_AMQP_URL", &url).spawn();
    assert_eq!(refused.wait(TIMEOUT).await.code(), Some(1));
    for said in ["declaring the queue etl.unreadable", "ETL_DECLARE=skip"] {
        assert!(refused.log().contains(said), "{}", refused.log());
    }
    let url = &url;
    let skipping = |service: Service| service.env("ETL_AMQP_URL", url).env("ETL_DECLARE", "skip");
    // Before the queues are declared.
    let mut early = skipping(pipeline.service("loader")).spawn();
    wait_until("the absence to be named", TIMEOUT, async || {
        early
            .log()
            .contains("the queue etl.unreadable does not exist")
    })
    .await;
    let doctor = skipping(pipeline.service("etl").arg("doctor")).run().await;
    assert!(
        doctor
            .stdout
            .contains("etl.raw does not exist, and with ETL_DECLARE=skip"),
        "{}",
        doctor.stdout
    );
    // An administrator declares them, and the service goes on by itself.
    let definitions = pipeline.etl(&["topology"]).await;
    let definitions: Value = serde_json::from_str(&definitions.stdout).unwrap();
    let path = format!("definitions/{}", pipeline.vhost.name);
    let broker = &pipeline.vhost.broker;
    let (status, answer) = broker.call(Method::POST, &path, definitions).await;
    assert!(status.is_success(), "{status} {answer}");
    early.await_ready().await;
    drop(early);
    assert_works(&mut pipeline, skipping).await;
}
