//! A repeated request and redelivered messages change nothing.

use lapin::BasicProperties;
use testkit::TIMEOUT;
use testkit::cloud::{Op, sample};
use testkit::wait_until;

use testkit::pipeline::Pipeline;

const JOB: &str = "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }, { not_empty = true }]\n";

const ROWS: &str = "dt, country, url, visits, seconds, seen_at, _batch";

#[tokio::test(flavor = "multi_thread")]
async fn repeated_request_starts_one_run() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(20_000));
    let first = pipeline.run("clicks", "daily").await;
    assert!(first["rows_rejected"].as_i64().unwrap() > 0, "{first}");
    let (rows, ledger) = (
        pipeline.table(ROWS, "clicks").await,
        pipeline.ledger().await,
    );
    let second = pipeline.run("clicks", "daily").await;
    assert_eq!(first, second);
    assert_eq!(pipeline.table(ROWS, "clicks").await, rows);
    assert_eq!(pipeline.ledger().await, ledger);
    assert_eq!(pipeline.cloud.started().len(), 1, "one query");
    let rejects = pipeline.etl(&["rejects", "daily", "--json"]).await;
    let rejects: serde_json::Value = serde_json::from_str(&rejects.stdout).unwrap();
    assert_eq!(
        rejects.as_array().unwrap().len(),
        usize::try_from(first["rows_rejected"].as_u64().unwrap()).unwrap()
    );
    let other = pipeline
        .etl(&["run", "clicks", "--run-id", "daily", "--set", "x=1"])
        .await;
    assert_eq!(other.code, Some(2), "{}", other.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn redelivery_of_every_message_changes_no_row_and_not_the_ledger() {
    let mut pipeline = Pipeline::without_services().await;
    pipeline.archive = Some("stream");
    let pipeline = pipeline.started(2).await;
    pipeline.job("clicks", JOB, sample::clicks(20_000));
    let run = pipeline.run("clicks", "daily").await;
    let batches = usize::try_from(run["batches_expected"].as_u64().unwrap()).unwrap();
    let (rows, ledger) = (
        pipeline.table(ROWS, "clicks").await,
        pipeline.ledger().await,
    );
    // The archive has every raw batch: each is published again.
    for message in pipeline.vhost.read_stream("etl.archive", batches).await {
        let properties: BasicProperties = message.properties.clone();
        pipeline
            .vhost
            .publish_with("etl.raw", &message.body, properties)
            .await;
    }
    wait_until("all duplicates to be refused", TIMEOUT, async || {
        let mut duplicates = 0.0;
        for service in &pipeline.services {
            duplicates += pipeline.counted(service, "result=\"duplicate\"").await;
        }
        duplicates >= f64::from(u32::try_from(batches).unwrap())
    })
    .await;
    assert_eq!(pipeline.table(ROWS, "clicks").await, rows);
    assert_eq!(pipeline.ledger().await, ledger);
    assert_eq!(pipeline.vhost.ready("etl.dead").await, 0);
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await,
        0
    );
    assert_eq!(pipeline.cloud.count(Op::StartQueryExecution), 1);
}
