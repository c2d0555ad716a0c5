//! `--missing`: what the books lack comes again, in the same generation. For a queue that was purged,
//! and for a database that was restored to an earlier time and has forgotten what came after it: then
//! the end of the result, too, is in the archive alone.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use common::queue::Outgoing;

use super::archive::{self, End};
use super::send::Window;
use crate::Failure;
use crate::books::{Books, Subject};
use crate::broker::Broker;
use crate::cli::ReplayArguments;
use crate::report::Sent;
use crate::seqs::Seqs;
use crate::{follow, report};

/// Restores what these runs lack, one after the other: each is looked at before anything of it is
/// sent. Batches that were loaded after all are known to the ledger.
pub(super) async fn run(
    books: &Books,
    names: &[String],
    arguments: &ReplayArguments,
) -> Result<bool, Failure> {
    let broker = Broker::open().await?;
    let mut all_true = true;
    for name in names {
        restore(books, &broker, name, arguments.json).await?;
        if arguments.follow {
            let over = follow::to_the_end(books, name, None).await?;
            all_true &= report::outcome(books, &over, arguments.json).await?;
        }
    }
    broker.close().await;
    Ok(all_true)
}

async fn restore(books: &Books, broker: &Broker, name: &str, json: bool) -> Result<(), Failure> {
    let mut claims = books.claims().await?;
    claims.take(name).await?;
    let mut subject = books.subject(name).await?;
    check(&subject)?;
    let end = match subject.batches() {
        Some(_) => None,
        None => Some(forgotten_end(broker, &subject).await?),
    };
    if let Some(end) = &end {
        subject.run.batches_expected = i32::try_from(end.batches).ok();
    }
    let missing = Seqs::of_books(books.missing(&subject.run).await?);
    if missing.is_empty() && end.is_none() {
        return report::replayed_run(name, Sent::NothingMissing, json);
    }
    let result = end.as_ref().map(|end| end.result_id.as_str());
    let found = archive::search(broker, &subject, result, &missing, async |_| Ok(())).await?;
    archive::refuse_gap(&subject, &found)?;
    send(broker, &subject, result, &missing, end.as_ref())
        .await
        .context("not everything could be sent again; ask again")?;
    report::replayed_run(name, Sent::Missing(missing.count()), json)
}

fn check(subject: &Subject) -> Result<(), Failure> {
    match subject.run.state.as_str() {
        state @ ("failed" | "cancelled") => Err(anyhow!(
            "the run {} is {state} and takes no batches; nothing was sent: ask for a new one",
            subject.id()
        )
        .into()),
        _ => Ok(()),
    }
}

/// What the books of a restored database have forgotten.
async fn forgotten_end(broker: &Broker, subject: &Subject) -> Result<End, Failure> {
    let end = archive::find_end(broker, subject).await?;
    end.ok_or_else(|| {
        let id = subject.id();
        anyhow!(
            "neither the books nor the archive know how many batches the run {id} has: the extractor has not said so yet, or the archive no longer has it; nothing was sent"
        )
        .into()
    })
}

async fn send(
    broker: &Broker,
    subject: &Subject,
    result: Option<&str>,
    missing: &Seqs,
    end: Option<&End>,
) -> Result<(), Failure> {
    let mut window = Window::new(broker.sender().await?);
    let (live, spec) = (subject.generation(), subject.live_spec());
    let sent = archive::search(broker, subject, result, missing, async |mut batch| {
        // As it was, unless it was archived under another generation and job.
        if live > 0 || batch.id.generation != live {
            batch.id.generation = live;
            batch.job = Arc::clone(&spec);
        }
        let message = Outgoing::of(&batch).context("a batch cannot be sent again")?;
        window.put(message).await
    });
    archive::refuse_gap(subject, &sent.await?)?;
    if let Some(end) = end {
        let mut event = end.event.clone();
        event.generation = live;
        window
            .put(Outgoing::of(&event).context("the end of the result cannot be told again")?)
            .await?;
    }
    Ok(window.close().await?)
}
