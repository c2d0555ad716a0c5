//! A network that drops all traffic silently, and a broker that accepts connections and never answers.

use std::time::{Duration, Instant};

use testkit::TIMEOUT;
use testkit::pipeline::Pipeline;
use testkit::relay::{Mode, Relay};
use testkit::wait_until;

use super::{MANY, Run, SERVICES, await_not_ready};

/// Twice the heartbeat of two seconds that the test sets, with a margin for a busy machine; less than the timeout of a
/// call (20 s), which would detect it too.
const NOTICED: Duration = Duration::from_secs(18);

#[tokio::test(flavor = "multi_thread")]
async fn heartbeat_detects_a_silent_network() {
    let mut pipeline = Pipeline::without_services().await;
    let mut relays = Vec::new();
    for name in SERVICES {
        let relay = Relay::to_url(&pipeline.vhost.amqp_url).await;
        let url = relay.url_for(&pipeline.vhost.amqp_url) + "?heartbeat=2";
        let service = pipeline
            .service(name)
            .env("ETL_AMQP_URL", &url)
            .start()
            .await;
        pipeline.services.push(service);
        relays.push(relay);
    }
    let run = Run::start(&pipeline, "silent", 2 * MANY);
    // The extractor first, so that the later stages have messages left.
    for (stage, batches) in [(2, 2), (1, 10), (0, 20)] {
        run.until_loaded(&pipeline, batches).await;
        relays[stage].set(Mode::Blackhole);
        let since = Instant::now();
        await_not_ready(&mut pipeline.services[stage], "broker: ").await;
        let noticed = since.elapsed();
        assert!(noticed < NOTICED, "noticed after {noticed:?}");
        relays[stage].set(Mode::Pass);
        pipeline.services[stage].await_ready().await;
    }
    run.assert_complete(&pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_to_a_silent_broker_times_out_and_is_retried() {
    let mut pipeline = Pipeline::without_services().await;
    let relay = Relay::to_url(&pipeline.vhost.amqp_url).await;
    relay.set(Mode::Blackhole);
    let url = relay.url_for(&pipeline.vhost.amqp_url) + "?connection_timeout=3000";
    for name in SERVICES {
        let service = pipeline.service(name).env("ETL_AMQP_URL", &url).spawn();
        pipeline.services.push(service);
    }
    for service in &mut pipeline.services {
        await_not_ready(service, "did not answer within 3s while connecting").await;
        wait_until("a retry", TIMEOUT, async || {
            service.metric("etl_retries_total").await > Some(2.0)
        })
        .await;
        assert!(service.is_running());
    }
    relay.set(Mode::Pass);
    super::await_all_ready(&mut pipeline).await;
    Run::start(&pipeline, "answered", 5_000)
        .assert_complete(&pipeline)
        .await;
}
