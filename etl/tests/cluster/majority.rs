//! Two of the three nodes are away: the third one pauses, and nothing goes on until there is a majority again.

use futures::future::join_all;
use testkit::servers::Broker;
use testkit::{TIMEOUT, wait_until};

use super::load::{await_progress, during};
use super::{await_all_ready, running_pipeline};

const NO_HOST: &str = "no host of the broker accepts a connection";

#[tokio::test(flavor = "multi_thread")]
async fn lost_majority_stops_everything_and_loses_nothing() {
    let (cluster, mut pipeline) = running_pipeline().await;
    during(&pipeline, async {
        let two = &cluster.nodes[1..];
        join_all(two.iter().map(Broker::kill9)).await;
        for service in &pipeline.services {
            wait_until("a service to say what is wrong", TIMEOUT, async || {
                let readiness = service.readiness().await;
                matches!(readiness, Some((false, said)) if said.contains(NO_HOST))
            })
            .await;
        }
        let status = pipeline.etl(&["status"]).await;
        assert_eq!(status.code, Some(0), "{}", status.stderr);
        let doctor = pipeline.etl(&["doctor"]).await;
        assert_eq!(doctor.code, Some(1), "{}", doctor.stdout);
        for host in [0, 1, 2].map(|index| cluster.host(index)) {
            assert!(doctor.stdout.contains(&host), "{}", doctor.stdout);
        }
        join_all(two.iter().map(Broker::restart)).await;
        cluster.await_joined().await;
        await_progress(&pipeline).await;
    })
    .await;
    await_all_ready(&mut pipeline).await;
}
