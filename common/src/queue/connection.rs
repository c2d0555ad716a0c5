//! A connection to the broker, without lapin's automatic recovery: a broken connection is an error, and
//! the service's supervisor opens new connections.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use lapin::{Channel, ConnectionProperties, Event, runtime};
use url::Url;

use super::address::Address;
use super::{CALL_TIMEOUT, QueueError, is_unreceivable, within, within_time};
use crate::reason::paragraph;
use crate::secret::SecretUrl;

/// Seconds between heartbeats unless the URL sets them. lapin notices a dead peer after twice that.
const HEARTBEAT: u16 = 15;

/// How long each of several hosts may take to accept a connection. A silent one must not keep the others waiting.
const HOST_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest frame of a connection that only publishes, in bytes. Our own headers are much smaller.
const PUBLISHING_FRAME: u32 = 64 << 10;

/// How often a connection is checked: whether it is still blocked, whether it still exists.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A connection to the broker.
pub struct Connection {
    inner: lapin::Connection,
    /// Of its host alone.
    url: SecretUrl,
}

/// What happens to a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// The broker accepts no messages for now, with its reason.
    Blocked(String),
    /// The broker accepts messages again.
    Unblocked,
    /// The connection was lost, with the reason.
    Lost(String),
    /// The connection was lost over a message that no client can receive, with the reason.
    Unreceivable(String),
}

impl Connection {
    /// Connects under the name that RabbitMQ's management shows. The URL's query may set `heartbeat`, in
    /// seconds, `connection_timeout`, in milliseconds, which lapin itself ignores, and the files of TLS.
    ///
    /// Of several hosts it takes the first that accepts the connection, from a random one on, so that the clients of a
    /// cluster spread over its nodes. A node that stops may refuse a user whom the others accept: a refusal counts only if
    /// no host accepts.
    pub async fn open(url: &SecretUrl, name: &str) -> Result<Self, QueueError> {
        Self::open_with(url, name, None).await
    }

    /// [`Self::open`] for a connection that receives nothing but its own messages, in less memory: lapin's buffers have the size
    /// of some frames.
    pub async fn open_to_publish(url: &SecretUrl, name: &str) -> Result<Self, QueueError> {
        Self::open_with(url, name, Some(PUBLISHING_FRAME)).await
    }

    async fn open_with(
        url: &SecretUrl,
        name: &str,
        frame_max: Option<u32>,
    ) -> Result<Self, QueueError> {
        let mut hosts: Vec<_> = url.expose_each().enumerate().collect();
        if let [(_, host)] = hosts[..] {
            return Self::open_host(host, name, frame_max, CALL_TIMEOUT).await;
        }
        let first = rand::random_range(0..hosts.len());
        hosts.rotate_left(first);
        let mut failures = Vec::new();
        for (index, host) in hosts {
            match Self::open_host(host, name, frame_max, HOST_TIMEOUT).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failures.push((index, error)),
            }
        }
        // In the order of the URL, so that the same failures are the same sentence.
        failures.sort_by_key(|(index, _)| *index);
        let mut errors: Vec<_> = failures.into_iter().map(|(_, error)| error).collect();
        if let Some(refused) = errors.iter().position(QueueError::is_configuration) {
            return Err(errors.swap_remove(refused));
        }
        let each = errors.into_iter().map(|error| paragraph(&error.into()));
        let each: Vec<_> = each.collect();
        let why = each.join("; ");
        Err(QueueError::NoHost { why })
    }

    async fn open_host(
        url: &Url,
        name: &str,
        frame_max: Option<u32>,
        limit: Duration,
    ) -> Result<Self, QueueError> {
        let address = Address::of(url)?;
        let tls = address.tls()?;
        let mut uri = address.uri;
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        // Without one lapin takes the broker's, the largest that there is. The headers of a message must fit into a frame, and a
        // message whose headers fit into the publisher's and not into ours cannot be received.
        uri.query.frame_max = frame_max.or(uri.query.frame_max);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let doing = format!("connecting to {}", SecretUrl::from(url.clone()));
        let limit = uri
            .query
            .connection_timeout
            .map_or(limit, Duration::from_millis);
        let connecting = async {
            let runtime = runtime::default_runtime()?;
            lapin::Connection::connect_uri_with_config(uri, properties, tls, runtime).await
        };
        let with_tls = url.scheme() == "amqps";
        let connected = within_time(limit, &doing, connecting).await;
        let inner = connected.map_err(|error| error.of_connecting(with_tls))?;
        let url = url.clone().into();
        Ok(Self { inner, url })
    }

    /// Another connection to the same host.
    pub(super) async fn another(&self, name: &str) -> Result<Self, QueueError> {
        Self::open(&self.url, name).await
    }

    /// The virtual host that a URL names, as `rabbitmqctl --vhost` takes it.
    pub fn vhost(url: &SecretUrl) -> Result<String, QueueError> {
        Ok(Address::of(url.expose())?.uri.vhost)
    }

    pub(super) async fn channel(&self) -> Result<Channel, QueueError> {
        within("opening a channel", self.inner.create_channel()).await
    }

    /// Closes a channel that is no longer needed. One that cannot be closed ends with its connection.
    pub(super) async fn close_channel(&self, channel: &Channel) {
        if let Err(error) = within("closing a channel", channel.close(200, "done".into())).await {
            tracing::debug!(%error, "channel not closed");
        }
    }

    /// Whether the broker accepts no messages for now (a memory or disk alarm).
    pub fn is_blocked(&self) -> bool {
        self.inner.status().blocked()
    }

    /// Waits until the broker accepts messages again, or the connection is lost.
    pub(super) async fn until_unblocked(&self) -> Result<(), QueueError> {
        while self.is_blocked() {
            if !self.inner.status().connected() {
                return Err(QueueError::Blocked {
                    reason: "it blocked this connection until the connection was lost".to_owned(),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// The events of the connection from now on. The last one is its loss, at once where it is lost already.
    pub fn events(&self) -> impl Stream<Item = ConnectionEvent> + Send + Unpin + 'static {
        let status = self.inner.status().clone();
        // lapin reports a loss only to those who listen at that moment, and not at all where a connection just ends. An
        // idle connection would not notice.
        let gone = stream::once(async move {
            while status.connected() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            // A reason, if there is one, arrives within this time.
            tokio::time::sleep(POLL_INTERVAL).await;
            ConnectionEvent::Lost("it ended without a reason".to_owned())
        });
        let events = self.inner.events_listener().filter_map(|event| {
            std::future::ready(match event {
                Event::ConnectionBlocked(reason) => Some(ConnectionEvent::Blocked(reason)),
                Event::ConnectionUnblocked => Some(ConnectionEvent::Unblocked),
                // Also the loss of a single channel: its deliveries can no longer be acked.
                Event::Error(error) if is_unreceivable(&error) => {
                    Some(ConnectionEvent::Unreceivable(error.to_string()))
                }
                Event::Error(error) => Some(ConnectionEvent::Lost(error.to_string())),
                _ => None,
            })
        });
        Box::pin(stream::select(events, gone))
    }

    /// Closes the connection; deliveries that were not acked return to their queues. The wait for the
    /// broker's answer has a bound, since the close of a blocked connection hangs.
    pub async fn close(&self) {
        if !self.inner.status().connected() {
            return;
        }
        let limit = if self.is_blocked() {
            CALL_TIMEOUT / 20
        } else {
            CALL_TIMEOUT / 4
        };
        match tokio::time::timeout(limit, self.inner.close(200, "done".into())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "connection not closed"),
            Err(_) => tracing::debug!("connection not closed in time"),
        }
    }
}
