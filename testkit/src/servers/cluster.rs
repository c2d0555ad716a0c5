//! Three RabbitMQ nodes that are one cluster, on this machine. A test may kill, stop, restart and cut off each of them.

use futures::future::join_all;
use hyper::Method;
use serde_json::Value;

use super::broker::{Broker, private_broker};
use super::vhost::Vhost;
use crate::{TIMEOUT, wait_for, wait_until};

/// The cluster of one test. Its nodes end with it and with its last virtual host.
#[derive(Debug)]
pub struct Cluster {
    pub nodes: Vec<Broker>,
}

/// Three new nodes, joined.
pub async fn private_cluster() -> Cluster {
    let first = private_broker().await;
    let (second, third) = tokio::join!(first.joined(), first.joined());
    let cluster = Cluster {
        nodes: vec![first, second, third],
    };
    cluster.await_joined().await;
    cluster
}

impl Cluster {
    /// A new virtual host. Its URL has every node, and a heartbeat with which a client notices a node that is cut off within
    /// some seconds.
    pub async fn vhost(&self) -> Vhost {
        let mut vhost = self.nodes[0].vhost().await;
        let hosts: Vec<_> = (0..self.nodes.len())
            .map(|index| self.host(index))
            .collect();
        vhost.amqp_url = vhost.amqp_url.replacen(&hosts[0], &hosts.join(","), 1) + "?heartbeat=4";
        vhost
    }

    /// The host and port of a node in that URL.
    pub fn host(&self, index: usize) -> String {
        let url = self.nodes[index].url();
        let rest = url.split_once('@').map(|(_, rest)| rest);
        let host = rest.and_then(|rest| rest.split_once('/'));
        let (host, _) = host.expect("the broker's url file holds a URL with user and path");
        host.to_owned()
    }

    /// Waits until every node that runs sees every other one.
    pub async fn await_joined(&self) {
        join_all(self.nodes.iter().map(async |node| {
            wait_until("the nodes to see each other", TIMEOUT, async || {
                let running = "length(rabbit_nodes:all_running()).";
                let running = node.try_rabbitmqctl(&["eval", running]).await;
                running.is_ok_and(|count| count.trim() == self.nodes.len().to_string())
            })
            .await;
        }))
        .await;
    }

    /// Waits until the coordinator of streams, which chooses their leaders, has every node as a member. RabbitMQ adds a node that
    /// was away when the first stream was declared only half a minute after it has joined.
    pub async fn await_coordinated(&self) {
        wait_until("a coordinator on every node", TIMEOUT, async || {
            let count = "{ok, Members, _} = ra:members({rabbit_stream_coordinator, node()}), length(Members).";
            let members = self.nodes[0].try_rabbitmqctl(&["eval", count]).await;
            members.is_ok_and(|count| count.trim() == self.nodes.len().to_string())
        })
        .await;
    }

    /// Waits until every other node knows that this one is away.
    pub async fn await_away(&self, index: usize) {
        let away = self.nodes[index].node();
        for node in self.nodes.iter().filter(|node| node.node() != away) {
            wait_until("the others to miss a node", TIMEOUT, async || {
                let running = node.rabbitmqctl(&["eval", "nodes()."]).await;
                !running.contains(&away)
            })
            .await;
        }
    }

    /// What the node `via` knows of a queue: its members, among others.
    pub async fn queue(&self, via: usize, vhost: &Vhost, queue: &str) -> Value {
        let path = format!("queues/{}/{queue}", vhost.name);
        let (_, found) = self.nodes[via].call(Method::GET, &path, Value::Null).await;
        found
    }

    /// The node on which a queue has its leader, as the node `via` knows it.
    pub async fn leader(&self, via: usize, vhost: &Vhost, queue: &str) -> usize {
        let what = format!("{queue} to have a leader");
        wait_for(&what, TIMEOUT, async || {
            let found = self.queue(via, vhost, queue).await;
            // RabbitMQ 3.10 has no `leader` of a stream.
            let leader = found["leader"].as_str().or(found["node"].as_str())?;
            let mut nodes = self.nodes.iter();
            nodes.position(|node| node.node() == leader)
        })
        .await
    }

    /// Waits until all members of a queue are online, and returns how many it has.
    pub async fn members(&self, vhost: &Vhost, queue: &str) -> usize {
        let count = |found: &Value, what: &str| found[what].as_array().map_or(0, Vec::len);
        let what = format!("all members of {queue} to be online");
        let mut members = 0;
        wait_until(&what, TIMEOUT, async || {
            let found = self.queue(0, vhost, queue).await;
            members = count(&found, "members");
            members > 0 && members == count(&found, "online")
        })
        .await;
        members
    }

    /// Cuts a node off from the others, at once and in both directions; its clients still reach it. Ends when it has stopped
    /// serving them, as `pause_minority` wants it.
    pub async fn cut_off(&self, index: usize) {
        // The cookie of each other node is another one from now on, so that no connection to or from it is accepted.
        let node = &self.nodes[index];
        node.rabbitmqctl(&["eval", &for_others("erlang:set_cookie(N, cut)")])
            .await;
        node.rabbitmqctl(&["eval", &for_others("erlang:disconnect_node(N)")])
            .await;
        wait_until("a node that is cut off to pause", TIMEOUT, async || {
            let runs = node.try_rabbitmqctl(&["eval", "rabbit:is_running()."]);
            runs.await.is_ok_and(|runs| runs.trim() == "false")
        })
        .await;
    }

    /// Ends what [`Self::cut_off`] did, and waits until the node is a part of the cluster again.
    pub async fn heal(&self, index: usize) {
        let node = &self.nodes[index];
        node.rabbitmqctl(&[
            "eval",
            &for_others("erlang:set_cookie(N, erlang:get_cookie())"),
        ])
        .await;
        self.await_joined().await;
    }
}

/// Does this on a node for each other node `N` of its cluster.
fn for_others(act: &str) -> String {
    format!("[{act} || N <- rabbit_mnesia:cluster_nodes(all), N =/= node()].")
}
