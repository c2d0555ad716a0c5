//! Every transition from every state: the result is the documented state, or a refusal that changes nothing.

use common::message::{EventKind, RunEvent, RunId};
use ledger::completion::End;
use ledger::{
    DroppedBatch, Error, LockedRun, Meant, NewReplay, RowRanges, RunState, Store, Transition, event,
};
use sqlx::{PgConnection, PgPool};

use crate::support::{execute, ledger, loaded, run_in, state_of, text};

/// Executes a transition like the programs do.
pub(crate) async fn carry_out(
    store: &Store,
    transition: Transition,
    run: &RunId,
) -> Result<(), Error> {
    match transition {
        Transition::Start => {
            let query_execution_id = "q".to_owned();
            note(
                store,
                run,
                EventKind::Started {
                    query_execution_id,
                    attempt: 1,
                    principal: None,
                    region: None,
                },
            )
            .await
        }
        Transition::Extract => note(store, run, extracted()).await,
        Transition::Fail => {
            let reason = "because".to_owned();
            note(store, run, EventKind::Failed { reason }).await
        }
        Transition::Complete => end(store, run, End::Completed).await,
        Transition::Hold => end(store, run, End::Held("because".into())).await,
        Transition::Supersede => end(store, run, End::Superseded("because".into())).await,
        Transition::Approve => store.approve(run, None).await,
        Transition::Discard => store.discard(run, "because").await.map(drop),
        Transition::Cancel => store.cancel(run, false, None).await.map(drop),
        Transition::Undo => store.cancel(run, true, None).await.map(drop),
        Transition::DropBatch => {
            let dropped = store.drop_batch(run, &batch(), "me", "because").await;
            dropped.map(drop)
        }
        Transition::Replay => replay(store, run).await,
        // Parts of other requests: the tests of `etl cancel`, `etl discard` and `etl dead drop` have the first, those of removals
        // the second, those of requests the third.
        Transition::Restore | Transition::Withdraw | Transition::Retry => Ok(()),
    }
}

async fn note(store: &Store, run: &RunId, kind: EventKind) -> Result<(), Error> {
    let event = RunEvent {
        run: run.clone(),
        generation: 0,
        job: "job".into(),
        kind,
    };
    event::note(store, &event).await.map(drop)
}

fn extracted() -> EventKind {
    EventKind::Extracted {
        result_id: "q:pages".into(),
        batches: 1,
        rows: 2,
        bytes_scanned: 10,
        result_location: None,
        columns: vec![],
    }
}

async fn end(store: &Store, run: &RunId, end: End) -> Result<(), Error> {
    store
        .transaction("the end", async |tx: &mut PgConnection| {
            LockedRun::lock(tx, run).await?.end(&end).await.map(drop)
        })
        .await
}

async fn replay(store: &Store, run: &RunId) -> Result<(), Error> {
    let subject = store.subject(run.as_str()).await?;
    let new = NewReplay {
        source: "archive",
        rows: RowRanges::first(1),
        partial: false,
        job_hash: "hash".into(),
        spec: subject.live_spec(),
    };
    store.begin_replay(&subject, &new).await.map(drop)
}

fn batch() -> DroppedBatch {
    DroppedBatch {
        generation: 0,
        content_hash: "hash".into(),
        result_id: "q:pages".into(),
        first_row: 0,
        rows: 2,
        dead_letter: 1,
        received_at: String::new(),
    }
}

/// The count of the result, which some transitions require.
pub(crate) async fn prepare(pool: &PgPool, run: &RunId, transition: Transition) {
    if matches!(
        transition,
        Transition::Complete | Transition::Hold | Transition::Supersede
    ) {
        let counted = "UPDATE etl.runs SET batches_expected = 1, rows_expected = 2 WHERE run_id";
        execute(pool, &format!("{counted} = '{run}'")).await;
    }
}

#[tokio::test]
async fn every_transition_from_every_state_succeeds_or_changes_nothing() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    for state in RunState::ALL {
        for transition in Transition::ALL {
            if matches!(
                transition,
                Transition::Restore | Transition::Withdraw | Transition::Retry
            ) {
                continue;
            }
            let name = format!("{state}-{transition:?}");
            let run = run_in(pool, &name, state).await;
            prepare(pool, &run, transition).await;
            // What a query cost is recorded whatever became of its run.
            let row = format!(
                "SELECT to_jsonb(r) - 'bytes_scanned' FROM etl.runs r WHERE run_id = '{run}'"
            );
            let before = text(pool, &row).await;
            let done = carry_out(&store, transition, &run).await;
            let found = state_of(pool, &run).await;
            if let Some(wanted) = transition.leads_to(state) {
                done.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(found, wanted.name(), "{name}");
            } else {
                if let Err(error) = done {
                    assert!(matches!(error, Error::NotAllowed(_)), "{name}: {error:?}");
                }
                let is_same = text(pool, &row).await == before;
                // The first event of a short run may arrive last and still apply: its query alone changes. How many batches a
                // failed run has is recorded, too, for a replay.
                let is_start = transition == Transition::Start && state != RunState::Cancelled;
                let is_count = (transition, state) == (Transition::Extract, RunState::Failed);
                assert!(is_same || is_start || is_count, "{name}: the run changed");
                assert_eq!(found, state.name(), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn unknown_run_is_refused_by_name() {
    let (_database, store) = ledger().await;
    let run: RunId = "nothing".parse().unwrap();
    for done in [
        store.cancel(&run, false, None).await.map(drop),
        store.approve(&run, None).await,
        store.discard(&run, "because").await.map(drop),
    ] {
        let error = done.unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{error:?}");
        assert!(error.to_string().contains("\"nothing\""), "{error}");
    }
}

/// Between a list of runs and the answer of a person, another one may have acted.
#[tokio::test]
async fn run_that_was_replayed_since_it_was_shown_is_not_meant() {
    let (database, store) = ledger().await;
    let run = run_in(&database.pool, "r", RunState::Held).await;
    let shown = Meant::try_from(&store.find("r").await.unwrap()).unwrap();
    carry_out(&store, Transition::Replay, &run).await.unwrap();
    carry_out(&store, Transition::Hold, &run).await.unwrap();
    for refused in [
        store.approve(shown.clone(), None).await,
        store.discard(shown.clone(), "because").await.map(drop),
        store.cancel(shown.clone(), false, None).await.map(drop),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("since it was shown"), "{error}");
    }
    assert_eq!(state_of(&database.pool, &run).await, "held");
    let shown = Meant::try_from(&store.find("r").await.unwrap()).unwrap();
    store.approve(shown, None).await.unwrap();
}

#[tokio::test]
async fn dropped_batch_with_rows_of_its_neighbour_is_refused() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    let run = run_in(pool, "r", RunState::Running).await;
    loaded(pool, &run).await;
    let out_of_line = DroppedBatch {
        first_row: 1,
        ..batch()
    };
    let refused = store.drop_batch(&run, &out_of_line, "me", "because").await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("overlap those from 0 to 2"), "{error}");
    let batches = "SELECT count(*) FROM etl.batches";
    assert_eq!(text(pool, batches).await, "1");
}
