//! The reasons to refuse a target, each with the statement to run or the line to change.

use common::schema::{PgType, SchemaError, quoted};

use super::MAX_COLUMNS;

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
        "the role {role} may not use the schema {schema:?} of the target; run: GRANT USAGE ON SCHEMA {} TO {}",
        quoted(schema),
        quoted(role)
    )]
    MayNotUseSchema { schema: String, role: String },
    #[error(
        "the role {role} may not create the table {table}; run: GRANT CREATE ON SCHEMA {} TO {}, or {by_hand}",
        quoted(schema),
        quoted(role)
    )]
    MayNotCreate {
        table: String,
        schema: String,
        role: String,
        by_hand: String,
    },
    #[error(
        "the role {role} may not create tables in the tablespace {tablespace:?}, or there is none of that name; remove tablespace from the job's target, or run: GRANT CREATE ON TABLESPACE {} TO {}",
        quoted(tablespace),
        quoted(role)
    )]
    MayNotUseTablespace { tablespace: String, role: String },
    #[error(
        "the job grants {table} to the role {role:?}, which does not exist; take it out of grants, or run: CREATE ROLE {}",
        quoted(role)
    )]
    UnknownRole { table: String, role: String },
    #[error(
        "the role {role} lacks privileges on {table} that the job needs; run: GRANT {privileges} ON {table} TO {}",
        quoted(role)
    )]
    MayNotWrite {
        table: String,
        role: String,
        privileges: String,
    },
    #[error(
        "the column {column:?} of {table} takes its values from the sequence {sequence}, which the role {role} may not use; run: GRANT USAGE ON SEQUENCE {sequence} TO {}",
        quoted(role)
    )]
    MayNotUseSequence {
        table: String,
        column: String,
        sequence: String,
        role: String,
    },
    #[error(
        "the role {role} may not make the temporary table by which a mode with a key merges; run: GRANT TEMPORARY ON DATABASE {} TO {}",
        quoted(database),
        quoted(role)
    )]
    MayNotMakeTemporary { database: String, role: String },
    #[error(
        "the role {role} may not make the staging table in which the rows of a run wait; run: GRANT USAGE, CREATE ON SCHEMA etl_staging TO {}",
        quoted(role)
    )]
    MayNotStage { role: String },
    #[error(
        "row level security of {table} applies to the role {role}, so that PostgreSQL would hide or refuse rows by policies; load into a table without policies, or run, as a superuser: ALTER ROLE {} BYPASSRLS",
        quoted(role)
    )]
    RowSecurity { table: String, role: String },
    #[error(
        "the foreign key {constraint} refers to {table} and cascades, so that a {change} would change the other table too; set allow_cascades = true in the job's target, or run: {alter}"
    )]
    Cascades {
        table: String,
        /// Its name and its table.
        constraint: String,
        change: RowChange,
        alter: String,
    },
    #[error(
        "{table} is in the publication {publication} and has no replica identity, so that PostgreSQL refuses each {change}; give it a primary key, or run: ALTER TABLE {table} REPLICA IDENTITY FULL"
    )]
    NoReplicaIdentity {
        /// The target, or a partition of it.
        table: String,
        publication: String,
        change: RowChange,
    },
    #[error(
        "{partition} is a partition of {table} and a foreign table: its server commits before the ledger does, and a crash in between would load rows twice; choose another target, or run: {detach}"
    )]
    ForeignPartition {
        table: String,
        partition: String,
        detach: String,
    },
    #[error(
        "{table} is partitioned and has no partition, so that no row has a place; make its partitions, or one for all rows: CREATE TABLE {default} PARTITION OF {table} DEFAULT"
    )]
    NoPartition { table: String, default: String },
    #[error(
        "the rule {rule} of {table} rewrites some statements and not COPY, so that rows would go elsewhere in some modes; run: DROP RULE {rule} ON {table}"
    )]
    Rule { table: String, rule: String },
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
    #[error(
        "{0}; add it to the query or, if it is meant to go, set schema = \"evolve\", or run: ALTER TABLE {table} DROP COLUMN {column}",
        table = .0.table,
        column = quoted(&.0.column)
    )]
    RemovedColumn(RemovedColumn),
    #[error("the target cannot be used: {0}")]
    Name(#[from] SchemaError),
    #[error("the target {table} has no columns")]
    NoColumns { table: String },
    #[error("the columns of the target {table} name {column:?} twice")]
    DuplicateColumn { table: String, column: String },
    #[error(
        "the job has {columns} columns for {table}, and PostgreSQL has room for {} beside those of the loader; leave some out of the SELECT, or put several into one of json",
        MAX_COLUMNS - 2
    )]
    JobTooWide { table: String, columns: usize },
    #[error(
        "{table} has {places} columns, those that were dropped counted, and the job needs {added} more, where PostgreSQL has room for {MAX_COLUMNS}; leave columns out of the SELECT, or choose another target"
    )]
    TableTooWide {
        table: String,
        places: usize,
        added: usize,
    },
    #[error(
        "{table} is {article}, and rows are loaded into tables only; name another table in the job's target, or give way to a new one and run: {rename}"
    )]
    NotATable {
        table: String,
        article: &'static str,
        rename: String,
    },
    #[error(
        "{} is unlogged: a crash of Postgres would empty it while the ledger says that its rows are loaded; run: {}",
        tables.join(", "), set_logged(tables)
    )]
    Unlogged { tables: Vec<String> },
    #[error(
        "{table} has no column {column:?}; {}run: ALTER TABLE {table} ADD COLUMN {} {type_name}",
        if *evolves { "set schema = \"evolve\" in the job's target, or " } else { "" },
        quoted(column)
    )]
    MissingColumn {
        table: String,
        column: String,
        type_name: String,
        /// The loader would add it with `schema = "evolve"`.
        evolves: bool,
    },
    #[error(
        "the column {column:?} of {table} is {found}, and the job makes it {wanted}{because}; {}run: ALTER TABLE {table} ALTER COLUMN {} TYPE {wanted} USING {}{}::{wanted}",
        declare.as_ref().map_or_else(
            || "CAST it in the SELECT to a type that fits, or ".to_owned(),
            |one| format!("declare it as \"{one}\" in the job, or "),
        ),
        quoted(column),
        quoted(column),
        if *through_text { "::text" } else { "" }
    )]
    OtherType {
        table: String,
        column: String,
        found: String,
        wanted: PgType,
        /// Empty, or why a wider type does not do.
        because: &'static str,
        /// The type to declare, where a job can.
        declare: Option<PgType>,
        /// PostgreSQL has no cast between the two.
        through_text: bool,
    },
    #[error(
        "the column {column:?} of {table} is computed by Postgres; name it otherwise in the job, or run: ALTER TABLE {table} {}",
        make_plain(column, wanted, *is_virtual)
    )]
    Generated {
        table: String,
        column: String,
        wanted: String,
        is_virtual: bool,
    },
    #[error(
        "the column {column:?} of {table} is GENERATED ALWAYS AS IDENTITY, and the job fills it; name it otherwise in the job, or run: ALTER TABLE {table} ALTER COLUMN {} SET GENERATED BY DEFAULT",
        quoted(column)
    )]
    Identity { table: String, column: String },
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

/// A column of the target that the job's last run loaded and the query no longer has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the query no longer has the column {column:?}, which the run {run} loaded into {table}: new rows would have its default there, or NULL"
)]
pub struct RemovedColumn {
    pub table: String,
    pub column: String,
    pub run: String,
}

/// A change of rows, as the statement is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowChange {
    Delete,
    Update,
}

impl std::fmt::Display for RowChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Delete => "DELETE",
            Self::Update => "UPDATE",
        })
    }
}

fn set_logged(tables: &[String]) -> String {
    let each = tables
        .iter()
        .map(|table| format!("ALTER TABLE {table} SET LOGGED"));
    each.collect::<Vec<_>>().join("; ")
}

/// PostgreSQL drops the expression of a stored column only.
fn make_plain(column: &str, wanted: &str, is_virtual: bool) -> String {
    let column = quoted(column);
    if is_virtual {
        format!("DROP COLUMN {column}, ADD COLUMN {column} {wanted}")
    } else {
        format!("ALTER COLUMN {column} DROP EXPRESSION")
    }
}

/// Where the remedy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// In the job or a setting, independent of the database: a later retry cannot help.
    Job,
    /// In the table.
    Table,
    /// In the privileges of the loader's role: the table fits.
    Role,
}

impl Refusal {
    /// Whether every loader refuses the target, whatever its role and its settings.
    pub fn is_of_every_loader(&self) -> bool {
        match self.fault() {
            Fault::Job => !matches!(self, Self::SchemaNotAllowed { .. }),
            Fault::Table => true,
            Fault::Role => false,
        }
    }

    pub fn fault(&self) -> Fault {
        match self {
            Self::SchemaNotAllowed { .. }
            | Self::Name(_)
            | Self::NoColumns { .. }
            | Self::DuplicateColumn { .. }
            | Self::JobTooWide { .. }
            | Self::NoKey { .. }
            | Self::KeyType { .. }
            | Self::KeyMissing { .. } => Fault::Job,
            Self::SchemaMissing { .. }
            | Self::Cascades { .. }
            | Self::NoReplicaIdentity { .. }
            | Self::ForeignPartition { .. }
            | Self::NoPartition { .. }
            | Self::Rule { .. }
            | Self::FrozenMissing { .. }
            | Self::FrozenColumn { .. }
            | Self::RemovedColumn(_)
            | Self::UnknownRole { .. }
            | Self::TableTooWide { .. }
            | Self::NotATable { .. }
            | Self::Unlogged { .. }
            | Self::MissingColumn { .. }
            | Self::OtherType { .. }
            | Self::Generated { .. }
            | Self::Identity { .. }
            | Self::NeedsValue { .. }
            | Self::NoUniqueKey { .. } => Fault::Table,
            Self::MayNotUseSchema { .. }
            | Self::MayNotCreate { .. }
            | Self::MayNotUseTablespace { .. }
            | Self::MayNotWrite { .. }
            | Self::MayNotUseSequence { .. }
            | Self::MayNotMakeTemporary { .. }
            | Self::MayNotStage { .. }
            | Self::MayNotAlter { .. }
            | Self::RowSecurity { .. } => Fault::Role,
        }
    }
}
