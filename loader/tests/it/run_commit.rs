//! Runs that are committed as a whole: what holds them, what supersedes them, and the rows that stay.

use common::job::{Commit, MaxRejected, Mode, Target, Window};
use common::message::{EventKind, ValidBatch};
use loader::errors::{LoadError, Refused};
use loader::load::{Loader, Outcome};
use loader::{completion, target};
use sqlx::{AssertSqlSafe, Executor as _, PgPool};
use testkit::servers::Database;

use crate::support::{
    Shape, Value, approved, balance_of, event, execute, extracted, ledger_database, loader,
    replayed, request, shape, text, with_generation, with_rejected,
};

/// A table `t (d date, v bigint)` whose rows of these days are replaced; without days, all of its rows.
fn replacing(days: Option<(&str, &str)>) -> Shape {
    let mut shape = shape("t", &["d date", "v bigint"], &[]);
    let window = days.map(|(from, to)| format!("d between '2018-04-{from}' and '2018-04-{to}'"));
    shape.target = Target {
        table: "t".into(),
        mode: Mode::Replace,
        commit: Commit::Run,
        replace_where: window.map(|window| Window::parse(&window).unwrap()),
        ..Target::default()
    };
    shape
}

/// Loads a run of one batch, a row a day.
async fn load(loader: &Loader, shape: &Shape, run: &str, rows: &[(&str, &str)]) -> ValidBatch {
    let days: Vec<_> = rows
        .iter()
        .map(|(day, _)| format!("2018-04-{day}"))
        .collect();
    let values: Vec<Vec<Value<'_>>> = days
        .iter()
        .zip(rows)
        .map(|(day, (_, value))| vec![Some(day.as_str()), Some(*value)])
        .collect();
    let batch = shape.batch(run, 0, &values);
    loader.handle(&batch).await.unwrap();
    let told = extracted(run, 1, rows.len() as u64);
    loader.handle_event(&told).await.unwrap();
    batch
}

async fn table(pool: &PgPool) -> String {
    text(
        pool,
        "SELECT string_agg(extract(day FROM d) || ':' || v, ' ' ORDER BY d, v) FROM t",
    )
    .await
}

async fn state(pool: &PgPool, run: &str) -> String {
    text(pool, &format!("SELECT concat_ws(' ', state, held_because, failure) FROM etl.runs WHERE run_id = '{run}'")).await
}

/// The loader's sweep.
async fn sweep(loader: &Loader) {
    for run in ledger::completion::candidates(&loader.store).await.unwrap() {
        completion::try_complete(&loader.store, &run).await.unwrap();
    }
    target::clean_up(&loader.store).await.unwrap();
}

async fn assert_nothing_staged(database: &Database, loader: &Loader) {
    target::clean_up(&loader.store).await.unwrap();
    let left = "SELECT count(*) || ' ' || (SELECT count(*) FROM pg_tables WHERE schemaname = 'etl_staging') FROM etl.staging";
    assert_eq!(text(&database.pool, left).await, "0 0");
}

#[tokio::test]
async fn empty_result_empties_no_table_without_approval() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let t = replacing(None);
    for run in ["full", "empty", "asked"] {
        request(pool, run).await;
    }
    load(&loader, &t, "full", &[("02", "1")]).await;
    load(&loader, &t, "empty", &[]).await;
    let held = state(pool, "empty").await;
    assert!(
        held.starts_with("held it has 0 rows, and a replace needs 1 (min_rows)"),
        "{held}"
    );
    assert_eq!(table(pool).await, "2:1");
    // Neither a later delivery nor the sweep decides for a person.
    load(&loader, &t, "empty", &[]).await;
    sweep(&loader).await;
    assert_eq!(state(pool, "empty").await, held);
    assert_eq!(text(pool, "SELECT count(*) FROM etl.staging").await, "1");
    approved(pool, "empty").await;
    sweep(&loader).await;
    assert_eq!(table(pool).await, "");
    assert!(
        state(pool, "empty")
            .await
            .starts_with("completed it has 0 rows")
    );
    let mut unasked = replacing(None);
    unasked.target.min_rows = Some(0);
    load(&loader, &unasked, "asked", &[]).await;
    assert_eq!(state(pool, "asked").await, "completed");
    assert_nothing_staged(&database, &loader).await;
}

#[tokio::test]
async fn too_many_rejected_rows_hold_a_run_until_it_is_approved() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    for (run, limit, is_held) in [
        ("few", MaxRejected::Rows(1), false),
        ("many", MaxRejected::Rows(0), true),
        ("half", "50%".parse().unwrap(), false),
        ("less", "49.9999%".parse().unwrap(), true),
    ] {
        let mut t = shape(&format!("t_{run}"), &["v bigint"], &[]);
        t.target.max_rejected = Some(limit);
        request(pool, run).await;
        let batch = with_rejected(t.batch(run, 0, &[vec![Some("1")]]), "min", &[("v", None)]);
        loader.handle(&batch).await.unwrap();
        let rows = format!("SELECT count(*) FROM t_{run}");
        assert_eq!(
            text(pool, &rows).await,
            "0",
            "not before the run is complete"
        );
        loader.handle_event(&extracted(run, 1, 2)).await.unwrap();
        let found = state(pool, run).await;
        assert_eq!(
            found.starts_with("held 1 of its 2 rows was rejected, and max_rejected is "),
            is_held,
            "{found}"
        );
        assert_eq!(text(pool, &rows).await, if is_held { "0" } else { "1" });
        if is_held {
            assert_eq!(loader.handle(&batch).await.unwrap(), Outcome::Duplicate);
            approved(pool, run).await;
            sweep(&loader).await;
            assert_eq!(text(pool, &rows).await, "1");
        }
        assert!(
            balance_of(pool, run).await.starts_with("completed"),
            "{run}"
        );
        assert!(
            balance_of(pool, run)
                .await
                .ends_with("loaded 1 deduplicated 0 rejected 1 balanced")
        );
    }
    assert_nothing_staged(&database, &loader).await;
}

#[tokio::test]
async fn rows_refused_at_the_commit_hold_the_run_and_are_kept() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    execute(
        pool,
        "CREATE TABLE t (d date, v bigint CONSTRAINT small CHECK (v < 10), _batch bigint); INSERT INTO t VALUES ('2018-04-02', 1)",
    )
    .await;
    request(pool, "r").await;
    let batch = load(
        &loader,
        &replacing(None),
        "r",
        &[("03", "5"), ("03", "5000")],
    )
    .await;
    let held = state(pool, "r").await;
    assert!(
        held.starts_with("held PostgreSQL refused it with SQLSTATE 23514, in the table t, by the constraint small; nothing of the run was committed"),
        "{held}"
    );
    // No message contains the value of the row.
    assert!(!held.contains("5000"));
    assert_eq!(table(pool).await, "2:1");
    // Approved before the fix: the run is held again, and needs a new approval.
    approved(pool, "r").await;
    sweep(&loader).await;
    assert_eq!(state(pool, "r").await, held);
    sweep(&loader).await;
    execute(pool, "ALTER TABLE t DROP CONSTRAINT small").await;
    sweep(&loader).await;
    assert_eq!(table(pool).await, "2:1");
    approved(pool, "r").await;
    sweep(&loader).await;
    assert_eq!(table(pool).await, "3:5 3:5000");
    assert_eq!(loader.handle(&batch).await.unwrap(), Outcome::Duplicate);
    assert_eq!(
        balance_of(pool, "r").await,
        "completed expected 2 extracted 2 loaded 2 deduplicated 0 rejected 0 balanced"
    );
}

#[tokio::test]
async fn target_that_no_longer_fits_holds_the_run() {
    for (change, part) in [
        ("DROP TABLE t", "does not exist"),
        ("ALTER TABLE t ALTER v TYPE smallint", "TYPE bigint"),
        ("ALTER TABLE t ADD must text NOT NULL DEFAULT ''; ALTER TABLE t ALTER must DROP DEFAULT", "DROP NOT NULL"),
        ("ALTER TABLE t RENAME TO u; CREATE VIEW t AS SELECT * FROM u", "a view"),
        (
            "CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER drop_it BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION drop_it()",
            "stored 0 of the 1 rows",
        ),
    ] {
        let database = ledger_database().await;
        let (pool, loader) = (&database.pool, loader(&database));
        request(pool, "r").await;
        let t = replacing(None);
        loader
            .handle(&t.batch("r", 0, &[vec![Some("2018-04-02"), Some("1")]]))
            .await
            .unwrap();
        execute(pool, change).await;
        loader.handle_event(&extracted("r", 1, 1)).await.unwrap();
        let held = state(pool, "r").await;
        assert!(held.starts_with("held ") && held.contains(part), "{change}: {held}");
    }
}

#[tokio::test]
async fn newer_run_supersedes_an_older_run_of_the_same_window() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    for run in ["older", "newer", "newest"] {
        request(pool, run).await;
    }
    let t = replacing(Some(("02", "08")));
    let batch = load(&loader, &t, "newer", &[("03", "2")]).await;
    load(&loader, &t, "older", &[("03", "1"), ("04", "1")]).await;
    let found = state(pool, "older").await;
    assert!(
        found.starts_with("superseded the run newer, which was requested later"),
        "{found}"
    );
    assert_eq!(table(pool).await, "3:2");
    assert_eq!(
        balance_of(pool, "older").await,
        "superseded expected 2 extracted 2 loaded 2 deduplicated 0 rejected 0 balanced"
    );
    assert_nothing_staged(&database, &loader).await;
    // A newer run replaces the window, and so does a replay of the newest run.
    replayed(pool, "newer").await;
    loader.handle(&with_generation(&batch, 1)).await.unwrap();
    assert_eq!(state(pool, "newer").await, "completed");
    load(&loader, &t, "newest", &[("05", "3")]).await;
    assert_eq!(table(pool).await, "5:3");
    replayed(pool, "newer").await;
    loader.handle(&with_generation(&batch, 2)).await.unwrap();
    assert!(state(pool, "newer").await.starts_with("superseded"));
    assert_eq!(table(pool).await, "5:3");
}

/// Also when the newer run left the window empty, so that no row shows its commit.
#[tokio::test]
async fn newer_run_wins_overlapping_windows_and_no_others() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    for run in ["week", "other", "third", "day", "empty"] {
        request(pool, run).await;
    }
    load(
        &loader,
        &replacing(Some(("04", "04"))),
        "day",
        &[("04", "1")],
    )
    .await;
    load(
        &loader,
        &replacing(Some(("10", "12"))),
        "other",
        &[("11", "2")],
    )
    .await;
    assert_eq!(table(pool).await, "4:1 11:2");
    load(
        &loader,
        &replacing(Some(("02", "08"))),
        "week",
        &[("02", "3"), ("04", "3")],
    )
    .await;
    assert!(
        state(pool, "week")
            .await
            .starts_with("superseded the run day")
    );
    assert_eq!(table(pool).await, "4:1 11:2");
    let mut none = replacing(Some(("20", "21")));
    none.target.min_rows = Some(0);
    load(&loader, &none, "empty", &[]).await;
    load(
        &loader,
        &replacing(Some(("19", "20"))),
        "third",
        &[("19", "4")],
    )
    .await;
    let third = state(pool, "third").await;
    assert!(third.starts_with("superseded the run empty"), "{third}");
}

/// The replay's rows of the other days are in the target, unchanged.
#[tokio::test]
async fn replay_partly_replaced_by_a_newer_run_is_held() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    for run in ["week", "day"] {
        request(pool, run).await;
    }
    let week = replacing(Some(("02", "08")));
    let batch = load(&loader, &week, "week", &[("02", "1"), ("04", "1")]).await;
    let day = replacing(Some(("04", "04")));
    load(&loader, &day, "day", &[("04", "2")]).await;
    assert_eq!(table(pool).await, "2:1 4:2");
    replayed(pool, "week").await;
    loader.handle(&with_generation(&batch, 1)).await.unwrap();
    let found = state(pool, "week").await;
    assert!(
        found.starts_with("held the run day") && found.contains("etl discard week"),
        "{found}"
    );
    assert_eq!(table(pool).await, "2:1 4:2");
}

#[tokio::test]
async fn rows_outside_of_the_window_hold_the_run() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    load(
        &loader,
        &replacing(Some(("02", "08"))),
        "r",
        &[("02", "1"), ("09", "1")],
    )
    .await;
    let held = state(pool, "r").await;
    assert!(
        held.starts_with("held 1 of its 2 rows are outside of replace_where"),
        "{held}"
    );
}

#[tokio::test]
async fn rows_newer_than_the_ledger_hold_a_replace() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    execute(pool, "CREATE TABLE t (d date, v bigint, _batch bigint); INSERT INTO t VALUES ('2018-04-02', 7, etl.batch_no(99, 0))").await;
    request(pool, "r").await;
    load(&loader, &replacing(None), "r", &[("03", "1")]).await;
    let held = state(pool, "r").await;
    let (_, remedy) = held.split_once("run: ").unwrap();
    let (remedy, _) = remedy.split_once(", then approve").unwrap();
    execute(pool, remedy).await;
    approved(pool, "r").await;
    sweep(&loader).await;
    assert_eq!(table(pool).await, "3:1");
}

#[tokio::test]
async fn staging_tables_of_ended_runs_are_dropped() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let t = replacing(None);
    let batch = |run| t.batch(run, 0, &[vec![Some("2018-04-02"), Some("1")]]);
    for run in ["failed", "cancelled", "replayed", "open"] {
        request(pool, run).await;
        loader.handle(&batch(run)).await.unwrap();
    }
    assert_eq!(text(pool, "SELECT count(*) FROM etl.staging").await, "4");
    let failed = event(
        "failed",
        EventKind::Failed {
            reason: "no".into(),
        },
    );
    loader.handle_event(&failed).await.unwrap();
    execute(
        pool,
        "UPDATE etl.runs SET state = 'cancelled', finished_at = now() WHERE run_id = 'cancelled'",
    )
    .await;
    replayed(pool, "replayed").await;
    target::clean_up(&loader.store).await.unwrap();
    assert_eq!(
        text(pool, "SELECT string_agg(run_id, ' ') FROM etl.staging").await,
        "open"
    );
    assert_eq!(
        text(
            pool,
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'etl_staging'"
        )
        .await,
        "1"
    );
    assert_eq!(table(pool).await, "");
    // Two concurrent cleanups do not disturb each other.
    loader.handle_event(&extracted("open", 1, 1)).await.unwrap();
    let (one, two) = tokio::join!(
        target::clean_up(&loader.store),
        target::clean_up(&loader.store)
    );
    assert_eq!(one.unwrap() + two.unwrap(), 1);
    assert_eq!(table(pool).await, "2:1");
}

#[tokio::test]
async fn staging_table_that_a_backup_reads_keeps_no_other_from_being_dropped() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let t = replacing(None);
    for run in ["a", "b", "c"] {
        request(pool, run).await;
        let batch = t.batch(run, 0, &[vec![Some("2018-04-02"), Some("1")]]);
        loader.handle(&batch).await.unwrap();
    }
    let ended = "UPDATE etl.runs SET state = 'cancelled', finished_at = now()";
    execute(pool, ended).await;
    let read = "SELECT table_name FROM etl.staging WHERE run_id = 'b'";
    let lock = format!(
        "LOCK TABLE etl_staging.{} IN ACCESS SHARE MODE",
        text(pool, read).await
    );
    let mut backup = pool.begin().await.unwrap();
    backup.execute(AssertSqlSafe(lock)).await.unwrap();
    let error = target::clean_up(&loader.store).await.unwrap_err();
    assert!(error.sentence().contains("55P03"), "{error}");
    let left = "SELECT string_agg(run_id, ' ') FROM etl.staging";
    assert_eq!(text(pool, left).await, "b");
    backup.rollback().await.unwrap();
    assert_eq!(target::clean_up(&loader.store).await.unwrap(), 1);
}

#[tokio::test]
async fn failed_run_is_replayed_as_another_generation() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let t = replacing(None);
    let batch = t.batch("r", 0, &[vec![Some("2018-04-02"), Some("1")]]);
    request(pool, "r").await;
    loader.handle(&batch).await.unwrap();
    let failed = EventKind::Failed {
        reason: "no".into(),
    };
    loader.handle_event(&event("r", failed)).await.unwrap();
    assert_nothing_staged(&database, &loader).await;
    replayed(pool, "r").await;
    loader.handle(&with_generation(&batch, 1)).await.unwrap();
    let mut told = extracted("r", 1, 1);
    told.generation = 1;
    loader.handle_event(&told).await.unwrap();
    assert_eq!(table(pool).await, "2:1");
    assert_eq!(state(pool, "r").await, "completed");
    assert_nothing_staged(&database, &loader).await;
}

#[tokio::test]
async fn job_changed_during_a_run_is_not_mixed_into_staged_rows() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    let row = vec![Some("2018-04-02"), Some("1")];
    loader
        .handle(&replacing(None).batch("r", 0, std::slice::from_ref(&row)))
        .await
        .unwrap();
    let other = replacing(Some(("02", "08"))).batch("r", 1, std::slice::from_ref(&row));
    let refused = loader.handle(&other).await;
    assert!(
        matches!(
            refused,
            Err(LoadError::Refused(Refused::Ledger(
                ledger::Refused::OtherShape { .. }
            )))
        ),
        "{refused:?}"
    );
    // Committed by batch to the table, while the rest is staged: the staged rows are not all rows.
    let mut plain = replacing(None);
    plain.target.mode = Mode::Append;
    plain.target.commit = Commit::Batch;
    loader.handle(&plain.batch("r", 1, &[row])).await.unwrap();
    loader.handle_event(&extracted("r", 2, 2)).await.unwrap();
    let held = state(pool, "r").await;
    assert!(
        held.starts_with("held the ledger says that 2 rows were accepted, and 1 are staged"),
        "{held}"
    );
    execute(pool, "DROP TABLE etl_staging.s_1_0").await;
    replayed(pool, "r").await;
    execute(pool, "UPDATE etl.staging SET generation = 1").await;
    let lost = with_generation(&replacing(None).batch("r", 0, &[]), 1);
    let refused = loader.handle(&lost).await;
    assert!(
        matches!(
            refused,
            Err(LoadError::Refused(Refused::StagingGone { .. }))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn approval_applies_to_the_held_generation() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    request(pool, "r").await;
    let batch = load(&loader, &replacing(None), "r", &[]).await;
    approved(pool, "r").await;
    replayed(pool, "r").await;
    loader.handle(&with_generation(&batch, 1)).await.unwrap();
    assert!(state(pool, "r").await.starts_with("held it has 0 rows"));
}
