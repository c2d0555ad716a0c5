//! A memory or disk alarm: the broker delivers, connects and declares as usual, and blocks publishers.

use testkit::pipeline::Pipeline;
use testkit::servers::private_broker;
use testkit::wait_until;

use super::{
    MANY, Run, SERVICES, TIMEOUT, await_all_ready, await_not_ready, await_not_ready_for_any, bound,
    service, slowly,
};

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn alarm_blocks_publishers_and_lets_the_loader_drain_the_queue() {
    let broker = private_broker().await;
    let mut pipeline = Pipeline::on(broker.vhost().await).await;
    for name in SERVICES {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    let alarms = [
        (
            "disk",
            ["set_disk_free_limit", "100000GB"],
            ["set_disk_free_limit", "50MB"],
        ),
        (
            "memory",
            ["set_vm_memory_high_watermark", "0.00001"],
            ["set_vm_memory_high_watermark", "0.4"],
        ),
    ];
    // Keeps the extractor from finishing long before the loader.
    bound(&pipeline, "etl.raw.bulk", 10).await;
    bound(&pipeline, "etl.valid.bulk", 10).await;
    let run = Run::start(&pipeline, "alarmed", MANY);
    for (alarm, (resource, raise, end)) in alarms.into_iter().enumerate() {
        run.until_loaded(&pipeline, 10 + 20 * i64::try_from(alarm).unwrap())
            .await;
        let why = format!("alarm: the broker accepts no messages: low on {resource}");
        let [loader, transformer, extractor] = pipeline.services.as_mut_slice() else {
            panic!("three services");
        };
        slowly(loader, async {
            wait_until("full queues between them", TIMEOUT, async || {
                pipeline.vhost.ready("etl.raw.bulk").await >= 10
                    && pipeline.vhost.ready("etl.valid.bulk").await >= 10
            })
            .await;
            broker.rabbitmqctl(&raise).await;
            await_not_ready(transformer, &why).await;
            // A publisher that waits for room in its queue publishes nothing, and does not learn of the alarm.
            await_not_ready_for_any(extractor, &[&why, "full: "]).await;
        })
        .await;
        // A loader that starts now works and drains the queue; the other services report that they cannot publish.
        service(&mut pipeline, "loader").kill9().await;
        *service(&mut pipeline, "loader") = pipeline.service("loader").start().await;
        let mut transformer = pipeline.service("transformer").spawn();
        await_not_ready(&mut transformer, &why).await;
        let log = transformer.log();
        assert!(
            !log.contains("connected to"),
            "it consumes messages that it cannot publish: {log}"
        );
        wait_until("etl.valid.bulk to be drained", TIMEOUT, async || {
            pipeline.vhost.ready("etl.valid.bulk").await == 0
        })
        .await;
        run.assert_open(&pipeline).await;
        broker.rabbitmqctl(&end).await;
        await_all_ready(&mut pipeline).await;
        transformer.await_ready().await;
        let log = transformer.log();
        assert!(
            !log.contains("trying again"),
            "not the same connection: {log}"
        );
        assert_eq!(transformer.terminate(TIMEOUT).await, Some(0));
    }
    run.assert_complete(&pipeline).await;
}
