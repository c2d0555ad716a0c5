//! `etl replay`: batches from the archive once more, without asking Athena.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use common::message::{BatchId, RunId};
use common::queue::{Outgoing, RawDelivery};
use serde::Deserialize;

use crate::Failure;
use crate::books::{Books, Run, ranges};
use crate::broker::Broker;
use crate::report;

/// How long before the request the archive is entered: the clocks of this machine, of the database
/// and of the broker are not the same.
const MARGIN: Duration = Duration::from_mins(10);

/// Sends the batches that the books lack, in the same generation: those that were loaded after all
/// are known to the ledger. Sends nothing when the archive does not have them all.
pub(crate) async fn missing(name: &str) -> Result<bool, Failure> {
    let books = Books::open().await?;
    let run = books.exactly(name).await?;
    check(&run)?;
    let missing = books.missing(&run).await?;
    let wanted = wanted(&run, &missing)?;
    if wanted.is_empty() {
        return report::nothing_missing(&run.run_id).map(|()| true);
    }
    let since = requested(&run)?;
    let broker = Broker::open().await?;
    let mut gone = wanted.clone();
    let look = broker.read_archive(since, async |message| {
        if gone.contains(message.id()) && is_of_result(&run, &message) {
            gone.remove(message.id());
        }
        Ok(gone.is_empty())
    });
    look.await.context("cannot read the archive")?;
    if !gone.is_empty() {
        let seqs = gone
            .iter()
            .filter_map(|id| id.rsplit('/').next()?.parse().ok());
        let gap = ranges(seqs);
        return Err(anyhow!(
            "the archive no longer has the batches {gap} of the run {}; nothing was sent: ask for a new run",
            run.run_id
        )
        .into());
    }
    let mut left = wanted.clone();
    let send = broker.read_archive(since, async |message| {
        if left.contains(message.id()) && is_of_result(&run, &message) {
            left.remove(message.id());
            broker.send(&[Outgoing::restored(&message)]).await?;
        }
        Ok(left.is_empty())
    });
    send.await
        .context("not all batches could be sent again; ask again")?;
    broker.close().await;
    report::restored(&run.run_id, wanted.len())?;
    Ok(true)
}

/// Whether an archived batch is of the result that the run is loaded from. A run that was forked may
/// have left batches of another one in the archive.
fn is_of_result(run: &Run, message: &RawDelivery) -> bool {
    #[derive(Deserialize)]
    struct Batch {
        result_id: String,
    }
    let batch = serde_json::from_slice::<Batch>(message.body());
    batch.is_ok_and(|batch| {
        run.result_id
            .as_ref()
            .is_none_or(|id| *id == batch.result_id)
    })
}

fn check(run: &Run) -> Result<(), Failure> {
    let id = &run.run_id;
    if matches!(run.state.as_str(), "failed" | "cancelled") {
        return Err(Failure::misuse(anyhow!(
            "the run {id} is {}; ask for a new one",
            run.state
        )));
    }
    if run.batches_expected.is_none() {
        return Err(Failure::misuse(anyhow!(
            "the extractor has not said yet how many batches the run {id} has, so that it is not known which are missing"
        )));
    }
    Ok(())
}

/// The identities of the batches in these ranges.
fn wanted(run: &Run, missing: &[(i32, i32)]) -> Result<BTreeSet<String>, Failure> {
    let name: RunId = run
        .run_id
        .parse()
        .context("a run in the books has a name that is none")?;
    let generation = u32::try_from(run.generation).unwrap_or_default();
    let seqs = missing.iter().flat_map(|(from, to)| *from..=*to);
    let ids = seqs.filter_map(|seq| u32::try_from(seq).ok()).map(|seq| {
        let run = name.clone();
        BatchId {
            run,
            generation,
            seq,
        }
        .to_string()
    });
    Ok(ids.collect())
}

fn requested(run: &Run) -> Result<SystemTime, Failure> {
    let at: jiff::Timestamp = run
        .requested_at
        .parse()
        .context("a run in the books has no time")?;
    Ok(SystemTime::from(at)
        .checked_sub(MARGIN)
        .unwrap_or(SystemTime::UNIX_EPOCH))
}
