//! A broker that is killed, restarted, or absent when the services start.

use testkit::TIMEOUT;
use testkit::pipeline::Pipeline;
use testkit::servers::private_broker;
use testkit::wait_until;

use super::{MANY, Run, SERVICES, await_all_ready, await_not_ready, bound, slowly};

/// A pipeline with a private broker and running services.
async fn private_pipeline() -> Pipeline {
    let mut pipeline = Pipeline::on(private_broker().await.vhost().await).await;
    for name in SERVICES {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    pipeline
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_broker_under_load_loses_nothing() {
    let mut pipeline = private_pipeline().await;
    // Keeps all stages busy for a similar time.
    bound(&pipeline, "etl.raw.bulk", 10).await;
    bound(&pipeline, "etl.valid.bulk", 10).await;
    let run = Run::start(&pipeline, "killed", MANY);
    for batches in [10, 30] {
        run.until_loaded(&pipeline, batches).await;
        slowly(&pipeline.services[0], pipeline.vhost.broker.kill9()).await;
        for service in &mut pipeline.services {
            await_not_ready(service, "broker: ").await;
        }
        slowly(&pipeline.services[0], pipeline.vhost.broker.restart()).await;
    }
    await_all_ready(&mut pipeline).await;
    run.assert_complete(&pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_broker_loses_nothing() {
    let mut pipeline = private_pipeline().await;
    let run = Run::start(&pipeline, "restarted", MANY);
    run.until_loaded(&pipeline, 10).await;
    pipeline.vhost.broker.stop().await;
    for service in &mut pipeline.services {
        await_not_ready(service, "broker: ").await;
    }
    pipeline.vhost.broker.restart().await;
    await_all_ready(&mut pipeline).await;
    run.assert_complete(&pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_started_before_the_broker_wait_for_it() {
    let broker = private_broker().await;
    let mut pipeline = Pipeline::on(broker.vhost().await).await;
    broker.stop().await;
    for name in SERVICES {
        let service = pipeline.service(name).spawn();
        pipeline.services.push(service);
    }
    for service in &mut pipeline.services {
        await_not_ready(service, "connecting to amqp://").await;
    }
    let retried = "etl_retries_total";
    for service in &pipeline.services {
        wait_until("four tries", TIMEOUT, async || {
            service.metric(retried).await > Some(3.0)
        })
        .await;
        let lines = service.log().matches("trying again").count();
        assert!(lines <= 2, "a line for each try: {}", service.log());
    }
    broker.restart().await;
    await_all_ready(&mut pipeline).await;
    Run::start(&pipeline, "patient", 5_000)
        .assert_complete(&pipeline)
        .await;
}
