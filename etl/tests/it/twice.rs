//! Asked twice, delivered twice: nothing changes.

use lapin::BasicProperties;
use testkit::PATIENCE;
use testkit::cloud::{Op, sample};
use testkit::wait_until;

use testkit::line::Line;

const JOB: &str = "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }, { not_empty = true }]\n";

const ROWS: &str = "dt, country, url, visits, seconds, seen_at, _batch";

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_the_same_run_twice_is_asking_once() {
    let line = Line::start().await;
    line.job("clicks", JOB, sample::clicks(20_000));
    let first = line.run("clicks", "daily").await;
    assert!(first["rows_rejected"].as_i64().unwrap() > 0, "{first}");
    let (rows, books) = (line.table(ROWS, "clicks").await, line.books().await);
    let second = line.run("clicks", "daily").await;
    assert_eq!(first, second);
    assert_eq!(line.table(ROWS, "clicks").await, rows);
    assert_eq!(line.books().await, books);
    assert_eq!(line.cloud.started().len(), 1, "Athena was asked once");
    let rejects = line.etl(&["rejects", "daily", "--json"]).await;
    let rejects: serde_json::Value = serde_json::from_str(&rejects.stdout).unwrap();
    assert_eq!(
        rejects.as_array().unwrap().len(),
        usize::try_from(first["rows_rejected"].as_u64().unwrap()).unwrap()
    );
    let other = line
        .etl(&["run", "clicks", "--run-id", "daily", "--set", "x=1"])
        .await;
    assert_eq!(other.code, Some(2), "{}", other.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_delivered_twice_changes_no_row_and_not_the_books() {
    let line = Line::with_replicas(2).await;
    line.job("clicks", JOB, sample::clicks(20_000));
    let run = line.run("clicks", "daily").await;
    let batches = usize::try_from(run["batches_expected"].as_u64().unwrap()).unwrap();
    let (rows, books) = (line.table(ROWS, "clicks").await, line.books().await);
    // The archive holds every raw batch as it was sent: send each once more.
    for message in line.vhost.read_stream("etl.archive", batches).await {
        let properties: BasicProperties = message.properties.clone();
        line.vhost
            .publish_with("etl.raw", &message.body, properties)
            .await;
    }
    wait_until("all duplicates to be refused", PATIENCE, async || {
        let mut duplicates = 0.0;
        for service in &line.services {
            duplicates += line.counted(service, "result=\"duplicate\"").await;
        }
        duplicates >= f64::from(u32::try_from(batches).unwrap())
    })
    .await;
    assert_eq!(line.table(ROWS, "clicks").await, rows);
    assert_eq!(line.books().await, books);
    assert_eq!(line.vhost.ready("etl.dead").await, 0);
    assert_eq!(
        line.number("SELECT count(*) FROM etl.dead_letters").await,
        0
    );
    assert_eq!(line.cloud.count(Op::StartQueryExecution), 1);
}
