//! The whole pipeline on a RabbitMQ cluster of three nodes, of which some die, are cut off or restart under load. Afterwards
//! every run is complete, every row is in its table once, and there is no dead letter.
#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod commands;
mod load;
mod majority;
mod nodes;

use common::message::QueueName;
use testkit::pipeline::Pipeline;
use testkit::servers::{Cluster, private_cluster};

/// The queues that the work passes, and the archive.
fn queues() -> impl Iterator<Item = &'static str> {
    let work = QueueName::WORK.into_iter();
    work.chain([QueueName::Archive]).map(QueueName::name)
}

/// A pipeline on a new cluster, without services.
async fn pipeline() -> (Cluster, Pipeline) {
    let cluster = private_cluster().await;
    let pipeline = Pipeline::on(cluster.vhost().await).await;
    (cluster, pipeline)
}

/// Starts two replicas of each service.
async fn start_services(pipeline: &mut Pipeline) {
    for name in ["loader", "transformer", "extractor"] {
        for _ in 0..2 {
            let service = pipeline.service(name).start().await;
            pipeline.services.push(service);
        }
    }
}

/// A pipeline with two replicas of each service on a new cluster, ready.
async fn running_pipeline() -> (Cluster, Pipeline) {
    let (cluster, mut pipeline) = pipeline().await;
    start_services(&mut pipeline).await;
    assert_members(&cluster, &pipeline).await;
    (cluster, pipeline)
}

/// Waits until each queue has all of its members online, and checks that these are three.
async fn assert_members(cluster: &Cluster, pipeline: &Pipeline) {
    cluster.await_coordinated().await;
    for queue in queues() {
        let members = cluster.members(&pipeline.vhost, queue).await;
        assert_eq!(members, 3, "{queue}");
    }
}

async fn await_all_ready(pipeline: &mut Pipeline) {
    for service in &mut pipeline.services {
        service.await_ready().await;
    }
}
