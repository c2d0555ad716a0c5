//! Messages that no client can receive: headers too large for a frame, or properties that are not UTF-8. The broker takes
//! them from any publisher, each delivery of one ends the connection, and nobody can ack one. Its deliveries count all the
//! same, and at the limit of its queue the broker moves it on. So a service uses these deliveries up, on connections of
//! their own with nothing else in hand: no other message is delivered in vain.

use tokio_util::sync::CancellationToken;

use super::{Fault, Service};
use crate::lifecycle::Health;
use crate::message::QueueName;
use crate::queue::{Connection, QueueError, control, inspect};
use crate::secret::SecretUrl;

/// Deliveries of one queue in a row: some messages to their limit.
const MAX_DELIVERIES: u32 = 1_000;

/// Moves such messages out of the way of the others in every queue of the service.
pub(super) async fn expel(
    url: &SecretUrl,
    service: Service,
    health: &Health,
    stop: &CancellationToken,
) -> Result<(), Fault> {
    for queue in service.consumes {
        tokio::select! {
            expelled = expel_from(url, service, *queue, health) => expelled?,
            () = stop.cancelled() => break,
        }
    }
    // Who takes tasks reads the commands about them, too.
    if service.consumes.contains(&QueueName::Extract) {
        tokio::select! {
            restored = control::restore(url, service.name) => restored?,
            () = stop.cancelled() => {}
        }
    }
    Ok(())
}

async fn expel_from(
    url: &SecretUrl,
    service: Service,
    queue: QueueName,
    health: &Health,
) -> Result<(), QueueError> {
    let next = match queue {
        QueueName::Dead => QueueName::Unreadable,
        _ => QueueName::Dead,
    };
    for deliveries in 0..MAX_DELIVERIES {
        let connection = Connection::open(url, &format!("{} probing", service.name)).await?;
        let is_receivable = inspect::is_receivable(&connection, queue).await;
        connection.close().await;
        if is_receivable? {
            break;
        }
        if deliveries == 0 {
            let (name, next) = (queue.name(), next.name());
            tracing::warn!(
                queue.name = name,
                "the queue has a message that no client can receive; moving it to {next}"
            );
            let why = format!(
                "{name} has a message that no client can receive; it is being moved to {next}, and `etl doctor` names it in the end"
            );
            health.only("broker", why);
        }
    }
    Ok(())
}
