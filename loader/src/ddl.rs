//! The target table: its DDL, and the check whether an existing table accepts the rows. Pure.
//!
//! Every identifier is quoted and its length is checked, since Postgres truncates longer ones silently. A refusal is a
//! sentence with the statement to run.

mod contract;
mod refusal;

use common::job::{Mode, Target};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, check_identifier, quoted};

pub use contract::{Change, Known, columns_of_a_new_table, decide};
pub use refusal::Refusal;

/// The name of a table. Its parts are checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

impl TableName {
    /// The table of the target, if its schema is allowed. `etl` and the schemas of Postgres never are.
    pub fn of(target: &Target, allowed: &[String]) -> Result<Self, Refusal> {
        let (schema, table) = target.schema_and_table();
        check_identifier(schema)?;
        check_identifier(table)?;
        if is_reserved(schema) || !allowed.iter().any(|one| one == schema) {
            return Err(Refusal::SchemaNotAllowed {
                schema: schema.to_owned(),
                allowed: allowed.join(", "),
            });
        }
        Ok(Self {
            schema: schema.to_owned(),
            table: table.to_owned(),
        })
    }

    /// The quoted name for SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.table))
    }
}

/// Schemas that no setting allows: those of Postgres and of the ledger.
pub fn is_reserved(schema: &str) -> bool {
    schema.starts_with("pg_") || matches!(schema, "information_schema" | "etl" | "etl_staging")
}

/// An existing table, from the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExistingTable {
    /// `pg_class.relkind`.
    pub kind: String,
    pub unlogged: bool,
    /// A partition or a child, at any level, that is a foreign table.
    pub foreign_partition: Option<String>,
    /// Foreign keys of other tables that change these when rows of this one change.
    pub cascades: Vec<Cascade>,
    pub columns: Vec<ExistingColumn>,
    /// The columns of each unique index that can decide a conflict: valid, immediate, without a condition or an
    /// expression.
    pub unique: Vec<Vec<String>>,
}

impl ExistingTable {
    /// The type of a column, if the column exists and its type is known here.
    pub fn type_of(&self, name: &str) -> Option<PgType> {
        let column = self.columns.iter().find(|one| one.name == name)?;
        column.type_name.parse().ok()
    }
}

/// A foreign key that refers to a table and cascades, from the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cascade {
    /// Its name and its table, for people.
    pub constraint: String,
    pub on_delete: bool,
    pub on_update: bool,
    /// The columns that it refers to.
    pub columns: Vec<String>,
}

/// A column, from the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExistingColumn {
    pub name: String,
    /// The text of `format_type`.
    pub type_name: String,
    pub not_null: bool,
    /// A default, or an identity.
    pub has_default: bool,
    /// Computed from other columns.
    pub generated: bool,
}

/// Refuses invalid columns and keys. They come from a message.
pub fn check_columns(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
) -> Result<(), Refusal> {
    let table = name.sql();
    if columns.is_empty() {
        return Err(Refusal::NoColumns { table });
    }
    for (index, column) in columns.iter().enumerate() {
        check_identifier(&column.name)?;
        if columns[..index]
            .iter()
            .any(|other| other.name == column.name)
        {
            return Err(Refusal::DuplicateColumn {
                table,
                column: column.name.clone(),
            });
        }
    }
    match target.mode {
        Mode::Append | Mode::Replace => Ok(()),
        Mode::Upsert | Mode::InsertOnly if target.key.is_empty() => Err(Refusal::NoKey { table }),
        Mode::Upsert | Mode::InsertOnly => target.key.iter().try_for_each(|key| {
            match columns.iter().find(|column| column.name == *key) {
                None => Err(Refusal::KeyMissing {
                    table: table.clone(),
                    column: key.clone(),
                }),
                Some(column) if column.pg_type == PgType::Json => Err(Refusal::KeyType {
                    table: table.clone(),
                    column: key.clone(),
                    type_name: column.pg_type.to_string(),
                }),
                Some(_) => Ok(()),
            }
        }),
    }
}

/// The statements that create and comment a target. The columns are checked.
pub fn create_table(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    job: &str,
) -> String {
    let mut lines: Vec<String> = columns
        .iter()
        .map(|column| format!("    {} {}", quoted(&column.name), column.pg_type))
        .collect();
    lines.push(format!("    {} bigint NOT NULL", quoted(BATCH_COLUMN)));
    if target.mode.has_key() {
        lines.push(format!("    PRIMARY KEY ({})", list(&target.key)));
    }
    let table = name.sql();
    let comments = columns.iter().map(|column| comment_on(&table, column));
    format!(
        "CREATE TABLE {table} (\n{}\n);\nCOMMENT ON TABLE {table} IS {};\n{}COMMENT ON COLUMN {table}.{} IS {};\n",
        lines.join(",\n"),
        literal(&format!("Loaded by the job {job}.")),
        comments.collect::<String>(),
        quoted(BATCH_COLUMN),
        literal(
            "The batch that the row came with: etl.run_no(_batch) of etl.runs, etl.seq(_batch) of etl.batches."
        ),
    )
}

/// The statement for the index that finds the rows of a batch. Rows are written roughly in the order of their batches,
/// so the smallest kind of index suffices.
pub fn index_batches(name: &TableName) -> String {
    format!(
        "CREATE INDEX ON {} USING brin ({}) WITH (pages_per_range = 32, autosummarize = on)",
        name.sql(),
        quoted(BATCH_COLUMN)
    )
}

/// The statement for a column's comment: the source of its values.
fn comment_on(table: &str, column: &TargetColumn) -> String {
    format!(
        "COMMENT ON COLUMN {table}.{} IS {};\n",
        quoted(&column.name),
        literal(&origin(column))
    )
}

/// The source of a column's values, for its comment.
fn origin(column: &TargetColumn) -> String {
    match column.athena_type.as_str() {
        "" => "From the job: the same for all rows of a run.".to_owned(),
        athena_type => format!("From Athena's {athena_type}."),
    }
}

/// Whether an existing table accepts rows of these columns. Additional columns are allowed if Postgres can fill them.
pub fn check_table(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    found: &ExistingTable,
) -> Result<(), Refusal> {
    let table = name.sql();
    let kind = match found.kind.as_str() {
        "r" | "p" => None,
        "v" => Some("a view"),
        "m" => Some("a materialized view"),
        "f" => Some("a foreign table"),
        _ => Some("not a table"),
    };
    if let Some(kind) = kind {
        return Err(Refusal::NotATable { table, kind });
    }
    if found.unlogged {
        return Err(Refusal::Unlogged { table });
    }
    if let Some(partition) = found.foreign_partition.clone() {
        return Err(Refusal::ForeignPartition { table, partition });
    }
    check_cascades(&table, target, columns, found)?;
    for column in columns {
        check_column(&table, &column.name, column.pg_type, found)?;
    }
    check_column(&table, BATCH_COLUMN, PgType::BigInt, found)?;
    let filled =
        |name: &str| name == BATCH_COLUMN || columns.iter().any(|column| column.name == name);
    if let Some(other) = found
        .columns
        .iter()
        .find(|one| one.not_null && !one.has_default && !one.generated && !filled(&one.name))
    {
        return Err(Refusal::NeedsValue {
            table,
            column: other.name.clone(),
        });
    }
    if target.mode.has_key()
        && !found
            .unique
            .iter()
            .any(|unique| same_columns(unique, &target.key))
    {
        return Err(Refusal::NoUniqueKey {
            table,
            key: list(&target.key),
        });
    }
    Ok(())
}

/// Refuses a target whose mode changes rows that other tables follow.
fn check_cascades(
    table: &str,
    target: &Target,
    columns: &[TargetColumn],
    found: &ExistingTable,
) -> Result<(), Refusal> {
    let is_updated = |column: &String| {
        !target.key.contains(column) && columns.iter().any(|one| one.name == *column)
    };
    let change = |cascade: &Cascade| match target.mode {
        _ if target.allow_cascades => None,
        Mode::Replace => cascade.on_delete.then_some("DELETE"),
        Mode::Upsert | Mode::InsertOnly => {
            (cascade.on_update && cascade.columns.iter().any(is_updated)).then_some("UPDATE")
        }
        Mode::Append => None,
    };
    let found = found
        .cascades
        .iter()
        .find_map(|one| Some((one, change(one)?)));
    found.map_or(Ok(()), |(cascade, change)| {
        Err(Refusal::Cascades {
            table: table.to_owned(),
            constraint: cascade.constraint.clone(),
            change,
        })
    })
}

fn check_column(
    table: &str,
    name: &str,
    wanted: PgType,
    found: &ExistingTable,
) -> Result<(), Refusal> {
    let (table, column) = (table.to_owned(), name.to_owned());
    match found.columns.iter().find(|one| one.name == name) {
        None => Err(Refusal::MissingColumn {
            table,
            column,
            type_name: wanted.to_string(),
        }),
        Some(one) if one.generated => Err(Refusal::Generated { table, column }),
        Some(one) if !is_same_or_wider(wanted, &one.type_name) => Err(Refusal::OtherType {
            table,
            column,
            found: one.type_name.clone(),
            wanted: wanted.to_string(),
            because: "",
        }),
        Some(_) => Ok(()),
    }
}

/// Whether every value of the job's type is the same value in the type of the table.
fn is_same_or_wider(wanted: PgType, found: &str) -> bool {
    use PgType as P;
    let Ok(found) = found.parse::<PgType>() else {
        return false;
    };
    match (wanted, found) {
        (P::SmallInt, P::Integer | P::BigInt)
        | (P::Integer, P::BigInt)
        | (P::Numeric(_), P::Numeric(None))
        | (P::Varchar(_), P::Text | P::Varchar(None))
        | (P::Text, P::Varchar(None)) => true,
        (P::Varchar(Some(wanted)), P::Varchar(Some(found))) => found >= wanted,
        (wanted, found) => wanted == found,
    }
}

fn same_columns(unique: &[String], key: &[String]) -> bool {
    unique.len() == key.len() && key.iter().all(|column| unique.contains(column))
}

/// Quoted names, separated by commas.
pub fn list(names: &[String]) -> String {
    names
        .iter()
        .map(|name| quoted(name))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A text as an SQL literal, for `standard_conforming_strings = on`. Postgres' text has no NUL.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''").replace('\0', ""))
}

#[cfg(test)]
mod tests;
