//! Queues at their bound: every stage waits for the one behind it, with nothing in hand.

use testkit::PATIENCE;
use testkit::line::Line;
use testkit::process::Process;
use testkit::wait_until;

use super::{MANY, Run, await_all_ready, await_not_ready, bound};

fn sessions(service: &Process) -> usize {
    service.log().matches("connected to the broker").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loader_that_is_away_makes_every_stage_wait_and_nothing_is_given_up() {
    let mut line = Line::start().await;
    bound(&line, "etl.raw", 10).await;
    bound(&line, "etl.valid", 5).await;
    let mut loader = line.services.remove(0);
    assert_eq!(loader.terminate(PATIENCE).await, Some(0));
    let run = Run::start(&line, "full", MANY);
    await_not_ready(&mut line.services[0], "full: etl.valid is full").await;
    await_not_ready(&mut line.services[1], "full: etl.raw is full").await;
    wait_until("nobody to hold a delivery", PATIENCE, async || {
        line.vhost.consumers("etl.raw").await + line.vhost.consumers("etl.extract").await == 0
    })
    .await;
    // A loader that comes and goes wakes the transformer up, and it falls asleep again.
    let before = sessions(&line.services[0]);
    let brief = line.service("loader");
    let mut brief = brief.env("ETL_FAILPOINT", "after_commit@4=exit").spawn();
    assert_eq!(brief.wait(PATIENCE).await.code(), Some(99));
    wait_until("the transformer to wake up", PATIENCE, async || {
        sessions(&line.services[0]) > before
    })
    .await;
    await_not_ready(&mut line.services[0], "full: etl.valid is full").await;
    for service in &line.services {
        // A refused window is tried again at a growing distance, and then waited for.
        let refused = service.metric("etl_publishes_refused_total").await;
        let refused = refused.expect("something was refused");
        assert!(refused < 1_000.0, "a hot loop: {refused} refusals");
        // What counts as a failed delivery grows with sessions, not with the time that the loader is away.
        let again = service.metric("etl_redeliveries_total").await;
        let bound = 8 * u32::try_from(sessions(service)).unwrap();
        assert!(again.unwrap_or(0.0) <= f64::from(bound), "{again:?}");
    }
    let loader = line.service("loader").start().await;
    line.services.push(loader);
    await_all_ready(&mut line).await;
    run.ends_well(&line).await;
}
