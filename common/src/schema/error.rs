//! Why a job, a result and a target do not fit together.

use super::postgres::{PgType, quoted};
use crate::nearest::did_you_mean;

/// Why a result cannot be loaded as a job says. Each says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error(
        "the job declares a column with source {source_name:?}, which the query does not return (it returns {}); correct the job or the SELECT{}",
        returned.join(", "), did_you_mean(source_name, returned)
    )]
    MissingSource {
        source_name: String,
        returned: Vec<String>,
    },
    #[error(
        "the query returns two columns named {0:?}; give one of them an alias: SELECT ... AS another_name"
    )]
    DuplicateSource(String),
    #[error("column {0} of the query has no name; give it an alias: SELECT ... AS some_name")]
    EmptySource(usize),
    #[error(
        "two columns are named {0:?} in the target; rename one: name = ... in the job, or AS ... in the SELECT"
    )]
    DuplicateTarget(String),
    #[error("the column {name:?} has the Athena type {type_name}, whose text form cannot be read back; write CAST({quoted} AS JSON) AS {quoted} in the SELECT", quoted = quoted(name))]
    Unreadable { name: String, type_name: String },
    #[error(
        "the column {name:?} has the Athena type {type_name}, which is not known here; CAST it to varchar in the SELECT"
    )]
    UnknownType { name: String, type_name: String },
    #[error(
        "the column {name:?} of Athena type {type_name} cannot become {pg_type} without loss; use {default} in the job, or CAST it in the SELECT"
    )]
    Lossy {
        name: String,
        type_name: String,
        pg_type: PgType,
        default: PgType,
    },
    #[error("the column {name:?} cannot have {setting}: {problem}; correct the job")]
    Setting {
        name: String,
        setting: &'static str,
        problem: String,
    },
    #[error(
        "the column {0:?} has no value; `etl run` fills it in when it requests the run, so request the run with `etl run`"
    )]
    Unfilled(String),
    #[error(
        "the key column {key:?} is not among the columns ({}); correct target.key{}",
        columns.join(", "), did_you_mean(key, columns)
    )]
    MissingKey { key: String, columns: Vec<String> },
    #[error(
        "the watermark's column {column:?} is not among those of the query ({}); correct watermark = ... in the job, or the SELECT{}",
        returned.join(", "), did_you_mean(column, returned)
    )]
    MissingWatermark {
        column: String,
        returned: Vec<String>,
    },
    #[error(
        "the watermark's column {column:?} has the Athena type {type_name}, and its parameter is of type {parameter}: date for a date, timestamp for a timestamp without a time zone, integer for a whole number, decimal for a decimal; correct the type, or CAST the column in the SELECT"
    )]
    WatermarkType {
        column: String,
        type_name: String,
        /// The type of the parameter.
        parameter: String,
    },
    #[error(
        "the name {name:?} {problem}; choose another (AS ... in the SELECT, or name = ... in the job)"
    )]
    Identifier { name: String, problem: &'static str },
}
