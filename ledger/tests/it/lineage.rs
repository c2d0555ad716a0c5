//! What is told to OpenLineage: each generation of a run begins once and ends once, whoever ends it, and nothing is written where no
//! loader sends it.

use ledger::{LINEAGE_CHANNEL, RunState, Store, Transition};
use sqlx::PgPool;

use crate::support::{execute, ledger, run_in, text};
use crate::transitions::{carry_out, prepare};

/// What was told since the last look, with the generations.
async fn told(pool: &PgPool) -> String {
    // The beginning and the end of one transaction have one time.
    let told = "SELECT string_agg(concat(event, ' ', body ->> 'generation'), ', ' ORDER BY body ->> 'generation', event DESC) FROM etl.outbox";
    let told = text(pool, told).await;
    execute(pool, "DELETE FROM etl.outbox").await;
    told
}

/// Every transition from every state, each with a run of its own.
async fn tell_all(store: &Store, pool: &PgPool, mut check: impl FnMut(RunState, Transition, &str)) {
    for state in RunState::ALL {
        for transition in Transition::ALL {
            let run = run_in(pool, &format!("{state}-{transition:?}"), state).await;
            prepare(pool, &run, transition).await;
            carry_out(store, transition, &run).await.ok();
            check(state, transition, &told(pool).await);
        }
    }
}

#[tokio::test]
async fn every_generation_begins_once_and_ends_once() {
    use RunState::{Cancelled, Completed, Failed, Held, Requested, Running, Superseded};
    use Transition::{
        Cancel, Complete, Discard, DropBatch, Extract, Fail, Replay, Start, Supersede, Undo,
    };
    let (database, store) = ledger().await;
    let channels = [LINEAGE_CHANNEL.to_owned()];
    store.record_loader(&channels).await.unwrap();
    tell_all(&store, &database.pool, |state, transition, told| {
        let expected = match (state, transition) {
            (Requested, Start | Extract | DropBatch) => "start 0",
            (Requested, Complete) => "start 0, complete 0",
            (Requested, Fail) => "start 0, fail 0",
            (Running, Complete) => "complete 0",
            (Running, Fail) => "fail 0",
            (Running, Cancel | Undo | Supersede) | (Held, Discard) => "abort 0",
            (Running | Held, Replay) => "abort 0, start 1",
            (Requested | Completed | Failed, Replay) => "start 1",
            (Cancelled | Superseded | Requested | Running | Held | Completed | Failed, _) => "",
        };
        assert_eq!(told, expected, "{transition:?} of a run that is {state}");
    })
    .await;
}

#[tokio::test]
async fn nothing_is_written_where_no_loader_sends_lineage() {
    let (database, store) = ledger().await;
    store.record_loader(&["oncall".to_owned()]).await.unwrap();
    tell_all(&store, &database.pool, |state, transition, told| {
        assert_eq!(told, "", "{transition:?} of a run that is {state}");
    })
    .await;
}

/// Loaders of one role with other settings, and one that was stopped long ago.
#[tokio::test]
async fn lineage_is_written_while_one_of_the_loaders_sends_it() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    let (lineage, oncall) = ([LINEAGE_CHANNEL.to_owned()], ["oncall".to_owned()]);
    store.record_loader(&lineage).await.unwrap();
    store.record_loader(&oncall).await.unwrap();
    let known = store.loader_roles().await.unwrap();
    assert_eq!(known.checked().len(), 1);
    assert_eq!(known.channels().unwrap(), [LINEAGE_CHANNEL, "oncall"]);
    let one = run_in(pool, "one", RunState::Requested).await;
    carry_out(&store, Transition::Start, &one).await.unwrap();
    assert_eq!(told(pool).await, "start 0");
    let stopped = format!(
        "UPDATE etl.loaders SET seen_at = now() - interval '11 minutes' WHERE '{LINEAGE_CHANNEL}' = ANY (channels)"
    );
    execute(pool, &stopped).await;
    let other = run_in(pool, "other", RunState::Requested).await;
    carry_out(&store, Transition::Start, &other).await.unwrap();
    assert_eq!(told(pool).await, "");
}
