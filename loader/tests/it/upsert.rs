//! Upsert: the table and the ledger do not depend on the order in which batches commit.

use common::message::ValidBatch;
use loader::errors::{LoadError, Refused};

use crate::support::{
    Shape, balance_of, execute, extracted, ledger_database, loader, request, shape, text,
};

/// All orders of the batches.
fn orders(batches: &[ValidBatch]) -> Vec<Vec<&ValidBatch>> {
    if batches.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for order in orders(&batches[1..]) {
        for place in 0..=order.len() {
            let mut longer = order.clone();
            longer.insert(place, &batches[0]);
            all.push(longer);
        }
    }
    all
}

fn four_batches(prices: &Shape, run: &str) -> Vec<ValidBatch> {
    let row = |key: &'static str, value: &'static str| vec![Some(key), Some(value)];
    vec![
        prices.batch(run, 0, &[row("a", "1"), row("b", "1"), row("a", "2")]),
        prices.batch(run, 3, &[row("b", "3"), row("c", "3")]),
        prices.batch(run, 5, &[row("a", "4"), row("d", "4"), row("d", "5")]),
        prices.batch(run, 8, &[row("c", "6"), row("b", "6")]),
    ]
}

#[tokio::test]
async fn every_order_gives_the_same_table_and_the_same_ledger() {
    let database = ledger_database().await;
    let loader = loader(&database);
    let count = orders(&four_batches(
        &shape("t", &["k text", "v bigint"], &["k"]),
        "r",
    ))
    .len();
    assert_eq!(count, 24);
    for number in 0..count {
        let run = format!("r{number}");
        request(&database.pool, &run).await;
        let batches = four_batches(
            &shape(&format!("t{number}"), &["k text", "v bigint"], &["k"]),
            &run,
        );
        for (step, batch) in orders(&batches)[number].iter().enumerate() {
            loader.handle(batch).await.unwrap();
            // Redelivers this batch and an earlier one.
            loader.handle(batch).await.unwrap();
            loader
                .handle(orders(&batches)[number][step / 2])
                .await
                .unwrap();
        }
        loader.handle_event(&extracted(&run, 4, 10)).await.unwrap();
        let rows = text(
            &database.pool,
            &format!(
                "SELECT string_agg(k || v || ':' || etl.first_row(_batch), ' ' ORDER BY k) FROM t{number}"
            ),
        )
        .await;
        assert_eq!(rows, "a4:5 b6:8 c6:8 d5:5", "order {number}");
        assert_eq!(
            balance_of(&database.pool, &run).await,
            "completed expected 10 extracted 10 loaded 10 deduplicated 6 rejected 0 balanced",
            "order {number}"
        );
    }
}

#[tokio::test]
async fn older_run_never_overwrites_a_newer_run() {
    let database = ledger_database().await;
    let (loader, prices) = (
        loader(&database),
        shape("t", &["k text", "v bigint"], &["k"]),
    );
    request(&database.pool, "older").await;
    request(&database.pool, "newer").await;
    loader
        .handle(&prices.batch("newer", 0, &[vec![Some("a"), Some("2")]]))
        .await
        .unwrap();
    loader
        .handle(&prices.batch(
            "older",
            0,
            &[vec![Some("a"), Some("1")], vec![Some("b"), Some("1")]],
        ))
        .await
        .unwrap();
    assert_eq!(
        text(
            &database.pool,
            "SELECT string_agg(k || v, ' ' ORDER BY k) FROM t"
        )
        .await,
        "a2 b1"
    );
    // The row that the newer run keeps out counts as deduplicated.
    assert_eq!(
        balance_of(&database.pool, "older").await,
        "running expected extracted 2 loaded 2 deduplicated 1 rejected 0"
    );
}

/// The state after the table was copied or restored, or the ledger recreated.
#[tokio::test]
async fn merge_that_would_lose_to_an_unknown_batch_is_refused() {
    let database = ledger_database().await;
    // A row of a later run than the ledger has, and one of a batch of this run that the ledger lacks.
    execute(&database.pool, "CREATE TABLE t (k text PRIMARY KEY, v bigint, _batch bigint NOT NULL); INSERT INTO t VALUES ('a', 7, etl.batch_no(99, 0)), ('b', 8, etl.batch_no(1, 3))").await;
    let (loader, prices) = (
        loader(&database),
        shape("t", &["k text", "v bigint"], &["k"]),
    );
    request(&database.pool, "r").await;
    let batch = |key| prices.batch("r", 0, &[vec![Some(key), Some("1")]]);
    for key in ["a", "b"] {
        let refused = loader.handle(&batch(key)).await;
        assert!(
            matches!(
                refused,
                Err(LoadError::Refused(Refused::UnknownWinner { .. }))
            ),
            "{key}: {refused:?}"
        );
    }
    let sentence = loader.handle(&batch("a")).await.unwrap_err().to_string();
    let (_, remedy) = sentence.split_once("run: ").unwrap();
    let (remedy, _) = remedy.split_once(", then").unwrap();
    execute(&database.pool, remedy).await;
    loader.handle(&batch("a")).await.unwrap();
    assert_eq!(
        text(
            &database.pool,
            "SELECT string_agg(k || v, ' ' ORDER BY k) FROM t"
        )
        .await,
        "a1 b8"
    );
}

#[tokio::test]
async fn two_loaders_with_overlapping_keys_count_exactly() {
    let database = ledger_database().await;
    let (one, two) = (loader(&database), loader(&database));
    let prices = shape("t", &["k bigint", "v bigint"], &["k"]);
    request(&database.pool, "r").await;
    let batches: Vec<_> = (0..24u64)
        .map(|place| {
            let keys: Vec<String> = (0..50u64)
                .map(|row| ((row * 7 + place * 13) % 200).to_string())
                .collect();
            let value = place.to_string();
            let rows: Vec<_> = keys
                .iter()
                .rev()
                .map(|key| vec![Some(key.as_str()), Some(value.as_str())])
                .collect();
            prices.batch("r", place * 50, &rows)
        })
        .collect();
    let (left, right): (Vec<_>, Vec<_>) = batches
        .iter()
        .partition(|batch| batch.id.first_row % 150 == 0);
    let first = async {
        for batch in left.iter().rev() {
            one.handle(batch).await.unwrap();
        }
    };
    let second = async {
        for batch in &right {
            two.handle(batch).await.unwrap();
        }
    };
    tokio::join!(first, second);
    let wrong = "SELECT count(*) FROM t WHERE v <> etl.first_row(_batch) / 50";
    assert_eq!(text(&database.pool, wrong).await, "0");
    let keys = "SELECT (SELECT sum(rows_loaded - rows_deduplicated) FROM etl.batches) = (SELECT count(*) FROM t)";
    assert_eq!(text(&database.pool, keys).await, "true");
}

#[tokio::test]
async fn rows_from_before_the_batch_column_are_overwritten() {
    let database = ledger_database().await;
    execute(&database.pool, "CREATE TABLE t (k text, v bigint, other text DEFAULT 'kept', CONSTRAINT k UNIQUE (k)); INSERT INTO t VALUES ('a', 0); ALTER TABLE t ADD COLUMN _batch bigint").await;
    let (loader, prices) = (
        loader(&database),
        shape("t", &["v bigint", "k text"], &["k"]),
    );
    request(&database.pool, "r").await;
    loader
        .handle(&prices.batch("r", 0, &[vec![Some("1"), Some("a")]]))
        .await
        .unwrap();
    assert_eq!(
        text(
            &database.pool,
            "SELECT string_agg(k || v || other, ' ') FROM t"
        )
        .await,
        "a1kept"
    );
    assert_eq!(
        balance_of(&database.pool, "r").await,
        "running expected extracted 1 loaded 1 deduplicated 0 rejected 0"
    );
}

#[tokio::test]
async fn table_with_only_key_columns_is_merged() {
    let database = ledger_database().await;
    let (loader, keys) = (
        loader(&database),
        shape("t", &["a text", "b date"], &["b", "a"]),
    );
    request(&database.pool, "r").await;
    let row = vec![Some("x"), Some("2018-04-02")];
    loader
        .handle(&keys.batch("r", 0, &[row.clone(), row.clone()]))
        .await
        .unwrap();
    loader.handle(&keys.batch("r", 2, &[row])).await.unwrap();
    assert_eq!(
        balance_of(&database.pool, "r").await,
        "running expected extracted 3 loaded 3 deduplicated 2 rejected 0"
    );
}
