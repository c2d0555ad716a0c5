//! Every command of `etl` ends and says what was done and what was not, while the broker takes no messages, and while the
//! broker or PostgreSQL accept connections and do not answer.

use std::time::Duration;

use futures::future::join_all;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::process::Finished;
use testkit::servers::private_broker;
use testkit::{TIMEOUT, wait_until};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::JOB;

/// Longer than each bound of a command, on a busy machine.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(2);

const BACKFILL: &str = "backfill days --from 2018-04-02 --to 2018-04-03 --every 1d";

/// Runs these commands at once, each of which must end.
async fn run_all<const N: usize>(
    pipeline: &Pipeline,
    settings: &[(&str, &str)],
    lines: [&str; N],
) -> [Finished; N] {
    let run = async |line: &str| {
        let mut command = pipeline.service("etl");
        for (name, value) in settings {
            command = command.env(name, value);
        }
        let command = line
            .split(' ')
            .fold(command, testkit::process::Service::arg);
        let ended = timeout(COMMAND_TIMEOUT, command.run()).await;
        ended.unwrap_or_else(|_| panic!("`etl {line}` does not end"))
    };
    let ended = join_all(lines.map(run)).await;
    ended.try_into().ok().unwrap()
}

fn assert_failed(done: &Finished, said: &[&str]) {
    assert_eq!(done.code, Some(1), "{}{}", done.stdout, done.stderr);
    for said in said {
        let all = format!("{}{}", done.stdout, done.stderr);
        assert!(all.contains(said), "{said:?} is not in: {all}");
    }
}

/// A pipeline with the completed run `done`, the requested run `waits`, which no extractor takes, and a dead letter.
async fn prepared(mut pipeline: Pipeline) -> Pipeline {
    for name in super::SERVICES {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    pipeline.job("clicks", JOB, sample::clicks(10_000));
    pipeline.job(
        "days",
        "[parameters]\nfrom = { type = \"date\" }\nto = { type = \"date\" }\n[target]\ntable = \"days\"\n",
        sample::clicks(100),
    );
    std::fs::write(
        pipeline.jobs.path().join("days.sql"),
        "SELECT * FROM days WHERE d BETWEEN :from AND :to",
    )
    .unwrap();
    pipeline.run("clicks", "done").await;
    pipeline.vhost.publish("etl.raw", b"not a message").await;
    wait_until("a dead letter", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await
            == 1
    })
    .await;
    super::service(&mut pipeline, "extractor").kill9().await;
    let asked = pipeline
        .etl(&["run", "clicks", "--run-id", "waits", "--again"])
        .await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    pipeline
}

/// Nothing was done but to cancel the run `waits` in the ledger.
async fn assert_nothing_done(pipeline: &Pipeline) {
    for (what, wrong) in [
        (
            "a run was requested",
            "etl.runs WHERE run_id NOT IN ('done', 'waits')",
        ),
        ("a run is replayed", "etl.runs WHERE generation > 0"),
        (
            "a dead letter was resolved",
            "etl.dead_letters WHERE resolved_at IS NOT NULL",
        ),
    ] {
        let found = pipeline
            .number(&format!("SELECT count(*) FROM {wrong}"))
            .await;
        assert_eq!(found, 0, "{what}");
    }
    let waits = "SELECT count(*) FROM etl.runs WHERE run_id = 'waits' AND state = 'cancelled'";
    assert_eq!(pipeline.number(waits).await, 1);
}

/// The commands that need the broker, and what each says without it.
async fn assert_all_end(pipeline: &Pipeline, settings: &[(&str, &str)], why: &str) {
    let run = "run clicks --run-id new --again --follow --wait-timeout 20s";
    let lines = [
        run,
        BACKFILL,
        "replay done",
        "replay done --missing",
        "dead replay --all",
        "cancel waits",
    ];
    let ended = run_all(pipeline, settings, lines).await;
    let [run, backfill, replay, missing, dead, cancel] = &ended;
    assert_failed(run, &["the run new was not requested", why]);
    assert_failed(backfill, &["no run was requested", why]);
    assert_failed(replay, &["no run is replayed", why]);
    assert_failed(missing, &["no run is replayed", why]);
    assert_failed(dead, &["no dead letter was sent", why]);
    assert_failed(
        cancel,
        &["the run waits is cancelled", "cancel it again", why],
    );
    assert_nothing_done(pipeline).await;
    let [doctor, status] = run_all(pipeline, settings, ["doctor", "status done"]).await;
    assert_eq!(doctor.code, Some(1), "{}", doctor.stdout);
    assert_eq!(status.code, Some(0), "{}", status.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_under_an_alarm_and_work_after_it() {
    let broker = private_broker().await;
    let pipeline = prepared(Pipeline::on(broker.vhost().await).await).await;
    broker
        .rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"])
        .await;
    assert_all_end(&pipeline, &[], "rabbitmq-diagnostics alarms").await;
    broker
        .rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"])
        .await;
    let ended = run_all(
        &pipeline,
        &[],
        ["cancel waits", "replay done", "dead replay 1"],
    )
    .await;
    for done in ended {
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
    // It comes back, and is another dead letter then.
    let [again] = run_all(&pipeline, &[], ["dead replay 1"]).await;
    assert_failed(&again, &["was resolved before", "nothing was sent"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_when_the_broker_does_not_answer() {
    let pipeline = prepared(Pipeline::without_services().await).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://guest:guest@{}/%2f", silent.local_addr().unwrap());
    assert_all_end(&pipeline, &[("ETL_AMQP_URL", &url)], "did not answer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_when_postgres_does_not_answer() {
    let pipeline = prepared(Pipeline::without_services().await).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://etl@{}/etl", silent.local_addr().unwrap());
    let settings = [("ETL_DATABASE_URL", &*url)];
    let run = "run clicks --again --follow --wait-timeout 20s";
    let lines = [
        run,
        BACKFILL,
        "replay done",
        "dead replay --all",
        "cancel waits",
        "doctor",
        "status done",
        "reconcile",
    ];
    for done in run_all(&pipeline, &settings, lines).await {
        assert_failed(&done, &["cannot connect to the database"]);
    }
}
