//! Nodes that die, are cut off, or restart.

use super::load::{await_batches, during};
use super::{await_all_ready, pipeline};

/// Prints what the services said: development only.
fn said(pipeline: &testkit::pipeline::Pipeline) {
    for service in &pipeline.services {
        println!("==== {service:?}");
        for line in service.log().lines().filter(|l| !l.contains("\"INFO\"")) {
            println!("{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_leader_loses_nothing() {
    let started = std::time::Instant::now();
    let (cluster, mut pipeline) = pipeline().await;
    println!("started after {:?}", started.elapsed());
    during(&pipeline, async {
        for queue in ["etl.valid", "etl.raw"] {
            let leader = cluster.leader(0, &pipeline.vhost, queue).await.unwrap();
            println!("killing {leader} at {:?}", started.elapsed());
            cluster.nodes[leader].kill9().await;
            for job in ["appended", "upserted", "replaced"] {
                await_batches(&pipeline, job).await;
            }
            println!("restarting {leader} at {:?}", started.elapsed());
            cluster.nodes[leader].restart().await;
            cluster.await_joined().await;
        }
    })
    .await;
    println!("ended at {:?}", started.elapsed());
    await_all_ready(&mut pipeline).await;
    said(&pipeline);
}
