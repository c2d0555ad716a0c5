//! The extractor's events about a run, from which the loader updates the ledger.

use serde::{Deserialize, Serialize};

use super::{BatchId, Message, QueueName, RunId};
use crate::schema::ResultColumn;

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
    Started {
        query_execution_id: String,
        /// From 1: Athena's second execution of the run's query is its second attempt.
        #[serde(default = "first")]
        attempt: u32,
        /// Who asked Athena, and where.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<String>,
    },
    /// What the query has scanned so far, for display.
    Scanned {
        query_execution_id: String,
        bytes_scanned: u64,
    },
    /// The query ended, in whatever way: what it cost.
    QueryEnded {
        query_execution_id: String,
        end: QueryEnd,
        bytes_scanned: u64,
        /// Athena answered with the result of an earlier query, and scanned nothing.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reused: bool,
    },
    /// The extractor's progress, for display. The counts are totals of the run.
    Progress { batches: u32, rows: u64 },
    /// The result was read to its end and every batch of it is confirmed. A run is complete when the
    /// ledger has each of these rows once.
    Extracted {
        result_id: String,
        batches: u32,
        rows: u64,
        bytes_scanned: u64,
        /// `s3://bucket/key` of the object that was read; none for a result without an object.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result_location: Option<String>,
        /// The columns of the result, for who reads the object again after Athena has forgotten the query.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        columns: Vec<ResultColumn>,
    },
    /// The run has no result, for a reason that holds for every replica.
    Failed { reason: String },
}

/// How a query ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryEnd {
    Succeeded,
    Failed,
    /// By a person, or by the extractor at a limit.
    Stopped,
}

impl QueryEnd {
    /// The name in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

fn first() -> u32 {
    1
}

impl Message for RunEvent {
    const QUEUE: QueueName = QueueName::Events;
    /// Version 1 had no end of a query, and less of its start.
    const KIND: &'static str = "run-event.v2";
    const KIND_BEFORE: Option<&'static str> = Some("run-event.v1");

    fn id(&self) -> String {
        let what = match &self.kind {
            EventKind::Started { attempt: 1, .. } => "started".to_owned(),
            EventKind::Started { attempt, .. } => format!("started-{attempt}"),
            EventKind::Scanned { bytes_scanned, .. } => format!("scanned-{bytes_scanned}"),
            EventKind::QueryEnded {
                query_execution_id, ..
            } => format!("query-ended-{query_execution_id}"),
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
                if *rows > BatchId::MAX_ROWS || (*batches > 1 && u64::from(*batches) > *rows) =>
            {
                Err(format!("a result of {rows} rows in {batches} batches"))
            }
            EventKind::Started { .. }
            | EventKind::Scanned { .. }
            | EventKind::QueryEnded { .. }
            | EventKind::Progress { .. }
            | EventKind::Extracted { .. }
            | EventKind::Failed { .. } => Ok(()),
        }
    }
}
