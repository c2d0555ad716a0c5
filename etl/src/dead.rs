//! `etl dead`: what no stage could handle, sending it again, and giving it up.

use anyhow::{Context, anyhow};
use common::message::{
    BatchId, ContentHash, ExtractTask, Message, RawBatch, RunEvent, TaskState, ValidBatch,
};
use common::queue::{self, Outgoing};
use common::settings::variable;

use crate::books::{Books, Dropped, DroppedBatch, Letter, ReplayGivenUp};
use crate::broker::Broker;
use crate::cli::{DeadCommand, DropLettersArguments, LetterFilter, ReplayLettersArguments};
use crate::report::{self, DroppedLetter, UndroppedLetter};
use crate::{Failure, paragraph};

/// Runs a command about dead letters.
pub(crate) async fn run(command: DeadCommand) -> Result<bool, Failure> {
    let books = Books::open().await?;
    match command {
        DeadCommand::List {
            filter,
            limit,
            json,
        } => {
            let letters = books.filtered_letters(&filter, (!json).then_some(limit));
            let letters = letters.await?;
            let all = if json || letters.len() < limit as usize {
                letters.len() as u64
            } else {
                u64::try_from(books.count_letters(&filter).await?).unwrap_or_default()
            };
            report::dead_letters(&letters, all, filter.is_set(), json)?;
        }
        DeadCommand::Show { id, json } => {
            let mut shown = books.dead_letter(id).await?;
            if let Some(text) = readable(&books.letter(id).await?) {
                shown.body_start = text;
            }
            report::dead_letter(&shown, json)?;
        }
        DeadCommand::Replay(arguments) => replay(&books, &arguments).await?,
        DeadCommand::Drop(arguments) => return drop_letters(&books, &arguments).await,
    }
    Ok(true)
}

/// Gives up the one that is named, or each of many by itself: what cannot be dropped keeps none of the
/// others. True when all of them are.
async fn drop_letters(books: &Books, arguments: &DropLettersArguments) -> Result<bool, Failure> {
    let DropLettersArguments { why, json, .. } = arguments;
    if let [id] = arguments.ids[..] {
        let dropped = give_up(books, &books.letter(id).await?, why).await?;
        report::dropped(&dropped, *json)?;
        return Ok(true);
    }
    let ids = if arguments.ids.is_empty() {
        let filter = LetterFilter {
            run: arguments.run.clone(),
            ..LetterFilter::default()
        };
        let ids = books.letter_ids(&filter).await?;
        if let Some(run) = arguments.run.as_ref().filter(|_| ids.is_empty()) {
            // A name that is nobody's is a slip.
            books.find(run).await?;
        }
        ids
    } else {
        // A number that does not exist is a slip, and the others may be of the same slip.
        for id in &arguments.ids {
            books.letter(*id).await?;
        }
        arguments.ids.clone()
    };
    let mut done = Vec::new();
    for id in ids {
        let dropped = match books.letter(id).await {
            Ok(letter) => give_up(books, &letter, why).await,
            Err(failure) => Err(failure),
        };
        let dropped = dropped.map_err(|failure| UndroppedLetter {
            id,
            why: paragraph(failure.error()),
        });
        if !*json {
            report::one_of_many(&dropped)?;
        }
        done.push(dropped);
    }
    report::dropped_many(&done, *json)?;
    Ok(done.iter().all(Result::is_ok))
}

async fn replay(books: &Books, arguments: &ReplayLettersArguments) -> Result<(), Failure> {
    let ids = if arguments.ids.is_empty() {
        books.letter_ids(&arguments.filter).await?
    } else {
        arguments.ids.clone()
    };
    // Each is looked at before the first is sent; one body is in memory at a time.
    for id in &ids {
        outgoing(&books.letter(*id).await?)?;
    }
    let broker = Broker::open().await?;
    let mut sender = broker.sender().await?;
    let user = user();
    for id in &ids {
        let letter = books.letter(*id).await?;
        let message = outgoing(&letter)?;
        sender.send(std::slice::from_ref(&message)).await?;
        let resolution = format!("replayed by {user}");
        books.resolve(&letter, &resolution).await?;
    }
    sender.close().await;
    broker.close().await;
    report::replayed(&ids, arguments.json)
}

/// The beginning of a batch as text: its body is packed.
fn readable(letter: &Letter) -> Option<String> {
    let (kind, body) = (letter.kind.as_deref()?, letter.body.as_deref()?);
    let text = match kind {
        kind if RawBatch::reads(kind) => {
            serde_json::to_string(&queue::read_body::<RawBatch>(kind, body).ok()?)
        }
        kind if ValidBatch::reads(kind) => {
            serde_json::to_string(&queue::read_body::<ValidBatch>(kind, body).ok()?)
        }
        _ => return None,
    };
    Some(text.ok()?.chars().take(400).collect())
}

/// The message as it was, for the queue that it came from.
fn outgoing(letter: &Letter) -> Result<Outgoing, Failure> {
    let id = letter.id;
    let body = body(letter)?;
    let queue = letter.queue.as_deref().unwrap_or_default();
    let message = letter.message_id.as_deref().unwrap_or_default();
    let kind = letter.kind.as_deref().unwrap_or_default();
    Outgoing::again(queue, message, kind, &letter.headers, body.to_vec()).ok_or_else(|| {
        Failure::misuse(anyhow!("the dead letter {id} came from {queue:?}, which is no queue that it could go back to; nothing was sent"))
    })
}

fn body(letter: &Letter) -> Result<&[u8], Failure> {
    letter.body.as_deref().ok_or_else(|| {
        let id = letter.id;
        anyhow!("the body of the dead letter {id} was pruned; nothing was sent or changed").into()
    })
}

async fn give_up(books: &Books, letter: &Letter, why: &str) -> Result<DroppedLetter, Failure> {
    let id = letter.id;
    if let Some(resolution) = &letter.resolution {
        return Err(anyhow!(
            "the dead letter {id} was dealt with before: {resolution}; nothing was changed"
        )
        .into());
    }
    let (user, kind) = (user(), letter.kind.as_deref().unwrap_or_default());
    let other = |consequence| Ok(DroppedLetter::Other { id, consequence });
    if let Some(task) = reread_in(letter) {
        let (run, generation) = (&task.run, task.generation);
        let given_up = books.give_up_replay(letter, run, generation, &user, why);
        return other(replay_is(&given_up.await?, run.as_str()));
    }
    let Some((run, batch)) = batch_in(letter)? else {
        let resolution = format!("dropped by {user}: {why}");
        books.resolve(letter, &resolution).await?;
        return other(consequence(kind, letter.run_id.as_deref()));
    };
    match books.drop_batch(letter, &run, &batch, &user, why).await? {
        Dropped::Counted => {
            let (run, seq, rows) = (run.to_string(), batch.seq, batch.rows);
            Ok(DroppedLetter::Batch { id, run, seq, rows })
        }
        Dropped::NotNeeded(reason) => other(format!(
            "the books of {run} are as they were: of batch {}, {reason}",
            batch.seq
        )),
    }
}

/// The task of a replay whose result was to be read again, and had not begun to be.
fn reread_in(letter: &Letter) -> Option<ExtractTask> {
    let (kind, body) = (letter.kind.as_deref()?, letter.body.as_deref()?);
    let task = queue::read_body::<ExtractTask>(kind, body).ok()?;
    let is_reread = task.generation > 0 && !matches!(task.state, TaskState::Start { .. });
    is_reread.then_some(task)
}

fn replay_is(given_up: &ReplayGivenUp, run: &str) -> String {
    match given_up {
        ReplayGivenUp::Restored => format!(
            "its replay is given up and the run {run} is complete, as it was before: nothing of it was lost"
        ),
        ReplayGivenUp::Failed => format!(
            "its replay is given up and the run {run} has failed, since it was not complete before; ask for a new run"
        ),
        ReplayGivenUp::NotNeeded => format!("the books of {run} are as they were"),
    }
}

/// What it means to drop a letter that is no batch.
fn consequence(kind: &str, run: Option<&str>) -> String {
    let run = run.unwrap_or("RUN");
    match kind {
        ExtractTask::KIND => format!(
            "only the letter is dealt with: nobody works on the run {run} any more, and it stays open until `etl cancel {run}`"
        ),
        RunEvent::KIND => format!(
            "only the letter is dealt with: what the event said is not in the books. If the run {run} does not complete without it, `etl replay {run} --missing` looks for it in the archive, and `etl cancel {run}` ends the run"
        ),
        _ => "only the letter is dealt with, since it was no message of this version".to_owned(),
    }
}

/// The batch in a letter, if it is of a batch's type. Refuses one that cannot be read: its rows could
/// not be counted.
fn batch_in(letter: &Letter) -> Result<Option<(common::message::RunId, DroppedBatch)>, Failure> {
    let kind = letter.kind.as_deref().unwrap_or_default();
    let read = match kind {
        kind if RawBatch::reads(kind) => {
            queue::read_body::<RawBatch>(kind, body(letter)?).map(|batch| {
                let hash = ContentHash::of(&batch.columns, &batch.rows);
                (
                    batch.id,
                    hash,
                    batch.result_id,
                    batch.first_row,
                    batch.rows.len(),
                )
            })
        }
        kind if ValidBatch::reads(kind) => {
            queue::read_body::<ValidBatch>(kind, body(letter)?).map(|batch| {
                let rows = batch.rows_extracted();
                (
                    batch.id,
                    batch.content_hash,
                    batch.result_id,
                    batch.first_row,
                    rows,
                )
            })
        }
        _ => return Ok(None),
    };
    let (id, hash, result_id, first_row, rows) = read.with_context(|| {
        let run = letter.run_id.as_deref().unwrap_or("RUN");
        format!(
            "the dead letter {} cannot be read, so that it is not known how many rows it gives up; nothing was changed. `etl replay {run} --missing` sends the archived copy of the batch; then this letter is not needed",
            letter.id
        )
    })?;
    let BatchId {
        run,
        generation,
        seq,
    } = id;
    let number = |what: &str| format!("the {what} of the dead letter {} is too large", letter.id);
    let batch = DroppedBatch {
        generation: generation
            .try_into()
            .with_context(|| number("generation"))?,
        seq: seq.try_into().with_context(|| number("seq"))?,
        content_hash: hash.to_string(),
        result_id,
        first_row: first_row.try_into().with_context(|| number("row"))?,
        rows: rows.try_into().with_context(|| number("number of rows"))?,
    };
    Ok(Some((run, batch)))
}

fn user() -> String {
    variable("USER").unwrap_or_else(|| "somebody".to_owned())
}
