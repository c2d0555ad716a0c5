//! A job: a query for Athena, and the target of its rows. One TOML file and its `.sql`.
//!
//! Only `etl` and the extractor's `sample` read job files. Then the job travels with the work: the task
//! carries the SQL and the [`Source`], every batch the [`JobSpec`].

mod column;
mod file;
mod notify;
mod parameter;
mod relative;
mod resolve;
mod rule;
mod source;
mod statement;
mod target;
mod watermark;
mod window;

use serde::{Deserialize, Serialize};

pub use column::{Case, ColumnSpec, EpochUnit, Mask, Unfit};
pub use file::{Job, JobError, schema};
pub use notify::{ChannelName, Notify};
pub use parameter::{ParameterError, ParameterSpec, ParameterType, Request, parameters_of};
pub use resolve::{Origin, ResolvedColumn, resolve};
pub use rule::{Rule, Scalar};
pub use source::{Account, Results, Source};
pub use statement::{changes_something, is_same_sql};
pub use target::{Commit, Duplicates, MIN_ROWS, MaxRejected, Mode, SchemaContract, Target};
pub use watermark::{Point, ReadOn, Watermark, WatermarkRange};
pub use window::{Bound, Comparison, Operand, Window};

/// The part of a job that the transformer and the loader need. Every batch carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The job's name, for logs, metrics and the table's comment.
    pub name: String,
    pub target: Target,
    #[serde(default)]
    pub columns: Vec<ColumnSpec>,
    /// The rows that a run reads of a job with a watermark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<WatermarkRange>,
}

impl JobSpec {
    /// Fills the time of the run's request into the columns with `requested_at`. A replay uses the time in
    /// `etl.runs` and gives the same rows. The time is truncated to Postgres' microseconds.
    #[must_use]
    pub fn with_requested_at(&self, requested_at: jiff::Timestamp) -> Self {
        let mut spec = self.clone();
        let micros = jiff::Timestamp::from_microsecond(requested_at.as_microsecond());
        let requested_at = micros.unwrap_or(requested_at);
        for column in spec.columns.iter_mut().filter(|column| column.requested_at) {
            column.constant = Some(requested_at.to_string().into());
        }
        spec
    }

    /// Refuses a spec with a column whose value a request must still fill in.
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
