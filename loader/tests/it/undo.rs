//! Runs that give way to each other in a target with a key: no row of one is lost with a row of the other.

use std::sync::Arc;
use std::time::Duration;

use common::job::{JobSpec, Mode};
use common::message::{Reject, RejectedRow, ValidBatch};
use ledger::{NewReplay, Removed, RowRanges, Rows};
use loader::load::Loader;
use loader::{completion, removal, target};
use serde_json::json;
use sqlx::PgPool;

use crate::support::{
    Shape, Value, execute, extracted, ledger_database, loader, request_for, shape, text,
    with_generation,
};

/// A table `t (k bigint, v text)` with the key `k`.
fn keyed(mode: Mode) -> Shape {
    let mut shape = shape("t", &["k bigint", "v text"], &["k"]);
    shape.target.mode = mode;
    shape
}

fn spec(shape: &Shape) -> JobSpec {
    serde_json::from_value(json!({ "name": "job", "target": shape.target })).unwrap()
}

/// A batch of a run, a row for each key, whose value is the run.
fn batch(shape: &Shape, run: &str, keys: &[i64]) -> ValidBatch {
    let keys: Vec<_> = keys.iter().map(i64::to_string).collect();
    let rows: Vec<Vec<Value<'_>>> = keys
        .iter()
        .map(|key| vec![Some(key.as_str()), Some(run)])
        .collect();
    shape.batch(run, 0, &rows)
}

/// The same batch after a rule rejects a row of it, so that these are left.
fn rejecting(batch: &ValidBatch, row: usize, left: ValidBatch) -> ValidBatch {
    let mut fewer = ValidBatch {
        content_hash: batch.content_hash.clone(),
        ..left
    };
    fewer.rejected.push(RejectedRow {
        row: row.try_into().unwrap(),
        reject: Reject {
            column: None,
            rule: "min".into(),
            reason: "because".into(),
        },
        raw: Vec::new(),
    });
    let offsets = 0..=fewer.rows.len();
    fewer.row_offsets = offsets
        .filter(|index| *index != row)
        .map(|index| index.try_into().unwrap())
        .collect();
    fewer
}

/// Loads a whole run.
async fn load(loader: &Loader, batch: &ValidBatch) {
    loader.handle(batch).await.unwrap();
    let mut end = extracted(batch.id.run.as_str(), 1, batch.rows_extracted() as u64);
    end.generation = batch.id.generation;
    loader.handle_event(&end).await.unwrap();
    target::clean_up(&loader.store).await.unwrap();
}

/// Replays a whole run: this batch in its next generation. Returns the state that it leads to.
async fn replay(loader: &Loader, shape: &Shape, batch: &ValidBatch) -> String {
    let run = batch.id.run.as_str();
    let subject = loader.store.subject(run).await.unwrap();
    let replay = NewReplay {
        source: "archive",
        rows: RowRanges::first(1),
        partial: false,
        job_hash: "hash".into(),
        spec: Arc::new(spec(shape)),
    };
    let generation = loader.store.begin_replay(&subject, &replay).await.unwrap();
    load(loader, &with_generation(batch, generation)).await;
    let run = loader.store.exactly(run).await.unwrap();
    format!(
        "{} {}",
        run.state,
        run.held_because
            .filter(|_| !run.state.is_over())
            .unwrap_or_default()
    )
}

/// The rows of the table, `key:run`.
async fn table(pool: &PgPool) -> String {
    text(
        pool,
        "SELECT string_agg(concat(k, ':', v), ' ' ORDER BY k) FROM t",
    )
    .await
}

async fn cancel(loader: &Loader, run: &str, undo: bool) -> Result<Rows, String> {
    let ended = loader.store.cancel(&run.parse().unwrap(), undo, None).await;
    ended
        .map(|ended| ended.rows)
        .map_err(|error| error.to_string())
}

/// Undoes a run, and waits for the loader.
async fn undo(loader: &Loader, run: &str) -> Removed {
    let Rows::Leave { removal, .. } = cancel(loader, run, true).await.unwrap() else {
        panic!("nothing is to be removed")
    };
    removal::execute_all(loader).await.unwrap();
    loader.store.removed(removal, Duration::ZERO).await.unwrap()
}

async fn is_complete(loader: &Loader, run: &str) -> bool {
    loader.store.exactly(run).await.unwrap().is_complete()
}

#[tokio::test]
async fn run_that_others_gave_way_to_is_undone_after_their_replays() {
    for (mode, before, after) in [
        // `b` and `c` come later and find the keys of `a`.
        (Mode::InsertOnly, "1:a 2:a 3:a 4:b 5:c", "2:b 3:b 4:b 5:c"),
        (Mode::Upsert, "1:a 2:b 3:c 4:c 5:c", "2:b 3:c 4:c 5:c"),
    ] {
        let database = ledger_database().await;
        let (pool, loader) = (&database.pool, loader(&database));
        let t = keyed(mode);
        for run in ["a", "b", "c"] {
            request_for(pool, run, &t.target).await;
        }
        let a = batch(&t, "a", &[1, 2, 3]);
        let b = batch(&t, "b", &[2, 3, 4]);
        let c = batch(&t, "c", &[3, 4, 5]);
        loader.handle(&a).await.unwrap();
        for run in [&b, &c] {
            load(&loader, run).await;
        }
        assert_eq!(table(pool).await, before, "{mode}");
        let refused = cancel(&loader, "a", true).await;
        if mode == Mode::Upsert {
            // Later rows have overwritten those of `a`, which lost to nobody.
            assert!(matches!(refused, Ok(Rows::Leave { .. })), "{refused:?}");
        } else {
            let why = refused.unwrap_err();
            assert!(
                why.contains("run `etl cancel a`, `etl replay b`, `etl replay c`, which brings them back, and then `etl cancel a --undo`; nothing was changed"),
                "{why}"
            );
            assert_eq!(table(pool).await, before, "{mode}");
            cancel(&loader, "a", false).await.unwrap();
            for run in [&b, &c] {
                assert_eq!(replay(&loader, &t, run).await, "completed ", "{mode}");
            }
        }
        assert!(
            matches!(undo(&loader, "a").await, Removed::Done(1)),
            "{mode}"
        );
        assert_eq!(table(pool).await, after, "{mode}");
        assert!(is_complete(&loader, "b").await && is_complete(&loader, "c").await);
    }
}

#[tokio::test]
async fn run_that_has_overwritten_others_is_undone_after_their_replays() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let t = keyed(Mode::Upsert);
    for run in ["b", "a"] {
        request_for(pool, run, &t.target).await;
    }
    let (b, a) = (batch(&t, "b", &[2, 3, 4]), batch(&t, "a", &[1, 2, 3]));
    load(&loader, &b).await;
    loader.handle(&a).await.unwrap();
    assert_eq!(table(pool).await, "1:a 2:a 3:a 4:b");
    let why = cancel(&loader, "a", true).await.unwrap_err();
    assert!(
        why.contains("`etl cancel a`, `etl replay b`, which"),
        "{why}"
    );
    cancel(&loader, "a", false).await.unwrap();
    let why = cancel(&loader, "a", true).await.unwrap_err();
    assert!(why.contains("run `etl replay b`, which"), "{why}");
    assert_eq!(replay(&loader, &t, &b).await, "completed ");
    assert_eq!(table(pool).await, "1:a 2:b 3:b 4:b");
    assert_eq!(undo(&loader, "a").await, Removed::Done(1));
    assert_eq!(table(pool).await, "2:b 3:b 4:b");
    assert!(is_complete(&loader, "b").await);
}

#[tokio::test]
async fn rows_that_no_run_had_loaded_are_not_lost_by_an_undo() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let t = keyed(Mode::Upsert);
    execute(pool, "CREATE TABLE t (k bigint PRIMARY KEY, v text, _batch bigint); INSERT INTO t VALUES (1, 'before')").await;
    request_for(pool, "a", &t.target).await;
    loader.handle(&batch(&t, "a", &[1, 2])).await.unwrap();
    let why = cancel(&loader, "a", true).await.unwrap_err();
    assert!(
        why.contains("has overwritten 1 rows that no run had loaded"),
        "{why}"
    );
    assert_eq!(cancel(&loader, "a", false).await, Ok(Rows::Stay(2)));
}

/// The rows of `b` gave way after the undo was requested, and before a loader executed it.
#[tokio::test]
async fn undo_looks_again_when_it_is_executed() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let t = keyed(Mode::InsertOnly);
    for run in ["a", "b"] {
        request_for(pool, run, &t.target).await;
    }
    loader.handle(&batch(&t, "a", &[1, 2])).await.unwrap();
    let Ok(Rows::Leave { removal, .. }) = cancel(&loader, "a", true).await else {
        panic!("nobody gave way yet")
    };
    let b = batch(&t, "b", &[2, 3]);
    load(&loader, &b).await;
    removal::execute_all(&loader).await.unwrap();
    let look = loader.store.removed(removal, Duration::ZERO).await.unwrap();
    let Removed::Pending(Some(why)) = look else {
        panic!("{look:?}")
    };
    assert!(why.contains("`etl replay b`"), "{why}");
    assert_eq!(table(pool).await, "1:a 2:a 3:b");
    // The advice.
    cancel(&loader, "a", false).await.unwrap();
    assert_eq!(replay(&loader, &t, &b).await, "completed ");
    assert_eq!(undo(&loader, "a").await, Removed::Done(1));
    assert_eq!(table(pool).await, "2:b 3:b");
}

#[tokio::test]
async fn replay_that_drops_a_key_is_held_while_other_runs_gave_way_to_it() {
    for mode in [Mode::InsertOnly, Mode::Upsert] {
        let database = ledger_database().await;
        let (pool, loader) = (&database.pool, loader(&database));
        let t = keyed(mode);
        // The one that comes first in the table and, of an upsert, the one that overwrites.
        let (a, b) = match mode {
            Mode::Upsert => ("z", "b"),
            _ => ("a", "b"),
        };
        for run in [a.min(b), a.max(b)] {
            request_for(pool, run, &t.target).await;
        }
        let (first, other) = (batch(&t, a, &[1, 2, 3]), batch(&t, b, &[2, 3, 4]));
        let order = if mode == Mode::Upsert {
            [&other, &first]
        } else {
            [&first, &other]
        };
        for run in order {
            load(&loader, run).await;
        }
        let fewer = rejecting(&first, 1, batch(&t, a, &[1, 3]));
        let held = replay(&loader, &t, &fewer).await;
        assert!(
            held.starts_with("held the replay leaves 1 keys")
                && held.contains(&format!(
                    "run `etl replay {b}`, which brings them back, and then `etl approve {a}`"
                )),
            "{mode}: {held}"
        );
        assert_eq!(replay(&loader, &t, &other).await, "completed ", "{mode}");
        let id = a.parse().unwrap();
        loader.store.approve(&id, None).await.unwrap();
        completion::try_complete(&loader.store, &id).await.unwrap();
        let wanted = match mode {
            Mode::Upsert => format!("1:{a} 2:b 3:{a} 4:b"),
            _ => format!("1:{a} 2:b 3:b 4:b"),
        };
        assert_eq!(table(pool).await, wanted, "{mode}");
        assert!(is_complete(&loader, a).await && is_complete(&loader, b).await);
    }
}

/// The row of `z`, which was cancelled, is there instead of that of `y`. A replay of `x` takes its place, so that now the row of `x`
/// is all that there is of the key.
#[tokio::test]
async fn run_in_the_place_of_a_cancelled_run_answers_for_those_that_it_kept_out() {
    for (mode, order) in [
        (Mode::InsertOnly, ["z", "y", "x"]),
        (Mode::Upsert, ["x", "y", "z"]),
    ] {
        let database = ledger_database().await;
        let (pool, loader) = (&database.pool, loader(&database));
        let t = keyed(mode);
        for run in order {
            request_for(pool, run, &t.target).await;
        }
        let (x, y, z) = (
            batch(&t, "x", &[1, 2]),
            batch(&t, "y", &[1]),
            batch(&t, "z", &[1]),
        );
        if mode == Mode::Upsert {
            load(&loader, &y).await;
            loader.handle(&z).await.unwrap();
        } else {
            loader.handle(&z).await.unwrap();
            load(&loader, &y).await;
        }
        load(&loader, &x).await;
        assert_eq!(table(pool).await, "1:z 2:x", "{mode}");
        cancel(&loader, "z", false).await.unwrap();
        assert_eq!(replay(&loader, &t, &x).await, "completed ", "{mode}");
        assert_eq!(table(pool).await, "1:x 2:x", "{mode}");
        let fewer = rejecting(&x, 0, batch(&t, "x", &[2]));
        let held = replay(&loader, &t, &fewer).await;
        assert!(
            held.starts_with("held the replay leaves 1 keys") && held.contains("`etl replay y`"),
            "{mode}: {held}"
        );
        // The advice.
        assert_eq!(replay(&loader, &t, &y).await, "completed ", "{mode}");
        let id = "x".parse().unwrap();
        loader.store.approve(&id, None).await.unwrap();
        completion::try_complete(&loader.store, &id).await.unwrap();
        assert_eq!(table(pool).await, "1:y 2:x", "{mode}");
        assert!(is_complete(&loader, "x").await && is_complete(&loader, "y").await);
    }
}

/// The same where a later run has overwritten the rows of the cancelled one.
#[tokio::test]
async fn undo_is_refused_while_the_row_is_all_that_is_there_of_a_complete_run() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let t = keyed(Mode::Upsert);
    let [a, b, c] = ["a", "b", "c"].map(|run| batch(&t, run, &[1]));
    for run in ["a", "b", "c"] {
        request_for(pool, run, &t.target).await;
    }
    load(&loader, &a).await;
    loader.handle(&b).await.unwrap();
    cancel(&loader, "b", false).await.unwrap();
    loader.handle(&c).await.unwrap();
    let why = cancel(&loader, "c", true).await.unwrap_err();
    assert!(
        why.contains("`etl cancel c`, `etl replay a`, which"),
        "{why}"
    );
    cancel(&loader, "c", false).await.unwrap();
    assert_eq!(replay(&loader, &t, &a).await, "completed ");
    assert_eq!(table(pool).await, "1:a");
    assert_eq!(undo(&loader, "c").await, Removed::Done(0));
    assert_eq!(table(pool).await, "1:a");
}
