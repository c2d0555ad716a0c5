//! A transaction has the same meaning with any defaults of the role and the server.

use ledger::{Class, Error, classify};
use sqlx::PgConnection;

use crate::support::{execute, ledger};

#[tokio::test]
async fn transaction_sets_its_own_settings() {
    let (database, store) = ledger().await;
    let name = &database.name;
    for setting in [
        "default_transaction_isolation = 'repeatable read'",
        "search_path = public, pg_catalog",
        "row_security = on",
        "\"TimeZone\" = 'Asia/Tokyo'",
        "lock_timeout = 0",
        "synchronous_commit = off",
    ] {
        execute(
            &database.pool,
            &format!("ALTER DATABASE {name} SET {setting}"),
        )
        .await;
    }
    let show = async |tx: &mut PgConnection| {
        let settings = [
            "transaction_isolation",
            "search_path",
            "row_security",
            "TimeZone",
            "lock_timeout",
            "synchronous_commit",
        ];
        let query = sqlx::query_scalar::<_, String>(
            "SELECT string_agg(current_setting(name), '; ' ORDER BY place) FROM unnest($1::text[]) WITH ORDINALITY AS s (name, place)",
        );
        Ok(query.bind(settings.as_slice()).fetch_one(tx).await?)
    };
    assert_eq!(
        store.transaction("the settings", show).await.unwrap(),
        "read committed; pg_catalog, pg_temp; off; UTC; 10s; on"
    );
    assert_eq!(
        store.read("the settings", show).await.unwrap(),
        "repeatable read; pg_catalog, pg_temp; off; UTC; 10s; on"
    );
}

#[tokio::test]
async fn read_only_database_is_not_written_to() {
    let (database, store) = ledger().await;
    let read_only = format!(
        "ALTER DATABASE {} SET default_transaction_read_only = on",
        database.name
    );
    execute(&database.pool, &read_only).await;
    // Sessions that a pooler keeps have the setting of before.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    execute(&database.pool, end).await;
    let write = async |tx: &mut PgConnection| {
        sqlx::query("UPDATE etl.runs SET state = state")
            .execute(tx)
            .await?;
        Ok(())
    };
    let refused = store.transaction("cannot write", write).await.unwrap_err();
    let Error::Postgres { source, .. } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(classify(&source), Class::World, "{source}");
}
