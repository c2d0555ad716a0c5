//! The extractor's task: 'go on with this run from here'. The queue is the state store: a task's
//! successor is confirmed before the task is acked, so that whoever receives it knows all there is
//! to know.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::QueueName;
use super::{BatchId, Message, RunId};
use crate::job::{JobSpec, Source};
use crate::schema::ResultColumn;

/// Work on one run, from a point on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractTask {
    pub run: RunId,
    pub generation: u32,
    /// The SQL with its parameters filled in.
    pub sql: String,
    pub source: Source,
    pub job: Arc<JobSpec>,
    pub limits: Limits,
    pub state: TaskState,
}

/// What bounds a batch. Nothing else may, above all not time: whoever reads the result again must
/// cut the same batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The most rows in a batch.
    pub batch_rows: u32,
    /// The most bytes in a batch, as the sum of the values' UTF-8 lengths; a single row may exceed it.
    pub batch_bytes: u32,
}

impl Limits {
    /// A row beyond this many bytes fails the run. Far above what a table's row should be, and far
    /// enough below RabbitMQ's largest message (16 MiB since 4.0) for its escaped form.
    pub const ROW_BYTES: usize = 4 << 20;

    /// Batches of more rows are not asked for: each may be rejected with a reason of its own, and tried by itself when
    /// Postgres refuses some.
    pub const MOST_ROWS: u32 = 20_000;

    /// Those of runs that were asked for before the books kept them.
    pub const UNRECORDED: Self = Self {
        batch_rows: 5_000,
        batch_bytes: 256 << 10,
    };
}

impl Default for Limits {
    /// 1 MiB, half of that or less once it is compressed: what a batch costs by itself (a commit, a dozen questions to the
    /// database) hardly counts any more, and a service holds a few of them in little memory.
    fn default() -> Self {
        Self {
            batch_rows: 10_000,
            batch_bytes: 1 << 20,
        }
    }
}

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "at")]
pub enum TaskState {
    /// Athena has to be asked. The attempt, from 1, is part of the request's token: a failure that
    /// Athena calls retryable is asked again as another attempt.
    Start { attempt: u32 },
    /// Athena works on it.
    Waiting {
        attempt: u32,
        query_execution_id: String,
        since: jiff::Timestamp,
    },
    /// A result that was read before is wanted once more, by a replay: this one and no other, and
    /// without another query.
    Reread {
        query_execution_id: String,
        result_id: String,
    },
    /// The result is there and is being read.
    Reading {
        query_execution_id: String,
        bytes_scanned: u64,
        location: ResultLocation,
        columns: Arc<Vec<ResultColumn>>,
        cursor: Cursor,
    },
}

/// Where a result is. Decided once, before the first batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "in")]
pub enum ResultLocation {
    /// A CSV object: this version of it and no other.
    S3 {
        bucket: String,
        key: String,
        etag: String,
        size: u64,
    },
    /// `GetQueryResults`.
    Pages,
}

/// The first thing that has not been published yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The byte at which the next record begins, in an S3 object (0: the header has not been read).
    pub offset: u64,
    /// The ordinal of the next row, from 0.
    pub row: u64,
    /// The next batch, from 0.
    pub seq: u32,
    /// A page's token and the ordinal of its first row: a short cut to `row`, nothing relies on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<(String, u64)>,
}

impl ResultLocation {
    /// The name of this version of the execution's result.
    pub fn result_id(&self, query_execution_id: &str) -> String {
        match self {
            Self::S3 { etag, .. } => format!("{query_execution_id}:{}", etag.trim_matches('"')),
            Self::Pages => format!("{query_execution_id}:pages"),
        }
    }

    /// `s3://bucket/key`, where the result is an object.
    pub fn object(&self) -> Option<String> {
        match self {
            Self::S3 { bucket, key, .. } => Some(format!("s3://{bucket}/{key}")),
            Self::Pages => None,
        }
    }
}

impl TaskState {
    /// Which result is being read: the execution with the object's `ETag`, or with `pages`.
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

impl Message for ExtractTask {
    const QUEUE: QueueName = QueueName::Extract;
    const KIND: &'static str = "extract-task.v1";

    fn id(&self) -> String {
        let point = match &self.state {
            TaskState::Start { attempt } => format!("start-{attempt}"),
            TaskState::Waiting { attempt, .. } => format!("wait-{attempt}"),
            TaskState::Reread { .. } => "reread".to_owned(),
            TaskState::Reading { cursor, .. } => format!("read-{}", cursor.seq),
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
            TaskState::Reading { cursor, .. }
                if cursor.seq > BatchId::MAX_SEQ || i64::try_from(cursor.row).is_err() =>
            {
                Err(format!("batch {} from row {} on", cursor.seq, cursor.row))
            }
            TaskState::Reread { .. } if self.generation == 0 => {
                Err("a result to be read again for the first time".to_owned())
            }
            TaskState::Start { .. }
            | TaskState::Waiting { .. }
            | TaskState::Reread { .. }
            | TaskState::Reading { .. } => Ok(()),
        }
    }
}
