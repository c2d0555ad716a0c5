//! The target table: its DDL, and the check whether an existing table accepts the rows. Pure.
//!
//! Every identifier is quoted and its length is checked, since Postgres truncates longer ones silently. A refusal is a
//! sentence with the statement to run.

mod check;
mod contract;
mod existing;
mod refusal;

use common::job::{Mode, Target};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, check_identifier, quoted};

pub(crate) use check::{cascades_refusal, check_table};
pub use contract::{Change, Examined, Known, columns_of_a_new_table, examine};
pub use existing::{
    Access, Cascade, Catalog, ColumnType, ExistingColumn, ExistingTable, ForeignPartition,
    Generated, TableAccess, Unidentified,
};
pub use refusal::{Fault, Refusal, RemovedColumn, RowChange};

/// The most columns that PostgreSQL lets a table have.
pub(crate) const MAX_COLUMNS: usize = 1600;

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
    check_width(&table, columns)?;
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

/// A staging table has two columns more than the job.
fn check_width(table: &str, columns: &[TargetColumn]) -> Result<(), Refusal> {
    if columns.len() > MAX_COLUMNS - 2 {
        return Err(Refusal::JobTooWide {
            table: table.to_owned(),
            columns: columns.len(),
        });
    }
    Ok(())
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
    let tablespace = target.tablespace.as_ref();
    let tablespace = tablespace.map(|name| format!(" TABLESPACE {}", quoted(name)));
    let grants = if target.grants.is_empty() {
        String::new()
    } else {
        format!("GRANT SELECT ON {table} TO {};\n", list(&target.grants))
    };
    let by_job = || format!("Loaded by the job {job}.");
    format!(
        "CREATE TABLE {table} (\n{}\n){};\n{grants}COMMENT ON TABLE {table} IS {};\n{}COMMENT ON COLUMN {table}.{} IS {};\n",
        lines.join(",\n"),
        tablespace.unwrap_or_default(),
        literal(&target.comment.clone().unwrap_or_else(by_job)),
        comments.collect::<String>(),
        quoted(BATCH_COLUMN),
        literal(
            "The batch that the row came with: etl.run_no(_batch) of etl.runs, etl.first_row(_batch) of etl.batches."
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
