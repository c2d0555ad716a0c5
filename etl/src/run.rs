//! `etl run`: asks for a run, and follows it where that is wanted.

use anyhow::anyhow;
use common::message::RunId;

use crate::Failure;
use crate::books::{Books, Run};
use crate::broker::Broker;
use crate::cli::RunArguments;
use crate::jobs::{Jobs, checkable, filled_in};
use crate::request::{Asked, ask};
use crate::{follow, report};

/// Asks for a run, and follows it when that is wanted.
pub(crate) async fn run(arguments: &RunArguments) -> Result<bool, Failure> {
    let jobs = Jobs::load()?;
    let job = jobs.read(&arguments.job)?;
    let request = filled_in(&job, &arguments.set)?;
    let books = Books::open().await?;
    let run = arguments
        .run_id
        .clone()
        .unwrap_or_else(|| new_run_id(&job.spec.name));
    // One that is in the books was checked when it was asked for, and may only be looked at now.
    if !books.knows(&run).await? {
        let spec = checkable(&request);
        books.check_target(&spec, &jobs.schemas).await?;
    }
    let broker = Broker::open().await?;
    let asked = ask(&books, &broker, &run, &job, &request, arguments.again).await;
    broker.close().await;
    let known = match asked? {
        Asked::New => None,
        Asked::Known(known) => Some(known),
        Asked::Refused(rival) => return Err(anyhow!(rival.sentence()).into()),
    };
    answer(arguments, &books, &run, known.as_deref()).await
}

async fn answer(
    arguments: &RunArguments,
    books: &Books,
    run: &RunId,
    known: Option<&Run>,
) -> Result<bool, Failure> {
    if known.is_some() {
        report::note(&format!("the run {run} was asked for before"));
    }
    if !arguments.follow {
        report::requested(run, arguments.json)?;
        // Asking again for a run that came to nothing does not make it better.
        let lost = known.filter(|run| run.is_over() && !run.is_complete());
        if let Some(run) = lost {
            report::note(&format!(
                "it is {} and nothing was sent; ask under another --run-id",
                run.state
            ));
        }
        return Ok(lost.is_none());
    }
    let end = follow::to_the_end(books, run.as_str(), arguments.wait_timeout).await?;
    report::outcome(books, &end, arguments.json).await
}

/// A name that sorts by time, tells the job, and is not made twice.
fn new_run_id(job: &str) -> RunId {
    let now = jiff::Timestamp::now().strftime("%Y%m%dt%H%M%S");
    let random: u32 = rand::random_range(0..0x1_0000_0000_u64)
        .try_into()
        .unwrap_or_default();
    format!("{job}-{now}-{random:08x}")
        .parse()
        .expect("a job's name, a time and a number make a run id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_are_made_once() {
        let (one, other) = (new_run_id("clicks"), new_run_id("clicks"));
        assert_ne!(one, other);
        assert!(one.as_str().starts_with("clicks-2"));
    }
}
