//! A synchronous standby: what was acknowledged to the broker is on it.

use std::time::Instant;

use testkit::cloud::sample;
use testkit::{TIMEOUT, wait_until};

use crate::pair::{Pair, took};

const APPEND: &str = "[target]\ntable = \"appended\"\n";
const UPSERT: &str = "[target]\ntable = \"upserted\"\nmode = \"upsert\"\nkey = [\"url\"]\n[[columns]]\nsource = \"url\"\nrules = [{ required = true }]\n";
const REPLACE: &str = "[target]\ntable = \"replaced\"\nmode = \"replace\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn promoted_synchronous_standby_has_every_row_once() {
    let mut pair = Pair::start().await;
    pair.primary.synchronous(true).await;
    for name in ["loader", "loader", "transformer", "extractor"] {
        pair.service(name).await;
    }
    for (job, toml, rows) in [
        ("appended", APPEND, 300_000),
        ("upserted", UPSERT, 100_000),
        ("replaced", REPLACE, 100_000),
    ] {
        pair.pipeline.job(job, toml, sample::clicks(rows));
        pair.request(job, job).await;
    }
    pair.until_loaded("appended", 10).await;
    pair.primary.kill9().await;
    let killed = Instant::now();
    pair.promote().await;
    took("promoted after the kill", killed);
    let before = pair
        .pipeline
        .number("SELECT count(*) FROM etl.batches")
        .await;
    wait_until("a batch after the promotion", TIMEOUT, async || {
        pair.pipeline
            .number("SELECT count(*) FROM etl.batches")
            .await
            > before
    })
    .await;
    took("first batch after the kill", killed);
    for (run, rows) in [
        ("appended", 300_000),
        ("upserted", 100_000),
        ("replaced", 100_000),
    ] {
        pair.assert_complete(run).await;
        pair.assert_rows(run, rows).await;
    }
    pair.assert_no_dead_letters().await;
    took("all complete after the kill", killed);
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_synchronous_standby_makes_the_loader_wait_until_it_is_back() {
    assert_waits(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_synchronous_standby_that_is_promoted_has_every_row_once() {
    assert_waits(true).await;
}

/// The COMMIT of a batch waits for the standby. It must not end with success that the standby does not know of.
async fn assert_waits(is_promoted: bool) {
    let mut pair = Pair::start().await;
    pair.primary.synchronous(true).await;
    for name in ["loader", "transformer", "extractor"] {
        pair.service(name).await;
    }
    pair.pipeline
        .job("appended", APPEND, sample::clicks(300_000));
    pair.request("appended", "appended").await;
    pair.until_loaded("appended", 5).await;
    let cut = pair.standby.cut().await;
    let away = Instant::now();
    wait_until("the loader to say why it waits", TIMEOUT, async || {
        let why = pair.pipeline.services[0].readiness().await;
        why.is_some_and(|(_, why)| why.contains("synchronous standby"))
    })
    .await;
    took("the loader says that the standby is away", away);
    if is_promoted {
        pair.primary.kill9().await;
        pair.promote().await;
    } else {
        pair.standby.follow(cut).await;
    }
    pair.assert_complete("appended").await;
    pair.assert_rows("appended", 300_000).await;
    pair.assert_no_dead_letters().await;
    took("complete", away);
}
