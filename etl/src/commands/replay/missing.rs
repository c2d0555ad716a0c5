//! `--missing`: sends the batches that the ledger lacks again, in the same generation. For a queue that was purged, and for
//! a database that was restored to an earlier time: then only the archive knows the end of the result, too.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use common::queue::Outgoing;

use super::Sent;
use super::archive::{self, End};
use super::pace::Pace;
use crate::Failure;
use crate::broker::Broker;
use ledger::{Meant, RowRanges, RunState, Store, Subject};

/// Sends what the ledger of a run lacks, once the archive is known to have it. A batch that was loaded meanwhile is a
/// duplicate to the loader.
pub async fn act(store: &Store, broker: &Broker, meant: &Meant) -> Result<Sent, Failure> {
    let name = meant.run.as_str();
    let mut claims = store.session_lock().await?;
    claims.take_replay(name).await?;
    let mut subject = store.subject(name).await?;
    meant.check(subject.run.run_no, subject.run.generation)?;
    if let state @ (RunState::Failed | RunState::Cancelled) = subject.run.state {
        return Err(anyhow!(
            "the run {name} is {state} and takes no batches; nothing was sent: request a new run"
        )
        .into());
    }
    let end = match subject.rows() {
        Some(_) => None,
        None if broker.no_archive().is_some() => None,
        None => Some(end(broker, &subject).await?),
    };
    if let Some(end) = &end {
        subject.run.rows_expected = i64::try_from(end.rows).ok();
    }
    let missing = RowRanges::from_ledger(store.missing(&subject.run).await?);
    if let Some(why) = broker.no_archive()
        && !(missing.is_empty() && subject.rows().is_some())
    {
        return Err(anyhow!(
            "no batch is archived ({why}), and the batches that the run {name} lacks cannot be sent again; nothing was sent and nothing was changed: {}",
            archive::remedy(&subject)
        )
        .into());
    }
    let mut sent = 0;
    if !missing.is_empty() || end.is_some() {
        let result = end.as_ref().map(|end| end.result_id.as_str());
        let found = archive::search(broker, &subject, result, &missing, async |_| Ok(())).await?;
        archive::refuse_gap(&subject, &found)?;
        sent = send(store, broker, &subject, result, &missing, end.as_ref())
            .await
            .context("not every batch was sent again; the same command sends the others")?;
    }
    Ok(Sent {
        run_id: name.to_owned(),
        batches: Some(sent),
        generation: None,
    })
}

/// The end of the result, which the ledger of a restored database does not have.
async fn end(broker: &Broker, subject: &Subject) -> Result<End, Failure> {
    let end = archive::find_end(broker, subject).await?;
    end.ok_or_else(|| {
        let id = subject.id();
        anyhow!(
            "neither the ledger nor the archive has the number of rows of the run {id}: the extractor has not sent it yet, or the archive no longer has it; nothing was sent"
        )
        .into()
    })
}

async fn send(
    store: &Store,
    broker: &Broker,
    subject: &Subject,
    result: Option<&str>,
    missing: &RowRanges,
    end: Option<&End>,
) -> Result<u64, Failure> {
    let mut sender = broker.sender().await?;
    let mut pace = Pace::of(store, subject)?;
    let (live, spec) = (subject.generation(), subject.live_spec());
    let sent = archive::search(broker, subject, result, missing, async |mut batch| {
        // Unchanged, unless the archive has it with another generation and job.
        if live > 0 || batch.id.generation != live {
            batch.id.generation = live;
            batch.job = Arc::clone(&spec);
        }
        let message = Outgoing::of(&batch).context("a batch cannot be sent again")?;
        pace.wait(message.bytes()).await?;
        sender.put(message).await
    });
    let sent = sent.await?;
    archive::refuse_gap(subject, &sent)?;
    if let Some(end) = end {
        let mut event = end.event.clone();
        event.generation = live;
        let message = Outgoing::of(&event).context("the end of the result cannot be sent again")?;
        sender.put(message).await?;
    }
    sender.close().await?;
    Ok(sent.batches())
}
