//! What has to be done to a target before rows can go there, as its schema contract allows. Pure.

use common::job::{SchemaContract, Target};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, quoted};

use super::{
    ExistingColumn, ExistingTable, Refusal, TableName, check_table, comment_on, create_table,
};

/// What a target needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is missing: this makes it.
    Create { ddl: String },
    /// Nothing.
    Nothing,
    /// It lacks these columns: this adds them.
    Add { columns: Vec<String>, ddl: String },
}

/// Whether `columns` are all that the rows will have, or those that are known before the query ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    All,
    /// The query may return more than the job declares.
    Declared,
}

/// Decides what a target needs, or refuses it with the statement to run. `found`: the table as it
/// is, if there is one.
pub fn decide(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    known: Known,
    job: &str,
    found: Option<&ExistingTable>,
) -> Result<Change, Refusal> {
    let Some(found) = found else {
        let ddl = create_table(name, target, columns, job);
        return match target.schema {
            SchemaContract::Create | SchemaContract::Evolve => Ok(Change::Create { ddl }),
            SchemaContract::Freeze => Err(Refusal::FrozenMissing {
                table: name.sql(),
                ddl,
            }),
        };
    };
    let mut found = found.clone();
    if known == Known::Declared {
        // A column that the job does not declare may well be one that the query returns.
        let columns = found.columns.iter_mut();
        columns.for_each(|column| column.not_null = false);
    }
    match target.schema {
        SchemaContract::Create => {
            check_table(name, target, columns, &found).map(|()| Change::Nothing)
        }
        SchemaContract::Freeze => {
            check_table(name, target, columns, &found)?;
            check_frozen(name, columns, known, &found).map(|()| Change::Nothing)
        }
        SchemaContract::Evolve => evolve(name, target, columns, found),
    }
}

/// The table with the missing columns has to be one that fits; `_batch` is not among those that are
/// added, since a table without it holds rows that nobody has thought of here.
fn evolve(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    mut found: ExistingTable,
) -> Result<Change, Refusal> {
    let is_there = |column: &&TargetColumn| found.columns.iter().any(|one| one.name == column.name);
    let missing: Vec<_> = columns
        .iter()
        .filter(|column| !is_there(column))
        .cloned()
        .collect();
    found
        .columns
        .extend(missing.iter().map(|column| ExistingColumn {
            name: column.name.clone(),
            type_name: column.pg_type.to_string(),
            not_null: false,
            has_default: false,
            generated: false,
        }));
    check_table(name, target, columns, &found)?;
    if missing.is_empty() {
        return Ok(Change::Nothing);
    }
    Ok(Change::Add {
        ddl: add_columns(name, &missing),
        columns: missing.into_iter().map(|column| column.name).collect(),
    })
}

fn add_columns(name: &TableName, columns: &[TargetColumn]) -> String {
    let table = name.sql();
    let added: Vec<_> = columns
        .iter()
        .map(|column| format!("ADD COLUMN {} {}", quoted(&column.name), column.pg_type))
        .collect();
    let comments = columns.iter().map(|column| comment_on(&table, column));
    format!(
        "ALTER TABLE {table} {};\n{}",
        added.join(", "),
        comments.collect::<String>()
    )
}

fn check_frozen(
    name: &TableName,
    columns: &[TargetColumn],
    known: Known,
    found: &ExistingTable,
) -> Result<(), Refusal> {
    let table = name.sql();
    for one in found.columns.iter().filter(|one| one.name != BATCH_COLUMN) {
        let column = one.name.clone();
        match columns.iter().find(|column| column.name == one.name) {
            Some(wanted) if !is_same(wanted.pg_type, &one.type_name) => {
                return Err(Refusal::FrozenType {
                    table,
                    column,
                    found: one.type_name.clone(),
                    wanted: wanted.pg_type.to_string(),
                });
            }
            None if known == Known::All => return Err(Refusal::FrozenColumn { table, column }),
            Some(_) | None => {}
        }
    }
    Ok(())
}

fn is_same(wanted: PgType, found: &str) -> bool {
    found.parse::<PgType>().is_ok_and(|found| found == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, pg_type: &str) -> TargetColumn {
        TargetColumn {
            name: name.into(),
            pg_type: pg_type.parse().unwrap(),
            athena_type: "it's a varchar".into(),
        }
    }

    fn table(columns: &[(&str, &str, bool)]) -> ExistingTable {
        let columns = columns
            .iter()
            .map(|(name, type_name, not_null)| ExistingColumn {
                name: (*name).into(),
                type_name: (*type_name).into(),
                not_null: *not_null,
                has_default: false,
                generated: false,
            });
        ExistingTable {
            kind: "r".into(),
            columns: columns.collect(),
            ..ExistingTable::default()
        }
    }

    fn decided(
        schema: SchemaContract,
        known: Known,
        found: Option<&ExistingTable>,
    ) -> Result<Change, Refusal> {
        let target = Target {
            table: "t".into(),
            schema,
            ..Target::default()
        };
        let name = TableName::of(&target, &["public".into()]).unwrap();
        let columns = [column("a", "text"), column("n", "integer")];
        decide(&name, &target, &columns, known, "job", found)
    }

    #[test]
    fn a_missing_table_is_created_unless_the_schema_is_frozen() {
        for schema in [SchemaContract::Create, SchemaContract::Evolve] {
            let change = decided(schema, Known::All, None).unwrap();
            assert!(matches!(change, Change::Create { ddl } if ddl.starts_with("CREATE TABLE")));
        }
        let refused = decided(SchemaContract::Freeze, Known::All, None).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("CREATE TABLE \"public\".\"t\""),
            "{refused}"
        );
    }

    #[test]
    fn only_evolve_adds_columns_and_nothing_else() {
        let short = table(&[("a", "text", false), ("_batch", "bigint", false)]);
        let change = decided(SchemaContract::Evolve, Known::All, Some(&short)).unwrap();
        let Change::Add { columns, ddl } = change else {
            panic!("{change:?}");
        };
        assert_eq!(columns, ["n"]);
        assert_eq!(
            ddl,
            "ALTER TABLE \"public\".\"t\" ADD COLUMN \"n\" integer;\nCOMMENT ON COLUMN \"public\".\"t\".\"n\" IS 'From Athena''s it''s a varchar.';\n"
        );
        for schema in [SchemaContract::Create, SchemaContract::Freeze] {
            let refused = decided(schema, Known::All, Some(&short)).unwrap_err();
            assert!(
                refused.to_string().ends_with("ADD COLUMN \"n\" integer"),
                "{refused}"
            );
        }
        for (columns, part) in [
            (&[("a", "text", false)][..], "ADD COLUMN \"_batch\""),
            (
                &[("a", "date", false), ("_batch", "bigint", false)],
                "ALTER COLUMN \"a\" TYPE text",
            ),
            (
                &[("must", "text", true), ("_batch", "bigint", false)],
                "DROP NOT NULL",
            ),
        ] {
            let refused = decided(SchemaContract::Evolve, Known::All, Some(&table(columns)));
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn frozen_means_no_difference_at_all() {
        let same = table(&[
            ("n", "integer", false),
            ("a", "text", false),
            ("_batch", "bigint", false),
        ]);
        let frozen = |found| decided(SchemaContract::Freeze, Known::All, Some(found));
        assert_eq!(frozen(&same), Ok(Change::Nothing));
        let mut wider = same.clone();
        wider.columns[0].type_name = "bigint".into();
        assert!(
            frozen(&wider)
                .unwrap_err()
                .to_string()
                .contains("TYPE integer")
        );
        let mut more = same.clone();
        more.columns
            .push(table(&[("more", "text", false)]).columns.remove(0));
        assert!(
            frozen(&more)
                .unwrap_err()
                .to_string()
                .contains("DROP COLUMN \"more\"")
        );
        assert_eq!(
            decided(SchemaContract::Freeze, Known::Declared, Some(&more)),
            Ok(Change::Nothing)
        );
        for found in [&wider, &more] {
            assert_eq!(
                decided(SchemaContract::Create, Known::All, Some(found)),
                Ok(Change::Nothing)
            );
        }
    }
}
