//! Asking for a run: everything that can be wrong is found before anything is written or sent.

use anyhow::Context;
use common::job::{Job, JobSpec, Request};
use common::message::{ExtractTask, Limits, RunId, TaskState};
use common::queue::Outgoing;
use common::telemetry::trace::Span;

use crate::Failure;
use crate::books::{Books, Requested, Rival, Run};
use crate::broker::Broker;

/// What became of asking.
pub(crate) enum Asked {
    New,
    /// It was asked for before, under this name.
    Known(Box<Run>),
    /// The same was asked for under another name; nothing was sent.
    Refused(Rival),
}

/// Writes a run into the books and sends its task. A run whose task may not have been sent, since
/// nothing has happened to it yet, is sent once more: the same task twice is one.
pub(crate) async fn ask(
    books: &Books,
    broker: &Broker,
    run: &RunId,
    job: &Job,
    request: &Request,
    again: bool,
) -> Result<Asked, Failure> {
    let asked = match books.request(run, job, request, again).await? {
        Requested::New => Asked::New,
        Requested::Known(known) => Asked::Known(known),
        Requested::Refused(rival) => return Ok(Asked::Refused(rival)),
    };
    let is_unsent = match &asked {
        Asked::Known(known) => known.state == "requested",
        Asked::New | Asked::Refused(_) => true,
    };
    if is_unsent {
        let spec = request.spec.asked_at(books.requested_at(run).await?);
        send(broker, run, job, request, spec).await?;
    }
    Ok(asked)
}

async fn send(
    broker: &Broker,
    run: &RunId,
    job: &Job,
    request: &Request,
    spec: JobSpec,
) -> Result<(), Failure> {
    let task = ExtractTask {
        run: run.clone(),
        generation: 0,
        sql: request.sql.clone(),
        source: job.source.clone(),
        job: spec.into(),
        limits: Limits::default(),
        state: TaskState::Start { attempt: 1 },
    };
    let trace = Span::begin("run", None).with("run.id", run.as_str());
    let message = Outgoing::of(&task).context("cannot ask for this run")?;
    let message = message.traced(trace.context());
    broker.send(&[message]).await.with_context(|| {
        format!("the run {run} is in the books, but it is not known whether its task was sent; ask again with --run-id {run}")
    })?;
    Ok(())
}
