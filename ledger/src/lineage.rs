//! What OpenLineage is told about a run: what the ledger knows of it at the moment that it began or ended.

use common::job::JobSpec;
use common::schema::ResultColumn;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What happened to one generation of a run: each retry and each replay is a run of its own to OpenLineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occurrence {
    Start,
    Complete,
    Fail,
    /// It was cancelled, discarded or abandoned, or a later run has replaced its rows.
    Abort,
}

/// What the ledger knows of the run then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    pub occurrence: Occurrence,
    pub at: Timestamp,
    pub run_id: String,
    pub run_no: i64,
    pub generation: i32,
    pub requested_at: Timestamp,
    pub job: String,
    pub description: Option<String>,
    /// The query, with the catalog and the database that its names are of.
    pub sql: String,
    pub catalog: Option<String>,
    pub database: Option<String>,
    /// Where Athena executed it, once that is known.
    pub region: Option<String>,
    pub query_execution_id: Option<String>,
    /// The job of this generation.
    pub spec: JobSpec,
    /// Empty until the result was read.
    pub result_columns: Vec<ResultColumn>,
    pub rows: RowCounts,
}

/// The rows of the generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    pub extracted: i64,
    pub loaded: i64,
    /// Of the loaded ones, those that lost to another row of their key.
    pub deduplicated: i64,
    pub rejected: i64,
    pub dropped: i64,
}
