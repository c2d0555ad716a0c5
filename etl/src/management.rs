//! RabbitMQ's management API, as far as AMQP does not tell the same: the disks of the nodes, and what the archive may take
//! of them. Optional: `ETL_MANAGEMENT_URL` names it, and a user with the tag `monitoring` may read it.

use common::http::get_json;
use common::queue::QueueName;
use common::settings::SecretUrl;
use serde::Deserialize;
use serde_json::Value;

/// A node of the broker.
#[derive(Debug, Deserialize)]
pub struct Node {
    pub name: String,
    /// Bytes. Missing where the node does not run.
    pub disk_free: Option<u64>,
    /// Bytes at which the broker takes no more messages.
    pub disk_free_limit: Option<u64>,
}

/// What the API says of the archive.
#[derive(Debug, Deserialize)]
pub struct ArchiveQueue {
    /// What the policies set.
    effective_policy_definition: Option<Value>,
    #[serde(default)]
    members: Vec<String>,
}

impl ArchiveQueue {
    /// A limit in bytes that a policy sets.
    pub fn policy_bytes(&self) -> Option<u64> {
        let policy = self.effective_policy_definition.as_ref()?;
        policy.get("max-length-bytes")?.as_u64()
    }

    /// Whether a node has a copy. Unknown members are every node.
    pub fn is_on(&self, node: &Node) -> bool {
        self.members.is_empty() || self.members.contains(&node.name)
    }
}

/// The nodes of the broker.
pub async fn nodes(url: &SecretUrl) -> anyhow::Result<Vec<Node>> {
    get_json(url, &["api", "nodes"]).await
}

/// The archive in a vhost.
pub async fn archive(url: &SecretUrl, vhost: &str) -> anyhow::Result<ArchiveQueue> {
    get_json(url, &["api", "queues", vhost, QueueName::Archive.name()]).await
}
