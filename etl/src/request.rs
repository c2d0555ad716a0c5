//! Asking for a run: everything that can be wrong is found before anything is written or sent.

use anyhow::{Context, anyhow};
use common::job::{Job, JobSpec, Request};
use common::message::{ExtractTask, Limits, RunId, TaskState};
use common::queue::Outgoing;
use common::settings;
use common::telemetry::trace;
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

/// As text, so that what is wrong with one is said in a sentence that names it.
#[derive(Deserialize)]
struct Settings {
    /// The most rows in a batch.
    batch_rows: Option<String>,
    /// The most bytes of values in a batch.
    batch_bytes: Option<String>,
}

/// What bounds the batches of a new run: settled here, written into the books, and never changed again.
fn limits() -> Result<Limits, Failure> {
    let settings: Settings = settings::load().map_err(Failure::misuse)?;
    let default = Limits::default();
    let most_bytes = u32::try_from(Limits::ROW_BYTES).unwrap_or(u32::MAX);
    Ok(Limits {
        batch_rows: within("ETL_BATCH_ROWS", settings.batch_rows, Limits::MOST_ROWS)?
            .unwrap_or(default.batch_rows),
        batch_bytes: within("ETL_BATCH_BYTES", settings.batch_bytes, most_bytes)?
            .unwrap_or(default.batch_bytes),
    })
}

fn within(name: &str, value: Option<String>, most: u32) -> Result<Option<u32>, Failure> {
    let Some(text) = value else { return Ok(None) };
    let number = text.trim().parse().ok();
    match number.filter(|number| (1..=most).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(Failure::misuse(anyhow!(
            "{name} is {text:?}, and has to be a whole number from 1 to {most}"
        ))),
    }
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
    let span = tracing::info_span!(target: trace::TARGET, "run", run.id = %run);
    let message = Outgoing::of(&task).context("cannot ask for this run")?;
    let message = message.traced(trace::join(&span, None).as_deref());
    broker.send(&[message]).await.with_context(|| {
        format!("the run {run} is in the books, but it is not known whether its task was sent; ask again with --run-id {run}")
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_out_of_its_range_is_refused_by_name_and_range() {
        let given = |text: &str| within("ETL_BATCH_ROWS", Some(text.to_owned()), 20_000);
        assert!(matches!(given("1"), Ok(Some(1))));
        assert!(matches!(given("20000"), Ok(Some(20_000))));
        assert!(matches!(within("ETL_BATCH_ROWS", None, 20_000), Ok(None)));
        for text in ["0", "20001", "-1", "many", "1.5", "99999999999"] {
            let failure = given(text).unwrap_err();
            assert!(matches!(failure, Failure::Misuse(_)));
            assert_eq!(
                failure.to_string(),
                format!("ETL_BATCH_ROWS is {text:?}, and has to be a whole number from 1 to 20000")
            );
        }
    }
}
