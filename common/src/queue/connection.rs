//! A connection to the broker. Without lapin's own recovery: whoever holds a connection that broke
//! gets an error, and the service's supervisor builds everything anew.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use lapin::uri::AMQPUri;
use lapin::{Channel, ConnectionProperties, Event};

use super::{CALL, QueueError, within, within_time};
use crate::settings::SecretUrl;

/// Seconds between heartbeats when the URL does not say. A dead peer is noticed after twice that.
const HEARTBEAT: u16 = 15;

/// Bytes of a frame when the URL does not say. lapin keeps room for 64 of them for each connection, which at
/// RabbitMQ's own 128 KiB is most of what an idle service holds; a message's headers have to fit one.
const FRAME: u32 = 64 << 10;

/// How often a connection is looked at: whether it is still blocked, whether it is still there.
const LOOK: Duration = Duration::from_millis(500);

/// A connection to the broker.
pub struct Connection(lapin::Connection);

/// What a connection tells while it lives.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// The broker takes no messages at the moment, and why.
    Blocked(String),
    Unblocked,
    /// The connection is gone.
    Lost(String),
}

impl Connection {
    /// Connects; `name` is what RabbitMQ's management shows. The URL's query may say `heartbeat`, in
    /// seconds, and `connection_timeout`, in milliseconds, which lapin itself does not keep.
    pub async fn open(url: &SecretUrl, name: &str) -> Result<Self, QueueError> {
        let mut uri: AMQPUri = url.expose().as_str().parse().map_err(QueueError::Url)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        uri.query.frame_max.get_or_insert(FRAME);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let doing = format!("connecting to {url}");
        let patience = uri
            .query
            .connection_timeout
            .map_or(CALL, Duration::from_millis);
        let connecting = lapin::Connection::connect_uri(uri, properties);
        within_time(patience, &doing, connecting).await.map(Self)
    }

    pub(super) async fn channel(&self) -> Result<Channel, QueueError> {
        within("opening a channel", self.0.create_channel()).await
    }

    /// Closes a channel that is no longer needed. One that cannot be closed goes with its connection.
    pub(super) async fn close_channel(&self, channel: &Channel) {
        if let Err(error) = within("closing a channel", channel.close(200, "done".into())).await {
            tracing::debug!(%error, "channel not closed");
        }
    }

    /// Whether the broker takes no messages at the moment (a memory or disk alarm).
    pub fn is_blocked(&self) -> bool {
        self.0.status().blocked()
    }

    /// Waits until the broker takes messages again, or the connection is lost.
    pub(super) async fn until_unblocked(&self) -> Result<(), QueueError> {
        while self.is_blocked() {
            if !self.0.status().connected() {
                return Err(QueueError::Blocked {
                    reason: "it blocked this connection until that was lost".to_owned(),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// What happens to the connection from now on, the last of it that it was lost: at once where it is lost already.
    pub fn events(&self) -> impl Stream<Item = ConnectionEvent> + Send + Unpin + 'static {
        let status = self.0.status().clone();
        // lapin tells of a loss those who listen at that moment, and is silent where a connection just ends. Nobody else
        // would notice that of a connection which has nothing to do.
        let gone = stream::once(async move {
            while status.connected() {
                tokio::time::sleep(LOOK).await;
            }
            // The reason comes within this where there is one.
            tokio::time::sleep(LOOK).await;
            ConnectionEvent::Lost("it ended without a reason".to_owned())
        });
        let events = self.0.events_listener().filter_map(|event| {
            std::future::ready(match event {
                Event::ConnectionBlocked(reason) => Some(ConnectionEvent::Blocked(reason)),
                Event::ConnectionUnblocked => Some(ConnectionEvent::Unblocked),
                // Also of a single channel: what was delivered on it cannot be acked any more.
                Event::Error(error) => Some(ConnectionEvent::Lost(error.to_string())),
                _ => None,
            })
        });
        Box::pin(stream::select(events, gone))
    }

    /// Closes the connection; what was delivered and not acked goes back to its queue. A broker that
    /// does not answer (a blocked connection's close hangs) is left alone after a while.
    pub async fn close(&self) {
        if !self.0.status().connected() {
            return;
        }
        let patience = if self.is_blocked() {
            CALL / 20
        } else {
            CALL / 4
        };
        match tokio::time::timeout(patience, self.0.close(200, "done".into())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "connection not closed"),
            Err(_) => tracing::debug!("connection not closed in time"),
        }
    }
}
