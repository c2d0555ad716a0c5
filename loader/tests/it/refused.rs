//! Rows that Postgres refuses: each is in quarantine with Postgres' reason, and the rest of its batch is loaded.

use std::time::{Duration, Instant};

use loader::errors::Verdict;
use loader::load::{Loader, Outcome};
use testkit::relay::Relay;

use crate::support::{
    Shape, Value, address, execute, ledger_database, loader, request, shape, text,
};

/// Loads one batch into a table created by `ddl`. Returns the rows in quarantine (number, column, SQLSTATE) and the
/// number of rows in the table.
async fn quarantined(ddl: &str, shape: Shape, rows: &[Vec<Value<'_>>]) -> (String, String) {
    let database = ledger_database().await;
    execute(&database.pool, ddl).await;
    request(&database.pool, "r").await;
    let batch = shape.batch("r", 100, rows);
    let Outcome::Loaded(counts) = loader(&database).handle(&batch).await.unwrap() else {
        panic!("not loaded")
    };
    let rejected = text(
        &database.pool,
        "SELECT string_agg(concat_ws(':', row_number, column_name, substring(reason from '.....\\)$')), ' ' ORDER BY row_number) FROM etl.rejected_rows WHERE rule = 'postgres'",
    )
    .await;
    let table = text(&database.pool, "SELECT count(*) FROM t").await;
    assert_eq!(
        counts.loaded + counts.rejected,
        i64::try_from(rows.len()).unwrap()
    );
    assert_eq!((counts.loaded - counts.deduplicated).to_string(), table);
    (rejected, table)
}

const COLUMNS: &[&str] = &["k varchar(4)", "n integer"];

fn mixed() -> Vec<Vec<Value<'static>>> {
    vec![
        vec![Some("a"), Some("1")],
        vec![Some("too long"), Some("2")],
        vec![Some("b"), Some("-5")],
        vec![Some("c"), Some("no number")],
        vec![Some("d"), None],
        vec![Some("a\0b"), Some("6")],
        vec![Some("e"), Some("99999999999")],
        vec![Some("f"), Some("7")],
        vec![Some("a"), Some("8")],
    ]
}

const WANTED: &str = "101:k:22001) 102:23514) 103:n:22P02) 104:n:23502) 105:22021) 106:n:22003)";

#[tokio::test]
async fn append_finds_refused_rows() {
    let ddl = "CREATE TABLE t (k varchar(4), n integer NOT NULL CHECK (n > 0), _batch bigint)";
    let (rejected, table) = quarantined(ddl, shape("t", COLUMNS, &[]), &mixed()).await;
    assert_eq!(
        (
            rejected.replace(":k:22021", ":22021").as_str(),
            table.as_str()
        ),
        (WANTED, "3")
    );
}

#[tokio::test]
async fn upsert_finds_refused_rows_in_staging_and_in_the_merge() {
    let ddl = "CREATE TABLE t (k varchar(4) PRIMARY KEY, n integer NOT NULL CHECK (n > 0), _batch bigint)";
    let (rejected, table) = quarantined(ddl, shape("t", COLUMNS, &["k"]), &mixed()).await;
    assert_eq!(
        (
            rejected.replace(":k:22021", ":22021").as_str(),
            table.as_str()
        ),
        (WANTED, "2")
    );
}

#[tokio::test]
async fn immediate_and_deferred_foreign_keys_refuse_only_their_row() {
    for deferred in ["", "DEFERRABLE INITIALLY DEFERRED"] {
        let ddl = format!(
            "CREATE TABLE parent (n integer PRIMARY KEY); INSERT INTO parent VALUES (1), (2);
             CREATE TABLE t (k text, n integer REFERENCES parent {deferred}, _batch bigint, UNIQUE (k))"
        );
        let rows: Vec<Vec<Value<'_>>> =
            [("a", "1"), ("b", "3"), ("c", "2"), ("d", "1"), ("e", "4")]
                .iter()
                .map(|(k, n)| vec![Some(*k), Some(*n)])
                .collect();
        for key in [&[][..], &["k"]] {
            let (rejected, table) =
                quarantined(&ddl, shape("t", &["k text", "n integer"], key), &rows).await;
            assert_eq!(
                (rejected.as_str(), table.as_str()),
                ("101:23503) 104:23503)", "3"),
                "{deferred} {key:?}"
            );
        }
    }
}

#[tokio::test]
async fn second_unique_index_refuses_the_later_row() {
    let rows: Vec<Vec<Value<'_>>> = [("a", "1"), ("b", "1"), ("c", "2"), ("d", "3"), ("e", "2")]
        .iter()
        .map(|(k, n)| vec![Some(*k), Some(*n)])
        .collect();
    for (ddl, key) in [
        (
            "CREATE TABLE t (k text, n integer UNIQUE, _batch bigint)",
            &[][..],
        ),
        (
            "CREATE TABLE t (k text PRIMARY KEY, n integer UNIQUE, _batch bigint)",
            &["k"],
        ),
    ] {
        let (rejected, table) =
            quarantined(ddl, shape("t", &["k text", "n integer"], key), &rows).await;
        assert_eq!(
            (rejected.as_str(), table.as_str()),
            ("101:23505) 104:23505)", "3"),
            "{key:?}"
        );
    }
}

#[tokio::test]
async fn refused_row_leaves_the_row_of_its_key_unchanged() {
    let database = ledger_database().await;
    execute(
        &database.pool,
        "CREATE TABLE t (k text PRIMARY KEY, n integer CHECK (n > 0), _batch bigint)",
    )
    .await;
    let (loader, table) = (
        loader(&database),
        shape("t", &["k text", "n integer"], &["k"]),
    );
    request(&database.pool, "r").await;
    let row = |k, n| vec![Some(k), Some(n)];
    loader
        .handle(&table.batch("r", 0, &[row("a", "1"), row("b", "1")]))
        .await
        .unwrap();
    loader
        .handle(&table.batch(
            "r",
            2,
            &[row("a", "-1"), row("b", "2"), row("c", "2"), row("c", "-2")],
        ))
        .await
        .unwrap();
    assert_eq!(
        text(
            &database.pool,
            "SELECT string_agg(k || n, ' ' ORDER BY k) FROM t"
        )
        .await,
        "a1 b2 c2"
    );
    let counts = "SELECT string_agg(concat_ws('/', rows_loaded, rows_deduplicated, rows_rejected), ' ' ORDER BY first_row) FROM etl.batches";
    assert_eq!(text(&database.pool, counts).await, "2/0/0 2/1/2");
}

#[tokio::test]
async fn error_from_a_trigger_refuses_the_row() {
    let ddl = "CREATE TABLE t (k text PRIMARY KEY, n integer, _batch bigint);
        CREATE FUNCTION no_threes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.n = 3 THEN RAISE EXCEPTION 'no threes'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER no_threes BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no_threes()";
    let rows: Vec<Vec<Value<'_>>> = vec![
        vec![Some("a"), Some("1")],
        vec![Some("b"), Some("3")],
        vec![Some("c"), Some("4")],
    ];
    for key in [&[][..], &["k"]] {
        let (rejected, table) =
            quarantined(ddl, shape("t", &["k text", "n integer"], key), &rows).await;
        assert_eq!((rejected.as_str(), table.as_str()), ("101:P0001)", "2"));
    }
}

#[tokio::test]
async fn batch_with_every_second_row_refused_loads_the_others() {
    let numbers: Vec<String> = (0..1000)
        .map(|n| {
            if n % 2 == 0 {
                n.to_string()
            } else {
                format!("-{n}")
            }
        })
        .collect();
    let rows: Vec<_> = numbers.iter().map(|n| vec![Some(n.as_str())]).collect();
    let columns = &["n integer"];
    for (ddl, key) in [
        (
            "CREATE TABLE t (n integer CHECK (n >= 0), _batch bigint)",
            &[][..],
        ),
        (
            "CREATE TABLE t (n integer PRIMARY KEY CHECK (n >= 0), _batch bigint)",
            &["n"],
        ),
    ] {
        let (rejected, table) = quarantined(ddl, shape("t", columns, key), &rows).await;
        assert_eq!((rejected.split(' ').count(), table.as_str()), (500, "500"));
    }
}

#[tokio::test]
async fn value_too_long_for_the_index_of_the_key_refuses_its_row() {
    // Not compressible, and larger than a third of an index page.
    let long: String = (0..6000u32)
        .map(|n| char::from_u32(0x4e00 + n.wrapping_mul(2_654_435_761) % 20_000).unwrap())
        .collect();
    let rows = vec![vec![Some("a")], vec![Some(long.as_str())]];
    let (rejected, table) = quarantined("SELECT 1", shape("t", &["k text"], &["k"]), &rows).await;
    assert_eq!((rejected.as_str(), table.as_str()), ("101:54000)", "1"));
}

/// 10,000 rows, of which PostgreSQL refuses the first ones.
fn numbers(refused: usize) -> Vec<String> {
    let number = |n: usize| {
        if n < refused {
            format!("-{n}1")
        } else {
            n.to_string()
        }
    };
    (0..10_000).map(number).collect()
}

#[tokio::test]
async fn refused_rows_of_a_large_batch_take_few_round_trips() {
    for (refused, key) in [
        (7_000, &[][..]),
        (7_000, &["n"]),
        (10_000, &[]),
        (10_000, &["n"]),
    ] {
        let database = ledger_database().await;
        let relay = Relay::to_url(&database.url).await;
        let far = relay.url_for(&database.url);
        common::service::install_tls();
        let loader = Loader::new(&address(&far), vec!["public".to_owned()]);
        let key_of_table = if key.is_empty() { "" } else { "PRIMARY KEY" };
        let ddl = format!(
            "CREATE TABLE t (n integer {key_of_table} CONSTRAINT positive CHECK (n >= 0), _batch bigint)"
        );
        execute(&database.pool, &ddl).await;
        request(&database.pool, "r").await;
        let numbers = numbers(refused);
        let rows: Vec<_> = numbers.iter().map(|n| vec![Some(n.as_str())]).collect();
        let batch = shape("t", &["n integer"], key).batch("r", 0, &rows);
        relay.delay(Duration::from_millis(5));
        let started = Instant::now();
        let outcome = loader.handle(&batch).await.unwrap();
        // At 5 ms each way, a round trip a row would take minutes.
        let took = started.elapsed();
        assert!(took < Duration::from_mins(1), "{refused} {key:?}: {took:?}");
        let Outcome::Loaded(counts) = outcome else {
            panic!("not loaded")
        };
        let wanted = i64::try_from(refused).unwrap();
        assert_eq!((counts.loaded, counts.rejected), (10_000 - wanted, wanted));
        assert_eq!(
            text(&database.pool, "SELECT count(*) FROM t").await,
            (10_000 - refused).to_string()
        );
        assert_eq!(
            text(
                &database.pool,
                "SELECT concat_ws(' ', count(*), min(row_number), max(row_number), count(DISTINCT row_number), bool_and(reason LIKE '%\"positive\"%(23514)')) FROM etl.rejected_rows WHERE rule = 'postgres'"
            )
            .await,
            format!("{refused} 0 {} {refused} t", refused - 1)
        );
    }
}

#[tokio::test]
async fn failure_that_is_no_rows_fault_ends_the_batch_as_a_whole() {
    let database = ledger_database().await;
    // The first row is refused; the trigger ends the batch at the second, with words that quote it.
    let ddl = "CREATE TABLE t (n integer CHECK (n > 0), _batch bigint);
        CREATE FUNCTION no_threes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.n = 333 THEN RAISE EXCEPTION 'no %', NEW.n USING ERRCODE = '53100'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER no_threes BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no_threes()";
    execute(&database.pool, ddl).await;
    request(&database.pool, "r").await;
    let batch = shape("t", &["n integer"], &[]).batch(
        "r",
        0,
        &[vec![Some("-1")], vec![Some("333")], vec![Some("4")]],
    );
    let error = loader(&database).handle(&batch).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Target);
    assert!(error.sentence().contains("53100"), "{error:?}");
    assert!(!error.sentence().contains("333"), "{}", error.sentence());
    assert!(error.reason().text().contains("no 333"), "{error:?}");
    assert_eq!(
        text(&database.pool, "SELECT count(*) FROM etl.rejected_rows").await,
        "0"
    );
}

#[tokio::test]
async fn refused_row_leaves_generated_and_default_columns_as_copy_has_them() {
    let database = ledger_database().await;
    let ddl = "CREATE TABLE t (n integer GENERATED BY DEFAULT AS IDENTITY CHECK (n > 0), d text DEFAULT 'x', twice integer GENERATED ALWAYS AS (n * 2) STORED, _batch bigint)";
    execute(&database.pool, ddl).await;
    request(&database.pool, "r").await;
    let rows = ["7", "-1", "9"].map(|n| vec![Some(n)]);
    let batch = shape("t", &["n integer"], &[]).batch("r", 0, &rows);
    loader(&database).handle(&batch).await.unwrap();
    assert_eq!(
        text(
            &database.pool,
            "SELECT string_agg(concat_ws(' ', n, d, twice), ', ' ORDER BY n) FROM t"
        )
        .await,
        "7 x 14, 9 x 18"
    );
}
