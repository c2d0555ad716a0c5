//! The target table: its DDL, and whether a table that exists can be loaded into. Pure.
//!
//! Every identifier is quoted and was checked for its length, since Postgres cuts longer ones
//! silently; a refusal is a sentence with the statement that would help.

mod contract;
mod refusal;

use common::job::{Mode, Target};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, check_identifier, quoted};

pub use contract::{Change, Known, columns_of_a_new_table, decide};
pub use refusal::Refusal;

/// A table's name, whose parts were checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

impl TableName {
    /// The target's table, if its schema is one that may be written to. `etl` and Postgres' own
    /// never are.
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

    /// As it is written in SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.table))
    }
}

/// Schemas that no setting opens: Postgres' own, and those of the books.
pub fn is_reserved(schema: &str) -> bool {
    schema.starts_with("pg_") || matches!(schema, "information_schema" | "etl" | "etl_staging")
}

/// What the catalog says of a table that exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExistingTable {
    /// `pg_class.relkind`.
    pub kind: String,
    pub unlogged: bool,
    pub columns: Vec<ExistingColumn>,
    /// The columns of each unique index that can decide about a conflict: valid, immediate, without
    /// a condition or an expression.
    pub unique: Vec<Vec<String>>,
}

impl ExistingTable {
    /// The type of a column, if there is one of this name and of a type that is known here.
    pub fn type_of(&self, name: &str) -> Option<PgType> {
        let column = self.columns.iter().find(|one| one.name == name)?;
        column.type_name.parse().ok()
    }
}

/// A column as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExistingColumn {
    pub name: String,
    /// As `format_type` shows it.
    pub type_name: String,
    pub not_null: bool,
    /// A default, or an identity.
    pub has_default: bool,
    /// Computed from other columns.
    pub generated: bool,
}

/// Refuses columns and keys that no table could have. They came over the queue.
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

/// The statement that creates a target, and those that comment it. The columns were checked.
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
        literal("The batch that the row came with: etl.runs.run_no << 24 | etl.batches.seq."),
    )
}

/// The statement for the index by which the rows of a batch are found. Rows are written in the order of their batches, more or
/// less, so that the smallest of indexes does.
pub fn index_batches(name: &TableName) -> String {
    format!(
        "CREATE INDEX ON {} USING brin ({}) WITH (pages_per_range = 32, autosummarize = on)",
        name.sql(),
        quoted(BATCH_COLUMN)
    )
}

/// The statement that says where a column's values come from.
fn comment_on(table: &str, column: &TargetColumn) -> String {
    format!(
        "COMMENT ON COLUMN {table}.{} IS {};\n",
        quoted(&column.name),
        literal(&origin(column))
    )
}

/// Where a column's values come from, for its comment.
fn origin(column: &TargetColumn) -> String {
    match column.athena_type.as_str() {
        "" => "From the job: the same for all rows of a run.".to_owned(),
        athena_type => format!("From Athena's {athena_type}."),
    }
}

/// Whether rows of these columns can go to a table that exists. Further columns of the table are
/// none of the job's business as long as Postgres can fill them.
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
        }),
        Some(_) => Ok(()),
    }
}

/// Whether every value of the wanted type is the same value in the type that the table has.
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

/// Quoted names with commas between.
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
