//! The messages between the services. Each type names its queue and its version, so that publishing to
//! the wrong queue does not compile. A reader checks every message again.

mod batch;
mod body;
mod control;
mod event;
mod identity;
mod queue_name;
mod task;

pub use batch::{ContentHash, RawBatch, Reject, RejectedRow, ValidBatch};
pub use body::Body;
pub use control::{Command, Control};
pub use event::{EventKind, QueryEnd, RunEvent};
pub use identity::{BatchId, InvalidRunId, RunId};
pub use queue_name::QueueName;
pub use task::{Cursor, ExtractTask, Limits, ResultLocation, S3Object, TaskState};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message type, its queue and its version.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its queue, or that of its first messages where long runs have [another one](Self::queue).
    const QUEUE: QueueName;
    /// Its name and version, the AMQP property `type`. Readers refuse every version but this one and the one before.
    const KIND: &'static str;
    /// The version before, which is still read: messages wait in a queue or in the archive while services are upgraded.
    const KIND_BEFORE: Option<&'static str> = None;

    /// Whether this version reads messages of this `type`.
    fn reads(kind: &str) -> bool {
        kind == Self::KIND || Some(kind) == Self::KIND_BEFORE
    }

    /// The queue of this message.
    fn queue(&self) -> QueueName {
        Self::QUEUE
    }

    /// The AMQP `message_id`, the same for every copy of a message.
    fn id(&self) -> String;

    /// Its run, for the headers.
    fn run(&self) -> &RunId;

    /// Its job, for the headers.
    fn job(&self) -> &str;

    /// Checks what readers rely on and the types do not express. Called before a message is sent and after
    /// it is read.
    fn check(&self) -> Result<(), String>;

    /// Encodes the message in the version [`KIND`](Self::KIND).
    fn write(&self) -> serde_json::Result<Body> {
        Body::json(self)
    }

    /// Decodes a message of the version `kind`, one of the two that are read. The error contains no value.
    fn read(_kind: &str, body: &[u8]) -> Result<Self, String> {
        body::read_json(body)
    }
}

#[cfg(test)]
mod tests;
