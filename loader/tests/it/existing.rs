//! Existing tables: accepted when the rows fit, otherwise refused with the statement to run.

use loader::errors::{LoadError, Refused};

use crate::support::{
    address, execute, ledger_database, loader, refusal as refusal_of, request, shape, text,
};

/// The refusal of a batch for table `t (a text, n bigint)`.
async fn refusal(ddl: &str, table: &str, key: &[&str]) -> String {
    let database = ledger_database().await;
    execute(&database.pool, ddl).await;
    request(&database.pool, "r").await;
    let batch =
        shape(table, &["a text", "n bigint"], key).batch("r", 0, &[vec![Some("x"), Some("1")]]);
    let refused = refusal_of(&loader(&database), &database.pool, &batch).await;
    assert_eq!(
        text(&database.pool, "SELECT count(*) FROM etl.batches").await,
        "0"
    );
    refused
}

#[tokio::test]
async fn table_without_the_batch_column_is_refused_with_the_statement_to_run() {
    let database = ledger_database().await;
    execute(&database.pool, "CREATE TABLE t (a text, n bigint)").await;
    request(&database.pool, "r").await;
    let (loader, batch) = (
        loader(&database),
        shape("t", &["a text", "n bigint"], &[]).batch("r", 0, &[vec![Some("x"), Some("1")]]),
    );
    let sentence = refusal_of(&loader, &database.pool, &batch).await;
    let (_, alter) = sentence.split_once("run: ").unwrap();
    execute(&database.pool, alter).await;
    loader.handle(&batch).await.unwrap();
    assert_eq!(text(&database.pool, "SELECT count(*) FROM t").await, "1");
}

#[tokio::test]
async fn relation_that_is_not_a_table_is_refused() {
    for (ddl, part) in [
        (
            "CREATE VIEW t AS SELECT 'x'::text AS a, 1::bigint AS n, 1::bigint AS _batch",
            "a view",
        ),
        (
            "CREATE UNLOGGED TABLE t (a text, n bigint, _batch bigint)",
            "SET LOGGED",
        ),
        (
            "CREATE TABLE t (a text, n integer, _batch bigint)",
            "ALTER COLUMN \"n\" TYPE bigint",
        ),
        (
            "CREATE TABLE t (a text, n bigint GENERATED ALWAYS AS (1) STORED, _batch bigint)",
            "computed by Postgres",
        ),
        (
            "CREATE TABLE t (a text, n bigint, _batch bigint, must text NOT NULL)",
            "DROP NOT NULL",
        ),
        ("CREATE SEQUENCE t", "not a table"),
    ] {
        let sentence = refusal(ddl, "t", &[]).await;
        assert!(sentence.contains(part), "{sentence}");
    }
}

#[tokio::test]
async fn upsert_requires_a_unique_key() {
    for ddl in [
        "CREATE TABLE t (a text, n bigint, _batch bigint)",
        "CREATE TABLE t (a text, n bigint, _batch bigint, UNIQUE (a, n))",
        "CREATE TABLE t (a text, n bigint, _batch bigint); CREATE UNIQUE INDEX ON t (a) WHERE n > 0",
        "CREATE TABLE t (a text, n bigint, _batch bigint); CREATE UNIQUE INDEX ON t (lower(a))",
        "CREATE TABLE t (a text, n bigint, _batch bigint, UNIQUE (a) DEFERRABLE)",
    ] {
        let sentence = refusal(ddl, "t", &["a"]).await;
        assert!(sentence.ends_with("ADD UNIQUE (\"a\")"), "{sentence}");
    }
}

#[tokio::test]
async fn schema_that_is_not_allowed_is_refused() {
    for table in [
        "etl.runs",
        "pg_catalog.pg_class",
        "pg_temp.t",
        "elsewhere.t",
        "information_schema.t",
    ] {
        let sentence = refusal("CREATE SCHEMA elsewhere", table, &[]).await;
        assert!(
            sentence.contains("may not") || sentence.contains("ETL_SCHEMAS"),
            "{sentence}"
        );
    }
}

#[tokio::test]
async fn trigger_that_drops_rows_is_detected() {
    for (key, unique) in [(&[][..], ""), (&["a"], ", UNIQUE (a)")] {
        let database = ledger_database().await;
        execute(
            &database.pool,
            &format!(
                "CREATE TABLE t (a text, n bigint, _batch bigint{unique});
                 CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.a = 'y' THEN RETURN NULL; END IF; RETURN NEW; END $$;
                 CREATE TRIGGER drop_it BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION drop_it()"
            ),
        )
        .await;
        request(&database.pool, "r").await;
        let batch = shape("t", &["a text", "n bigint"], key).batch(
            "r",
            0,
            &[vec![Some("x"), Some("1")], vec![Some("y"), Some("1")]],
        );
        let refused = loader(&database).handle(&batch).await.unwrap_err();
        assert!(
            matches!(refused, LoadError::Refused(Refused::RowsVanished { .. })),
            "{refused:?}"
        );
        assert_eq!(
            text(
                &database.pool,
                "SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM etl.batches)"
            )
            .await,
            "0"
        );
    }
}

#[tokio::test]
async fn partitioned_table_and_additional_columns_are_accepted() {
    let database = ledger_database().await;
    execute(
        &database.pool,
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, n numeric, a varchar, _batch bigint, seen timestamptz NOT NULL DEFAULT now()) PARTITION BY RANGE (_batch);
         CREATE TABLE t_all PARTITION OF t DEFAULT",
    )
    .await;
    request(&database.pool, "r").await;
    let batch = shape("t", &["a text", "n numeric(10,2)"], &[]).batch(
        "r",
        0,
        &[vec![Some("x"), Some("1.50")]],
    );
    loader(&database).handle(&batch).await.unwrap();
    assert_eq!(
        text(&database.pool, "SELECT string_agg(a || n, ' ') FROM t").await,
        "x1.50"
    );
}

#[tokio::test]
async fn table_changed_during_a_run_is_checked_again() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["a text", "n bigint"], &[]));
    request(&database.pool, "r").await;
    loader
        .handle(&t.batch("r", 0, &[vec![Some("x"), Some("1")]]))
        .await
        .unwrap();
    execute(&database.pool, "DROP TABLE t").await;
    let batch = t.batch("r", 1, &[vec![Some("y"), Some("2")]]);
    loader.handle(&batch).await.unwrap();
    assert_eq!(
        text(&database.pool, "SELECT string_agg(a, '') FROM t").await,
        "y"
    );
}

#[tokio::test]
async fn type_altered_after_the_check_rounds_no_value() {
    for key in [&[][..], &["k"]] {
        let database = ledger_database().await;
        let t = shape("t", &["k text", "n numeric(10,4)"], key);
        let loader = loader(&database);
        request(&database.pool, "r").await;
        let first = t.batch("r", 0, &[vec![Some("a"), Some("1.2345")]]);
        loader.handle(&first).await.unwrap();
        let second = t.batch("r", 1, &[vec![Some("b"), Some("2.3456")]]);
        for alter in [
            "ALTER TABLE t ALTER n TYPE numeric(10,2)",
            "ALTER TABLE t ALTER n TYPE numeric(10,4); ALTER TABLE t ADD must text NOT NULL DEFAULT ''; ALTER TABLE t ALTER must DROP DEFAULT",
        ] {
            execute(&database.pool, alter).await;
            let refused = loader.handle(&second).await;
            assert!(
                matches!(refused, Err(LoadError::Refused(Refused::Target(_)))),
                "{alter}: {refused:?}"
            );
        }
        execute(
            &database.pool,
            "ALTER TABLE t DROP must; ALTER TABLE t ALTER n TYPE numeric",
        )
        .await;
        loader.handle(&second).await.unwrap();
        let rows = "SELECT string_agg(k || n, ' ' ORDER BY k) || (SELECT count(*) FROM etl.batches) FROM t";
        assert_eq!(text(&database.pool, rows).await, "a1.2300 b2.34562");
    }
}

/// Each column has a wider type than the batch's. The bytes of a number in one type may be a valid number of the wider
/// type.
#[tokio::test]
async fn values_stay_equal_in_columns_of_wider_types() {
    let database = ledger_database().await;
    let pool = &database.pool;
    let columns = [
        "a smallint",
        "b smallint",
        "c integer",
        "d numeric(10,2)",
        "e varchar(3)",
        "f varchar(3)",
        "g text",
    ];
    let row = ["1", "-2", "3", "4.50", "x", "y", "z"].map(Some).to_vec();
    let wider = "a integer, b bigint, c bigint, d numeric, e text, f varchar(9), g varchar";
    for (table, key) in [("appended", &[][..]), ("upserted", &["a"][..])] {
        let unique = if key.is_empty() { "" } else { ", UNIQUE (a)" };
        let create = format!("CREATE TABLE {table} ({wider}, _batch bigint{unique})");
        execute(pool, &create).await;
        request(pool, table).await;
        let batch = shape(table, &columns, key).batch(table, 0, std::slice::from_ref(&row));
        loader(&database).handle(&batch).await.unwrap();
        let rows =
            format!("SELECT string_agg(concat_ws(' ', a, b, c, d, e, f, g), ',') FROM {table}");
        assert_eq!(text(pool, &rows).await, "1 -2 3 4.50 x y z", "{table}");
    }
}

/// A policy could hide or refuse a row silently.
#[tokio::test]
async fn target_with_row_level_security_for_the_loader_is_refused() {
    let database = ledger_database().await;
    let pool = &database.pool;
    let role = format!("guarded_{}", database.name);
    execute(
        pool,
        &format!(
            "CREATE TABLE guarded (n bigint, _batch bigint); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
             CREATE POLICY everything ON guarded USING (true); CREATE ROLE {role} LOGIN PASSWORD 'x';
             GRANT USAGE ON SCHEMA etl TO {role}; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA etl TO {role};
             GRANT SELECT, INSERT, UPDATE ON guarded TO {role}"
        ),
    )
    .await;
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("x")).unwrap();
    let guest = loader::load::Loader::new(&address(url.as_str()), vec!["public".into()]);
    request(pool, "r").await;
    let batch = shape("guarded", &["n bigint"], &[]).batch("r", 0, &[vec![Some("1")]]);
    let refused = guest.handle(&batch).await.unwrap_err();
    assert_eq!(refused.verdict(), loader::errors::Verdict::Target);
    assert!(
        refused.sentence().contains("BYPASSRLS"),
        "{}",
        refused.sentence()
    );
    guest.store.close().await;
    execute(pool, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
