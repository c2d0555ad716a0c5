//! One node at a time dies, is cut off, or restarts.

use testkit::process::Signal;

use super::load::{await_progress, during};
use super::{assert_members, await_all_ready, running_pipeline};

#[tokio::test(flavor = "multi_thread")]
async fn killed_leaders_lose_nothing() {
    let (cluster, mut pipeline) = running_pipeline().await;
    during(&pipeline, async {
        for queue in ["etl.valid.bulk", "etl.raw.bulk", "etl.archive"] {
            let leader = cluster.leader(0, &pipeline.vhost, queue).await;
            cluster.nodes[leader].kill9().await;
            await_progress(&pipeline).await;
            cluster.nodes[leader].restart().await;
            cluster.await_joined().await;
        }
    })
    .await;
    await_all_ready(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_cut_off_and_healed_loses_nothing() {
    let (cluster, mut pipeline) = running_pipeline().await;
    during(&pipeline, async {
        let leader = cluster.leader(0, &pipeline.vhost, "etl.valid.bulk").await;
        cluster.cut_off(leader).await;
        await_progress(&pipeline).await;
        cluster.heal(leader).await;
    })
    .await;
    await_all_ready(&mut pipeline).await;
}

/// A node that hangs is silent to the others and to its clients. When it goes on, RabbitMQ 3.10 reports a partition, which a
/// restart of the node ends.
#[tokio::test(flavor = "multi_thread")]
async fn node_that_hangs_and_goes_on_loses_nothing() {
    let (cluster, mut pipeline) = running_pipeline().await;
    during(&pipeline, async {
        let leader = cluster.leader(0, &pipeline.vhost, "etl.raw.bulk").await;
        let node = &cluster.nodes[leader];
        node.signal(Signal::STOP);
        cluster.await_away(leader).await;
        await_progress(&pipeline).await;
        node.signal(Signal::CONT);
        await_progress(&pipeline).await;
        node.stop().await;
        node.restart().await;
        cluster.await_joined().await;
    })
    .await;
    await_all_ready(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restart_loses_nothing() {
    let (cluster, mut pipeline) = running_pipeline().await;
    during(&pipeline, async {
        for node in &cluster.nodes {
            node.stop().await;
            await_progress(&pipeline).await;
            node.restart().await;
            cluster.await_joined().await;
            // A node that restarts before the others' members are up to date may take the majority away.
            assert_members(&cluster, &pipeline).await;
        }
    })
    .await;
    await_all_ready(&mut pipeline).await;
}
