//! Two of the three nodes are away: the third one pauses, and nothing goes on until there is a majority again.

use futures::future::join_all;
use testkit::TIMEOUT;
use testkit::wait_until;

use super::load::{await_progress, during};
use super::{await_all_ready, running_pipeline};

#[tokio::test(flavor = "multi_thread")]
async fn lost_majority_stops_everything_and_loses_nothing() {
    let (cluster, mut pipeline) = running_pipeline().await;
    during(&pipeline, async {
        let two = &cluster.nodes[1..];
        join_all(two.iter().map(testkit::servers::Broker::kill9)).await;
        for service in &pipeline.services {
            wait_until("a service to say what is wrong", TIMEOUT, async || {
                matches!(service.readiness().await, Some((false, said)) if said.contains("no host of the broker accepts a connection"))
            })
            .await;
        }
        let status = pipeline.etl(&["status"]).await;
        println!("{status:?}");
        let doctor = pipeline.etl(&["doctor"]).await;
        println!("{doctor:?}");
        join_all(two.iter().map(testkit::servers::Broker::restart)).await;
        cluster.await_joined().await;
        await_progress(&pipeline).await;
    })
    .await;
    await_all_ready(&mut pipeline).await;
    super::nodes::said(&pipeline).await;
}
