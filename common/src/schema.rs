//! The columns of a result and of a target, and how the one becomes the other.
//!
//! Which Athena types exist ([`AthenaType`]), which Postgres types a target may have ([`PgType`]),
//! and which column of the result fills which column of the target ([`resolve`]). How a value is
//! converted is the transformer's.

mod athena;
mod matrix;
mod postgres;
mod resolve;

pub use athena::{AthenaType, UnknownAthenaType};
pub use postgres::{PgType, UnknownPgType, quoted};
pub use resolve::{BATCH_COLUMN, Origin, ResolvedColumn, SchemaError, check_identifier, resolve};

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
