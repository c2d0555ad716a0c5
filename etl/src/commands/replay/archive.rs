//! The archive: each batch of a run once, of the run's own result.
//!
//! The archive has everything that was published to it: copies, batches of a fork that read another result, and batches of a
//! later generation. A batch is found by its run, its first row and its result.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use common::failpoint;
use common::job::resolve;
use common::message::{EventKind, Message, RawBatch, RunEvent};
use common::queue::{Delivery, Outgoing, RawDelivery};
use common::reason::Reason;

use super::Replay;
use super::pace::Pace;
use crate::Failure;
use crate::broker::Broker;
use ledger::{NewReplay, RowRanges, Run, Search, Store, Subject};

/// How long before the request of a run the archive is entered: the clocks of this machine, of the database and of the
/// broker differ.
const MARGIN: Duration = Duration::from_mins(10);

/// The extractor's event at the end of the result.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) event: RunEvent,
    pub(super) result_id: String,
    pub(super) rows: u64,
}

/// Refuses a replay when the archive lacks one of its batches, or when the job as it is now cannot read them.
pub(super) async fn prove(broker: &Broker, replay: &Replay) -> Result<(), Failure> {
    let NewReplay { spec, rows, .. } = &replay.new;
    let mut fits = false;
    let id = replay.subject.id();
    let search = search(broker, &replay.subject, None, rows, async |batch| {
        if !fits {
            resolve(&spec.columns, &batch.columns, &spec.target.key).with_context(|| {
                format!("the job {} as it is now does not fit the result of the run {id}; correct it, or request a new run; nothing was changed", spec.name)
            })?;
            fits = true;
        }
        Ok(())
    })
    .await?;
    refuse_gap(&replay.subject, &search)
}

/// Sends every batch of the replay: how many. An error when the archive has lost one since the check.
pub(super) async fn send(
    store: &Store,
    broker: &Broker,
    replay: &Replay,
    generation: u32,
) -> Result<u64, Failure> {
    let Replay { subject, new, .. } = replay;
    let mut pace = Pace::of(store, subject)?;
    let mut sender = broker.sender().await?;
    let search = search(broker, subject, None, &new.rows, async |mut batch| {
        failpoint::reach("replay_batch").await;
        batch.id.generation = generation;
        batch.job = Arc::clone(&new.spec);
        let message = Outgoing::of(&batch).context("a batch cannot be sent again")?;
        pace.wait(message.bytes()).await?;
        sender.put(message).await
    });
    let search = search.await?;
    sender.close().await?;
    if search.is_over() {
        return Ok(search.batches());
    }
    Err(anyhow!(
        "the archive has lost the rows {} since the check; `etl replay {} --from-athena` reads the query's result again",
        search.missing(),
        subject.id()
    )
    .into())
}

/// Refuses a search that did not find every batch.
pub(super) fn refuse_gap(subject: &Subject, search: &Search) -> Result<(), Failure> {
    if search.is_over() {
        return Ok(());
    }
    let (id, gap, remedy) = (subject.id(), search.missing(), remedy(subject));
    Err(anyhow!(
        "the archive no longer has the rows {gap} of the run {id}; nothing was sent and nothing was changed: {remedy}"
    )
    .into())
}

/// What to do for a run whose batches no archive has.
pub(super) fn remedy(subject: &Subject) -> String {
    let force = if subject.run.state.is_over() {
        ""
    } else {
        " --force"
    };
    match subject.run.result_id {
        Some(_) => format!(
            "`etl replay {} --from-athena{force}` reads the query's result again",
            subject.id()
        ),
        None => "request a new run".to_owned(),
    }
}

/// Searches the archive for batches of a run. Each goes to `take`, once and in the archive's order, until all are found or
/// the archive ends. `result` is the run's result where the ledger does not have it.
pub(super) async fn search(
    broker: &Broker,
    subject: &Subject,
    result: Option<&str>,
    rows: &RowRanges,
    mut take: impl AsyncFnMut(RawBatch) -> anyhow::Result<()>,
) -> Result<Search, Failure> {
    let mut search = Search::new(rows.clone());
    if search.is_over() {
        return Ok(search);
    }
    let result = subject.run.result_id.as_deref().or(result);
    let look = broker.read_archive(since(&subject.run)?, async |message| {
        if let Some(batch) = batch_of(&subject.run, message, &search)
            && result.is_none_or(|result| result == batch.result_id)
        {
            search.found(batch.id.first_row, batch.rows.len());
            take(batch).await?;
        }
        Ok(search.is_over())
    });
    look.await
        .with_context(|| format!("cannot read the archive for {}", subject.id()))?;
    Ok(search)
}

/// The batch in a message, if it is searched for. A batch that this version cannot read counts as absent.
fn batch_of(run: &Run, message: RawDelivery, search: &Search) -> Option<RawBatch> {
    let first_row = first_row_of(run, message.id())?;
    if !search.wants(first_row) {
        return None;
    }
    match Delivery::<RawBatch>::from(message).read() {
        Ok(batch) if batch.id.first_row == first_row && batch.id.run.as_str() == run.run_id => {
            Some(batch)
        }
        Ok(_) => None,
        Err(error) => {
            let error = Reason::from(error);
            tracing::warn!(
                run.id = run.run_id,
                batch.first_row = first_row,
                error = error.logged(),
                "a batch in the archive cannot be read"
            );
            None
        }
    }
}

/// The first row of a batch of this run, from its identity `run/generation/first row`.
fn first_row_of(run: &Run, id: &str) -> Option<u64> {
    in_attempt(run, id)?.parse().ok()
}

/// What stands behind the generation in an identity of this run's last attempt: former ones have another result.
fn in_attempt<'a>(run: &Run, id: &'a str) -> Option<&'a str> {
    let id = id.strip_prefix(&run.run_id)?.strip_prefix('/')?;
    let (generation, rest) = id.split_once('/')?;
    let generation = generation.parse::<u32>().ok()?;
    (generation >= run.first_generation.unsigned_abs()).then_some(rest)
}

/// The end of the run's result in the archive, for a ledger that does not have it.
pub(super) async fn find_end(broker: &Broker, subject: &Subject) -> Result<Option<End>, Failure> {
    let mut found = None;
    let look = broker.read_archive(since(&subject.run)?, async |message| {
        if is_end(&subject.run, message.kind(), message.id()) {
            found = end_of(subject, message);
        }
        Ok(found.is_some())
    });
    look.await
        .with_context(|| format!("cannot read the archive for {}", subject.id()))?;
    Ok(found)
}

/// Whether a message is the last event of a run's extraction, in any version that is read: the archive is older than a service
/// that was upgraded.
fn is_end(run: &Run, kind: &str, id: &str) -> bool {
    RunEvent::reads(kind) && in_attempt(run, id) == Some("extracted")
}

fn end_of(subject: &Subject, message: RawDelivery) -> Option<End> {
    let event = Delivery::<RunEvent>::from(message).read().ok()?;
    let EventKind::Extracted {
        result_id, rows, ..
    } = event.kind.clone()
    else {
        return None;
    };
    let is_of_the_run = event.run.as_str() == subject.id()
        && subject
            .run
            .result_id
            .as_ref()
            .is_none_or(|known| *known == result_id);
    is_of_the_run.then_some(End {
        event,
        result_id,
        rows,
    })
}

fn since(run: &Run) -> Result<SystemTime, Failure> {
    let at: jiff::Timestamp = run
        .requested_at
        .parse()
        .context("the ledger has a run without a time")?;
    Ok(SystemTime::from(at)
        .checked_sub(MARGIN)
        .unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_generation: i32) -> Run {
        Run {
            run_id: "daily".to_owned(),
            first_generation,
            ..Run::default()
        }
    }

    #[test]
    fn end_is_recognised_in_both_versions() {
        let of_run = |kind, id| is_end(&run(0), kind, id);
        for kind in ["run-event.v1", "run-event.v2"] {
            assert!(of_run(kind, "daily/0/extracted"));
        }
        assert!(!of_run("raw-batch.v3", "daily/0/extracted"));
        assert!(!of_run("run-event.v2", "daily/0/started"));
        assert!(!of_run("run-event.v2", "daily-2/0/extracted"));
        assert!(
            !is_end(&run(1), "run-event.v2", "daily/0/extracted"),
            "of a former attempt"
        );
    }

    #[test]
    fn batch_is_recognised_by_its_run_and_its_first_row() {
        let found = |id| first_row_of(&run(2), id);
        assert_eq!(found("daily/2/7"), Some(7));
        assert_eq!(found("daily/3/7"), Some(7));
        for other in [
            "daily/1/7",
            "daily-2/2/7",
            "daily/2/extracted",
            "daily/7",
            "daily/x/7",
            "marker/2/7",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
