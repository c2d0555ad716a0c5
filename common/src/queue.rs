//! RabbitMQ, and the only code that names lapin: connections, the queues, a publisher whose success
//! means 'confirmed and routed', and consumers whose deliveries are settled once, by value.
//!
//! Rules that the code here keeps, each learnt from a way to lose messages silently:
//! a connection, channel or consumer that ends is an error and never idleness; every call has a
//! timeout, since lapin's can wait for ever; one channel is used by one publishing task, since
//! confirms go astray otherwise; an unknown outcome is published again under the same id, and
//! whoever reads it can tell the copies.

mod archive;
mod cautious;
mod connection;
mod consumer;
mod control;
pub mod inspect;
mod publisher;
mod stream;
mod topology;

use std::time::Duration;

pub use archive::ArchiveReader;
pub use cautious::CautiousConsumer;
pub use connection::{Connection, ConnectionEvent};
pub use consumer::{Consumer, Dead, Death, Delivery, RawDelivery, Unreadable, read_body};
pub use control::ControlReader;
pub use publisher::{Outgoing, Publisher, Unsendable};
pub use topology::{QueueName, declare};

/// How long a call to the broker may take before it counts as failed.
const CALL: Duration = Duration::from_secs(20);

/// The header that carries a trace's context (W3C Trace Context).
const TRACEPARENT: &str = "traceparent";

/// A failure of the broker, of the way to it, or of what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("the broker did not answer within {after:?} while {doing}")]
    Timeout { doing: String, after: Duration },
    #[error("the broker failed while {doing}")]
    Broker { doing: String, source: lapin::Error },
    #[error(
        "the broker refused {doing}; check the user, password, vhost and permissions in ETL_AMQP_URL"
    )]
    Denied { doing: String, source: lapin::Error },
    #[error(
        "the queue {queue} exists with other arguments than this version needs; drain and delete it, and it will be declared anew"
    )]
    Mismatch {
        queue: &'static str,
        source: lapin::Error,
    },
    #[error("the consumer of {queue} ended: the queue was deleted or the broker cancelled it")]
    ConsumerEnded { queue: &'static str },
    #[error("the queue {queue} does not exist; it will be declared again")]
    Unroutable { queue: String },
    #[error(
        "the queue {queue} stayed full with {messages} messages; the stage behind it is slower or away"
    )]
    Full { queue: &'static str, messages: u32 },
    #[error(
        "the broker takes no messages: {reason}; look for a memory or disk alarm (rabbitmq-diagnostics alarms)"
    )]
    Blocked { reason: String },
    #[error(
        "the URL of the broker cannot be used: {0}; ETL_AMQP_URL looks like amqp://user:password@host:5672/%2f"
    )]
    Url(String),
}

impl QueueError {
    /// Whether waiting cannot help, since somebody has to change a setting or a queue.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::Mismatch { .. } | Self::Url(_) => true,
            Self::Timeout { .. }
            | Self::Broker { .. }
            | Self::ConsumerEnded { .. }
            | Self::Unroutable { .. }
            | Self::Full { .. }
            | Self::Blocked { .. } => false,
        }
    }

    fn broker(doing: impl Into<String>, source: lapin::Error) -> Self {
        let doing = doing.into();
        if is_denied(&source) {
            Self::Denied { doing, source }
        } else {
            Self::Broker { doing, source }
        }
    }
}

/// 403 `ACCESS_REFUSED` and 530 `NOT_ALLOWED`: the user, the vhost or a permission.
fn is_denied(error: &lapin::Error) -> bool {
    matches!(amqp_code(error), Some(403 | 530))
}

/// The AMQP reply code of an error that the broker sent.
fn amqp_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Awaits a call to the broker, but not for ever.
async fn within<T>(
    doing: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    within_time(CALL, doing, call).await
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
