//! What the extractor tells of a run: the books in Postgres follow from it.

use serde::{Deserialize, Serialize};

use super::QueueName;
use super::{BatchId, Message, RunId};

/// Something that happened to a run. Delivered at least once and in any order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunEvent {
    pub run: RunId,
    pub generation: u32,
    pub job: String,
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Athena has the query.
    Started { query_execution_id: String },
    /// The extractor has come this far; for those who look on. Counts are totals of the run.
    Progress { batches: u32, rows: u64 },
    /// The result was read to its end and every batch of it is confirmed: this is how many there
    /// are. It is what the run is measured against.
    Extracted {
        result_id: String,
        batches: u32,
        rows: u64,
        bytes_scanned: u64,
        /// `s3://bucket/key` of the object that was read; none for a result that has no object.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result_location: Option<String>,
    },
    /// The run has no result, for a cause that holds for every replica.
    Failed { reason: String },
}

impl Message for RunEvent {
    const QUEUE: QueueName = QueueName::Events;
    const KIND: &'static str = "run-event.v1";

    fn id(&self) -> String {
        let what = match &self.kind {
            EventKind::Started { .. } => "started".to_owned(),
            EventKind::Progress { batches, .. } => format!("progress-{batches}"),
            EventKind::Extracted { .. } => "extracted".to_owned(),
            EventKind::Failed { .. } => "failed".to_owned(),
        };
        format!("{}/{}/{what}", self.run, self.generation)
    }

    fn run(&self) -> &RunId {
        &self.run
    }

    fn job(&self) -> &str {
        &self.job
    }

    fn check(&self) -> Result<(), String> {
        match &self.kind {
            EventKind::Extracted { batches: 0, .. } => {
                Err("a result of no batch; an empty result is one empty batch".to_owned())
            }
            EventKind::Extracted { batches, rows, .. }
                if *batches > BatchId::MAX_SEQ
                    || i64::try_from(*rows).is_err()
                    || (*batches > 1 && u64::from(*batches) > *rows) =>
            {
                Err(format!("a result of {rows} rows in {batches} batches"))
            }
            EventKind::Started { .. }
            | EventKind::Progress { .. }
            | EventKind::Extracted { .. }
            | EventKind::Failed { .. } => Ok(()),
        }
    }
}
