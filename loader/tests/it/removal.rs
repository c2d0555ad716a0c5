//! Rows that a person requested to remove: the loader deletes them and updates the ledger.

use std::time::{Duration, Instant};

use ledger::{Removed, Rows};
use loader::load::Loader;
use loader::removal;
use sqlx::PgPool;

use crate::support::{execute, ledger_database, loader, request, shape, text};

/// A run with two rows in its target, and a third row of another program there. Returns the removal that an undo
/// requests.
async fn undone(pool: &PgPool, loader: &Loader, run: &str) -> i64 {
    request(pool, run).await;
    let point = format!("UPDATE etl.runs SET target_table = 'public.{run}' WHERE run_id = '{run}'");
    execute(pool, &point).await;
    let batch = shape(run, &["n bigint"], &[]).batch(run, 0, &[vec![Some("1")], vec![Some("2")]]);
    loader.handle(&batch).await.unwrap();
    execute(
        pool,
        &format!("INSERT INTO {run} (n, _batch) VALUES (3, 0)"),
    )
    .await;
    let id = run.parse().unwrap();
    match loader.store.cancel(&id, true, None).await.unwrap().rows {
        Rows::Leave { rows: 2, removal } => removal,
        other => panic!("{other:?}"),
    }
}

async fn rows(pool: &PgPool, table: &str) -> String {
    let rows = format!("SELECT string_agg(n::text, ' ' ORDER BY n) FROM {table}");
    text(pool, &rows).await
}

#[tokio::test]
async fn failed_removal_records_its_reason_and_blocks_no_other() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let kept = undone(pool, &loader, "kept").await;
    let gone = undone(pool, &loader, "gone").await;
    assert_eq!(rows(pool, "kept").await, "1 2 3");
    execute(
        pool,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no deletions here'; END $$;
         CREATE TRIGGER keep BEFORE DELETE ON kept FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    .await;
    removal::execute_all(&loader).await.unwrap();
    let look = async |removal| loader.store.removed(removal, Duration::ZERO).await.unwrap();
    assert_eq!(look(gone).await, Removed::Done(2));
    assert_eq!(rows(pool, "gone").await, "3");
    let Removed::Pending(Some(why)) = look(kept).await else {
        panic!("it was not tried")
    };
    assert!(
        why.contains("the run kept") && why.contains("P0001"),
        "{why}"
    );
    assert_eq!(rows(pool, "kept").await, "1 2 3");
    let sum = "SELECT sum(rows_loaded) FROM etl.batches WHERE run_id = 'kept'";
    assert_eq!(
        text(pool, sum).await,
        "2",
        "the ledger agrees with the table"
    );
    execute(
        pool,
        "DROP TRIGGER keep ON kept; UPDATE etl.removals SET failed_at = failed_at - interval '1 hour'",
    )
    .await;
    removal::execute_all(&loader).await.unwrap();
    assert_eq!(look(kept).await, Removed::Done(2));
    assert_eq!(rows(pool, "kept").await, "3");
    assert_eq!(text(pool, sum).await, "0");
}

#[tokio::test]
async fn removal_from_a_missing_table_succeeds() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let removal = undone(pool, &loader, "missing").await;
    execute(pool, "DROP TABLE missing").await;
    removal::execute_all(&loader).await.unwrap();
    let found = loader.store.removed(removal, Duration::ZERO).await.unwrap();
    assert_eq!(found, Removed::Done(0));
}

#[tokio::test]
async fn removal_from_a_locked_target_says_so_and_delays_no_other() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let locked = undone(pool, &loader, "locked").await;
    let free = undone(pool, &loader, "free").await;
    let mut holder = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE locked IN SHARE MODE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let asked = Instant::now();
    removal::execute_all(&loader).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(20), "{asked:?}");
    let look = async |removal| loader.store.removed(removal, Duration::ZERO).await.unwrap();
    assert_eq!(look(free).await, Removed::Done(2));
    let Removed::Pending(Some(why)) = look(locked).await else {
        panic!("no reason is recorded")
    };
    assert!(why.contains("55P03"), "{why}");
    holder.rollback().await.unwrap();
    removal::execute_all(&loader).await.unwrap();
    assert_eq!(look(locked).await, Removed::Done(2));
}
