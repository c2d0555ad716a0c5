//! Triggers of a target find the names that `psql` finds, whatever a run does to the target; and nobody's functions, operators
//! and types get into the loader's own statements by that.

use std::time::Duration;

use common::job::{Commit, Mode};
use common::message::ValidBatch;
use ledger::{Removed, Rows};
use loader::load::Loader;
use loader::removal;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::{
    Shape, address, execute, extracted, ledger_database, replayed, request_for, shape, text,
    with_generation,
};

const WAYS: [(Mode, Commit); 6] = [
    (Mode::Append, Commit::Batch),
    (Mode::Append, Commit::Run),
    (Mode::Upsert, Commit::Batch),
    (Mode::Upsert, Commit::Run),
    (Mode::InsertOnly, Commit::Batch),
    (Mode::Replace, Commit::Run),
];

/// A target with a trigger that names a table of `public` and one of the target's own schema, both without a schema.
const TARGET: &str = "CREATE SCHEMA sales;
    CREATE TABLE public.audit_log (op text, k bigint); CREATE TABLE sales.journal (op text, k bigint);
    CREATE TABLE sales.t (k bigint PRIMARY KEY CHECK (k < 100), d date, v text, _batch bigint NOT NULL);
    CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE changed sales.t;
        BEGIN
            IF TG_OP = 'DELETE' THEN changed := OLD; ELSE changed := NEW; END IF;
            INSERT INTO audit_log VALUES (TG_OP, changed.k);
            INSERT INTO journal SELECT op, k FROM audit_log WHERE k = changed.k LIMIT 1;
            RETURN NULL;
        END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON sales.t FOR EACH ROW EXECUTE FUNCTION public.audit()";

/// A domain whose check names a table without a schema.
const FINE: &str = "CREATE TABLE public.banned (word text);
    CREATE FUNCTION public.is_fine(t text) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT EXISTS (SELECT FROM banned WHERE word = t) $$;
    CREATE DOMAIN public.fine AS text CHECK (public.is_fine(VALUE));";

fn way((mode, commit): (Mode, Commit)) -> Shape {
    let key: &[&str] = if mode.has_key() { &["k"] } else { &[] };
    let mut shape = shape("sales.t", &["k bigint", "d date", "v text"], key);
    shape.target.mode = mode;
    shape.target.commit = commit;
    shape
}

/// Four rows. PostgreSQL refuses the last one where its key is 400, and they are written one by one.
fn batch_with(shape: &Shape, run: &str, last: &str) -> ValidBatch {
    let rows = ["1", "2", "3", last].map(|k| vec![Some(k), Some("2018-04-02"), Some("x")]);
    shape.batch(run, 0, &rows)
}

/// With a refused row where rows go to the table batch by batch.
fn batch(shape: &Shape, run: &str) -> ValidBatch {
    let is_staged = shape.target.is_staged(0);
    batch_with(shape, run, if is_staged { "4" } else { "400" })
}

async fn load(loader: &Loader, batch: &ValidBatch) {
    loader.handle(batch).await.unwrap();
    let mut end = extracted(batch.id.run.as_str(), 1, 4);
    end.generation = batch.id.generation;
    loader.handle_event(&end).await.unwrap();
}

async fn state(pool: &PgPool, run: &str) -> String {
    let state =
        format!("SELECT concat_ws(' ', state, held_because) FROM etl.runs WHERE run_id = '{run}'");
    text(pool, &state).await
}

/// How often the trigger has run, by the operation.
async fn fired(pool: &PgPool) -> String {
    let both = "SELECT concat_ws(' / ', (SELECT string_agg(concat_ws(' ', op, n), ', ' ORDER BY op) FROM (SELECT op, count(*) AS n FROM public.audit_log GROUP BY op) o),
        (SELECT count(*) FROM sales.journal))";
    text(pool, both).await
}

async fn undo(loader: &Loader, run: &str) {
    let run = run.parse().unwrap();
    let cancelled = loader.store.cancel(&run, true, None).await.unwrap();
    let Rows::Leave { removal, .. } = cancelled.rows else {
        panic!("nothing to remove")
    };
    removal::execute_all(loader).await.unwrap();
    let removed = loader.store.removed(removal, Duration::ZERO).await.unwrap();
    assert!(matches!(removed, Removed::Done(_)), "{removed:?}");
}

/// Undoes, loads, replays and overwrites, each with the trigger.
async fn assert_triggers_work(pool: &PgPool, loader: &Loader, one: (Mode, Commit)) {
    let shape = way(one);
    let (first, stored) = (
        batch(&shape, "first"),
        if shape.target.is_staged(0) { 4 } else { 3 },
    );
    if stored == 3 {
        // All rows in one statement, and one by one.
        for (run, last, all) in [("whole", "4", 4), ("gone", "400", 3)] {
            request_for(pool, run, &shape.target).await;
            let sent = batch_with(&shape, run, last);
            loader.handle(&sent).await.unwrap();
            undo(loader, run).await;
            assert_eq!(text(pool, "SELECT count(*) FROM sales.t").await, "0");
            let both = format!("DELETE {all}, INSERT {all} / {}", 2 * all);
            assert_eq!(fired(pool).await, both, "{one:?} {run}");
            execute(pool, "TRUNCATE public.audit_log, sales.journal").await;
        }
    }
    request_for(pool, "first", &shape.target).await;
    load(loader, &first).await;
    assert_eq!(state(pool, "first").await, "completed", "{one:?}");
    assert_eq!(
        fired(pool).await,
        format!("INSERT {stored} / {stored}"),
        "{one:?}"
    );
    replayed(pool, "first").await;
    load(loader, &with_generation(&first, 1)).await;
    if shape.target.is_staged(1) && stored == 3 {
        // All at once now, and the row that PostgreSQL refuses holds the run.
        assert!(state(pool, "first").await.starts_with("held"), "{one:?}");
        return;
    }
    assert_eq!(state(pool, "first").await, "completed", "{one:?}");
    let twice = 2 * stored;
    let replayed = format!("DELETE {stored}, INSERT {twice} / {}", 3 * stored);
    assert_eq!(fired(pool).await, replayed, "{one:?}");
    if shape.target.mode == Mode::Upsert {
        request_for(pool, "second", &shape.target).await;
        load(loader, &batch(&shape, "second")).await;
        assert!(fired(pool).await.contains("UPDATE"), "{one:?}");
    }
}

#[tokio::test]
async fn trigger_finds_the_names_that_psql_finds() {
    for one in WAYS {
        let database = ledger_database().await;
        let loader = Loader::new(&address(&database.url), vec!["sales".into()]);
        // The check of a domain finds its names as a trigger does.
        let target = format!("{FINE} {}", TARGET.replace("v text", "v public.fine"));
        execute(&database.pool, &target).await;
        assert_triggers_work(&database.pool, &loader, one).await;
    }
}

/// Everything that a statement of the loader could mean instead.
const EVIL: &str = "CREATE SCHEMA evil;
    CREATE FUNCTION evil.refuse(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;
    CREATE FUNCTION evil.refuse(bigint, integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;
    CREATE FUNCTION evil.number(bigint, integer) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;
    CREATE FUNCTION evil.refuse(date, date) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;
    CREATE FUNCTION evil.unnest(text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;
    CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;
    CREATE FUNCTION evil.step(bigint, text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;
    CREATE AGGREGATE evil.array_agg(text) (SFUNC = evil.step, STYPE = bigint, INITCOND = '0');
    CREATE FUNCTION evil.step(bigint) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;
    CREATE AGGREGATE evil.count(*) (SFUNC = evil.step, STYPE = bigint, INITCOND = '0');
    CREATE DOMAIN evil.text AS pg_catalog.text CHECK (false); CREATE DOMAIN evil.date AS pg_catalog.date CHECK (false);
    CREATE DOMAIN evil.bpchar AS pg_catalog.bpchar CHECK (false)";

#[tokio::test]
async fn search_path_of_the_role_gets_nothing_into_the_statements_of_the_loader() {
    for one in WAYS {
        let database = ledger_database().await;
        let pool = &database.pool;
        let role = format!("lured_{}", database.name);
        execute(pool, EVIL).await;
        for name in ["=", "<", "<=", ">", ">="] {
            for (left, right) in [
                ("bigint", "bigint"),
                ("bigint", "integer"),
                ("pg_catalog.date", "pg_catalog.date"),
            ] {
                let operator = format!(
                    "CREATE OPERATOR evil.{name} (FUNCTION = evil.refuse, LEFTARG = {left}, RIGHTARG = {right})"
                );
                execute(pool, &operator).await;
            }
        }
        for name in ["-", "/", ">>"] {
            let operator = format!(
                "CREATE OPERATOR evil.{name} (FUNCTION = evil.number, LEFTARG = bigint, RIGHTARG = integer)"
            );
            execute(pool, &operator).await;
        }
        let collation = "CREATE COLLATION evil.\"C\" (PROVIDER = icu, LOCALE = 'und')";
        sqlx::raw_sql(AssertSqlSafe(collation))
            .execute(pool)
            .await
            .unwrap();
        sqlx::raw_sql(TARGET).execute(pool).await.unwrap();
        execute(
            pool,
            &format!(
                "CREATE ROLE {role} LOGIN PASSWORD 'x' SUPERUSER; ALTER ROLE {role} SET search_path = evil, pg_catalog, public"
            ),
        )
        .await;
        let mut lured = url::Url::parse(&database.url).unwrap();
        lured.set_username(&role).unwrap();
        lured.set_password(Some("x")).unwrap();
        let loader = Loader::new(&address(lured.as_str()), vec!["sales".into()]);
        // The trigger's own statements are its author's, who trusts the path: this one means the operators of PostgreSQL.
        execute(
            pool,
            "CREATE OR REPLACE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE changed sales.t;
                BEGIN
                    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN changed := OLD; ELSE changed := NEW; END IF;
                    INSERT INTO audit_log VALUES (TG_OP, changed.k); INSERT INTO journal VALUES (TG_OP, changed.k);
                    RETURN NULL;
                END $$",
        )
        .await;
        assert_triggers_work(pool, &loader, one).await;
        loader.store.close().await;
        execute(pool, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    }
}
