//! What a session watches of the broker: its connections, the depth of the queues, and the room in a full one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{sleep, timeout};

use super::{Fault, Session};
use crate::message::QueueName;
use crate::queue::{ConnectionEvent, QueueError, inspect};

/// How often the depth of a queue is read.
const DEPTH_INTERVAL: Duration = Duration::from_secs(10);

/// How often a full queue is looked at.
const ROOM_INTERVAL: Duration = Duration::from_secs(2);

/// How long a full queue is left alone where nobody may look at it.
const UNSEEN_PAUSE: Duration = Duration::from_secs(5);

/// Reports the depth of the queues.
pub(super) async fn measure(session: &Session, queues: &[QueueName]) -> std::convert::Infallible {
    loop {
        for queue in queues {
            match inspect::look(&session.consuming, *queue).await {
                Ok(state) => {
                    let messages = state.map_or(0, |state| state.messages);
                    metrics::gauge!("etl_queue_messages", "queue" => queue.name())
                        .set(f64::from(messages));
                }
                Err(error) => {
                    tracing::debug!(queue.name = queue.name(), %error, "the depth of the queue is unknown");
                }
            }
        }
        sleep(DEPTH_INTERVAL).await;
    }
}

/// Watches both connections, and returns the reason when one is lost.
pub(super) async fn watch(session: &Session) -> QueueError {
    let mut events =
        futures::stream::select(session.consuming.events(), session.publishing.events());
    while let Some(event) = events.next().await {
        match event {
            ConnectionEvent::Blocked(reason) => {
                tracing::warn!(
                    reason,
                    "the broker accepts no messages because of a memory or disk alarm; waiting"
                );
                session.health.not_ready(
                    "alarm",
                    format!("the broker accepts no messages: {reason}; free memory or disk there"),
                );
            }
            ConnectionEvent::Unblocked => session.health.clear("alarm"),
            ConnectionEvent::Lost(why) => {
                session
                    .health
                    .not_ready("broker", format!("connection lost: {why}"));
                return QueueError::Lost { why };
            }
            ConnectionEvent::Unreceivable(why) => {
                return QueueError::Unreceivable { why };
            }
        }
    }
    let why = "it was closed".to_owned();
    QueueError::Lost { why }
}

impl Session {
    /// Waits, with no delivery in hand, until a full queue has room, or the session ends: the broker closes the channel of a
    /// consumer that holds a delivery for half an hour.
    pub(super) async fn until_room(&self, queue: &str, messages: u32) -> Result<(), Fault> {
        self.health.not_ready(
            "full",
            format!("{queue} is full; the stage that consumes it is slower or not running"),
        );
        tracing::warn!(
            queue.name = queue,
            queue.messages = messages,
            "queue full; waiting for the stage that consumes it"
        );
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let queue = QueueName::ALL
            .into_iter()
            .find(|name| name.name() == queue)
            .expect("the error names one of the queues");
        let waited = self.look_for_room(queue, messages).await;
        if self.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.health.clear("full");
        }
        waited
    }

    async fn look_for_room(&self, queue: QueueName, mut highest: u32) -> Result<(), Fault> {
        loop {
            let state = tokio::select! {
                state = inspect::look(&self.publishing, queue) => state,
                () = self.stop.cancelled() => break,
            };
            let state = match state {
                // A user who may not look finds out by publishing, a moment later.
                Err(QueueError::Denied { .. }) => {
                    timeout(UNSEEN_PAUSE, self.stop.cancelled()).await.ok();
                    break;
                }
                state => state?,
            };
            // The next session declares a queue that is gone.
            let Some(state) = state else { break };
            highest = highest.max(state.messages);
            if state.messages < (highest - highest / 10).max(1) {
                break;
            }
            if timeout(ROOM_INTERVAL, self.stop.cancelled()).await.is_ok() {
                break;
            }
        }
        Ok(())
    }
}
