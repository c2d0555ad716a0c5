//! RabbitMQ, and the only code that names lapin: connections, the queues, a publisher whose success
//! means 'confirmed and routed', and consumers whose deliveries are settled once, by value.
//!
//! Four rules, each against a way to lose messages silently. A connection, channel or consumer that
//! ends is an error and never idleness. Every call has a timeout, since lapin's own calls can wait for
//! ever. One channel belongs to one publishing task, since lapin mixes the confirms of several. A
//! message whose outcome is unknown is published again under the same id, and its readers deduplicate.

mod address;
mod connection;
mod consumer;
pub(crate) mod control;
mod definitions;
mod error;
pub mod inspect;
mod kind;
mod outgoing;
mod policy;
mod publisher;
mod retention;
mod stream;
mod topology;

use std::time::Duration;

use error::{amqp_code, is_unreceivable};

pub use connection::{Connection, ConnectionEvent};
pub use consumer::{Any, Consumer, Death, Delivery, Puller, RawDelivery, Unreadable, read_body};
pub use control::ControlReader;
pub use definitions::definitions;
pub use error::QueueError;
pub use kind::{Kind, pretended};
pub use outgoing::{Outgoing, Unsendable};
pub use policy::{Handler, Intake, Prefetch, Stage, Workers, consume, over_limit};
pub use publisher::Publisher;
pub use retention::{limit_age, pad};
pub use stream::{Begin, StreamReader};
pub use topology::{ARCHIVE_BYTES, Archive, Archived, Declare, Topology, declare, has_streams};

pub use crate::message::QueueName;

/// How long a call to the broker may take before it counts as failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The header that carries a trace's context (W3C Trace Context).
const TRACEPARENT: &str = "traceparent";

/// RabbitMQ's largest message is 16 MiB since 4.0; a larger one closes the channel.
const MAX_BODY: usize = 15 << 20;

/// Awaits a call to the broker for [`CALL_TIMEOUT`].
async fn within<T>(
    doing: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    within_time(CALL_TIMEOUT, doing, call).await
}

async fn within_time<T>(
    after: Duration,
    doing: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    match tokio::time::timeout(after, call).await {
        Ok(answer) => answer.map_err(|source| QueueError::broker(doing, source)),
        Err(_) => Err(QueueError::Timeout {
            doing: doing.to_owned(),
            after,
        }),
    }
}
