//! The changes that a target needs before rows can be written, within its schema contract. Pure.

use common::job::{SchemaContract, Target};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, quoted};

use super::{
    ExistingColumn, ExistingTable, Refusal, TableName, check_table, comment_on, create_table, list,
};

/// The change that a target needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The table is missing: create it. `by_hand`: the alternative for a person, after `or`. It is the statement itself
    /// or, until the query's columns are known, a description of the table: the statement would create a table without
    /// those columns.
    Create { ddl: String, by_hand: String },
    /// No change.
    Nothing,
    /// Columns are missing: add them.
    Add { columns: Vec<String>, ddl: String },
}

/// Whether `columns` are complete, or only those known before the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    All,
    /// The query may return more than the job declares.
    Declared,
}

/// Decides on the change that a target needs, or refuses the target with the statement to run. `found`: the existing
/// table.
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
        let by_hand = by_hand(target, columns, known, &ddl);
        return match target.schema {
            SchemaContract::Create | SchemaContract::Evolve => Ok(Change::Create { ddl, by_hand }),
            SchemaContract::Freeze => Err(Refusal::FrozenMissing {
                table: name.sql(),
                by_hand,
            }),
        };
    };
    let mut found = found.clone();
    if known == Known::Declared {
        // The query may return a column that the job does not declare.
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

fn by_hand(target: &Target, columns: &[TargetColumn], known: Known, ddl: &str) -> String {
    match known {
        Known::All => format!("run: {ddl}"),
        Known::Declared => format!(
            "create it yourself with {}",
            columns_of_a_new_table(target, columns)
        ),
    }
}

/// Describes a table to create, while only the declared columns are known.
pub fn columns_of_a_new_table(target: &Target, declared: &[TargetColumn]) -> String {
    let mut parts: Vec<_> = declared
        .iter()
        .map(|column| format!("{} {}", quoted(&column.name), column.pg_type))
        .collect();
    parts.push(if declared.is_empty() {
        "a column for each one of the query's result".to_owned()
    } else {
        "a column for each other one of the query's result".to_owned()
    });
    parts.push(format!("{} bigint NOT NULL", quoted(BATCH_COLUMN)));
    if target.mode.has_key() {
        parts.push(format!("PRIMARY KEY ({})", list(&target.key)));
    }
    parts.join(", ")
}

/// The table with the added columns must fit. `_batch` is never added: a table without it has rows of another program.
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
                return Err(Refusal::OtherType {
                    table,
                    column,
                    found: one.type_name.clone(),
                    wanted: wanted.pg_type.to_string(),
                    because: ", and schema = \"freeze\" allows no difference",
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
    use common::job::Mode;

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
    fn missing_table_is_created_unless_the_schema_is_frozen() {
        for schema in [SchemaContract::Create, SchemaContract::Evolve] {
            let change = decided(schema, Known::All, None).unwrap();
            assert!(
                matches!(change, Change::Create { ddl, .. } if ddl.starts_with("CREATE TABLE"))
            );
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
    fn no_statement_is_suggested_before_all_columns_are_known() {
        let refused = decided(SchemaContract::Freeze, Known::Declared, None);
        let said = refused.unwrap_err().to_string();
        assert!(
            !said.contains("CREATE TABLE")
                && said.ends_with("or create it yourself with \"a\" text, \"n\" integer, a column for each other one of the query's result, \"_batch\" bigint NOT NULL"),
            "{said}"
        );
        let created = decided(SchemaContract::Create, Known::Declared, None).unwrap();
        assert!(
            matches!(&created, Change::Create { by_hand, .. } if !by_hand.contains("CREATE TABLE")),
            "{created:?}"
        );
        let upsert = Target {
            table: "t".into(),
            mode: Mode::Upsert,
            key: vec!["id".into()],
            ..Target::default()
        };
        assert_eq!(
            columns_of_a_new_table(&upsert, &[]),
            "a column for each one of the query's result, \"_batch\" bigint NOT NULL, PRIMARY KEY (\"id\")"
        );
    }

    #[test]
    fn only_evolve_adds_columns() {
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
    fn frozen_schema_refuses_any_difference() {
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
