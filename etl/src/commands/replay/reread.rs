//! `--from-athena`: the extractor reads the result of the same query execution again. No query is started.

use anyhow::{Context, anyhow};
use common::job::Source;
use common::message::{ExtractTask, RunId, TaskState};
use common::queue::Outgoing;

use super::Replay;
use crate::Failure;
use crate::broker::Broker;
use ledger::{Store, Subject};

/// The query execution and the version of its result that the run was loaded from.
pub(super) fn result(subject: &Subject) -> Result<(String, String), Failure> {
    let known = subject.run.result_id.as_ref().and_then(|result| {
        let (execution, _) = result.split_once(':')?;
        Some((execution.to_owned(), result.clone()))
    });
    known.ok_or_else(|| {
        anyhow!(
            "the ledger does not know the result that the run {} was loaded from; nothing was changed: request a new run",
            subject.id()
        )
        .into()
    })
}

/// Sends the task that reads the result again.
pub(super) async fn send(
    store: &Store,
    broker: &Broker,
    replay: &Replay,
    source: Source,
    generation: u32,
) -> Result<(), Failure> {
    let subject = &replay.subject;
    let (query_execution_id, result_id) = result(subject)?;
    let run: RunId = subject
        .id()
        .parse()
        .context("the ledger has a run with an invalid name")?;
    let moment = store.moment(&run, generation).await?;
    let task = ExtractTask {
        run,
        run_no: moment.run_no,
        generation,
        first_generation: subject.run.first_generation.unsigned_abs(),
        requested_at: moment.requested_at,
        resumed_at: None,
        sql: subject.sql.clone(),
        source,
        job: replay.new.spec.clone(),
        limits: subject.limits,
        state: TaskState::Reread {
            query_execution_id,
            result_id,
            result_location: subject.result_location.clone(),
            columns: subject.result_columns.clone(),
        },
    };
    let message = Outgoing::of(&task).context("the task cannot be sent")?;
    Ok(broker.send(&[message]).await?)
}
