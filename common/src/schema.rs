//! The types on both sides: Athena's ([`AthenaType`]), those that a target column may have
//! ([`PgType`]), which of the first may become which of the second, and how targets are named.
//! Which column of a result fills which column of a target is `job::resolve`; the
//! transformer converts the values.

mod athena;
mod error;
mod identifier;
mod matrix;
mod postgres;

pub use athena::{AthenaType, UnknownAthenaType};
pub use error::SchemaError;
pub use identifier::{BATCH_COLUMN, check_identifier};
pub(crate) use matrix::{default_type, is_lossless};
pub use postgres::{PgType, UnknownPgType, quoted};

use serde::{Deserialize, Serialize};

/// A column of a query's result, as its metadata names it. The type is Athena's own text with its
/// parameters, such as `decimal(10,2)` or `timestamp with time zone`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ResultColumn {
    pub name: String,
    #[serde(rename = "type")]
    pub type_name: String,
}

/// A column of the target table: its name, its Postgres type, and where its values come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TargetColumn {
    pub name: String,
    #[serde(rename = "type")]
    pub pg_type: PgType,
    /// The Athena type of the source, for the column's comment; empty where the job is the source.
    pub athena_type: String,
}

impl TargetColumn {
    /// Whether a job may declare another type for it: one that holds every value of its Athena type. True where that is not
    /// known.
    pub fn may_become(&self, pg_type: PgType) -> bool {
        let athena_type = self.athena_type.parse();
        athena_type.map_or(true, |from| is_lossless(from, pg_type, false))
    }
}
