//! `etl dead`: what no stage could handle, and sending it again.

use anyhow::anyhow;
use common::queue::Outgoing;
use common::settings::variable;

use crate::Failure;
use crate::books::{Books, Letter};
use crate::broker::Broker;
use crate::cli::{DeadCommand, ReplayArguments};
use crate::report;

/// Runs a command about dead letters.
pub(crate) async fn run(command: DeadCommand) -> Result<bool, Failure> {
    let books = Books::open().await?;
    match command {
        DeadCommand::List { json } => {
            report::dead_letters(&books.dead_letters(None, None).await?, json)?;
        }
        DeadCommand::Show { id } => {
            let (letter, whole) = books.dead_letter(id).await?;
            report::dead_letter(&letter, whole.body.as_deref())?;
        }
        DeadCommand::Replay(arguments) => replay(&books, &arguments).await?,
    }
    Ok(true)
}

async fn replay(books: &Books, arguments: &ReplayArguments) -> Result<(), Failure> {
    let ids = if arguments.all {
        books
            .dead_letters(None, None)
            .await?
            .iter()
            .map(|letter| letter.id)
            .collect()
    } else {
        arguments.ids.clone()
    };
    // Each is looked at before the first is sent.
    let mut letters = Vec::with_capacity(ids.len());
    for id in ids {
        letters.push(outgoing(books.dead_letter(id).await?.1)?);
    }
    let broker = Broker::open().await?;
    let user = variable("USER").unwrap_or_else(|| "somebody".to_owned());
    for (id, received_at, letter) in &letters {
        broker.send(std::slice::from_ref(letter)).await?;
        let resolution = format!("replayed by {user}");
        books.resolve(*id, received_at, &resolution).await?;
    }
    broker.close().await;
    report::replayed(letters.len())
}

/// The message as it was, for the queue that it came from.
fn outgoing(letter: Letter) -> Result<(i64, String, Outgoing), Failure> {
    let id = letter.id;
    let body = letter.body.ok_or_else(|| {
        Failure::misuse(anyhow!(
            "the body of the dead letter {id} was pruned; nothing was sent"
        ))
    })?;
    let queue = letter.queue.unwrap_or_default();
    let (message, kind) = (
        letter.message_id.unwrap_or_default(),
        letter.kind.unwrap_or_default(),
    );
    let outgoing = Outgoing::again(&queue, &message, &kind, &letter.headers, body);
    let outgoing = outgoing.ok_or_else(|| {
        Failure::misuse(anyhow!("the dead letter {id} came from {queue:?}, which is no queue that it could go back to; nothing was sent"))
    })?;
    Ok((id, letter.received_at, outgoing))
}
