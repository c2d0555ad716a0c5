//! Removals: requested by a command, executed by a loader, once.

use std::collections::BTreeMap;
use std::time::Duration;

use common::message::Limits;

use ledger::{Ended, LockedRun, Removed, Requested, Rows, RunState, Store, Terms, Verdict};
use sqlx::PgConnection;

use crate::support::{job_into_t, ledger, loaded, run_in, text};

/// The part of the loader's sweep that needs no target: reports two deleted rows.
async fn execute_all(store: &Store) {
    for (id, run) in store.pending_removals().await.unwrap() {
        let work = async |tx: &mut PgConnection| {
            let mut run = LockedRun::lock(tx, &run).await?;
            match run.begin_removal(id).await? {
                Some(removal) => run.finish_removal(&removal, 2).await,
                None => Ok(()),
            }
        };
        store.transaction("the removal", work).await.unwrap();
    }
}

fn removal_of(ended: &Ended) -> i64 {
    match ended.rows {
        Rows::Leave { removal, rows: 2 } => removal,
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn undo_is_pending_until_a_loader_has_removed_the_rows() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    let run = run_in(pool, "r", RunState::Running).await;
    loaded(pool, &run).await;
    let ended = store.cancel(&run, true, Some("wrong week")).await.unwrap();
    let removal = removal_of(&ended);
    let look = async || store.removed(removal, Duration::ZERO).await.unwrap();
    assert_eq!(look().await, Removed::Pending(None));
    let known = store.exactly("r").await.unwrap();
    assert_eq!((known.state, known.rows_loaded), (RunState::Cancelled, 2));
    assert_eq!(known.verdict(Vec::new()), Verdict::RowsLeaving);
    // The same request again is the same removal.
    let again = store.cancel(&run, true, None).await.unwrap();
    assert_eq!(removal_of(&again), removal);
    // What met another transaction is tried again by the next look, and a command goes on waiting.
    store
        .removal_failed(removal, "it is locked", true)
        .await
        .unwrap();
    assert_eq!(look().await, Removed::Pending(Some("it is locked".into())));
    assert_eq!(store.pending_removals().await.unwrap().len(), 1);
    let (waited, ()) = tokio::join!(store.removed(removal, Duration::from_mins(1)), async {
        tokio::task::yield_now().await;
        store
            .removal_failed(removal, "it has a trigger", false)
            .await
            .unwrap();
    });
    let why = Removed::Pending(Some("it has a trigger".into()));
    assert_eq!(waited.unwrap(), why);
    let known = store.exactly("r").await.unwrap();
    assert_eq!(known.verdict(Vec::new()), Verdict::RemovalFailed);
    assert_eq!(
        store.pending_removals().await.unwrap(),
        [],
        "not at once again"
    );
    // A new request is a new attempt.
    store.cancel(&run, true, None).await.unwrap();
    assert_eq!(look().await, Removed::Pending(None));
    execute_all(&store).await;
    assert_eq!(look().await, Removed::Done(2));
    let known = store.exactly("r").await.unwrap();
    assert_eq!((known.rows_loaded, known.rows_dropped), (0, 2));
    assert_eq!(known.verdict(Vec::new()), Verdict::NothingLoaded);
    let reasons = "SELECT string_agg(drop_reason, ' ') FROM etl.batches";
    assert_eq!(text(pool, reasons).await, "cancelled: wrong week");
    // Nothing is left to remove.
    let last = store.cancel(&run, true, None).await.unwrap();
    assert_eq!(last.rows, Rows::NeverThere);
}

#[tokio::test]
async fn cancel_without_undo_withdraws_a_pending_removal() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    for (name, state) in [
        ("failed", RunState::Failed),
        ("cancelled", RunState::Cancelled),
    ] {
        let run = run_in(pool, name, state).await;
        loaded(pool, &run).await;
        let removal = removal_of(&store.cancel(&run, true, None).await.unwrap());
        let kept = store.cancel(&run, false, None).await.unwrap();
        assert_eq!((kept.rows, kept.was), (Rows::Stay(2), Some(state)));
        execute_all(&store).await;
        let known = store.exactly(name).await.unwrap();
        assert_eq!((known.state, known.rows_loaded), (state, 2));
        let found = store.removed(removal, Duration::ZERO).await.unwrap();
        assert!(matches!(found, Removed::NotNeeded(why) if why.starts_with("withdrawn by")));
    }
}

/// A row that is deduplicated against a row that is removed afterwards would be lost.
#[tokio::test]
async fn request_into_a_table_with_a_pending_removal_is_refused() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    let run = run_in(pool, "r", RunState::Failed).await;
    loaded(pool, &run).await;
    store.cancel(&run, true, None).await.unwrap();
    let job = job_into_t("other");
    let request = job.request(&BTreeMap::new()).unwrap();
    let next = "next".parse().unwrap();
    let ask = async || {
        let requested = store.request(&next, &job, &request, Limits::default(), Terms::default());
        requested.await
    };
    let refused = ask().await.unwrap_err().to_string();
    assert!(
        refused.contains("rows of the run r are being removed from public.t"),
        "{refused}"
    );
    execute_all(&store).await;
    assert!(matches!(ask().await, Ok(Requested::New)));
}

#[tokio::test]
async fn run_with_a_pending_removal_is_not_replayed() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    let run = run_in(pool, "r", RunState::Failed).await;
    loaded(pool, &run).await;
    store.cancel(&run, true, None).await.unwrap();
    let subject = store.subject("r").await.unwrap();
    let replay = ledger::NewReplay {
        source: "archive",
        rows: ledger::RowRanges::first(1),
        partial: false,
        job_hash: "hash".into(),
        spec: subject.live_spec(),
    };
    let refused = store.begin_replay(&subject, &replay).await.unwrap_err();
    assert!(refused.to_string().contains("being removed"), "{refused}");
    execute_all(&store).await;
    store.begin_replay(&subject, &replay).await.unwrap();
    assert_eq!(text(pool, "SELECT generation FROM etl.runs").await, "1");
}
