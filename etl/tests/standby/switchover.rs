//! A server that becomes read-only while services have idle connections to it, and another that takes writes instead.

use std::time::Instant;

use testkit::cloud::sample;
use testkit::relay::{Mode, Relay};
use testkit::{TIMEOUT, wait_until};

use crate::pair::{Pair, await_ready, both, took};

const JOB: &str = "[target]\ntable = \"clicks\"\n";
const SILENT: &str = "[target]\ntable = \"silent\"\n";
const ROWS: u64 = 50_000;

/// A pair with services that have loaded a run, and idle connections to the primary.
async fn idle(url: Option<&str>, mut pair: Pair) -> Pair {
    for name in ["loader", "transformer", "extractor"] {
        let service = pair.pipeline.service(name);
        let service = match url {
            Some(url) => service.env("ETL_DATABASE_URL", url),
            None => service,
        };
        let service = service.start().await;
        pair.pipeline.services.push(service);
    }
    pair.pipeline.job("clicks", JOB, sample::clicks(ROWS));
    pair.pipeline.run("clicks", "before").await;
    pair.standby.await_caught_up(&pair.primary).await;
    pair
}

async fn switch(pair: &mut Pair) {
    pair.primary
        .set("default_transaction_read_only", "on")
        .await;
    pair.promote().await;
}

async fn assert_loads(pair: &Pair, run: &str, rows: u64) {
    pair.assert_complete(run).await;
    let found = pair.pipeline.number("SELECT count(*) FROM clicks").await;
    assert_eq!(u64::try_from(found).unwrap(), rows);
    pair.assert_no_dead_letters().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_became_read_only_is_left_by_services_and_commands() {
    let mut pair = idle(None, Pair::start().await).await;
    switch(&mut pair).await;
    let switched = Instant::now();
    let database = &pair.pipeline.database;
    let primary = pair.primary.copy_of(database).url.clone();
    let standby = pair.standby.copy_of(database).url.clone();
    for (run, first, second) in [("one", &primary, &standby), ("two", &standby, &primary)] {
        let url = both(first, second);
        let asked = pair.pipeline.service("etl").env("ETL_DATABASE_URL", &url);
        let asked = ["run", "clicks", "--run-id", run, "--again"]
            .iter()
            .fold(asked, |asked, argument| asked.arg(argument));
        let asked = asked.run().await;
        assert_eq!(asked.code, Some(0), "{}", asked.stderr);
        pair.assert_complete(run).await;
        took("a run after the switchover", switched);
    }
    assert_loads(&pair, "two", 3 * ROWS).await;
    let doctor = pair.pipeline.etl(&["doctor"]).await;
    for said in [
        "is the primary",
        "is read-only (default_transaction_read_only is on)",
    ] {
        assert!(doctor.stdout.contains(said), "{}", doctor.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_became_read_only_is_left_when_its_name_leads_to_another() {
    let pair = Pair::start().await;
    let url = pair.primary.copy_of(&pair.pipeline.database).url.clone();
    let relay = Relay::to_url(&url).await;
    let url = relay.url_for(&url);
    let mut pair = idle(Some(&url), pair).await;
    relay.lead_to(&pair.standby.url());
    switch(&mut pair).await;
    let switched = Instant::now();
    pair.request("clicks", "after").await;
    assert_loads(&pair, "after", 2 * ROWS).await;
    took("a run after the name has changed", switched);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_fell_silent_is_left() {
    let mut pair = Pair::start().await;
    let database = &pair.pipeline.database;
    let primary = pair.primary.copy_of(database).url.clone();
    let relay = Relay::to_url(&primary).await;
    let url = both(
        &relay.url_for(&primary),
        &pair.standby.copy_of(database).url,
    );
    pair.pipeline.database.url.clone_from(&url);
    let mut pair = idle(None, pair).await;
    // Statements are under way, and will not be answered.
    pair.pipeline.job("silent", SILENT, sample::clicks(300_000));
    pair.request("silent", "silent").await;
    pair.until_loaded("silent", 5).await;
    relay.set(Mode::Blackhole);
    pair.standby.await_caught_up(&pair.primary).await;
    pair.promote().await;
    let silent = Instant::now();
    let asked = ["run", "clicks", "--run-id", "after", "--again"];
    let asked = pair.pipeline.etl(&asked).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    took("a request after the silence began", silent);
    assert_loads(&pair, "after", 2 * ROWS).await;
    took("a run after the silence began", silent);
    pair.assert_complete("silent").await;
    pair.assert_rows("silent", 300_000).await;
    took("the run that was under way", silent);
    await_ready(&pair.pipeline.services[0]).await;
    let doctor = pair.pipeline.etl(&["doctor"]).await;
    assert!(
        doctor.stdout.contains("does not answer"),
        "{}",
        doctor.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_say_what_each_server_is() {
    let pair = idle(None, Pair::start().await).await;
    let doctor = pair.pipeline.etl(&["doctor"]).await;
    assert!(
        doctor.stdout.contains("is the primary") && doctor.stdout.contains("is a standby"),
        "{}",
        doctor.stdout
    );
    pair.primary.kill9().await;
    // What only reads is answered by the standby.
    let proven = pair.pipeline.etl(&["reconcile", "before"]).await;
    assert_eq!(proven.code, Some(0), "{}", proven.stderr);
    assert!(
        proven.stderr.contains("what a standby has"),
        "{}",
        proven.stderr
    );
    let asked = pair
        .pipeline
        .etl(&["run", "clicks", "--run-id", "after", "--again"])
        .await;
    assert_eq!(asked.code, Some(1), "{}", asked.stdout);
    assert!(asked.stderr.contains("read-only"), "{}", asked.stderr);
    let loader = &pair.pipeline.services[0];
    wait_until(
        "the loader to say what each server is",
        TIMEOUT,
        async || {
            let why = loader
                .readiness()
                .await
                .map(|(_, why)| why)
                .unwrap_or_default();
            why.contains("no server takes writes") && why.contains("is a standby")
        },
    )
    .await;
    // The old primary again, and the standby promoted besides: the newer timeline counts.
    pair.primary.restart().await;
    await_ready(loader).await;
    pair.standby.promote().await;
    let doctor = pair.pipeline.etl(&["doctor"]).await;
    assert!(
        doctor.code == Some(1) && doctor.stdout.contains("take writes"),
        "{}",
        doctor.stdout
    );
    let asked = pair
        .pipeline
        .etl(&["run", "clicks", "--run-id", "after", "--again"])
        .await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let copy = pair.standby.copy_of(&pair.pipeline.database);
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM etl.runs WHERE run_id = 'after'")
        .fetch_one(&copy.pool)
        .await
        .unwrap();
    assert_eq!(found, 1, "{}", asked.stderr);
}
