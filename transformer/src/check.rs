//! Checks a job before anything is sent: whatever is wrong with it in every batch.

use common::job::{ColumnSpec, JobSpec};
use common::schema::PgType;

use crate::column::constant;
use crate::convert::check_format;
use crate::rules::{Checks, Inside, Place, PlanError};

/// Refuses a job that fits no batch: a pattern that is not a regular expression, a bound or a constant
/// that is not of the column's type, a rule or a format that does not apply to the type. The values of
/// the run must be filled in: see [`common::job::Request`].
///
/// Before the query has run, the rules of a column without a declared type are checked as those of a text.
pub fn check_job(job: &JobSpec) -> Result<(), PlanError> {
    job.columns.iter().try_for_each(check_column)?;
    let window = job.target.replace_where.as_ref();
    Inside::compile(window, |name| {
        let column = job.columns.iter().find(|one| one.target_name() == name)?;
        Some(Place {
            position: 0,
            pg_type: column.declared_type()?,
            masked: column.mask.is_some(),
        })
    })
    .map(drop)
}

fn check_column(column: &ColumnSpec) -> Result<(), PlanError> {
    let name = column.target_name();
    if let (Some(format), Some(pg_type)) = (&column.format, column.pg_type) {
        check_format(format, pg_type)
            .map_err(|problem| PlanError::setting(name, "format", problem))?;
    }
    if let (Some(value), Some(pg_type)) = (&column.constant, column.declared_type()) {
        constant(name, pg_type, value.as_str())?;
    }
    // As text, no rule is refused that the type of the result would take.
    let pg_type = column.declared_type().unwrap_or(PgType::Text);
    Checks::compile(name, pg_type, &column.rules).map(drop)
}
