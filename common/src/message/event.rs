//! The extractor's events about a run, from which the loader updates the ledger.

use serde::{Deserialize, Serialize};

use super::{BatchId, Message, QueueName, RunId};

/// An event of a run. Delivered at least once, in any order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunEvent {
    pub run: RunId,
    pub generation: u32,
    pub job: String,
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Athena accepted the query.
    Started { query_execution_id: String },
    /// The extractor's progress, for display. The counts are totals of the run.
    Progress { batches: u32, rows: u64 },
    /// The result was read to its end and every batch of it is confirmed. A run is complete when the
    /// ledger has these counts.
    Extracted {
        result_id: String,
        batches: u32,
        rows: u64,
        bytes_scanned: u64,
        /// `s3://bucket/key` of the object that was read; none for a result without an object.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result_location: Option<String>,
    },
    /// The run has no result, for a reason that holds for every replica.
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
                Err("a result without a batch; an empty result is one empty batch".to_owned())
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
