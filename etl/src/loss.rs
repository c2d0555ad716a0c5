//! Runs whose messages were lost, with a queue that was purged or deleted or a database that was set back: nothing of them moves
//! although no queue has anything of them.

use ledger::{Run, RunFilter, RunState, Store};

use crate::Failure;
use crate::broker::{self, Depth};
use crate::output::number;

/// After so many seconds a run of which no queue has anything counts as lost: longer than a message is in hand.
const IDLE_SECONDS: i64 = 60;

/// The same for a run whose query may work: the default timeout of a query.
const IDLE_QUERY_SECONDS: i64 = 1_800;

/// The most open runs that [`latest`] looks at.
const MAX_RUNS: u32 = 100;

/// Why nothing of a run moves, and the command that repairs it; None for a run that may go on by itself. `queues`: the depths of
/// all work queues.
pub async fn remedy(store: &Store, run: &Run, queues: &[Depth]) -> Result<Option<String>, Failure> {
    let is_somewhere = queues.iter().any(|queue| queue.messages > 0);
    if !run.state.takes_batches()
        || run.dead_letters > 0
        || is_somewhere
        || !store.parked(Some(&run.run_id)).await?.is_empty()
    {
        return Ok(None);
    }
    let idle = store.idle_seconds(run).await?;
    Ok((idle > most_idle_seconds(run)).then(|| {
        let seconds = number(idle);
        let command = command(run);
        format!(
            "nothing of it is in any queue, and nothing was noted for {seconds} seconds: {command}"
        )
    }))
}

/// The latest open runs of which nothing is in any queue, with what repairs each. Empty while the broker cannot be asked.
pub async fn latest(store: &Store) -> Result<Vec<(String, String)>, Failure> {
    let Ok(queues) = broker::depths().await else {
        return Ok(Vec::new());
    };
    let filter = RunFilter {
        states: &[RunState::Requested, RunState::Running],
        limit: MAX_RUNS,
        ..RunFilter::default()
    };
    let mut lost = Vec::new();
    for run in store.latest(&filter).await? {
        let why = remedy(store, &run, &queues).await?;
        lost.extend(why.map(|why| (run.run_id, why)));
    }
    Ok(lost)
}

/// The task of a query that works is in hand for most of the time, and nothing is noted meanwhile.
fn most_idle_seconds(run: &Run) -> i64 {
    let is_queried =
        run.state == RunState::Running && run.rows_expected.is_none() && run.batches == 0;
    if is_queried {
        IDLE_QUERY_SECONDS
    } else {
        IDLE_SECONDS
    }
}

fn command(run: &Run) -> String {
    let (id, job) = (&run.run_id, &run.job);
    if run.rows_expected.is_some() {
        format!("`etl replay {id} --missing` sends what the ledger lacks")
    } else if run.state == RunState::Requested {
        format!(
            "`etl run {job} --run-id {id}`, with the same parameters, sends its task again unless an extractor has it in hand"
        )
    } else if run.batches > 0 {
        format!(
            "`etl replay {id} --missing` sends what the ledger lacks, unless the extractor has not read the result to its end"
        )
    } else {
        format!("`etl cancel {id}`, and request it again, unless its query still works")
    }
}
