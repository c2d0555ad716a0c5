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
mod tests {
    use super::*;

    fn column(name: &str, pg_type: &str) -> TargetColumn {
        TargetColumn {
            name: name.into(),
            pg_type: pg_type.parse().unwrap(),
            athena_type: "varchar".into(),
        }
    }

    fn target(table: &str, key: &[&str]) -> Target {
        let mode = if key.is_empty() {
            Mode::Append
        } else {
            Mode::Upsert
        };
        Target {
            table: table.into(),
            mode,
            key: key.iter().map(|key| (*key).into()).collect(),
            ..Target::default()
        }
    }

    fn name(table: &str) -> Result<TableName, Refusal> {
        TableName::of(
            &target(table, &[]),
            &[
                "public".into(),
                "etl".into(),
                "a b".into(),
                "pg_temp".into(),
            ],
        )
    }

    fn existing(columns: &[(&str, &str)]) -> ExistingTable {
        let columns = columns.iter().map(|(name, type_name)| ExistingColumn {
            name: (*name).into(),
            type_name: (*type_name).into(),
            not_null: false,
            has_default: false,
            generated: false,
        });
        ExistingTable {
            kind: "r".into(),
            columns: columns.collect(),
            ..ExistingTable::default()
        }
    }

    #[test]
    fn only_the_schemas_that_are_allowed_and_not_reserved() {
        assert_eq!(name("t").unwrap().sql(), r#""public"."t""#);
        assert_eq!(
            name(r#"a b.t"; DROP"#).unwrap().sql(),
            r#""a b"."t""; DROP""#
        );
        for bad in [
            "etl.runs",
            "etl_staging.s_1_0",
            "pg_temp.t",
            "pg_catalog.pg_class",
            "information_schema.t",
            "other.t",
            ".t",
            "public.",
        ] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(
            name(&"x".repeat(64))
                .unwrap_err()
                .to_string()
                .contains("63 bytes")
        );
    }

    #[test]
    fn a_new_table_has_the_columns_the_batch_and_the_key() {
        let columns = [column("country \"code\"", "char(2)"), column("n", "bigint")];
        let sql = create_table(
            &name("t").unwrap(),
            &target("t", &["country \"code\""]),
            &columns,
            "it's a job",
        );
        assert!(sql.contains("CREATE TABLE \"public\".\"t\" (\n    \"country \"\"code\"\"\" character(2),\n    \"n\" bigint,\n    \"_batch\" bigint NOT NULL,\n    PRIMARY KEY (\"country \"\"code\"\"\")\n);"), "{sql}");
        assert!(sql.contains("'Loaded by the job it''s a job.'"), "{sql}");
    }

    #[test]
    fn columns_from_the_queue_are_checked_again() {
        let name = name("t").unwrap();
        let refused = |key: &[&str], columns: &[TargetColumn]| {
            check_columns(&name, &target("t", key), columns)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&[], &[]).contains("no columns"));
        assert!(refused(&[], &[column("a", "text"), column("a", "date")]).contains("twice"));
        assert!(refused(&[], &[column("_batch", "bigint")]).contains("_batch"));
        assert!(refused(&["b"], &[column("a", "text")]).contains("not among"));
        assert!(refused(&["a"], &[column("a", "json")]).contains("cannot compare"));
        let upsert = Target {
            key: vec![],
            ..target("t", &["a"])
        };
        assert_eq!(
            check_columns(&name, &upsert, &[column("a", "text")]),
            Err(Refusal::NoKey { table: name.sql() })
        );
    }

    #[test]
    fn a_table_that_fits_is_taken() {
        let columns = [column("a", "varchar(5)"), column("n", "integer")];
        let mut found = existing(&[
            ("n", "bigint"),
            ("a", "character varying(9)"),
            ("_batch", "bigint"),
            ("more", "text"),
        ]);
        let check = |target: &Target, found: &ExistingTable| {
            check_table(&name("t").unwrap(), target, &columns, found)
        };
        assert_eq!(check(&target("t", &[]), &found), Ok(()));
        let upsert = target("t", &["n", "a"]);
        assert!(matches!(
            check(&upsert, &found),
            Err(Refusal::NoUniqueKey { .. })
        ));
        found.unique = vec![vec!["a".into()], vec!["a".into(), "n".into()]];
        assert_eq!(check(&upsert, &found), Ok(()));
    }

    fn refused(found: &ExistingTable) -> String {
        let columns = [column("a", "text"), column("n", "integer")];
        check_table(&name("t").unwrap(), &target("t", &[]), &columns, found)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn columns_that_do_not_fit_are_refused_with_the_statement_to_run() {
        for (columns, statement) in [
            (
                &[("a", "text"), ("n", "integer")][..],
                r#"ALTER TABLE "public"."t" ADD COLUMN "_batch" bigint"#,
            ),
            (
                &[("a", "text"), ("_batch", "bigint")],
                r#"ALTER TABLE "public"."t" ADD COLUMN "n" integer"#,
            ),
            (
                &[
                    ("a", "character varying(255)"),
                    ("n", "integer"),
                    ("_batch", "bigint"),
                ],
                r#"ALTER TABLE "public"."t" ALTER COLUMN "a" TYPE text USING "a"::text"#,
            ),
        ] {
            let sentence = refused(&existing(columns));
            assert!(sentence.ends_with(statement), "{sentence}");
        }
    }

    #[test]
    fn what_is_no_lasting_table_or_needs_more_is_refused() {
        let fits = existing(&[
            ("a", "text"),
            ("n", "integer"),
            ("_batch", "bigint"),
            ("must", "text"),
        ]);
        let kind = |kind: &str| ExistingTable {
            kind: kind.into(),
            ..fits.clone()
        };
        assert!(refused(&kind("v")).contains("a view"));
        assert!(refused(&kind("f")).contains("a foreign table"));
        assert!(
            refused(&ExistingTable {
                unlogged: true,
                ..fits.clone()
            })
            .contains("SET LOGGED")
        );
        let mut generated = fits.clone();
        generated.columns[1].generated = true;
        assert!(refused(&generated).contains("DROP EXPRESSION"));
        let mut needy = fits;
        needy.columns[3].not_null = true;
        assert!(refused(&needy).contains("DROP NOT NULL"));
        needy.columns[3].has_default = true;
        let columns = [column("a", "text")];
        assert_eq!(
            check_table(&name("t").unwrap(), &target("t", &[]), &columns, &needy),
            Ok(())
        );
    }
}
