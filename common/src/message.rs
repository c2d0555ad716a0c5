//! What passes between the services. Each type names its queue and its version, so that publishing
//! one to the wrong queue does not compile, and is checked again when it is read.

mod batch;
mod body;
mod control;
mod event;
mod identity;
mod queue_name;
mod task;

pub use batch::{ContentHash, RawBatch, Reject, RejectedRow, ValidBatch};
pub use body::Body;
pub use control::{Control, Order};
pub use event::{EventKind, RunEvent};
pub use identity::{BatchId, InvalidRunId, RunId};
pub use queue_name::QueueName;
pub use task::{Cursor, ExtractTask, Limits, ResultLocation, TaskState};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message type: where it travels and how it is told from others.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The queue that it travels through.
    const QUEUE: QueueName;
    /// Its name and version, the AMQP property `type`. Readers refuse every other, but the one before.
    const KIND: &'static str;
    /// The version before, which is still read: what waits in a queue or in the archive when a service is upgraded.
    const KIND_BEFORE: Option<&'static str> = None;

    /// Whether messages of this `type` are read.
    fn reads(kind: &str) -> bool {
        kind == Self::KIND || Some(kind) == Self::KIND_BEFORE
    }

    /// The AMQP `message_id`: the same for every copy of the same message.
    fn id(&self) -> String;

    /// The run it belongs to, for the headers.
    fn run(&self) -> &RunId;

    /// The job it belongs to, for the headers.
    fn job(&self) -> &str;

    /// What a reader relies on and the types do not say; checked before a message is sent and after
    /// it was read.
    fn check(&self) -> Result<(), String>;

    /// The message as bytes, in the version [`KIND`](Self::KIND).
    fn write(&self) -> serde_json::Result<Body> {
        Body::json(self)
    }

    /// Reads bytes of the version `kind`, one of the two that are read. The error never quotes a value.
    fn read(_kind: &str, body: &[u8]) -> Result<Self, String> {
        body::read_json(body)
    }
}

#[cfg(test)]
mod tests;
