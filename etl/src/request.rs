//! Requests a run: the row in the ledger first, then the task.

use anyhow::{Context, anyhow};
use common::job::{Job, Request};
use common::message::{ExtractTask, Limits, RunId, TaskState};
use common::queue::Outgoing;
use common::settings;
use common::telemetry::trace;
use serde::Deserialize;

use crate::Failure;
use crate::broker::Broker;
use crate::commands::cancel::removed;
use crate::output::counted;
use ledger::{Requested, Rows, RunState, Store, Terms};

/// Writes a run into the ledger and sends its task. The task of a known run that is still `requested` may not have been
/// sent: it is sent again, since the same task twice is one. A retry first takes back what the former attempt has left in the
/// target.
pub async fn request(
    store: &Store,
    broker: &Broker,
    run: &RunId,
    job: &Job,
    request: &Request,
    terms: Terms,
    note: &mut dyn FnMut(String),
) -> Result<Requested, Failure> {
    let requested = loop {
        match store.request(run, job, request, limits()?, terms).await? {
            Requested::LeftRows { run, rows } => take_back(store, &run, rows, note).await?,
            requested => break requested,
        }
    };
    let is_unsent = match &requested {
        Requested::New => true,
        Requested::Known(known) => known.state == RunState::Requested,
        Requested::Conflicts(_) | Requested::LeftRows { .. } => false,
    };
    if is_unsent {
        send(store, broker, run, job, request).await?;
    }
    Ok(requested)
}

/// Sends the task of a run that is `requested`.
async fn send(
    store: &Store,
    broker: &Broker,
    run: &RunId,
    job: &Job,
    request: &Request,
) -> Result<(), Failure> {
    let settled = store.settled(run).await?;
    let moment = store.moment(run, settled.generation).await?;
    let task = ExtractTask {
        run: run.clone(),
        run_no: moment.run_no,
        generation: settled.generation,
        first_generation: settled.generation,
        requested_at: moment.requested_at,
        resumed_at: None,
        sql: settled.sql,
        source: job.source.clone(),
        job: request.spec.with_requested_at(settled.requested_at).into(),
        limits: settled.limits,
        state: TaskState::Start { attempt: 1 },
    };
    let span = tracing::info_span!(target: trace::TARGET, "run", run.id = %run);
    let message =
        Outgoing::of(&task).with_context(|| format!("the task of the run {run} cannot be sent"))?;
    let message = message.traced(trace::join(&span, None).as_deref());
    broker.send(&[message]).await.with_context(|| {
        format!("the run {run} is in the ledger, and its task may not have been sent; request it again with --run-id {run}")
    })?;
    Ok(())
}

/// Removes what an attempt that failed has left in the target, before the next one brings in the same rows.
async fn take_back(
    store: &Store,
    run: &RunId,
    rows: i64,
    note: &mut dyn FnMut(String),
) -> Result<(), Failure> {
    note(format!(
        "removing {} that the run {run} has left in its target: they are loaded anew",
        counted(rows, "row")
    ));
    let ended = store.take_back(run, "loaded anew").await?;
    if let Rows::Leave { removal, .. } = ended.rows {
        let removed = removed(store, run, removal).await?;
        removed.map_err(|why| anyhow!("the rows of the run {run} were not removed: {why}"))?;
    }
    Ok(())
}

/// The limits are read as text, so that an error can name the setting and its range.
#[derive(Deserialize)]
struct Settings {
    /// The most rows in a batch.
    batch_rows: Option<String>,
    /// The most bytes of values in a batch.
    batch_bytes: Option<String>,
}

/// What bounds the batches of a new run. The ledger records it with the run, and it never changes.
pub fn limits() -> Result<Limits, Failure> {
    let settings: Settings = settings::load().map_err(Failure::usage)?;
    let default = Limits::default();
    let most_bytes = u32::try_from(Limits::ROW_BYTES).unwrap_or(u32::MAX);
    let (rows, bytes) = (settings.batch_rows, settings.batch_bytes);
    Ok(Limits {
        batch_rows: within("ETL_BATCH_ROWS", rows, Limits::MOST_ROWS)?
            .unwrap_or(default.batch_rows),
        batch_bytes: within("ETL_BATCH_BYTES", bytes, most_bytes)?.unwrap_or(default.batch_bytes),
    })
}

fn within(name: &str, value: Option<String>, most: u32) -> Result<Option<u32>, Failure> {
    let Some(text) = value else { return Ok(None) };
    let number = text.trim().parse().ok();
    match number.filter(|number| (1..=most).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(Failure::usage(anyhow!(
            "{name} is {text:?}, and has to be a whole number from 1 to {most}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_out_of_range_is_a_usage_error_with_name_and_range() {
        let given = |text: &str| within("ETL_BATCH_ROWS", Some(text.to_owned()), 20_000);
        assert!(matches!(given("1"), Ok(Some(1))));
        assert!(matches!(given("20000"), Ok(Some(20_000))));
        assert!(matches!(within("ETL_BATCH_ROWS", None, 20_000), Ok(None)));
        for text in ["0", "20001", "-1", "many", "1.5", "99999999999"] {
            let failure = given(text).unwrap_err();
            assert!(matches!(failure, Failure::Usage(_)));
            assert_eq!(
                failure.to_string(),
                format!("ETL_BATCH_ROWS is {text:?}, and has to be a whole number from 1 to 20000")
            );
        }
    }
}
