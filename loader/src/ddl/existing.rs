//! What the catalog says about a target and about the role that writes to it. Plain data.

use common::schema::PgType;
use ledger::FormerRun;

/// A target, as one role finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    pub has_schema: bool,
    /// None when the table is missing.
    pub table: Option<ExistingTable>,
    /// None when the job has loaded nothing into the table yet, and once a run has begun.
    pub former: Option<FormerRun>,
    pub access: Access,
}

/// What a role may do with a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a privilege")]
pub struct Access {
    pub role: String,
    pub database: String,
    pub uses_schema: bool,
    pub creates_in_schema: bool,
    /// Makes temporary tables in the database.
    pub makes_temporary: bool,
    /// Makes tables in the schema of the staging tables.
    pub stages: bool,
    /// Makes tables in the tablespace of the target, which exists.
    pub uses_tablespace: bool,
    /// The roles that are to be granted the target and do not exist.
    pub unknown_roles: Vec<String>,
    /// None when the table is missing.
    pub table: Option<TableAccess>,
}

/// What a role may do with an existing table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a privilege")]
pub struct TableAccess {
    /// Has the privileges of the owner.
    pub owns: bool,
    /// Row level security applies to the role.
    pub has_policies: bool,
    /// May lock the table against changes.
    pub locks: bool,
    pub deletes: bool,
    /// The columns that it may not insert into, read and update.
    pub no_insert: Vec<String>,
    pub no_select: Vec<String>,
    pub no_update: Vec<String>,
    /// The columns whose default takes a value from a sequence that the role may not use, with the quoted sequence.
    pub no_sequence: Vec<(String, String)>,
}

/// An existing table. Its relations and rules are quoted for SQL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExistingTable {
    /// `pg_class.relkind`.
    pub kind: String,
    /// The table or its partitions, where unlogged.
    pub unlogged: Vec<String>,
    /// A partition or a child, at any level, that is a foreign table.
    pub foreign_partition: Option<ForeignPartition>,
    /// It is partitioned, and no row has a place.
    pub has_no_partition: bool,
    /// A rule that is in force, or one for UPDATE: with it, even disabled, PostgreSQL refuses ON CONFLICT.
    pub rule: Option<String>,
    /// Foreign keys of other tables that change these when rows of this one change.
    pub cascades: Vec<Cascade>,
    /// The published tables whose rows the subscribers could not identify.
    pub unidentified: Vec<Unidentified>,
    /// The places of columns, of dropped ones too: PostgreSQL does not use those again.
    pub places: usize,
    pub columns: Vec<ExistingColumn>,
    /// The columns of each unique index that can decide a conflict: valid, immediate, without a condition or an
    /// expression.
    pub unique: Vec<Vec<String>>,
}

impl ExistingTable {
    /// What a column takes, if it exists and that is known here.
    pub fn type_of(&self, name: &str) -> Option<ColumnType> {
        let column = self.columns.iter().find(|one| one.name == name)?;
        let pg_type = column.takes.parse().ok()?;
        let cast = column.cast.clone();
        Some(ColumnType { pg_type, cast })
    }
}

/// A foreign table below a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignPartition {
    pub name: String,
    /// The statement that takes it out.
    pub detach: String,
}

/// A foreign key that refers to a table and cascades.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cascade {
    /// Its name and its table, for people.
    pub constraint: String,
    pub on_delete: bool,
    pub on_update: bool,
    /// The columns that it refers to.
    pub columns: Vec<String>,
    /// The statement that makes it cascade no more.
    pub alter: String,
}

/// A published table without a replica identity: PostgreSQL refuses to delete or update its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unidentified {
    pub table: String,
    pub publication: String,
    pub on_delete: bool,
    pub on_update: bool,
}

/// A column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a property in the catalog"
)]
pub struct ExistingColumn {
    pub name: String,
    /// The text of `format_type`.
    pub type_name: String,
    /// The type of the values that it takes: of a domain, the type below it; of `citext` and an enum, `text`.
    pub takes: String,
    /// Of an enum, the quoted type that a text is converted to.
    pub cast: Option<String>,
    /// It is not compared as `takes` is.
    pub compares_otherwise: bool,
    pub not_null: bool,
    /// A default, or an identity.
    pub has_default: bool,
    /// Computed from other columns.
    pub generated: Option<Generated>,
    /// `GENERATED ALWAYS AS IDENTITY`.
    pub identity_always: bool,
}

/// How a column is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generated {
    Stored,
    Virtual,
}

/// What a column takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnType {
    pub pg_type: PgType,
    /// The quoted type that the value has to be converted to, where PostgreSQL does not do that by itself.
    pub cast: Option<String>,
}

impl From<PgType> for ColumnType {
    fn from(pg_type: PgType) -> Self {
        Self {
            pg_type,
            cast: None,
        }
    }
}
