//! The index by batch, which the first replay of an append creates on its target.

use common::message::ValidBatch;
use loader::load::{Loader, Outcome};
use sqlx::PgPool;
use testkit::servers::Database;

use crate::modes::{Setup, setups};
use crate::support::{
    address, execute, extracted, ledger_database, loader, replayed, text, with_generation,
};

fn append() -> Setup {
    setups().remove(0)
}

/// A completed run of this case. Returns its batches as a replay sends them.
async fn ready_to_replay(database: &Database, loader: &Loader, case: &str) -> Vec<ValidBatch> {
    let pool = &database.pool;
    let (run, batches) = append().prepared(pool, case).await;
    for batch in &batches {
        loader.handle(batch).await.unwrap();
    }
    let event = extracted(&run, 3, 8);
    loader.handle_event(&event).await.unwrap();
    assert_eq!(indexes(pool, case).await, "");
    replayed(pool, &run).await;
    batches
        .iter()
        .map(|batch| with_generation(batch, 1))
        .collect()
}

async fn indexes(pool: &PgPool, case: &str) -> String {
    let find = format!(
        "SELECT string_agg(amname, ' ') FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam WHERE indrelid = 'append_{case}'::regclass"
    );
    text(pool, &find).await
}

/// The first load is not slowed down by an index that only a replay needs.
#[tokio::test]
async fn first_replay_creates_the_index_and_the_next_reuses_it() {
    let database = ledger_database().await;
    let (first, second) = (loader(&database), loader(&database));
    let batches = ready_to_replay(&database, &first, "mine").await;
    for batch in &batches {
        first.handle(batch).await.unwrap();
    }
    assert_eq!(indexes(&database.pool, "mine").await, "brin");
    replayed(&database.pool, "append-mine").await;
    for batch in &batches {
        second.handle(&with_generation(batch, 2)).await.unwrap();
    }
    assert_eq!(indexes(&database.pool, "mine").await, "brin");
    append().assert_loaded(&database.pool, "mine").await;
}

/// A loader whose role may write and has the privileges `may`, and the name of the role.
async fn guest(database: &Database, may: impl FnOnce(&str) -> String) -> (Loader, String) {
    let role = format!("loader_{}", database.name);
    let may = may(&role);
    execute(
        &database.pool,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA etl TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl, public TO {role}; {may}"
        ),
    )
    .await;
    let mut guest = url::Url::parse(&database.url).unwrap();
    guest.set_username(&role).unwrap();
    guest.set_password(Some("x")).unwrap();
    let guest = Loader::new(&address(guest.as_str()), vec!["public".to_owned()]);
    (guest, role)
}

async fn assert_replayed_without_the_index(
    database: &Database,
    case: &str,
    may: impl FnOnce(&str) -> String,
) {
    let pool = &database.pool;
    let batches = ready_to_replay(database, &loader(database), case).await;
    let (guest, role) = guest(database, may).await;
    for batch in &batches {
        guest.handle(batch).await.unwrap();
    }
    append().assert_loaded(pool, case).await;
    assert_eq!(indexes(pool, case).await, "");
    guest.store.close().await;
    let end =
        format!("REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}");
    execute(pool, &end).await;
}

#[tokio::test]
async fn table_of_another_owner_is_replayed_without_the_index() {
    assert_replayed_without_the_index(&ledger_database().await, "theirs", |_| String::new()).await;
}

/// Creating an index needs a privilege on the table's schema besides the ownership of the table.
#[tokio::test]
async fn table_in_a_schema_of_another_owner_is_replayed_without_the_index() {
    let may = |role: &str| {
        format!(
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC; ALTER TABLE append_schema OWNER TO {role}"
        )
    };
    assert_replayed_without_the_index(&ledger_database().await, "schema", may).await;
}

/// The index is optional: a replay does not wait for it.
#[tokio::test]
async fn replay_continues_without_the_index_while_the_table_is_written_to() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let batches = ready_to_replay(&database, &loader, "busy").await;
    let mut other = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO append_busy VALUES ('other')")
        .execute(&mut *other)
        .await
        .unwrap();
    let outcome = loader.handle(&batches[0]).await.unwrap();
    assert!(matches!(outcome, Outcome::Loaded(_)));
    assert_eq!(indexes(pool, "busy").await, "");
    other.rollback().await.unwrap();
    for batch in &batches[1..] {
        loader.handle(batch).await.unwrap();
    }
    assert_eq!(indexes(pool, "busy").await, "brin");
    append().assert_loaded(pool, "busy").await;
}

/// The same error as for two indexes that get one name at the same moment.
#[tokio::test]
async fn failure_to_create_the_index_fails_no_batch() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let batches = ready_to_replay(&database, &loader, "refused").await;
    execute(
        pool,
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE unique_violation; END $$;
         CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION refuse()",
    )
    .await;
    for batch in &batches {
        loader.handle(batch).await.unwrap();
    }
    assert_eq!(indexes(pool, "refused").await, "");
    append().assert_loaded(pool, "refused").await;
}

#[tokio::test]
async fn recreated_table_gets_the_index_again() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let batches = ready_to_replay(&database, &loader, "anew").await;
    for batch in &batches {
        loader.handle(batch).await.unwrap();
    }
    execute(
        pool,
        "ALTER TABLE append_anew RENAME TO former; CREATE TABLE append_anew (LIKE former); INSERT INTO append_anew SELECT * FROM former",
    )
    .await;
    for generation in 2..=3 {
        replayed(pool, "append-anew").await;
        for batch in &batches {
            let batch = with_generation(batch, generation);
            loader.handle(&batch).await.unwrap();
        }
    }
    assert_eq!(indexes(pool, "anew").await, "brin");
    append().assert_loaded(pool, "anew").await;
}
