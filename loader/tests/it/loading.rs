//! Batches are loaded once, with any values, any number of deliveries and any order.

use common::message::RejectedRow;
use loader::errors::{LoadError, Refused};
use loader::load::Outcome;

use crate::support::{
    balance_of, everything, execute, extracted, ledger_database, loader, request, shape, text,
    with_rejected,
};

#[tokio::test]
async fn repeated_batch_is_loaded_once() {
    let database = ledger_database().await;
    let (loader, clicks) = (
        loader(&database),
        shape("clicks", &["url text", "n bigint"], &[]),
    );
    request(&database.pool, "r").await;
    let batch = clicks.batch("r", 0, &[vec![Some("a"), Some("1")], vec![None, Some("2")]]);
    let batch = with_rejected(batch, "required", &[("url", None), ("n", Some("x\0y"))]);
    assert!(matches!(
        loader.handle(&batch).await.unwrap(),
        Outcome::Loaded(_)
    ));
    loader.handle_event(&extracted("r", 1, 3)).await.unwrap();
    let before = everything(&database.pool, "clicks").await;
    assert_eq!(loader.handle(&batch).await.unwrap(), Outcome::Duplicate);
    loader.handle_event(&extracted("r", 1, 3)).await.unwrap();
    assert_eq!(everything(&database.pool, "clicks").await, before);
    assert_eq!(
        balance_of(&database.pool, "r").await,
        "completed expected 3 extracted 3 loaded 2 deduplicated 0 rejected 1 balanced"
    );
    assert_eq!(
        text(
            &database.pool,
            "SELECT string_agg(coalesce(url, 'NULL') || n, ',' ORDER BY n) FROM clicks"
        )
        .await,
        "a1,NULL2"
    );
    assert_eq!(
        text(&database.pool, "SELECT raw FROM etl.rejected_rows").await,
        r#"{"url":null,"n":"x\u0000y"}"#
    );
}

#[tokio::test]
async fn empty_result_creates_the_table_and_completes() {
    let database = ledger_database().await;
    let (loader, clicks) = (loader(&database), shape("clicks", &["url text"], &["url"]));
    request(&database.pool, "r").await;
    loader.handle(&clicks.batch("r", 0, &[])).await.unwrap();
    loader.handle_event(&extracted("r", 1, 0)).await.unwrap();
    assert_eq!(
        balance_of(&database.pool, "r").await,
        "completed expected 0 extracted 0 loaded 0 deduplicated 0 rejected 0 balanced"
    );
    assert_eq!(
        text(&database.pool, "SELECT count(*) FROM clicks").await,
        "0"
    );
}

#[tokio::test]
async fn text_values_are_stored_unchanged() {
    let database = ledger_database().await;
    let (loader, values) = (loader(&database), shape("values", &["a text"], &[]));
    let texts = [
        "\\.",
        "\\N",
        "",
        "a\tb\nc\rd\\",
        "\\\\.",
        "ä😀\u{2028}",
        "\u{b}\u{8}\u{c}",
        "NULL",
        "\"",
        "'",
        "{}",
    ];
    request(&database.pool, "r").await;
    let rows: Vec<_> = texts
        .iter()
        .map(|text| vec![Some(*text)])
        .chain([vec![None]])
        .collect();
    loader.handle(&values.batch("r", 0, &rows)).await.unwrap();
    let found: Vec<Option<String>> = sqlx::query_scalar("SELECT a FROM \"values\"")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert_eq!(
        found,
        texts
            .iter()
            .map(|text| Some((*text).to_owned()))
            .chain([None])
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn hostile_names_are_quoted() {
    let database = ledger_database().await;
    let loader = loader(&database);
    let name = r#"t"; DROP TABLE runs; --"#;
    for (run, key) in [("append", &[][..]), ("upsert", &[r#"a"b, line 7"#])] {
        execute(
            &database.pool,
            r#"DROP TABLE IF EXISTS "t""; DROP TABLE runs; --""#,
        )
        .await;
        request(&database.pool, run).await;
        let hostile = shape(
            name,
            &[
                "a\"b, line 7 : text",
                "c0 : text",
                "n: x : bigint",
                "select : text",
            ],
            key,
        );
        let rows = [
            vec![Some("x"), Some("y"), Some("1"), None],
            vec![Some("y"), None, Some("no number"), None],
        ];
        let Outcome::Loaded(counts) = loader.handle(&hostile.batch(run, 0, &rows)).await.unwrap()
        else {
            panic!()
        };
        assert_eq!((counts.loaded, counts.rejected), (1, 1));
        let blamed = text(
            &database.pool,
            &format!("SELECT column_name || raw FROM etl.rejected_rows WHERE run_id = '{run}'"),
        )
        .await;
        assert_eq!(
            blamed,
            r#"n: x{"a\"b, line 7":"y","c0":null,"n: x":"no number","select":null}"#
        );
    }
}

#[tokio::test]
async fn batches_complete_their_run_in_any_order_with_the_event() {
    let database = ledger_database().await;
    let (loader, clicks) = (loader(&database), shape("clicks", &["n bigint"], &[]));
    for (run, order) in [
        ("first", ["event", "2", "0", "1"]),
        ("last", ["1", "2", "0", "event"]),
        ("middle", ["2", "event", "1", "0"]),
    ] {
        request(&database.pool, run).await;
        for (step, what) in order.iter().enumerate() {
            match what.parse::<u64>() {
                Ok(first_row) => drop(
                    loader
                        .handle(&clicks.batch(run, first_row, &[vec![Some("1")]]))
                        .await
                        .unwrap(),
                ),
                Err(_) => drop(loader.handle_event(&extracted(run, 3, 3)).await.unwrap()),
            }
            let state = text(
                &database.pool,
                &format!("SELECT state FROM etl.runs WHERE run_id = '{run}'"),
            )
            .await;
            assert_eq!(
                state,
                if step == 3 { "completed" } else { "running" },
                "{run}: {what}"
            );
        }
        assert_eq!(
            balance_of(&database.pool, run).await,
            "completed expected 3 extracted 3 loaded 3 deduplicated 0 rejected 0 balanced"
        );
    }
    let batches = "SELECT count(DISTINCT _batch) = 9 AND bool_and(etl.run_no(_batch) IN (SELECT run_no FROM etl.runs)) FROM clicks";
    assert_eq!(text(&database.pool, batches).await, "true");
}

#[tokio::test]
async fn two_loaders_with_the_same_batches_load_each_once() {
    let database = ledger_database().await;
    let (one, two) = (loader(&database), loader(&database));
    request(&database.pool, "r").await;
    let clicks = shape("clicks", &["n bigint"], &[]);
    let batches: Vec<_> = (0..20)
        .map(|place| clicks.batch("r", place * 2, &[vec![Some("1")], vec![Some("2")]]))
        .collect();
    let forward = async {
        for batch in &batches {
            one.handle(batch).await.unwrap();
        }
    };
    let backward = async {
        for batch in batches.iter().rev().chain(&batches) {
            two.handle(batch).await.unwrap();
        }
    };
    let told = async { two.handle_event(&extracted("r", 20, 40)).await.unwrap() };
    tokio::join!(forward, backward, told);
    assert_eq!(
        balance_of(&database.pool, "r").await,
        "completed expected 40 extracted 40 loaded 40 deduplicated 0 rejected 0 balanced"
    );
    assert_eq!(
        text(&database.pool, "SELECT count(*) FROM clicks").await,
        "40"
    );
}

#[tokio::test]
async fn message_that_contradicts_the_run_is_refused_and_changes_nothing() {
    let database = ledger_database().await;
    let (loader, clicks) = (loader(&database), shape("clicks", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    let batch = |first_row| clicks.batch("r", first_row, &[vec![Some("1")]]);
    loader.handle(&batch(0)).await.unwrap();
    let before = everything(&database.pool, "clicks").await;
    let refused = async |batch| match loader.handle(&batch).await {
        Err(LoadError::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        refused(clicks.batch("r", 0, &[vec![Some("2")]])).await,
        Refused::Ledger(ledger::Refused::OtherContent { .. })
    ));
    let mut other = batch(1);
    other.result_id = "query:another-etag".into();
    assert!(matches!(
        refused(other).await,
        Refused::Ledger(ledger::Refused::OtherResult { .. })
    ));
    assert!(matches!(
        refused(clicks.batch("absent", 0, &[])).await,
        Refused::Ledger(ledger::Refused::UnknownRun { .. })
    ));
    let mut ahead = batch(1);
    ahead.id.generation = 1;
    assert!(matches!(
        refused(ahead).await,
        Refused::Ledger(ledger::Refused::FutureGeneration { .. })
    ));
    assert_eq!(everything(&database.pool, "clicks").await, before);

    loader.handle_event(&extracted("r", 2, 2)).await.unwrap();
    assert!(matches!(
        refused(batch(2)).await,
        Refused::Ledger(ledger::Refused::BeyondResult { .. })
    ));
    loader.handle(&batch(1)).await.unwrap();
    // After the end of the run too.
    assert!(matches!(
        refused(clicks.batch("r", 0, &[vec![Some("2")]])).await,
        Refused::Ledger(ledger::Refused::OtherContent { .. })
    ));
    assert!(matches!(
        refused(batch(2)).await,
        Refused::Ledger(ledger::Refused::BeyondResult { .. })
    ));
    let mut other = batch(2);
    other.result_id = "query:another-etag".into();
    assert!(matches!(
        refused(other).await,
        Refused::Ledger(ledger::Refused::OtherResult { .. })
    ));
    assert_eq!(
        balance_of(&database.pool, "r").await,
        "completed expected 2 extracted 2 loaded 2 deduplicated 0 rejected 0 balanced"
    );
}

#[tokio::test]
async fn batches_with_other_boundaries_are_refused_and_change_nothing() {
    let database = ledger_database().await;
    let (loader, clicks) = (loader(&database), shape("clicks", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    let batch = |first_row, rows| clicks.batch("r", first_row, &vec![vec![Some("1")]; rows]);
    loader.handle(&batch(4, 2)).await.unwrap();
    let before = everything(&database.pool, "clicks").await;
    for (first_row, rows) in [(0, 5), (2, 9), (3, 2), (5, 1), (5, 3), (7, 0)] {
        let refused = loader.handle(&batch(first_row, rows)).await;
        assert!(
            matches!(
                refused,
                Err(LoadError::Refused(Refused::Ledger(
                    ledger::Refused::OutOfLine { .. }
                )))
            ),
            "{first_row} {rows}: {refused:?}"
        );
    }
    assert_eq!(everything(&database.pool, "clicks").await, before);
    for fitting in [batch(6, 1), batch(2, 2), batch(0, 2)] {
        loader.handle(&fitting).await.unwrap();
    }
    loader.handle_event(&extracted("r", 4, 7)).await.unwrap();
    assert_eq!(
        balance_of(&database.pool, "r").await,
        "completed expected 7 extracted 7 loaded 7 deduplicated 0 rejected 0 balanced"
    );
}

#[tokio::test]
async fn batches_of_an_ended_run_or_an_earlier_generation_change_no_row() {
    let database = ledger_database().await;
    let (loader, clicks) = (loader(&database), shape("clicks", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    loader
        .handle(&clicks.batch("r", 0, &[vec![Some("1")]]))
        .await
        .unwrap();
    execute(&database.pool, "UPDATE etl.runs SET generation = 1").await;
    assert_eq!(
        loader
            .handle(&clicks.batch("r", 1, &[vec![Some("1")]]))
            .await
            .unwrap(),
        Outcome::Stale
    );
    execute(
        &database.pool,
        "UPDATE etl.runs SET generation = 0, state = 'cancelled', finished_at = now()",
    )
    .await;
    assert_eq!(
        loader
            .handle(&clicks.batch("r", 1, &[vec![Some("1")]]))
            .await
            .unwrap(),
        Outcome::Ignored
    );
    assert_eq!(
        loader
            .handle(&clicks.batch("r", 0, &[vec![Some("1")]]))
            .await
            .unwrap(),
        Outcome::Duplicate
    );
    assert_eq!(
        text(
            &database.pool,
            "SELECT ignored_messages || ' ' || (SELECT count(*) FROM clicks) FROM etl.runs"
        )
        .await,
        "1 1"
    );
}

#[tokio::test]
async fn thousand_rejected_rows_are_all_in_quarantine() {
    let database = ledger_database().await;
    let (loader, clicks) = (loader(&database), shape("clicks", &["n bigint"], &[]));
    request(&database.pool, "r").await;
    let mut batch = clicks.batch("r", 7, &[]);
    for _ in 0..1000 {
        batch = with_rejected(batch, "type", &[("n", Some("x"))]);
    }
    loader.handle(&batch).await.unwrap();
    let rows: Vec<RejectedRow> = batch.rejected;
    let found = text(&database.pool, "SELECT count(*) || ' ' || min(row_number) || ' ' || max(row_number) FROM etl.rejected_rows").await;
    assert_eq!(found, format!("{} 7 1006", rows.len()));
}
