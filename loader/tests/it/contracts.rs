//! Schema contracts: which changes of a target are allowed, and for which role.

use common::job::{Mode, SchemaContract};
use common::message::ValidBatch;
use ledger::Store;
use loader::ddl::{Change, Known};
use loader::errors::LoadError;
use loader::load::{Loader, Outcome};
use loader::target;
use sqlx::PgPool;

use crate::support::{
    Shape, address, execute, extracted, ledger_database, loader, refusal as refusal_of, replayed,
    request, request_for, shape, text, with_generation,
};

fn evolving(columns: &[&str]) -> Shape {
    let mut shape = shape("t", columns, &[]);
    shape.target.schema = SchemaContract::Evolve;
    shape
}

async fn columns(pool: &PgPool) -> String {
    text(pool, "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0").await
}

/// Many attempts, since the conflict depends on timing.
#[tokio::test]
async fn two_loaders_add_a_new_column_once_and_both_continue() {
    let database = ledger_database().await;
    let (pool, one, two) = (&database.pool, loader(&database), loader(&database));
    for round in 0..5 {
        execute(pool, "DROP TABLE IF EXISTS t").await;
        let (old, new) = (format!("old{round}"), format!("new{round}"));
        request(pool, &old).await;
        request(pool, &new).await;
        let (short, long) = (
            evolving(&["a text"]),
            evolving(&["b bigint", "a text", "c date"]),
        );
        let short = |first_row: u64| short.batch(&old, first_row, &[vec![Some("x")]]);
        let row = vec![Some("1"), Some("y"), Some("2018-04-02")];
        let long = |first_row: u64| long.batch(&new, first_row, std::slice::from_ref(&row));
        // Both loaders have checked the table.
        one.handle(&short(0)).await.unwrap();
        two.handle(&short(1)).await.unwrap();
        let all = |loader, batches: Vec<ValidBatch>| load_all(loader, batches);
        let (left, right) = tokio::join!(
            all(&one, vec![short(2), long(0), short(4), long(2)]),
            all(&two, vec![long(1), short(3), long(3), short(5)]),
        );
        left.unwrap();
        right.unwrap();
        assert_eq!(
            columns(pool).await,
            "a text, _batch bigint, b bigint, c date"
        );
        let rows = "SELECT string_agg(concat_ws('', a, b, c), ' ' ORDER BY a, _batch) FROM t";
        assert_eq!(
            text(pool, rows).await,
            "x x x x x x y12018-04-02 y12018-04-02 y12018-04-02 y12018-04-02"
        );
        let comment = "SELECT col_description('t'::regclass, 3)";
        assert_eq!(text(pool, comment).await, "From Athena's varchar.");
    }
}

async fn load_all(loader: &Loader, batches: Vec<ValidBatch>) -> Result<(), LoadError> {
    for batch in batches {
        loader.handle(&batch).await?;
    }
    Ok(())
}

#[tokio::test]
async fn column_missing_from_staged_rows_is_null() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "old").await;
    request(pool, "new").await;
    let mut old = evolving(&["a text"]);
    old.target.commit = common::job::Commit::Run;
    loader
        .handle(&old.batch("old", 0, &[vec![Some("x")]]))
        .await
        .unwrap();
    let new = evolving(&["a text", "b bigint"]);
    loader
        .handle(&new.batch("new", 0, &[vec![Some("y"), Some("1")]]))
        .await
        .unwrap();
    loader.handle_event(&extracted("old", 1, 1)).await.unwrap();
    let rows = "SELECT string_agg(a || coalesce(b::text, ' NULL'), ' ' ORDER BY a) FROM t";
    assert_eq!(text(pool, rows).await, "x NULL y1");
}

async fn refusal(ddl: &str, shape: &Shape) -> String {
    let database = ledger_database().await;
    execute(&database.pool, ddl).await;
    request(&database.pool, "r").await;
    let values: Vec<_> = shape.columns.iter().map(|_| Some("1")).collect();
    let batch = shape.batch("r", 0, &[values]);
    refusal_of(&loader(&database), &database.pool, &batch).await
}

/// A run of one row, in a transaction of its own where it commits as a whole.
async fn run(loader: &Loader, pool: &PgPool, run: &str, shape: &Shape) -> String {
    request_for(pool, run, &shape.target).await;
    let values: Vec<_> = shape.columns.iter().map(|_| Some("1")).collect();
    let batch = shape.batch(run, 0, &[values]);
    loader.handle_event(&extracted(run, 1, 1)).await.unwrap();
    loader.handle(&batch).await.unwrap();
    let state = format!(
        "SELECT state || coalesce(': ' || failure, '') FROM etl.runs WHERE run_id = '{run}'"
    );
    text(pool, &state).await
}

/// Both ways to accept it, and the way back.
#[tokio::test]
async fn column_that_the_query_no_longer_has_fails_the_run_before_its_first_batch() {
    for mode in [Mode::Append, Mode::Upsert, Mode::Replace] {
        let database = ledger_database().await;
        let (pool, loader) = (&database.pool, loader(&database));
        let of = |columns: &[&str], schema| {
            let mut shape = shape("public.t", columns, &["a"]);
            shape.target.mode = mode;
            shape.target.schema = schema;
            if !mode.has_key() {
                shape.target.key.clear();
            }
            shape
        };
        let create = SchemaContract::Create;
        assert_eq!(
            run(&loader, pool, "all", &of(&["a text", "b text"], create)).await,
            "completed"
        );
        // Other jobs and other tables have other columns.
        let failed = run(&loader, pool, "less", &of(&["a text"], create)).await;
        assert!(failed.starts_with("failed: the query no longer has the column \"b\", which the run all loaded into \"public\".\"t\""), "{failed}");
        let nothing = "SELECT count(*) FROM etl.batches WHERE run_id = 'less'";
        assert_eq!(text(pool, nothing).await, "0");
        assert_eq!(
            run(
                &loader,
                pool,
                "evolved",
                &of(&["a text"], SchemaContract::Evolve)
            )
            .await,
            "completed"
        );
        assert_eq!(
            run(&loader, pool, "after", &of(&["a text"], create)).await,
            "completed"
        );
        assert_eq!(
            run(&loader, pool, "more", &of(&["a text", "b text"], create)).await,
            "completed"
        );
        execute(pool, "ALTER TABLE t DROP COLUMN \"b\"").await;
        assert_eq!(
            run(&loader, pool, "dropped", &of(&["a text"], create)).await,
            "completed"
        );
    }
}

/// What it loaded stays known while it is replayed and after the replay was abandoned, and it is compared with no other run.
#[tokio::test]
async fn run_that_is_replayed_is_compared_with_itself() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let of = |columns: &[&str], schema| {
        let mut shape = shape("public.t", columns, &[]);
        shape.target.schema = schema;
        shape
    };
    let (create, evolve) = (SchemaContract::Create, SchemaContract::Evolve);
    let (all, less) = (of(&["a text", "b text"], create), of(&["a text"], create));
    assert_eq!(run(&loader, pool, "all", &all).await, "completed");
    replayed(pool, "all").await;
    let failed = run(&loader, pool, "during", &less).await;
    assert!(failed.contains("which the run all loaded"), "{failed}");
    let id = "all".parse::<common::message::RunId>().unwrap();
    loader.store.cancel(&id, false, None).await.unwrap();
    let failed = run(&loader, pool, "after", &less).await;
    assert!(failed.contains("which the run all loaded"), "{failed}");
    assert_eq!(
        run(&loader, pool, "evolved", &of(&["a text"], evolve)).await,
        "completed"
    );
    replayed(pool, "evolved").await;
    let batch = with_generation(&less.batch("evolved", 0, &[vec![Some("2")]]), 1);
    let replayed = loader.handle(&batch).await.unwrap();
    assert_ne!(replayed, Outcome::Ignored);
}

/// A column of the table that the job never loaded is somebody else's.
#[tokio::test]
async fn column_of_another_job_is_not_missed() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let (wide, narrow) = (
        shape("public.t", &["a text", "b text"], &[]),
        shape("public.t", &["a text"], &[]),
    );
    assert_eq!(run(&loader, pool, "wide", &wide).await, "completed");
    execute(pool, "UPDATE etl.runs SET job = 'other'").await;
    assert_eq!(run(&loader, pool, "narrow", &narrow).await, "completed");
}

/// The batches of a run that failed so are of no further use; the end of its result is, for a replay.
#[tokio::test]
async fn run_that_its_table_refuses_can_be_replayed_once_the_table_fits() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    execute(pool, "CREATE TABLE t (a text, _batch bigint)").await;
    let shape = shape("public.t", &["a text", "b text"], &[]);
    request_for(pool, "r", &shape.target).await;
    let batch = |first_row: u64| shape.batch("r", first_row, &[vec![Some("1"), Some("2")]]);
    assert_eq!(loader.handle(&batch(1)).await.unwrap(), Outcome::Ignored);
    assert_eq!(loader.handle(&batch(0)).await.unwrap(), Outcome::Ignored);
    loader.handle_event(&extracted("r", 2, 2)).await.unwrap();
    let known = "SELECT concat_ws(' ', state, batches_expected, rows_expected, ignored_messages) FROM etl.runs";
    assert_eq!(text(pool, known).await, "failed 2 2 2");
    let other = loader.handle_event(&extracted("r", 3, 2)).await;
    assert!(other.is_ok(), "{other:?}");
    assert_eq!(text(pool, known).await, "failed 2 2 3");
}

#[tokio::test]
async fn frozen_schema_refuses_any_difference_with_the_statement_to_run() {
    let mut frozen = shape("t", &["a text", "n bigint"], &[]);
    frozen.target.schema = SchemaContract::Freeze;
    for (ddl, part) in [
        ("SELECT", "CREATE TABLE \"public\".\"t\""),
        (
            "CREATE TABLE t (a text, _batch bigint)",
            "ADD COLUMN \"n\" bigint",
        ),
        (
            "CREATE TABLE t (a varchar, n bigint, _batch bigint)",
            "TYPE text USING",
        ),
        (
            "CREATE TABLE t (a text, n bigint, more text, _batch bigint)",
            "DROP COLUMN \"more\"",
        ),
    ] {
        let sentence = refusal(ddl, &frozen).await;
        assert!(sentence.contains(part), "{sentence}");
    }
    let database = ledger_database().await;
    execute(
        &database.pool,
        "CREATE TABLE t (n bigint, a text, _batch bigint)",
    )
    .await;
    request(&database.pool, "r").await;
    let batch = frozen.batch("r", 0, &[vec![Some("x"), Some("1")]]);
    loader(&database).handle(&batch).await.unwrap();
}

#[tokio::test]
async fn evolving_schema_changes_no_type_and_adds_no_batch_column() {
    for (ddl, part) in [
        (
            "CREATE TABLE t (a text, n integer, _batch bigint)",
            "ALTER COLUMN \"n\" TYPE bigint",
        ),
        ("CREATE TABLE t (a text)", "ADD COLUMN \"_batch\" bigint"),
        (
            "CREATE TABLE t (a text, must text NOT NULL, _batch bigint)",
            "DROP NOT NULL",
        ),
        (
            "CREATE VIEW t AS SELECT 'x'::text AS a, 1::bigint AS _batch",
            "a view",
        ),
    ] {
        let sentence = refusal(ddl, &evolving(&["a text", "n bigint"])).await;
        assert!(sentence.contains(part), "{sentence}");
    }
    let mut keyed = evolving(&["a text", "n bigint"]);
    keyed.target.mode = Mode::Upsert;
    keyed.target.key = vec!["n".into()];
    let sentence = refusal("CREATE TABLE t (a text, _batch bigint)", &keyed).await;
    assert!(sentence.contains("ADD UNIQUE (\"n\")"), "{sentence}");
}

/// The check before the query, with the role of the caller.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of targets")]
async fn target_of_another_owner_is_refused_before_the_request() {
    let database = ledger_database().await;
    let pool = &database.pool;
    let role = format!("guest_{}", database.name);
    execute(
        pool,
        &format!(
            "CREATE TABLE t (a text, _batch bigint); CREATE TABLE mine (a text, _batch bigint);
             CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT SELECT, INSERT, UPDATE ON mine TO {role};
             GRANT USAGE ON SCHEMA etl TO {role}; GRANT SELECT ON etl.loaders, etl.runs, etl.replays TO {role}; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        ),
    )
    .await;
    let mut guest = url::Url::parse(&database.url).unwrap();
    guest.set_username(&role).unwrap();
    guest.set_password(Some("x")).unwrap();
    let guest = Store::new(&address(guest.as_str()), "guest", 2);
    let owner = Store::new(&address(&database.url), "owner", 2);
    let schemas = ["public".to_owned()];
    let planned = async |store: &Store, table: &str, shape: &Shape| {
        let mut target = shape.target.clone();
        target.table = table.into();
        let answer = target::catalog::plan(
            store,
            &target,
            &shape.columns,
            Known::Declared,
            &schemas,
            ("job", None),
        )
        .await;
        let change = answer.unwrap().change;
        change.map_err(|refusals| refusals[0].to_string())
    };
    let (plain, more) = (
        shape("t", &["a text"], &[]),
        evolving(&["a text", "b bigint"]),
    );
    let mut replace = plain.clone();
    replace.target.mode = Mode::Replace;
    assert_eq!(planned(&guest, "mine", &plain).await, Ok(Change::Nothing));
    for (table, shape, part) in [
        ("t", &plain, "GRANT INSERT ON \"public\".\"t\""),
        ("mine", &replace, "GRANT SELECT, INSERT, DELETE ON"),
        (
            "mine",
            &more,
            "have its owner run: ALTER TABLE \"public\".\"mine\" ADD COLUMN \"b\" bigint",
        ),
        ("new", &plain, "GRANT CREATE ON SCHEMA \"public\""),
        (
            "new",
            &plain,
            "or create it yourself with \"a\" text, a column for each other one",
        ),
    ] {
        let refused = planned(&guest, table, shape).await.unwrap_err();
        assert!(refused.contains(part), "{refused}");
        assert!(!refused.contains("CREATE TABLE"), "{refused}");
    }
    // The owner would be allowed; nothing was changed.
    assert!(
        matches!(planned(&owner, "mine", &more).await, Ok(Change::Add { columns, .. }) if columns == ["b"])
    );
    assert!(matches!(
        planned(&owner, "new", &plain).await,
        Ok(Change::Create { .. })
    ));
    assert_eq!(columns(pool).await, "a text, _batch bigint");
    assert_eq!(
        text(pool, "SELECT to_regclass('public.new') IS NULL").await,
        "true"
    );
    guest.close().await;
    execute(pool, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn created_table_has_comments() {
    let database = ledger_database().await;
    let pool = &database.pool;
    for (mode, key, indexes) in [
        (Mode::Append, &[][..], ""),
        (Mode::Upsert, &["a"], "t_pkey btree"),
        (Mode::InsertOnly, &["a"], "t_pkey btree"),
        (Mode::Replace, &[], ""),
    ] {
        execute(pool, "DROP TABLE IF EXISTS t").await;
        let mut shape = shape("t", &["a text"], key);
        shape.target.mode = mode;
        shape.columns[0].athena_type = "varchar(7)".into();
        let name = loader::ddl::TableName::of(&shape.target, &["public".to_owned()]).unwrap();
        execute(
            pool,
            &loader::ddl::create_table(&name, &shape.target, &shape.columns, "it's"),
        )
        .await;
        assert_eq!(
            text(pool, "SELECT obj_description('t'::regclass)").await,
            "Loaded by the job it's."
        );
        assert_eq!(
            text(pool, "SELECT col_description('t'::regclass, 1)").await,
            "From Athena's varchar(7)."
        );
        let found = "SELECT string_agg(relname || ' ' || amname, ' ' ORDER BY relname) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam WHERE indrelid = 't'::regclass";
        assert_eq!(text(pool, found).await, indexes, "{mode}");
    }
}
