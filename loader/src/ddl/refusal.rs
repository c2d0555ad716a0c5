//! The reasons to refuse a target, each with the statement to run or the line to change.

use common::schema::{SchemaError, quoted};

/// Why a target is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the target is in the schema {schema:?}, which is not one of those that the loader may write to ({allowed}); name it in ETL_SCHEMAS or choose another"
    )]
    SchemaNotAllowed { schema: String, allowed: String },
    #[error(
        "the schema {schema:?} of the target does not exist; run: CREATE SCHEMA {}",
        quoted(schema)
    )]
    SchemaMissing { schema: String },
    #[error(
        "the role {role} may not create the table {table}; run: GRANT CREATE ON SCHEMA {schema} TO {role}, or {by_hand}"
    )]
    MayNotCreate {
        table: String,
        schema: String,
        role: String,
        by_hand: String,
    },
    #[error(
        "the role {role} may not write to {table}; run: GRANT {privileges} ON {table} TO {role}"
    )]
    MayNotWrite {
        table: String,
        role: String,
        privileges: &'static str,
    },
    #[error(
        "row level security of {table} applies to the role {role}, so that PostgreSQL would hide or refuse rows by policies; run: ALTER ROLE {role} BYPASSRLS, or load into a table without policies"
    )]
    RowSecurity { table: String, role: String },
    #[error(
        "the foreign key {constraint} refers to {table} and cascades, so that a {change} would change the other table too; alter the foreign key, or set allow_cascades = true in the job's target"
    )]
    Cascades {
        table: String,
        /// Its name and its table.
        constraint: String,
        /// `DELETE` or `UPDATE`.
        change: &'static str,
    },
    #[error(
        "{partition} is a partition of {table} and a foreign table: its server commits before the ledger does, and a crash in between would load rows twice; detach it, or choose another target"
    )]
    ForeignPartition { table: String, partition: String },
    #[error(
        "the role {role} may not add columns to {table}, which it does not own; have its owner run: {ddl}"
    )]
    MayNotAlter {
        table: String,
        role: String,
        ddl: String,
    },
    #[error(
        "{table} does not exist, and schema = \"freeze\" lets the loader create nothing; set schema = \"create\", or {by_hand}"
    )]
    FrozenMissing { table: String, by_hand: String },
    #[error(
        "{table} has the column {column:?}, which the job does not fill, and schema = \"freeze\" allows no difference; add it to the query, set schema = \"create\", or run: ALTER TABLE {table} DROP COLUMN {}",
        quoted(column)
    )]
    FrozenColumn { table: String, column: String },
    #[error("the target cannot be used: {0}")]
    Name(#[from] SchemaError),
    #[error("the target {table} has no columns")]
    NoColumns { table: String },
    #[error("the columns of the target {table} name {column:?} twice")]
    DuplicateColumn { table: String, column: String },
    #[error("{table} is {kind}, and rows are loaded into tables only; choose another target")]
    NotATable { table: String, kind: &'static str },
    #[error(
        "{table} is unlogged: a crash of Postgres would empty it while the ledger says that its rows are loaded; run: ALTER TABLE {table} SET LOGGED"
    )]
    Unlogged { table: String },
    #[error(
        "{table} has no column {column:?}; run: ALTER TABLE {table} ADD COLUMN {} {type_name}",
        quoted(column)
    )]
    MissingColumn {
        table: String,
        column: String,
        type_name: String,
    },
    #[error(
        "the column {column:?} of {table} is {found}, and the job makes it {wanted}{because}; declare it as {found:?} in the job, or run: ALTER TABLE {table} ALTER COLUMN {} TYPE {wanted} USING {}::{wanted}",
        quoted(column),
        quoted(column)
    )]
    OtherType {
        table: String,
        column: String,
        found: String,
        wanted: String,
        /// Empty, or why a wider type does not do.
        because: &'static str,
    },
    #[error(
        "the column {column:?} of {table} is computed by Postgres; name it otherwise in the job, or run: ALTER TABLE {table} ALTER COLUMN {} DROP EXPRESSION",
        quoted(column)
    )]
    Generated { table: String, column: String },
    #[error(
        "the column {column:?} of {table} must not be NULL, has no default, and the job does not fill it; add it to the query, or run: ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL",
        quoted(column)
    )]
    NeedsValue { table: String, column: String },
    #[error(
        "the job tells rows of {table} apart by {key}, which no unique constraint covers; run: ALTER TABLE {table} ADD UNIQUE ({key})"
    )]
    NoUniqueKey { table: String, key: String },
    #[error(
        "the job tells rows of {table} apart by a key and names none; add key = [..] to its target"
    )]
    NoKey { table: String },
    #[error(
        "the key column {column:?} of {table} is {type_name}, which Postgres cannot compare; CAST it to varchar in the SELECT"
    )]
    KeyType {
        table: String,
        column: String,
        type_name: String,
    },
    #[error("the key column {column:?} of {table} is not among the columns of the batch")]
    KeyMissing { table: String, column: String },
}

impl Refusal {
    /// Whether the job or a setting is at fault, independent of the database: a later retry cannot help.
    pub fn is_of_the_job(&self) -> bool {
        match self {
            Self::SchemaNotAllowed { .. }
            | Self::Name(_)
            | Self::NoColumns { .. }
            | Self::DuplicateColumn { .. }
            | Self::NoKey { .. }
            | Self::KeyType { .. }
            | Self::KeyMissing { .. } => true,
            Self::SchemaMissing { .. }
            | Self::MayNotCreate { .. }
            | Self::MayNotWrite { .. }
            | Self::RowSecurity { .. }
            | Self::Cascades { .. }
            | Self::ForeignPartition { .. }
            | Self::MayNotAlter { .. }
            | Self::FrozenMissing { .. }
            | Self::FrozenColumn { .. }
            | Self::NotATable { .. }
            | Self::Unlogged { .. }
            | Self::MissingColumn { .. }
            | Self::OtherType { .. }
            | Self::Generated { .. }
            | Self::NeedsValue { .. }
            | Self::NoUniqueKey { .. } => false,
        }
    }
}
