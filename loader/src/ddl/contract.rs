//! The changes that a target needs before rows can be written, within its schema contract. Pure.

use common::job::{SchemaContract, Target};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, quoted};

use super::check::{
    check_access, check_created, check_deletes, check_room, check_schema, check_surroundings,
    other_type,
};
use super::{
    Access, Catalog, ExistingColumn, ExistingTable, Fault, Refusal, RemovedColumn, TableName,
    check_table, check_width, comment_on, create_table, list,
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

/// What was found about a target: the change that it needs, or why it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// What the first batch does, if nothing is refused.
    pub change: Change,
    /// Why no row could be loaded.
    pub refusals: Vec<Refusal>,
    /// Why rows could not be deleted, where only a replay and an undo do that.
    pub later: Vec<Refusal>,
    /// The columns that the job no longer loads, where its contract allows that.
    pub removed: Vec<RemovedColumn>,
}

impl Examined {
    /// The change, or the first reason against it.
    pub fn into_change(self) -> Result<Change, Refusal> {
        self.refusals
            .into_iter()
            .next()
            .map_or(Ok(self.change), Err)
    }
}

/// Examines a target: everything that speaks against loading rows into it, each with the statement to run, and the change that
/// it needs. The one judgement of a target, by the loader and by the commands that ask before a run.
pub fn examine(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    known: Known,
    job: &str,
    catalog: &Catalog,
) -> Examined {
    let mut examined = match &catalog.table {
        None => missing_table(name, target, columns, known, job, catalog),
        Some(found) => existing_table(name, target, columns, known, found, &catalog.access),
    };
    let removed = removed_columns(name, columns, known, catalog);
    match target.schema {
        SchemaContract::Create => {
            let refused = removed.into_iter().map(Refusal::RemovedColumn);
            examined.refusals.extend(refused);
        }
        SchemaContract::Evolve => examined.removed = removed,
        // Any column that the job does not fill is refused.
        SchemaContract::Freeze => {}
    }
    let Examined {
        refusals, later, ..
    } = &mut examined;
    refusals.extend(check_width(&name.sql(), columns).err());
    refusals.extend(check_surroundings(target, 0, &catalog.access));
    // A replay may take another way than the first generation.
    let replay = check_surroundings(target, 1, &catalog.access);
    later.extend(replay.filter(|one| !refusals.contains(one)));
    examined
}

fn missing_table(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    known: Known,
    job: &str,
    catalog: &Catalog,
) -> Examined {
    let ddl = create_table(name, target, columns, job);
    let by_hand = by_hand(target, columns, known, &ddl);
    let access = &catalog.access;
    let mut refusals = Vec::new();
    if !catalog.has_schema {
        refusals.push(Refusal::SchemaMissing {
            schema: name.schema.clone(),
        });
    } else if target.schema == SchemaContract::Freeze {
        refusals.push(Refusal::FrozenMissing {
            table: name.sql(),
            by_hand: by_hand.clone(),
        });
    } else {
        refusals.extend(check_schema(name, access));
        if !access.creates_in_schema {
            refusals.push(Refusal::MayNotCreate {
                table: name.sql(),
                schema: name.schema.clone(),
                role: access.role.clone(),
                by_hand: by_hand.clone(),
            });
        }
        refusals.extend(check_created(name, target, access));
    }
    Examined {
        change: Change::Create { ddl, by_hand },
        refusals,
        later: Vec::new(),
        removed: Vec::new(),
    }
}

/// The columns of the table that the job's last run loaded, and that the job loads no longer.
fn removed_columns(
    name: &TableName,
    columns: &[TargetColumn],
    known: Known,
    catalog: &Catalog,
) -> Vec<RemovedColumn> {
    let (Some(table), Some(former), Known::All) = (&catalog.table, &catalog.former, known) else {
        return Vec::new();
    };
    let is_there = |column: &&String| table.columns.iter().any(|one| one.name == **column);
    let is_loaded = |column: &&String| columns.iter().any(|one| one.name == **column);
    let removed = former.columns.iter().filter(is_there);
    let removed = removed.filter(|column| !is_loaded(column));
    let removed = removed.map(|column| RemovedColumn {
        table: name.sql(),
        column: column.clone(),
        run: former.run_id.clone(),
    });
    removed.collect()
}

fn existing_table(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    known: Known,
    found: &ExistingTable,
    access: &Access,
) -> Examined {
    let (change, mut refusals) = by_contract(name, target, columns, known, found);
    let mut later = Vec::new();
    if !matches!(refusals[..], [Refusal::NotATable { .. }]) {
        refusals.extend(check_access(name, target, columns, access));
        let owns = access.table.as_ref().is_none_or(|rights| rights.owns);
        if let Change::Add { ddl, .. } = &change
            && !owns
        {
            refusals.push(Refusal::MayNotAlter {
                table: name.sql(),
                role: access.role.clone(),
                ddl: ddl.clone(),
            });
        }
        later = check_deletes(name, target, found, access);
    }
    if target.mode.replaces() {
        // The privileges of this mode are among those that were checked.
        let deletes = std::mem::take(&mut later).into_iter();
        refusals.extend(deletes.filter(|one| one.fault() != Fault::Role));
    }
    Examined {
        change,
        refusals,
        later,
        removed: Vec::new(),
    }
}

/// The change that an existing table needs, and what speaks against the table.
fn by_contract(
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    known: Known,
    found: &ExistingTable,
) -> (Change, Vec<Refusal>) {
    if let Err(refusal) = check_room(&name.sql(), columns, found) {
        return (Change::Nothing, vec![refusal]);
    }
    match target.schema {
        SchemaContract::Create => (
            Change::Nothing,
            check_table(name, target, columns, known, found),
        ),
        SchemaContract::Freeze => {
            let mut refusals = check_table(name, target, columns, known, found);
            if refusals.is_empty() {
                refusals = check_frozen(name, columns, known, found);
            }
            (Change::Nothing, refusals)
        }
        SchemaContract::Evolve => evolve(name, target, columns, known, found),
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
    known: Known,
    found: &ExistingTable,
) -> (Change, Vec<Refusal>) {
    let is_there = |column: &&TargetColumn| found.columns.iter().any(|one| one.name == column.name);
    let missing: Vec<_> = columns
        .iter()
        .filter(|column| !is_there(column))
        .cloned()
        .collect();
    let mut altered = found.clone();
    altered
        .columns
        .extend(missing.iter().map(|column| ExistingColumn {
            name: column.name.clone(),
            type_name: column.pg_type.to_string(),
            takes: column.pg_type.to_string(),
            ..ExistingColumn::default()
        }));
    let change = if missing.is_empty() {
        Change::Nothing
    } else {
        Change::Add {
            ddl: add_columns(name, &missing),
            columns: missing.into_iter().map(|column| column.name).collect(),
        }
    };
    (change, check_table(name, target, columns, known, &altered))
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
) -> Vec<Refusal> {
    let others = found.columns.iter().filter(|one| one.name != BATCH_COLUMN);
    let different =
        others.filter_map(
            |one| match columns.iter().find(|column| column.name == one.name) {
                Some(wanted) if !is_same(wanted.pg_type, &one.takes) => {
                    let because = ", and schema = \"freeze\" allows no difference";
                    Some(other_type(name.sql(), one, wanted, because))
                }
                None if known == Known::All => Some(Refusal::FrozenColumn {
                    table: name.sql(),
                    column: one.name.clone(),
                }),
                Some(_) | None => None,
            },
        );
    different.collect()
}

fn is_same(wanted: PgType, found: &str) -> bool {
    found.parse::<PgType>().is_ok_and(|found| found == wanted)
}

#[cfg(test)]
mod tests {
    use super::super::TableAccess;
    use super::*;
    use common::job::Mode;
    use ledger::FormerRun;

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
                takes: (*type_name).into(),
                not_null: *not_null,
                ..ExistingColumn::default()
            });
        ExistingTable {
            kind: "r".into(),
            columns: columns.collect(),
            ..ExistingTable::default()
        }
    }

    /// A role that may do everything.
    fn catalog(found: Option<&ExistingTable>) -> Catalog {
        let rights = TableAccess {
            owns: true,
            locks: true,
            deletes: true,
            ..TableAccess::default()
        };
        Catalog {
            has_schema: true,
            table: found.cloned(),
            former: None,
            access: Access {
                role: "role".into(),
                uses_schema: true,
                creates_in_schema: true,
                makes_temporary: true,
                stages: true,
                uses_tablespace: true,
                table: found.map(|_| rights),
                ..Access::default()
            },
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
        examine(&name, &target, &columns, known, "job", &catalog(found)).into_change()
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
        wider.columns[0].takes = "bigint".into();
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

    #[test]
    fn column_that_the_query_no_longer_has_is_refused_unless_the_target_evolves() {
        let found = table(&[
            ("a", "text", false),
            ("b", "text", false),
            ("own", "text", false),
            ("_batch", "bigint", true),
        ]);
        let former = FormerRun {
            run_id: "monday".into(),
            columns: vec!["a".into(), "b".into(), "gone".into()],
        };
        let catalog = Catalog {
            former: Some(former),
            ..catalog(Some(&found))
        };
        let look = |schema, known| {
            let target = Target {
                table: "t".into(),
                schema,
                ..Target::default()
            };
            let name = TableName::of(&target, &["public".into()]).unwrap();
            examine(
                &name,
                &target,
                &[column("a", "text")],
                known,
                "job",
                &catalog,
            )
        };
        let refused = look(SchemaContract::Create, Known::All).refusals;
        let said: Vec<_> = refused.iter().map(ToString::to_string).collect();
        let expected = "the query no longer has the column \"b\", which the run monday loaded into \"public\".\"t\": new rows would have its default there, or NULL; add it to the query or, if it is meant to go, set schema = \"evolve\", or run: ALTER TABLE \"public\".\"t\" DROP COLUMN \"b\"";
        assert_eq!(said, [expected]);
        let evolves = look(SchemaContract::Evolve, Known::All);
        assert_eq!((evolves.refusals, evolves.removed.len()), (vec![], 1));
        let frozen = look(SchemaContract::Freeze, Known::All).refusals;
        assert!(matches!(
            frozen[..],
            [Refusal::FrozenColumn { .. }, Refusal::FrozenColumn { .. }]
        ));
        // Before the query it is not known what it returns.
        assert_eq!(
            look(SchemaContract::Create, Known::Declared).refusals,
            vec![]
        );
    }
}
