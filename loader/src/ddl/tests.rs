//! The statements that create a target, and the tables that are refused with the statement to run.

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
        takes: (*type_name).into(),
        ..ExistingColumn::default()
    });
    ExistingTable {
        kind: "r".into(),
        columns: columns.collect(),
        ..ExistingTable::default()
    }
}

#[test]
fn table_outside_the_allowed_schemas_is_refused() {
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
fn new_table_has_the_columns_the_batch_and_the_key() {
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
fn invalid_columns_from_the_queue_are_refused() {
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
fn fitting_table_is_accepted() {
    let columns = [column("a", "varchar(5)"), column("n", "integer")];
    let mut found = existing(&[
        ("n", "bigint"),
        ("a", "character varying(9)"),
        ("_batch", "bigint"),
        ("more", "text"),
    ]);
    let check = |target: &Target, found: &ExistingTable| {
        check_table(&name("t").unwrap(), target, &columns, Known::All, found)
    };
    assert_eq!(check(&target("t", &[]), &found), []);
    let upsert = target("t", &["n", "a"]);
    assert!(matches!(
        check(&upsert, &found)[..],
        [Refusal::NoUniqueKey { .. }]
    ));
    found.unique = vec![vec!["a".into()], vec!["a".into(), "n".into()]];
    assert_eq!(check(&upsert, &found), []);
}

fn refused(found: &ExistingTable) -> String {
    let columns = [column("a", "text"), column("n", "integer")];
    let (name, target) = (name("t").unwrap(), target("t", &[]));
    let refusals = check_table(&name, &target, &columns, Known::All, found);
    let [refusal] = &refusals[..] else {
        panic!("{refusals:?}");
    };
    refusal.to_string()
}

#[test]
fn unfit_columns_are_refused_with_the_statement_to_run() {
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
fn relation_that_cannot_take_the_rows_is_refused() {
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
            unlogged: vec!["public.t".into()],
            ..fits.clone()
        })
        .contains("SET LOGGED")
    );
    let mut generated = fits.clone();
    generated.columns[1].generated = Some(Generated::Stored);
    assert!(refused(&generated).contains("DROP EXPRESSION"));
    generated.columns[1].generated = Some(Generated::Virtual);
    assert!(refused(&generated).ends_with(r#"DROP COLUMN "n", ADD COLUMN "n" integer"#));
    let mut needy = fits;
    needy.columns[3].not_null = true;
    assert!(refused(&needy).contains("DROP NOT NULL"));
    needy.columns[3].has_default = true;
    let columns = [column("a", "text")];
    let (name, target) = (name("t").unwrap(), target("t", &[]));
    assert_eq!(
        check_table(&name, &target, &columns, Known::All, &needy),
        []
    );
}

#[test]
fn declaration_that_is_offered_is_one_that_a_job_can_have() {
    for (type_name, takes, declare) in [
        ("integer", "integer", Some("integer")),
        (
            "email",
            "character varying(9)",
            Some("character varying(9)"),
        ),
        (
            "timestamp(3) without time zone",
            "timestamp(3) without time zone",
            None,
        ),
        ("text[]", "text[]", None),
        ("money", "money", None),
    ] {
        let mut found = existing(&[("a", takes), ("n", "integer"), ("_batch", "bigint")]);
        found.columns[0].type_name = type_name.into();
        let sentence = refused(&found);
        let offered = declare.map(|one| format!("declare it as {one:?} in the job"));
        assert_eq!(
            sentence.contains("declare it"),
            declare.is_some(),
            "{sentence}"
        );
        assert!(
            sentence.contains(&offered.unwrap_or_default()),
            "{sentence}"
        );
        assert!(
            sentence.ends_with(r#"TYPE text USING "a"::text"#),
            "{sentence}"
        );
    }
}

#[test]
fn columns_without_room_are_refused() {
    let wide: Vec<_> = (0..1599)
        .map(|index| column(&format!("c{index}"), "text"))
        .collect();
    let (name, target) = (name("t").unwrap(), target("t", &[]));
    let refused = |columns: &[TargetColumn]| {
        check_columns(&name, &target, columns)
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&wide).contains("1599 columns"));
    assert_eq!(check_columns(&name, &target, &wide[..1598]), Ok(()));
    let mut found = existing(&[("a", "text")]);
    found.places = 1600;
    let refusal = check::check_room("t", &[column("a", "text")], &found).unwrap_err();
    assert!(refusal.to_string().contains("needs 1 more"), "{refusal}");
    found.places = 1599;
    assert_eq!(
        check::check_room("t", &[column("a", "text")], &found),
        Ok(())
    );
}
