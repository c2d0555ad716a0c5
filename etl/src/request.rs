//! Asking for a run: everything that can be wrong is found before anything is written or sent.

use std::num::NonZeroU32;

use anyhow::{Context, anyhow};
use common::job::{Job, JobSpec, Request};
use common::message::{ExtractTask, Limits, RunId, TaskState};
use common::queue::Outgoing;
use common::settings;
use common::telemetry::trace::Span;
use serde::Deserialize;

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
    let asked = match books.request(run, job, request, limits()?, again).await? {
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
        let limits = books.limits_of(run).await?;
        send(broker, run, job, request, (spec, limits)).await?;
    }
    Ok(asked)
}

#[derive(Deserialize)]
struct Settings {
    /// The most rows in a batch.
    batch_rows: Option<NonZeroU32>,
    /// The most bytes of values in a batch.
    batch_bytes: Option<NonZeroU32>,
}

/// What bounds the batches of a new run: settled here, written into the books, and never changed again.
fn limits() -> Result<Limits, Failure> {
    let settings: Settings = settings::load().map_err(Failure::misuse)?;
    let default = Limits::default();
    let limits = Limits {
        batch_rows: settings
            .batch_rows
            .map_or(default.batch_rows, NonZeroU32::get),
        batch_bytes: settings
            .batch_bytes
            .map_or(default.batch_bytes, NonZeroU32::get),
    };
    if limits.batch_rows > Limits::MOST_ROWS {
        return Err(Failure::misuse(anyhow!(
            "ETL_BATCH_ROWS is {}, and a batch may have {} at most",
            limits.batch_rows,
            Limits::MOST_ROWS
        )));
    }
    if limits.batch_bytes as usize > Limits::ROW_BYTES {
        return Err(Failure::misuse(anyhow!(
            "ETL_BATCH_BYTES is {}, and a batch may have {} at most",
            limits.batch_bytes,
            Limits::ROW_BYTES
        )));
    }
    Ok(limits)
}

async fn send(
    broker: &Broker,
    run: &RunId,
    job: &Job,
    request: &Request,
    (spec, limits): (JobSpec, Limits),
) -> Result<(), Failure> {
    let task = ExtractTask {
        run: run.clone(),
        generation: 0,
        sql: request.sql.clone(),
        source: job.source.clone(),
        job: spec.into(),
        limits,
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
