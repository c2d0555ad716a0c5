//! Failures of Postgres and of the connection to it, at critical points.

use std::time::Duration;

use ledger::event::Noted;
use loader::errors::Verdict;
use loader::load::{Loader, Outcome};
use testkit::TIMEOUT;
use testkit::relay::Relay;
use testkit::wait_until;

use crate::support::{address, execute, extracted, ledger_database, loader, request, shape, text};

#[tokio::test]
async fn commit_with_a_lost_answer_is_found_in_the_ledger() {
    let database = ledger_database().await;
    let relay = Relay::to_url(&database.url).await;
    let loader = Loader::new(
        &address(&relay.url_for(&database.url)),
        vec!["public".into()],
    );
    let t = shape("t", &["n bigint"], &[]);
    request(&database.pool, "r").await;
    // All preparation for the batch's own transaction is done before.
    loader
        .handle(&t.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    relay.lose_reply(b"COMMIT\0");
    let outcome = loader
        .handle(&t.batch("r", 1, &[vec![Some("2")]]))
        .await
        .unwrap();
    assert!(relay.has_lost_reply());
    assert!(matches!(outcome, Outcome::Loaded(_)));
    assert_eq!(
        loader
            .handle(&t.batch("r", 1, &[vec![Some("2")]]))
            .await
            .unwrap(),
        Outcome::Duplicate
    );
    assert_eq!(
        text(
            &database.pool,
            "SELECT string_agg(n::text, ' ' ORDER BY n) FROM t"
        )
        .await,
        "1 2"
    );
}

#[tokio::test]
async fn connection_lost_at_any_answer_loads_each_row_once() {
    let database = ledger_database().await;
    let relay = Relay::to_url(&database.url).await;
    let loader = Loader::new(
        &address(&relay.url_for(&database.url)),
        vec!["public".into()],
    );
    let t = shape("t", &["n bigint"], &["n"]);
    request(&database.pool, "r").await;
    loader
        .handle(&t.batch("r", 0, &[vec![Some("0")]]))
        .await
        .unwrap();
    for (place, answer) in (1_u64..).zip([
        &b"BEGIN\0"[..],
        b"SELECT 1\0",
        b"INSERT 0 1\0",
        b"LOCK TABLE\0",
        b"COPY 2\0",
        b"RELEASE\0",
        b"COMMIT\0",
    ]) {
        let (one, two) = (place.to_string(), (place + 100).to_string());
        let batch = t.batch("r", place * 2 - 1, &[vec![Some(&one)], vec![Some(&two)]]);
        relay.lose_reply(answer);
        match loader.handle(&batch).await {
            Ok(outcome) => assert!(matches!(outcome, Outcome::Loaded(_)), "{outcome:?}"),
            Err(error) => assert!(
                matches!(error.verdict(), Verdict::Pause | Verdict::Target),
                "{error:?}"
            ),
        }
        assert!(
            relay.has_lost_reply(),
            "{}",
            String::from_utf8_lossy(answer)
        );
        loader.handle(&batch).await.unwrap();
        let found = text(&database.pool, "SELECT count(*) || ' ' || (SELECT sum(rows_loaded) FROM etl.batches WHERE first_row > 0) FROM t WHERE n > 0").await;
        assert_eq!(found, format!("{0} {0}", place * 2));
    }
}

/// Ends every other session of the database, also those that a pooler keeps for its next client.
async fn terminate_backends(pool: &sqlx::PgPool) {
    execute(pool, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
}

#[tokio::test]
async fn loader_retries_after_a_terminated_backend_or_a_read_only_server() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    loader
        .handle(&t.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    execute(
        &database.pool,
        &format!(
            "ALTER DATABASE {} SET default_transaction_read_only = on",
            database.name
        ),
    )
    .await;
    terminate_backends(&database.pool).await;
    let batch = t.batch("r", 1, &[vec![Some("2")]]);
    wait_until(
        "the loader to find the server read-only",
        TIMEOUT,
        async || {
            let error = loader.handle(&batch).await.unwrap_err();
            assert_eq!(error.verdict(), Verdict::Pause, "{error:?}");
            error.sentence().contains("25006")
        },
    )
    .await;
    execute(
        &database.pool,
        &format!(
            "BEGIN READ WRITE; ALTER DATABASE {} RESET default_transaction_read_only; COMMIT",
            database.name
        ),
    )
    .await;
    terminate_backends(&database.pool).await;
    wait_until("the loader to continue", TIMEOUT, async || {
        loader.handle(&batch).await.is_ok()
    })
    .await;
    assert_eq!(text(&database.pool, "SELECT count(*) FROM t").await, "2");
}

#[tokio::test]
async fn deadlocks_and_lock_timeouts_are_retried() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    loader
        .handle(&t.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    let mut locker = database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE t")
        .execute(&mut *locker)
        .await
        .unwrap();
    let error = loader
        .handle(&t.batch("r", 1, &[vec![Some("1")]]))
        .await
        .unwrap_err();
    assert_eq!(error.verdict(), Verdict::Retry);
    assert!(
        error.sentence().contains("pg_stat_activity"),
        "{}",
        error.sentence()
    );
    locker.rollback().await.unwrap();
    loader
        .handle(&t.batch("r", 1, &[vec![Some("1")]]))
        .await
        .unwrap();
}

/// Loaders hold a shared lock on the row of a run, one after the other. An event that needs an exclusive lock must not
/// starve.
#[tokio::test]
async fn batch_behind_an_event_waits_for_its_lock() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    loader
        .handle(&t.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    let run = "r".parse().unwrap();
    let mut other = database.pool.begin().await.unwrap();
    ledger::share(&mut other, &run).await.unwrap();
    let waiting = async |wanted: &str| {
        wait_until(&format!("{wanted} to wait"), Duration::from_secs(8), async || {
            text(&database.pool, "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").await == wanted
        })
        .await;
    };
    let told = extracted("r", 2, 2);
    let batch = t.batch("r", 1, &[vec![Some("2")]]);
    let event = loader.handle_event(&told);
    let load = async {
        waiting("1").await;
        loader.handle(&batch).await
    };
    let release = async {
        waiting("2").await;
        other.commit().await
    };
    let (event, load, release) = tokio::join!(event, load, release);
    assert_eq!(event.unwrap(), Noted::Noted);
    assert!(matches!(load.unwrap(), Outcome::Loaded(_)));
    release.unwrap();
    assert_eq!(
        text(&database.pool, "SELECT state FROM etl.runs").await,
        "completed"
    );
}
