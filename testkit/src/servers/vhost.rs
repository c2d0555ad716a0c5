//! A virtual host of the test broker, and the operations of tests on its queues.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use hyper::Method;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;
use tokio::sync::Mutex;

use super::broker::{Broker, call, outside_broker, shared_broker};
use super::message::Message;
use super::{block_on_elsewhere, unique_name};
use crate::{TIMEOUT, wait_for, wait_until};

/// A new virtual host on the outside broker if one is named, else on the shared broker.
pub async fn vhost() -> Vhost {
    outside_broker().unwrap_or_else(shared_broker).vhost().await
}

/// The number of messages in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    pub ready: u64,
    pub unacked: u64,
}

/// A virtual host, which is deleted when dropped, unless the test failed.
#[derive(Debug)]
pub struct Vhost {
    pub name: String,
    /// The `ETL_AMQP_URL` of a service.
    pub amqp_url: String,
    pub broker: Broker,
    /// The connection of the helpers, opened by the first call.
    connection: Mutex<Option<Connection>>,
}

impl Broker {
    /// A new virtual host with all permissions for the broker's user. It is deleted when dropped, unless the test failed.
    pub async fn vhost(&self) -> Vhost {
        let name = unique_name("test");
        let vhost = Vhost {
            amqp_url: with_vhost(&self.url(), &name),
            broker: self.clone(),
            connection: Mutex::new(None),
            name,
        };
        let created = self
            .call(Method::PUT, &format!("vhosts/{}", vhost.name), Value::Null)
            .await;
        assert!(
            created.0.is_success(),
            "the broker did not create a virtual host: {created:?}"
        );
        let all = serde_json::json!({ "configure": ".*", "write": ".*", "read": ".*" });
        let user = user_of(&self.url());
        let granted = self
            .call(
                Method::PUT,
                &format!("permissions/{}/{user}", vhost.name),
                all,
            )
            .await;
        assert!(
            granted.0.is_success(),
            "the broker did not grant {user} the new virtual host: {granted:?}"
        );
        vhost
    }
}

fn user_of(amqp_url: &str) -> String {
    url::Url::parse(amqp_url)
        .map(|url| url.username().to_owned())
        .expect("the broker's url file holds a URL")
}

/// The same URL with another virtual host.
fn with_vhost(amqp_url: &str, vhost: &str) -> String {
    let mut url = url::Url::parse(amqp_url).expect("the broker's url file holds a URL");
    url.set_path(vhost);
    url.into()
}

async fn connect(url: &str) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name("testkit".into());
    Connection::connect(url, properties).await
}

/// The URL with each of its hosts alone.
fn each_host(url: &str) -> Vec<String> {
    let (user, rest) = url.split_once('@').expect("a URL with a user");
    let (hosts, path) = rest.split_once('/').expect("a URL with a path");
    let each = hosts.split(',');
    each.map(|host| format!("{user}@{host}/{path}")).collect()
}

impl Vhost {
    /// A new connection.
    pub async fn connect(&self) -> Connection {
        self.try_connect()
            .await
            .expect("the test broker takes a connection")
    }

    /// A new connection, or the reason why the broker refuses it; of a cluster, to the first node that takes it.
    ///
    /// # Errors
    /// Those of lapin.
    pub async fn try_connect(&self) -> lapin::Result<Connection> {
        let each = each_host(&self.amqp_url);
        let (last, others) = each.split_last().expect("a URL has a host");
        for url in others {
            if let Ok(connection) = connect(url).await {
                return Ok(connection);
            }
        }
        connect(last).await
    }

    /// A channel of the connection that the helpers below share.
    pub async fn channel(&self) -> Channel {
        let mut shared = self.connection.lock().await;
        if let Some(connection) = shared.as_ref().filter(|c| c.status().connected()) {
            return connection
                .create_channel()
                .await
                .expect("the test broker opens a channel");
        }
        let connection = self.connect().await;
        let channel = connection
            .create_channel()
            .await
            .expect("the test broker opens a channel");
        *shared = Some(connection);
        channel
    }

    /// Does this queue exist?
    pub async fn exists(&self, queue: &str) -> bool {
        self.declare_passively(queue).await.is_ok()
    }

    /// The number of ready messages, and how long the broker took to answer.
    async fn declare_passively(&self, queue: &str) -> lapin::Result<(u32, Duration)> {
        let channel = self.channel().await;
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let asked = Instant::now();
        let found = channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await;
        let took = asked.elapsed();
        if found.is_ok() {
            channel.close(200, "done".into()).await.ok();
        }
        found.map(|queue| (queue.message_count(), took))
    }

    /// Messages that wait to be delivered, exact at the moment of the call. Panics when there is no such queue.
    pub async fn ready(&self, queue: &str) -> u64 {
        wait_for(&format!("{queue} to tell its depth"), TIMEOUT, async || {
            let found = self.declare_passively(queue).await;
            let (ready, took) = found.unwrap_or_else(|e| panic!("{queue} of {}: {e}", self.name));
            // The broker waits 250 ms for a busy queue, and answers 0 when that is not enough.
            (ready > 0 || took < Duration::from_millis(200)).then_some(ready.into())
        })
        .await
    }

    /// The same for a queue and the one of long runs beside it.
    pub async fn ready_with_bulk(&self, queue: &str) -> u64 {
        self.ready(queue).await + self.ready(&format!("{queue}.bulk")).await
    }

    /// Makes a durable quorum queue without further arguments.
    pub async fn declare(&self, queue: &str) {
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        let channel = self.channel().await;
        let declared = channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
            .await;
        declared.unwrap_or_else(|e| panic!("queue {queue} of {}: {e}", self.name));
        channel.close(200, "done".into()).await.ok();
    }

    /// Drops all ready messages.
    pub async fn purge(&self, queue: &str) {
        let channel = self.channel().await;
        let purged = channel
            .queue_purge(queue.into(), QueuePurgeOptions::default())
            .await;
        purged.unwrap_or_else(|e| panic!("purging {queue}: {e}"));
        channel.close(200, "done".into()).await.ok();
    }

    /// The same for a queue and the one of long runs beside it.
    pub async fn purge_with_bulk(&self, queue: &str) {
        self.purge(queue).await;
        self.purge(&format!("{queue}.bulk")).await;
    }

    /// Deletes the queue with what is in it.
    pub async fn delete_queue(&self, queue: &str) {
        let channel = self.channel().await;
        let deleted = channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await;
        deleted.unwrap_or_else(|e| panic!("deleting {queue}: {e}"));
        channel.close(200, "done".into()).await.ok();
    }

    /// Publishes these bytes, persistent, and waits for the confirm. Panics when the queue does not exist or refuses.
    pub async fn publish(&self, queue: &str, body: &[u8]) {
        self.publish_with(
            queue,
            body,
            BasicProperties::default().with_delivery_mode(2),
        )
        .await;
    }

    /// `publish`, with properties and headers of the test's own.
    pub async fn publish_with(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        let channel = self.channel().await;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .expect("confirms can be turned on");
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let sent = channel
            .basic_publish("".into(), queue.into(), options, body, properties)
            .await;
        let confirmed = sent
            .expect("a message can be sent")
            .await
            .expect("the broker answers a publish");
        assert_eq!(
            confirmed,
            Confirmation::Ack(None),
            "the broker did not take a message for {queue}"
        );
        channel.close(200, "done".into()).await.ok();
    }

    /// Takes every ready message off the queue.
    pub async fn take_all(&self, queue: &str) -> Vec<Message> {
        let channel = self.channel().await;
        let mut taken = Vec::new();
        while let Some(got) = get(&channel, queue, true).await {
            taken.push(got);
        }
        channel.close(200, "done".into()).await.ok();
        taken
    }

    /// Reads every ready message and leaves it in the queue, where it counts as delivered once more.
    pub async fn peek_all(&self, queue: &str) -> Vec<Message> {
        let channel = self.channel().await;
        let mut seen = Vec::new();
        while let Some(got) = get(&channel, queue, false).await {
            seen.push(got);
        }
        // Closing the channel returns them to the queue, a moment after the confirmation.
        channel.close(200, "done".into()).await.ok();
        wait_until("the messages to return to the queue", TIMEOUT, async || {
            self.ready(queue).await >= seen.len() as u64
        })
        .await;
        seen
    }

    /// The first `count` messages of a stream, from its beginning. Panics when they do not come.
    pub async fn read_stream(&self, stream: &str, count: usize) -> Vec<Message> {
        let channel = self.channel().await;
        channel
            .basic_qos(100, BasicQosOptions::default())
            .await
            .expect("a prefetch can be set");
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-stream-offset".into(),
            AMQPValue::LongString("first".into()),
        );
        let consumer = channel
            .basic_consume(
                stream.into(),
                "".into(),
                BasicConsumeOptions::default(),
                arguments,
            )
            .await;
        let mut consumer = consumer.unwrap_or_else(|e| panic!("reading stream {stream}: {e}"));
        let mut read = Vec::new();
        while read.len() < count {
            let next = tokio::time::timeout(TIMEOUT, consumer.next()).await;
            let Ok(Some(Ok(delivery))) = next else {
                panic!("stream {stream} has {} messages, not {count}", read.len());
            };
            delivery
                .acker
                .ack(BasicAckOptions::default())
                .await
                .expect("a delivery can be acked");
            read.push(delivery.into());
        }
        channel.close(200, "done".into()).await.ok();
        read
    }

    /// Ready and unacked as the management API knows them, which may be some seconds old; [`Self::ready`] is exact.
    pub async fn depth(&self, queue: &str) -> Depth {
        let (status, found) = self
            .broker
            .call(
                Method::GET,
                &format!("queues/{}/{queue}", self.name),
                Value::Null,
            )
            .await;
        assert!(
            status.is_success(),
            "the management API does not know queue {queue} of {}: {status}",
            self.name
        );
        let count = |name: &str| found[name].as_u64().unwrap_or(0);
        Depth {
            ready: count("messages_ready"),
            unacked: count("messages_unacknowledged"),
        }
    }

    /// How many consumers the queue has, as the management API knows it.
    pub async fn consumers(&self, queue: &str) -> u64 {
        let (_, found) = self
            .broker
            .call(
                Method::GET,
                &format!("queues/{}/{queue}", self.name),
                Value::Null,
            )
            .await;
        found["consumers"].as_u64().unwrap_or(0)
    }
}

async fn get(channel: &Channel, queue: &str, no_ack: bool) -> Option<Message> {
    let got = channel
        .basic_get(queue.into(), BasicGetOptions { no_ack })
        .await;
    got.unwrap_or_else(|e| panic!("reading {queue}: {e}"))
        .map(|got| got.delivery.into())
}

impl Drop for Vhost {
    fn drop(&mut self) {
        if std::thread::panicking() || self.broker.is_private() {
            return;
        }
        let (management, amqp_url) = (self.broker.management(), self.broker.url());
        let path = format!("vhosts/{}", self.name);
        block_on_elsewhere(async move {
            call(&management, &amqp_url, Method::DELETE, &path, Value::Null).await;
        });
    }
}
