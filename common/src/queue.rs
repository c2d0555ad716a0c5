//! RabbitMQ, and the only code that names lapin: connections, the queues, a publisher whose success
//! means 'confirmed and routed', and consumers whose deliveries are settled once, by value.
//!
//! Four rules, each against a way to lose messages silently. A connection, channel or consumer that
//! ends is an error and never idleness. Every call has a timeout, since lapin's own calls can wait for
//! ever. One channel belongs to one publishing task, since lapin mixes the confirms of several. A
//! message whose outcome is unknown is published again under the same id, and its readers deduplicate.

mod connection;
mod consumer;
pub(crate) mod control;
pub mod inspect;
mod outgoing;
mod policy;
mod publisher;
mod stream;
mod topology;

use std::time::Duration;

pub use connection::{Connection, ConnectionEvent};
pub use consumer::{Any, Consumer, Death, Delivery, Puller, RawDelivery, Unreadable, read_body};
pub use control::ControlReader;
pub use outgoing::{Outgoing, Unsendable};
pub use policy::{Handler, Intake, Prefetch, Stage, consume, over_limit};
pub use publisher::Publisher;
pub use stream::{Begin, StreamReader};
pub use topology::declare;

pub use crate::message::QueueName;

/// How long a call to the broker may take before it counts as failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The header that carries a trace's context (W3C Trace Context).
const TRACEPARENT: &str = "traceparent";

/// RabbitMQ's largest message is 16 MiB since 4.0; a larger one closes the channel.
const MAX_BODY: usize = 15 << 20;

/// A failure of the broker, of the connection to it, or of its configuration.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("the broker did not answer within {after:?} while {doing}")]
    Timeout { doing: String, after: Duration },
    #[error("the broker failed while {doing}")]
    Broker { doing: String, source: lapin::Error },
    #[error("no host of the broker accepts a connection: {why}")]
    NoHost { why: String },
    #[error("the connection to the broker was lost: {why}")]
    Lost { why: String },
    #[error(
        "a queue has a message that no client can receive: its headers are too large for a frame of the connection, or its properties are not valid text ({why})"
    )]
    Unreceivable { why: String },
    #[error(
        "the broker refused {doing}; check the user, password, vhost and permissions in ETL_AMQP_URL"
    )]
    Denied { doing: String, source: lapin::Error },
    #[error(
        "the queue {queue} exists with other arguments than this version needs; let its consumers empty it, delete it with `rabbitmqctl delete_queue --vhost VHOST {queue}`, and the next service that starts declares it again"
    )]
    Mismatch {
        queue: &'static str,
        source: lapin::Error,
    },
    #[error("the consumer of {queue} ended: the queue was deleted or the broker cancelled it")]
    ConsumerEnded { queue: &'static str },
    #[error("the queue {queue} does not exist; the next session declares it again")]
    Unroutable { queue: String },
    #[error(
        "the queue {queue} stayed full with {messages} messages; the stage that consumes it is slower or not running"
    )]
    Full { queue: &'static str, messages: u32 },
    #[error(
        "the queue {queue} takes no message and is empty; its leader may be away: `rabbitmq-queues quorum_status {queue}` shows its members"
    )]
    Refused { queue: &'static str },
    #[error(
        "the broker accepts no messages: {reason}; look for a memory or disk alarm (rabbitmq-diagnostics alarms)"
    )]
    Blocked { reason: String },
    #[error(
        "the URL of the broker cannot be used; ETL_AMQP_URL looks like amqp://user:password@host:5672/%2f, or with several hosts (one:5672,two:5672), or amqps:// and with ?heartbeat=15 or another parameter that is a number"
    )]
    Url,
}

impl QueueError {
    /// Whether waiting cannot help: a person must change a setting or a queue.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::Mismatch { .. } | Self::Url => true,
            Self::Timeout { .. }
            | Self::Broker { .. }
            | Self::NoHost { .. }
            | Self::Lost { .. }
            | Self::Unreceivable { .. }
            | Self::ConsumerEnded { .. }
            | Self::Unroutable { .. }
            | Self::Full { .. }
            | Self::Refused { .. }
            | Self::Blocked { .. } => false,
        }
    }

    fn broker(doing: impl Into<String>, source: lapin::Error) -> Self {
        let doing = doing.into();
        if is_denied(&source) {
            Self::Denied { doing, source }
        } else if is_unreceivable(&source) {
            let why = source.to_string();
            Self::Unreceivable { why }
        } else {
            Self::Broker { doing, source }
        }
    }
}

/// 403 `ACCESS_REFUSED` and 530 `NOT_ALLOWED`: the user, the vhost or a permission.
fn is_denied(error: &lapin::Error) -> bool {
    matches!(amqp_code(error), Some(403 | 530))
}

/// Whether a delivery ended the connection: a frame that is larger than the connection allows (501 `FRAME_ERROR`, which
/// lapin finds), or properties that lapin cannot read, such as a message id that is not UTF-8. The broker checks neither.
fn is_unreceivable(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ParsingError(_)) || amqp_code(error) == Some(501)
}

/// The AMQP reply code of an error that the broker sent.
fn amqp_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

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
