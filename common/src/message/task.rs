//! The extractor's task: 'continue this run from here'. The queue stores the state of a run: the
//! successor of a task is confirmed before the task is acked, so that the next extractor has all of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{BatchId, Message, QueueName, RunId};
use crate::job::{JobSpec, Source};
use crate::schema::ResultColumn;

/// The work on one run from a point on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractTask {
    pub run: RunId,
    pub run_no: i64,
    pub generation: u32,
    /// The generation that the query was requested with; with a later one, a replay reads its result again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_generation: u32,
    /// When this generation was requested, by the ledger's clock: a cancellation that is older is not
    /// about it.
    pub requested_at: jiff::Timestamp,
    /// When the loader sent the task on after a pause, by the ledger's clock: a pause that is older is not
    /// about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<jiff::Timestamp>,
    /// The SQL with its parameters filled in.
    pub sql: String,
    pub source: Source,
    pub job: Arc<JobSpec>,
    pub limits: Limits,
    pub state: TaskState,
}

/// The limits of a batch. Nothing else may end a batch, above all not time: an extractor that reads the
/// result again must cut the same batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The most rows in a batch.
    pub batch_rows: u32,
    /// The most bytes in a batch, as the sum of the values' UTF-8 lengths; a single row may exceed it.
    pub batch_bytes: u32,
}

impl Limits {
    /// A row of more bytes fails the run. The limit is far above the rows of a sensible table, and low
    /// enough for the escaped form of a row to fit RabbitMQ's largest message (16 MiB since 4.0).
    pub const ROW_BYTES: usize = 4 << 20;

    /// No request sets more rows a batch: each row may be rejected with its own reason, and the loader tries each row by
    /// itself when Postgres refuses some.
    pub const MOST_ROWS: u32 = 20_000;

    /// The limits of runs that are older than their record in the ledger.
    pub const UNRECORDED: Self = Self {
        batch_rows: 5_000,
        batch_bytes: 256 << 10,
    };
}

impl Default for Limits {
    /// 1 MiB, at most half of it compressed. The fixed cost of a batch (a commit, a dozen queries) hardly counts at this
    /// size, and a service holds a few batches in little memory.
    fn default() -> Self {
        Self {
            batch_rows: 10_000,
            batch_bytes: 1 << 20,
        }
    }
}

/// The progress of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "at")]
pub enum TaskState {
    /// The query must be started. The attempt, from 1, is part of the request token: a query that failed
    /// for a retryable reason starts again as another attempt.
    Start { attempt: u32 },
    /// Athena runs the query.
    Waiting {
        attempt: u32,
        query_execution_id: String,
        since: jiff::Timestamp,
    },
    /// A replay reads an earlier result again: exactly this result, without another query.
    Reread {
        query_execution_id: String,
        result_id: String,
        /// `s3://bucket/key`, where the ledger knows the result's object. With its columns, the object is read also when
        /// Athena has forgotten the query (after 45 days).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result_location: Option<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        columns: Vec<ResultColumn>,
    },
    /// The result exists and is being read.
    Reading {
        query_execution_id: String,
        bytes_scanned: u64,
        location: ResultLocation,
        columns: Arc<Vec<ResultColumn>>,
        cursor: Cursor,
    },
}

/// The location of a result. Decided once, before the first batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "in")]
pub enum ResultLocation {
    /// A CSV object, in exactly this version.
    S3(S3Object),
    /// `GetQueryResults`.
    Pages,
}

/// One version of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Object {
    pub bucket: String,
    pub key: String,
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

/// The first row that is not published yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The byte of an S3 object at which the next record begins (0: the header is not read yet).
    pub offset: u64,
    /// The ordinal of the next row, from 0.
    pub row: u64,
    /// The batches of the result before it.
    pub batches: u32,
    /// The token of a page and the ordinal of its first row: a shortcut to `row` that nothing relies on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<(String, u64)>,
}

impl Cursor {
    /// From so many batches on a run is bulk: its tasks and batches wait in queues of their own, with workers of their own, so
    /// that a short run waits for no long one. Nothing else decides about it, so that every copy of a message takes the same way.
    pub const BULK_FROM: u32 = 4;

    /// Whether the next batch is one of the later ones of a long result.
    pub fn is_bulk(&self) -> bool {
        self.batches >= Self::BULK_FROM
    }
}

impl ResultLocation {
    /// The id of this version of the execution's result.
    pub fn result_id(&self, query_execution_id: &str) -> String {
        match self {
            Self::S3(object) => {
                format!("{query_execution_id}:{}", object.etag.trim_matches('"'))
            }
            Self::Pages => format!("{query_execution_id}:pages"),
        }
    }

    /// `s3://bucket/key`, if the result is an object.
    pub fn object(&self) -> Option<String> {
        match self {
            Self::S3(object) => Some(format!("s3://{}/{}", object.bucket, object.key)),
            Self::Pages => None,
        }
    }
}

impl TaskState {
    /// The result that is read: the execution with the object's `ETag`, or with `pages`.
    pub fn result_id(&self) -> Option<String> {
        match self {
            Self::Start { .. } | Self::Waiting { .. } => None,
            Self::Reread { result_id, .. } => Some(result_id.clone()),
            Self::Reading {
                query_execution_id,
                location,
                ..
            } => Some(location.result_id(query_execution_id)),
        }
    }
}

impl ExtractTask {
    /// Whether a replay sent it, which reads a result again.
    pub fn is_replay(&self) -> bool {
        self.generation > self.first_generation
    }

    /// Whether it reads a long result on.
    pub fn is_bulk(&self) -> bool {
        matches!(&self.state, TaskState::Reading { cursor, .. } if cursor.is_bulk())
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(generation: &u32) -> bool {
    *generation == 0
}

impl Message for ExtractTask {
    const QUEUE: QueueName = QueueName::Extract;
    const KIND: &'static str = "extract-task.v3";

    fn queue(&self) -> QueueName {
        if self.is_bulk() {
            QueueName::ExtractBulk
        } else {
            QueueName::Extract
        }
    }

    fn id(&self) -> String {
        let point = match &self.state {
            TaskState::Start { attempt } => format!("start-{attempt}"),
            TaskState::Waiting { attempt, .. } => format!("wait-{attempt}"),
            TaskState::Reread { .. } => "reread".to_owned(),
            TaskState::Reading { cursor, .. } => format!("read-{}", cursor.row),
        };
        format!("{}/{}/{point}", self.run, self.generation)
    }

    fn run(&self) -> &RunId {
        &self.run
    }

    fn job(&self) -> &str {
        &self.job.name
    }

    fn check(&self) -> Result<(), String> {
        if self.sql.is_empty() {
            return Err("a task without SQL".to_owned());
        }
        self.job.check()?;
        if self.limits.batch_rows == 0
            || self.limits.batch_bytes == 0
            || self.limits.batch_bytes as usize > Limits::ROW_BYTES
        {
            return Err(format!(
                "batches of {} rows and {} bytes",
                self.limits.batch_rows, self.limits.batch_bytes
            ));
        }
        match &self.state {
            TaskState::Reading { cursor, .. } if cursor.row > BatchId::MAX_ROWS => Err(format!(
                "rows from {} on; a run has at most {} rows",
                cursor.row,
                BatchId::MAX_ROWS
            )),
            TaskState::Reread { .. } if !self.is_replay() => Err(format!(
                "a task that reads a result again in its first generation, {}",
                self.generation
            )),
            TaskState::Start { .. }
            | TaskState::Waiting { .. }
            | TaskState::Reread { .. }
            | TaskState::Reading { .. } => Ok(()),
        }
    }
}
