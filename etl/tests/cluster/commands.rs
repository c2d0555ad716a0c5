//! The commands, the archive and new queues while a node is away.

use testkit::pipeline::Pipeline;
use testkit::{TIMEOUT, wait_until};

use super::load::{assert_archived, write_jobs};
use super::{assert_members, await_all_ready, pipeline, start_services};

async fn succeeds(pipeline: &Pipeline, arguments: &[&str]) -> String {
    let done = pipeline.etl(arguments).await;
    assert_eq!(
        done.code,
        Some(0),
        "{arguments:?}\n{}\n{}",
        done.stdout,
        done.stderr
    );
    done.stdout + &done.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_replays_work_while_a_node_is_away() {
    let (cluster, mut pipeline) = pipeline().await;
    // The queues are declared without it.
    cluster.nodes[0].kill9().await;
    start_services(&mut pipeline).await;
    write_jobs(&pipeline);
    pipeline.run("appended", "appended-0").await;
    cluster.nodes[0].restart().await;
    cluster.await_joined().await;
    assert_members(&cluster, &pipeline).await;
    // Once the first host of the URL, once the node with the leader of the archive, which are perhaps the same.
    let leader = cluster.leader(0, &pipeline.vhost, "etl.archive").await;
    for (turn, away) in [0, leader].into_iter().enumerate() {
        cluster.nodes[away].kill9().await;
        let run = format!("upserted-{turn}");
        let request = ["run", "upserted", "--run-id", &run, "--again"];
        // While queues elect a leader, it may be refused.
        wait_until("a run to be requested", TIMEOUT, async || {
            pipeline.etl(&request).await.code == Some(0)
        })
        .await;
        succeeds(&pipeline, &["cancel", &run]).await;
        let said = succeeds(&pipeline, &["status", &run]).await;
        assert!(said.contains("cancelled"), "{said}");
        assert_archived(&pipeline, "appended-0").await;
        let said = succeeds(&pipeline, &["doctor"]).await;
        let host = cluster.host(away);
        assert!(
            said.contains(&format!("connecting to amqp://{host}")),
            "{said}"
        );
        cluster.nodes[away].restart().await;
        cluster.await_joined().await;
    }
    await_all_ready(&mut pipeline).await;
}
