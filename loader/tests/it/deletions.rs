//! Deletions in a target: what is deleted is gone, and nothing else is.

use std::time::Duration;

use common::job::{Commit, Mode};
use common::message::ValidBatch;
use ledger::{Removed, Rows};
use loader::load::{Loader, Outcome};
use loader::{completion, removal};
use sqlx::PgPool;

use crate::support::{
    Shape, Value, execute, extracted, ledger_database, loader, refusal, replayed, request,
    request_for, shape, text, with_generation,
};

/// A trigger that marks rows as deleted and keeps them.
const SOFT_DELETE: &str =
    "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
     CREATE TRIGGER keep BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION keep()";

/// A table of another program that follows this one.
const CHILD: &str = "ALTER TABLE t ADD UNIQUE (v); CREATE TABLE child (v bigint REFERENCES t (v) ON DELETE CASCADE);
     INSERT INTO child SELECT v FROM t";

fn t(mode: Mode) -> Shape {
    let mut shape = shape("t", &["v bigint"], &[]);
    shape.target.mode = mode;
    if mode.replaces() {
        shape.target.commit = Commit::Run;
    }
    shape
}

fn batch(shape: &Shape, run: &str) -> ValidBatch {
    let rows: Vec<Vec<Value<'_>>> = ["1", "2", "3"].map(|v| vec![Some(v)]).to_vec();
    shape.batch(run, 0, &rows)
}

async fn load(loader: &Loader, batch: &ValidBatch) {
    loader.handle(batch).await.unwrap();
    let end = extracted(batch.id.run.as_str(), 1, 3);
    loader.handle_event(&end).await.unwrap();
}

async fn state(pool: &PgPool, run: &str) -> String {
    let state = format!(
        "SELECT concat_ws(' ', state, CASE WHEN state = 'held' THEN held_because END) FROM etl.runs WHERE run_id = '{run}'"
    );
    text(pool, &state).await
}

async fn rows(pool: &PgPool) -> String {
    text(pool, "SELECT string_agg(v::text, ' ' ORDER BY v) FROM t").await
}

/// Requests the removal of a run's rows and lets the loader try. What it says of it.
async fn undo(pool: &PgPool, loader: &Loader, run: &str) -> Removed {
    execute(
        pool,
        &format!("UPDATE etl.runs SET target_table = 'public.t' WHERE run_id = '{run}'"),
    )
    .await;
    let Rows::Leave { removal, .. } = loader
        .store
        .cancel(&run.parse().unwrap(), true, None)
        .await
        .unwrap()
        .rows
    else {
        panic!("nothing to remove")
    };
    removal::execute_all(loader).await.unwrap();
    loader.store.removed(removal, Duration::ZERO).await.unwrap()
}

fn why(removed: Removed) -> String {
    match removed {
        Removed::Pending(Some(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn replace_is_held_where_a_trigger_keeps_the_replaced_rows() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    for run in ["first", "second"] {
        request(pool, run).await;
    }
    load(&loader, &batch(&t(Mode::Replace), "first")).await;
    execute(pool, SOFT_DELETE).await;
    load(&loader, &batch(&t(Mode::Replace), "second")).await;
    let held = state(pool, "second").await;
    assert!(held.starts_with("held PostgreSQL reports that rows of \"public\".\"t\" were deleted, and they are still there"), "{held}");
    assert_eq!(rows(pool).await, "1 2 3");
}

#[tokio::test]
async fn replayed_batch_is_refused_where_a_trigger_keeps_its_rows() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    let batch = batch(&t(Mode::Append), "r");
    load(&loader, &batch).await;
    execute(pool, SOFT_DELETE).await;
    replayed(pool, "r").await;
    let refused = loader
        .handle(&with_generation(&batch, 1))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("they are still there"),
        "{refused}"
    );
    assert_eq!(rows(pool).await, "1 2 3");
}

#[tokio::test]
async fn undo_fails_where_a_trigger_keeps_the_rows() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    loader.handle(&batch(&t(Mode::Append), "r")).await.unwrap();
    execute(pool, SOFT_DELETE).await;
    let why = why(undo(pool, &loader, "r").await);
    assert!(why.contains("they are still there"), "{why}");
    assert_eq!(text(pool, "SELECT rows_loaded FROM etl.batches").await, "3");
}

/// The column's values are gone, and with them what tells the rows of a batch.
#[tokio::test]
async fn rows_whose_batch_is_unknown_are_neither_doubled_nor_forgotten() {
    for commit in [Commit::Batch, Commit::Run] {
        let database = ledger_database().await;
        let (pool, loader) = (&database.pool, loader(&database));
        let mut t = t(Mode::Append);
        t.target.commit = commit;
        for run in ["r", "other"] {
            request_for(pool, run, &t.target).await;
        }
        let batch = batch(&t, "r");
        load(&loader, &batch).await;
        execute(
            pool,
            "ALTER TABLE t DROP COLUMN _batch; ALTER TABLE t ADD COLUMN _batch bigint",
        )
        .await;
        replayed(pool, "r").await;
        let again = with_generation(&batch, 1);
        let refused = if let Err(refused) = loader.handle(&again).await {
            refused.to_string()
        } else {
            let mut end = extracted("r", 1, 3);
            end.generation = 1;
            loader.handle_event(&end).await.unwrap();
            state(pool, "r").await
        };
        assert!(refused.contains("3 rows that are to be deleted from \"public\".\"t\" should be there, and 0 are found"), "{refused}");
        assert_eq!(rows(pool).await, "1 2 3");
        // They are not of this run after all, says a person.
        execute(
            pool,
            "DELETE FROM t; UPDATE t SET _batch = 0 WHERE _batch IS NULL",
        )
        .await;
        match commit {
            Commit::Batch => {
                loader.handle(&again).await.unwrap();
            }
            Commit::Run => {
                loader
                    .store
                    .approve(&"r".parse().unwrap(), None)
                    .await
                    .unwrap();
                completion::try_complete(&loader.store, &"r".parse().unwrap())
                    .await
                    .unwrap();
            }
        }
        assert_eq!(rows(pool).await, "1 2 3");
    }
}

#[tokio::test]
async fn undo_fails_where_the_batch_of_the_rows_is_unknown() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    loader.handle(&batch(&t(Mode::Append), "r")).await.unwrap();
    execute(
        pool,
        "ALTER TABLE t ALTER COLUMN _batch DROP NOT NULL; UPDATE t SET _batch = NULL",
    )
    .await;
    let why = why(undo(pool, &loader, "r").await);
    assert!(why.contains("was the column _batch made anew?"), "{why}");
    assert_eq!(text(pool, "SELECT rows_loaded FROM etl.batches").await, "3");
}

/// Rows that somebody deleted are brought back by a replay.
#[tokio::test]
async fn replay_brings_back_rows_that_somebody_deleted() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    let batch = batch(&t(Mode::Append), "r");
    load(&loader, &batch).await;
    execute(
        pool,
        "DELETE FROM t WHERE v > 1; INSERT INTO t (v, _batch) VALUES (7, 0)",
    )
    .await;
    replayed(pool, "r").await;
    loader.handle(&with_generation(&batch, 1)).await.unwrap();
    assert_eq!(rows(pool).await, "1 2 3 7");
}

/// The table outlived the ledger: its rows carry numbers that the new ledger gives again.
#[tokio::test]
async fn replay_deletes_no_rows_of_another_ledger() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    let batch = batch(&t(Mode::Append), "r");
    load(&loader, &batch).await;
    execute(pool, "INSERT INTO t SELECT 7, _batch FROM t LIMIT 1").await;
    replayed(pool, "r").await;
    let refused = loader
        .handle(&with_generation(&batch, 1))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains(
            "the ledger knows 3 rows that are to be replaced in \"public\".\"t\", and 4 have"
        ),
        "{refused}"
    );
    assert_eq!(rows(pool).await, "1 2 3 7");
}

#[tokio::test]
async fn deletions_that_cascade_are_refused_unless_the_job_allows_them() {
    for (mode, allowed) in [
        (Mode::Replace, false),
        (Mode::Replace, true),
        (Mode::Append, false),
        (Mode::Append, true),
    ] {
        let database = ledger_database().await;
        let (pool, loader) = (&database.pool, loader(&database));
        for run in ["first", "second"] {
            request(pool, run).await;
        }
        let mut t = t(mode);
        let batch_1 = batch(&t, "first");
        load(&loader, &batch_1).await;
        execute(pool, CHILD).await;
        t.target.allow_cascades = allowed;
        let done = if mode == Mode::Replace {
            loader.handle(&batch(&t, "second")).await
        } else {
            replayed(pool, "first").await;
            let again = ValidBatch {
                target: t.target.clone(),
                ..with_generation(&batch_1, 1)
            };
            loader.handle(&again).await
        };
        let children = "SELECT count(*) FROM child";
        if allowed {
            assert!(matches!(done, Ok(Outcome::Loaded(_))), "{done:?}");
            loader
                .handle_event(&extracted("second", 1, 3))
                .await
                .unwrap();
            assert_eq!(text(pool, children).await, "0");
        } else {
            // A run fails by it; a replay goes on once it is resolved.
            let failure = "SELECT failure FROM etl.runs WHERE run_id = 'second'";
            let why = match done {
                Ok(outcome) => {
                    assert_eq!(outcome, Outcome::Ignored);
                    text(pool, failure).await
                }
                Err(refused) => refused.to_string(),
            };
            assert!(why.contains("the foreign key child_v_fkey of public.child refers to \"public\".\"t\" and cascades, so that a DELETE would change the other table too"), "{why}");
            assert_eq!(text(pool, children).await, "3");
        }
        assert_eq!(rows(pool).await, "1 2 3");
    }
}

#[tokio::test]
async fn undo_that_cascades_is_refused() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    loader.handle(&batch(&t(Mode::Append), "r")).await.unwrap();
    execute(pool, CHILD).await;
    let why = why(undo(pool, &loader, "r").await);
    assert!(why.contains("child_v_fkey"), "{why}");
    assert_eq!(text(pool, "SELECT count(*) FROM child").await, "3");
}

#[tokio::test]
async fn update_that_cascades_is_refused() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    execute(
        pool,
        "CREATE TABLE t (k bigint PRIMARY KEY, v bigint UNIQUE, _batch bigint);
         CREATE TABLE child (v bigint REFERENCES t (v) ON UPDATE SET NULL)",
    )
    .await;
    let shape = shape("t", &["k bigint", "v bigint"], &["k"]);
    let row = vec![vec![Some("1"), Some("2")]];
    let refused = refusal(&loader, pool, &shape.batch("r", 0, &row)).await;
    assert!(refused.contains("a UPDATE would change"), "{refused}");
}

#[tokio::test]
async fn foreign_table_below_a_partitioned_target_is_refused() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    for run in ["r", "later"] {
        request(pool, run).await;
    }
    execute(
        pool,
        "CREATE TABLE t (v bigint, _batch bigint) PARTITION BY RANGE (v);
         CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (v);
         CREATE TABLE t_low_low PARTITION OF t_low FOR VALUES FROM (0) TO (50)",
    )
    .await;
    loader.handle(&batch(&t(Mode::Append), "r")).await.unwrap();
    execute(
        pool,
        "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nowhere;
         CREATE FOREIGN TABLE t_low_high PARTITION OF t_low FOR VALUES FROM (50) TO (100) SERVER elsewhere",
    )
    .await;
    let refused = refusal(&loader, pool, &batch(&t(Mode::Append), "later")).await;
    assert!(
        refused.starts_with(
            "public.t_low_high is a partition of \"public\".\"t\" and a foreign table"
        ),
        "{refused}"
    );
}

/// A newer batch arrives after the replace has looked for newer rows, and before it deletes.
#[tokio::test]
async fn replace_deletes_no_row_of_a_later_run() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    for run in ["old", "replace", "newer"] {
        request(pool, run).await;
    }
    load(&loader, &batch(&t(Mode::Append), "old")).await;
    loader
        .handle(&batch(&t(Mode::Replace), "replace"))
        .await
        .unwrap();
    let staging = text(pool, "SELECT table_name FROM etl.staging").await;
    // The replace waits here, between its look and its deletion.
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "LOCK TABLE etl_staging.{staging} IN ACCESS EXCLUSIVE MODE"
    )))
    .execute(&mut *lock)
    .await
    .unwrap();
    let end = extracted("replace", 1, 3);
    let replace = loader.handle_event(&end);
    let newer = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'etl_staging.{}'::regclass".replace("{}", &staging);
        while text(pool, &waits).await == "0" {
            tokio::task::yield_now().await;
        }
        let append = batch(&t(Mode::Append), "newer");
        let append = loader.handle(&append);
        let release = async {
            // It waits for the replace, or was not kept from committing.
            let settled =
                "SELECT (SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory')
                 + (SELECT count(*) FROM etl.batches WHERE run_id = 'newer')";
            while text(pool, settled).await == "0" {
                tokio::task::yield_now().await;
            }
            lock.rollback().await.unwrap();
        };
        let (appended, ()) = tokio::join!(append, release);
        appended.unwrap();
    };
    let (replaced, ()) = tokio::join!(replace, newer);
    replaced.unwrap();
    assert_eq!(
        rows(pool).await,
        "1 1 2 2 3 3",
        "the replace's and the newer run's"
    );
    assert_eq!(state(pool, "replace").await, "completed");
}
