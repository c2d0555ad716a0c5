//! Batches that were lost with a queue come back from the archive, and Athena is not asked again.

use std::time::Duration;

use testkit::cloud::sample;
use testkit::line::Line;
use testkit::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_an_operator_purged_are_sent_again_from_the_archive() {
    let mut line = Line::start().await;
    line.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(20_000),
    );
    let batches = 9;
    line.services[0].kill9().await;
    let asked = line.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until(
        "every batch to wait for a loader",
        Duration::from_secs(30),
        async || line.vhost.ready("etl.valid").await == batches,
    )
    .await;
    line.vhost.purge("etl.valid").await;
    line.services[0] = line.service("loader").start().await;
    wait_until(
        "the loader to know how many there are",
        Duration::from_secs(30),
        async || {
            line.number("SELECT count(*) FROM etl.runs WHERE batches_expected = 9")
                .await
                == 1
        },
    )
    .await;
    let lost = line.etl(&["reconcile", "daily"]).await;
    assert_eq!(lost.code, Some(1), "{}", lost.stdout);

    let replayed = line.etl(&["replay", "daily", "--missing"]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert!(replayed.stdout.contains("9 batches"), "{}", replayed.stdout);
    wait_until("the run to complete", Duration::from_secs(30), async || {
        line.etl(&["reconcile", "daily"]).await.code == Some(0)
    })
    .await;
    assert_eq!(line.number("SELECT count(*) FROM clicks").await, 20_000);
    assert_eq!(line.cloud.started().len(), 1, "Athena was asked once");

    let books = line.books().await;
    let again = line.etl(&["replay", "daily", "--missing"]).await;
    assert!(
        again.stdout.contains("no batch of daily is missing"),
        "{}",
        again.stdout
    );
    assert_eq!(line.books().await, books);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_the_archive_is_named_and_nothing_is_sent() {
    let line = Line::start().await;
    line.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(1_000),
    );
    line.run("clicks", "daily").await;
    let forgotten = "DELETE FROM etl.batches; UPDATE etl.runs SET state = 'running', finished_at = NULL, batches_expected = 3";
    sqlx::raw_sql(forgotten)
        .execute(&line.database.pool)
        .await
        .unwrap();
    let refused = line.etl(&["replay", "daily", "--missing"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("1..2") && refused.stderr.contains("nothing was sent"),
        "{}",
        refused.stderr
    );
    assert_eq!(line.number("SELECT count(*) FROM etl.batches").await, 0);
}
