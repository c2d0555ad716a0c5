//! Queues at their limit: every stage waits for the next one, and holds no delivery of them.

use testkit::TIMEOUT;
use testkit::pipeline::Pipeline;
use testkit::process::Process;
use testkit::wait_until;

use super::{MANY, Run, await_all_ready, await_not_ready, bound};

/// How often its workers waited for room.
fn waits(service: &Process) -> usize {
    service.log().matches("queue full; waiting").count()
}

/// The consumers of the queues that wait behind full ones.
async fn consumers(pipeline: &Pipeline) -> u64 {
    let vhost = &pipeline.vhost;
    vhost.consumers("etl.raw.bulk").await + vhost.consumers("etl.extract.bulk").await
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_loader_makes_every_stage_wait_and_dead_letters_nothing() {
    let mut pipeline = Pipeline::start().await;
    bound(&pipeline, "etl.raw.bulk", 10).await;
    bound(&pipeline, "etl.valid.bulk", 5).await;
    let mut loader = pipeline.services.remove(0);
    assert_eq!(loader.terminate(TIMEOUT).await, Some(0));
    let run = Run::start(&pipeline, "full", MANY);
    await_not_ready(&mut pipeline.services[0], "full: etl.valid.bulk is full").await;
    await_not_ready(&mut pipeline.services[1], "full: etl.raw.bulk is full").await;
    wait_until("every delivery to be settled", TIMEOUT, async || {
        consumers(&pipeline).await == 0
    })
    .await;
    // A loader that starts and stops makes the transformer continue and wait again. The run's first batches are no bulk.
    let brief = pipeline.service("loader");
    let mut brief = brief.env("ETL_FAILPOINT", "after_commit@8=exit").spawn();
    assert_eq!(brief.wait(TIMEOUT).await.code(), Some(99));
    wait_until("the transformer to continue", TIMEOUT, async || {
        consumers(&pipeline).await > 0
    })
    .await;
    await_not_ready(&mut pipeline.services[0], "full: etl.valid.bulk is full").await;
    for service in &pipeline.services {
        // A refused window is retried at growing intervals; then the stage waits.
        let refused = service.metric("etl_publishes_refused_total").await;
        let refused = refused.expect("something was refused");
        assert!(refused < 1_000.0, "too many refusals: {refused}");
        // The count of failed deliveries grows with the waits, not with the time without a loader.
        let again = service.metric("etl_redeliveries_total").await;
        let bound = 8 * u32::try_from(waits(service)).unwrap();
        assert!(again.unwrap_or(0.0) <= f64::from(bound), "{again:?}");
    }
    let loader = pipeline.service("loader").start().await;
    pipeline.services.push(loader);
    await_all_ready(&mut pipeline).await;
    run.assert_complete(&pipeline).await;
}
