//! Events, completion and the schema of the ledger.

use common::message::EventKind;
use ledger::event::Noted;
use ledger::{NewDeadLetter, RunState, migrate};
use loader::errors::{LoadError, Refused};
use loader::{completion, target};
use testkit::servers::database;

use crate::support::{
    address, balance_of, event, execute, extracted, ledger_database, loader, request, shape, text,
};

#[tokio::test]
async fn several_replicas_migrate_at_once_and_again() {
    let database = database().await;
    let database_address = address(&database.url);
    let migrate = || migrate::run(&database_address);
    let (a, b, c, d) = tokio::join!(migrate(), migrate(), migrate(), migrate());
    for migrated in [a, b, c, d, migrate().await] {
        migrated.unwrap();
    }
    assert!(
        migrate::is_current(&mut database.pool.acquire().await.unwrap())
            .await
            .unwrap()
    );
    // A newer version has migrated the schema: an older one can continue.
    execute(&database.pool, "INSERT INTO etl.schema_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '', 0)").await;
    migrate::run(&database_address).await.unwrap();
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn role_without_create_loads_into_existing_tables() {
    let database = ledger_database().await;
    execute(&database.pool, "CREATE TABLE t (n bigint, _batch bigint)").await;
    let role = format!("least_{}", database.name);
    execute(
        &database.pool,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA etl TO {role}; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA etl TO {role};
             GRANT SELECT, INSERT, UPDATE ON t TO {role}; REVOKE CREATE ON SCHEMA public FROM PUBLIC; REVOKE CREATE ON DATABASE {} FROM PUBLIC",
            database.name
        ),
    )
    .await;
    let mut least = url::Url::parse(&database.url).unwrap();
    least.set_username(&role).unwrap();
    least.set_password(Some("x")).unwrap();
    let loader = loader::load::Loader::new(&address(least.as_str()), vec!["public".into()]);
    assert!(loader.store.is_current().await.unwrap());
    request(&database.pool, "r").await;
    loader
        .handle(&shape("t", &["n bigint"], &[]).batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    // A run that is committed as a whole needs further privileges.
    execute(
        &database.pool,
        &format!("GRANT USAGE, CREATE ON SCHEMA etl_staging TO {role}; GRANT DELETE ON etl.staging, etl.parked, etl.conflicts, etl.batches, etl.rejected_rows, t TO {role}"),
    )
    .await;
    request(&database.pool, "whole").await;
    let mut whole = shape("t", &["n bigint"], &[]);
    whole.target.mode = common::job::Mode::Replace;
    loader
        .handle(&whole.batch("whole", 0, &[vec![Some("2")]]))
        .await
        .unwrap();
    loader
        .handle_event(&extracted("whole", 1, 1))
        .await
        .unwrap();
    assert_eq!(target::clean_up(&loader.store).await.unwrap(), 1);
    let rows = "SELECT string_agg(n::text, ' ') FROM t";
    assert_eq!(text(&database.pool, rows).await, "2");
    let missing = shape("missing", &["n bigint"], &[]).batch("r", 1, &[vec![Some("1")]]);
    let refused = loader.handle(&missing).await.unwrap_err().to_string();
    assert!(
        refused.contains("GRANT CREATE ON SCHEMA \"public\""),
        "{refused}"
    );
    execute(
        &database.pool,
        &format!("CREATE TABLE closed (n bigint, _batch bigint); REVOKE ALL ON t FROM {role}"),
    )
    .await;
    let closed = shape("closed", &["n bigint"], &[]).batch("r", 1, &[vec![Some("1")]]);
    let refused = loader.handle(&closed).await.unwrap_err().to_string();
    assert!(refused.contains("GRANT INSERT ON"), "{refused}");
    // A lost privilege is the target's fault, and dead-letters nothing.
    let lost = shape("t", &["n bigint"], &[]).batch("r", 1, &[vec![Some("1")]]);
    assert_eq!(
        loader.handle(&lost).await.unwrap_err().verdict(),
        loader::errors::Verdict::Target
    );
    loader.store.close().await;
    execute(
        &database.pool,
        &format!("DROP OWNED BY {role}; DROP ROLE {role}"),
    )
    .await;
}

fn started(query: &str) -> EventKind {
    EventKind::Started {
        query_execution_id: query.into(),
        attempt: 1,
        principal: None,
        region: None,
    }
}

#[tokio::test]
async fn repeated_events_in_any_order_have_the_same_result() {
    let database = ledger_database().await;
    let loader = loader(&database);
    let kinds = [
        started("query"),
        EventKind::Progress {
            batches: 1,
            rows: 10,
        },
        EventKind::Progress {
            batches: 2,
            rows: 20,
        },
        EventKind::Extracted {
            result_id: "query:pages".into(),
            batches: 3,
            rows: 30,
            bytes_scanned: 99,
            result_location: Some("s3://results/query.csv".into()),
            columns: vec![],
        },
    ];
    for (run, order) in [("forward", [0, 1, 2, 3]), ("backward", [3, 2, 1, 0])] {
        request(&database.pool, run).await;
        for kind in order
            .iter()
            .chain(&order)
            .map(|index| kinds[*index].clone())
        {
            assert_eq!(
                loader.handle_event(&event(run, kind)).await.unwrap(),
                Noted::Noted
            );
        }
        let row = format!(
            "SELECT concat_ws(' ', state, query_execution_id, result_id, batches_extracted, rows_extracted, batches_expected, rows_expected, bytes_scanned, ignored_messages)
             FROM etl.runs WHERE run_id = '{run}'"
        );
        assert_eq!(
            text(&database.pool, &row).await,
            "running query query:pages 3 30 3 30 99 0"
        );
    }
}

#[tokio::test]
async fn first_event_of_a_run_may_arrive_last() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    loader
        .handle(&t.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    loader.handle_event(&extracted("r", 1, 1)).await.unwrap();
    for (query, noted) in [
        ("another", Noted::Ignored),
        ("query", Noted::Noted),
        ("query", Noted::Noted),
        ("another", Noted::Ignored),
    ] {
        let event = event("r", started(query));
        assert_eq!(loader.handle_event(&event).await.unwrap(), noted, "{query}");
    }
    assert_eq!(
        text(
            &database.pool,
            "SELECT concat_ws(' ', state, query_execution_id, ignored_messages) FROM etl.runs"
        )
        .await,
        "completed query 2"
    );
}

#[tokio::test]
async fn first_terminal_state_stays() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    let failed = |reason: &str| {
        event(
            "r",
            EventKind::Failed {
                reason: reason.into(),
            },
        )
    };
    assert_eq!(
        loader.handle_event(&failed("no\0 table")).await.unwrap(),
        Noted::Failed
    );
    assert_eq!(
        loader.handle_event(&failed("no\0 table")).await.unwrap(),
        Noted::Noted
    );
    assert_eq!(
        loader.handle_event(&extracted("r", 1, 1)).await.unwrap(),
        Noted::Noted
    );
    loader
        .handle(&t.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    assert_eq!(
        completion::try_complete(&loader.store, &"r".parse().unwrap())
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        text(
            &database.pool,
            "SELECT state || ' ' || failure || ' ' || ignored_messages FROM etl.runs"
        )
        .await,
        "failed no\u{2400} table 1"
    );
}

#[tokio::test]
async fn second_result_or_count_of_a_run_is_refused() {
    let database = ledger_database().await;
    let loader = loader(&database);
    request(&database.pool, "r").await;
    loader.handle_event(&extracted("r", 2, 20)).await.unwrap();
    let refused = async |event| match loader.handle_event(&event).await {
        Err(LoadError::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        refused(extracted("r", 2, 21)).await,
        Refused::Ledger(ledger::Refused::OtherCount { .. })
    ));
    let other = EventKind::Extracted {
        result_id: "other".into(),
        batches: 2,
        rows: 20,
        bytes_scanned: 1,
        result_location: None,
        columns: vec![],
    };
    assert!(matches!(
        refused(event("r", other)).await,
        Refused::Ledger(ledger::Refused::OtherResult { .. })
    ));
    assert!(matches!(
        refused(extracted("absent", 2, 20)).await,
        Refused::Ledger(ledger::Refused::UnknownRun { .. })
    ));
}

#[tokio::test]
async fn run_without_a_row_waits_for_it_and_one_with_a_row_too_many_fails() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "short").await;
    loader
        .handle(&t.batch("short", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    loader
        .handle_event(&extracted("short", 1, 2))
        .await
        .unwrap();
    assert_eq!(
        text(
            &database.pool,
            "SELECT state || ', balanced: ' || balanced FROM etl.run_balance"
        )
        .await,
        "running, balanced: false"
    );
    request(&database.pool, "beyond").await;
    loader
        .handle(&t.batch("beyond", 1, &[vec![Some("1")]]))
        .await
        .unwrap();
    loader
        .handle_event(&extracted("beyond", 1, 1))
        .await
        .unwrap();
    assert!(
        balance_of(&database.pool, "beyond")
            .await
            .starts_with("failed")
    );
}

#[tokio::test]
async fn batches_with_gaps_or_overlaps_complete_no_run() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    for first_row in 0..3 {
        let batch = t.batch("r", first_row, &[vec![Some("1")]]);
        loader.handle(&batch).await.unwrap();
    }
    // The state after two concurrent loads of overlapping batches.
    execute(
        &database.pool,
        "UPDATE etl.batches SET rows_extracted = 2, rows_loaded = 2 WHERE first_row = 0",
    )
    .await;
    loader.handle_event(&extracted("r", 3, 3)).await.unwrap();
    let run = text(
        &database.pool,
        "SELECT state || ': ' || failure FROM etl.runs",
    )
    .await;
    assert!(
        run.starts_with(
            "failed: the batch from row 1 on does not begin where the batches before it end"
        ),
        "{run}"
    );
}

#[tokio::test]
async fn failure_after_the_end_of_the_result_changes_nothing() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    loader.handle_event(&extracted("r", 1, 1)).await.unwrap();
    let failed = EventKind::Failed {
        reason: "the other delivery's credentials expired".into(),
    };
    assert_eq!(
        loader.handle_event(&event("r", failed)).await.unwrap(),
        Noted::Ignored
    );
    loader
        .handle(&t.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    assert_eq!(
        balance_of(&database.pool, "r").await,
        "completed expected 1 extracted 1 loaded 1 deduplicated 0 rejected 0 balanced"
    );
    // Another count is refused after the end of the run too.
    assert!(matches!(
        loader.handle_event(&extracted("r", 2, 1)).await,
        Err(LoadError::Refused(Refused::Ledger(
            ledger::Refused::OtherCount { .. }
        )))
    ));
    assert_eq!(
        loader.handle_event(&extracted("r", 1, 1)).await.unwrap(),
        Noted::Noted
    );
}

/// A dead letter that is redelivered after it was read stays open when the earlier read is resolved.
#[tokio::test]
async fn redelivered_dead_letter_reopens() {
    let database = ledger_database().await;
    let loader = loader(&database);
    let dead_letter = NewDeadLetter {
        message_id: "r/0/0".into(),
        stage: "loader".into(),
        reason: "because".into(),
        attempts: 1,
        run: Some("r".into()),
        job: None,
        kind: "valid-batch.v3".into(),
        queue: "etl.valid".into(),
        headers: serde_json::json!({}),
        body: b"body",
        dead_at: None,
    };
    let resolve = async |received_at: &str| {
        let resolve = format!(
            "UPDATE etl.dead_letters SET resolved_at = now(), resolution = 'replayed' WHERE received_at = '{received_at}'"
        );
        execute(&database.pool, &resolve).await;
        text(&database.pool, "SELECT count(*) FILTER (WHERE resolved_at IS NULL) || ' of ' || count(*) FROM etl.dead_letters").await
    };
    let received_at =
        async || text(&database.pool, "SELECT received_at FROM etl.dead_letters").await;
    loader.store.store_dead_letter(&dead_letter).await.unwrap();
    let read = received_at().await;
    loader.store.store_dead_letter(&dead_letter).await.unwrap();
    assert_eq!(resolve(&read).await, "1 of 1");
    assert_eq!(resolve(&received_at().await).await, "0 of 1");
    loader.store.store_dead_letter(&dead_letter).await.unwrap();
    assert_eq!(resolve(&read).await, "1 of 1");
}

#[tokio::test]
async fn sweep_completes_runs_left_open_by_a_crash() {
    let database = ledger_database().await;
    let (loader, t) = (loader(&database), shape("t", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    request(&database.pool, "open").await;
    loader
        .handle(&t.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    // The state after a crash between the commit of the event and the check for completion.
    execute(
        &database.pool,
        "UPDATE etl.runs SET batches_expected = 1, rows_expected = 1 WHERE run_id = 'r'",
    )
    .await;
    let candidates = ledger::completion::candidates(&loader.store).await.unwrap();
    assert_eq!(candidates, ["r".parse().unwrap()]);
    assert_eq!(
        completion::try_complete(&loader.store, &candidates[0])
            .await
            .unwrap(),
        Some(RunState::Completed)
    );
}

#[tokio::test]
async fn ledger_refuses_rows_that_do_not_balance() {
    let database = ledger_database().await;
    request(&database.pool, "r").await;
    for counts in ["10, 9, 0, 0, 0", "10, 5, 6, 5, 0", "1, -1, 0, 2, 0"] {
        let insert = format!("INSERT INTO etl.batches VALUES ('r', 0, 0, 'h', 'q', 0, {counts})");
        let refused = sqlx::query(sqlx::AssertSqlSafe(insert))
            .execute(&database.pool)
            .await;
        let code = refused
            .unwrap_err()
            .as_database_error()
            .and_then(|error| error.code().map(std::borrow::Cow::into_owned));
        assert_eq!(code.as_deref(), Some("23514"), "{counts}");
    }
}
