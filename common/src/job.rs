//! A job: what to ask Athena, and where and how its rows go. One TOML file and its `.sql`.
//!
//! Read by `etl` (and by the extractor's `sample`) alone. From there the job travels with the work:
//! the task carries the SQL and the [`Source`], every batch the [`JobSpec`].

mod column;
mod file;
mod parameter;
mod resolve;
mod rule;
mod target;
mod window;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use column::{Case, ColumnSpec, EpochUnit, Mask, Unfit};
pub use file::{Job, JobError};
pub use parameter::{ParameterError, ParameterSpec, ParameterType, Request};
pub use resolve::{Origin, ResolvedColumn, resolve};
pub use rule::{Rule, Scalar};
pub use target::{Duplicates, MIN_ROWS, MaxRejected, Mode, Publish, SchemaContract, Target};
pub use window::{Bound, Comparison, Operand, Window};

/// What Athena is asked with, apart from the SQL itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The Glue database.
    pub database: String,
    /// Athena's own default (`primary`) when absent.
    pub workgroup: Option<String>,
    /// `AwsDataCatalog` when absent.
    pub catalog: Option<String>,
    /// `s3://bucket/prefix/`; the workgroup's when absent, and always where the workgroup enforces its own.
    pub output_location: Option<String>,
    pub results: Results,
    /// The query is stopped once it has scanned more than this many bytes.
    pub max_scanned: Option<u64>,
    /// The query is stopped when it has not ended after this time.
    pub timeout: Duration,
}

/// How a result is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Results {
    /// From S3 where the result has a location there, else as pages.
    #[default]
    Auto,
    /// The result's CSV object, in ranges.
    S3,
    /// `GetQueryResults`, 1,000 rows a call.
    Api,
}

/// The part of a job that every batch carries: what the transformer and the loader need.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The job's name, for logs, metrics and the table's comment.
    pub name: String,
    pub target: Target,
    #[serde(default)]
    pub columns: Vec<ColumnSpec>,
}

impl JobSpec {
    /// The spec with the time of the run's request in the columns that want it, so that it may travel. A
    /// replay takes the time that `etl.runs` has, and so gives the same rows. What is below a
    /// microsecond is left out: Postgres has no place for it.
    #[must_use]
    pub fn asked_at(&self, requested_at: jiff::Timestamp) -> Self {
        let mut spec = self.clone();
        let micros = jiff::Timestamp::from_microsecond(requested_at.as_microsecond());
        let requested_at = micros.unwrap_or(requested_at);
        for column in spec.columns.iter_mut().filter(|column| column.requested_at) {
            column.constant = Some(requested_at.to_string().into());
        }
        spec
    }

    /// Refuses a spec that may not travel: one that still waits for what a run fills in.
    pub fn check(&self) -> Result<(), String> {
        self.target.check()?;
        let is_unfilled =
            |column: &&ColumnSpec| column.source.is_none() && column.constant.is_none();
        match self.columns.iter().find(is_unfilled) {
            None => Ok(()),
            Some(column) => Err(format!(
                "a job whose column {:?} is not filled in",
                column.target_name()
            )),
        }
    }
}
