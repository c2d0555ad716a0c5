//! `etl dead drop`: resolves dead letters without sending them. The rows of a batch count as dropped, by name.

use anyhow::{Context, anyhow};
use clap::ArgGroup;
use common::command::user;
use common::message::{
    BatchId, ContentHash, ExtractTask, Message, RawBatch, RunEvent, RunId, TaskState, ValidBatch,
};
use common::queue::read_body;
use serde::Serialize;
use serde_json::json;

use super::{body, chosen, parse_id};
use crate::Failure;
use crate::commands::Command;
use crate::commands::cancel::removed;
use crate::output::{counted, note, print, print_json, show, size};
use crate::store;
use ledger::{DeadLetter, DeadLetterFilter, Dropped, DroppedBatch, ReplayDropped, Store};

/// Drop dead letters, each by itself.
///
/// The rows of a batch count as dropped, in your name, and its run can complete without them. A dropped task or event is
/// only resolved.
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("which").required(true),
    after_help = "Example: etl dead drop 17 18 --why 'the source was wrong, see mail of Monday'\n         etl dead drop --run daily-2018-04-09 --why 'the source was wrong'"
)]
pub struct Arguments {
    /// Their numbers, as the list has them.
    #[arg(group = "which", value_parser = parse_id)]
    pub ids: Vec<i64>,
    /// All unresolved ones of this run; its whole name.
    #[arg(long, group = "which")]
    pub run: Option<String>,
    /// All unresolved ones.
    #[arg(long, group = "which")]
    pub all: bool,
    /// The reason, for the ledger.
    #[arg(long, value_parser = parse_reason)]
    pub why: String,
    /// Print JSON: an object for one number, else the dropped ones and the refused ones.
    #[arg(long)]
    pub json: bool,
}

fn parse_reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("give a reason in a few words".to_owned()),
        reason => Ok(reason.to_owned()),
    }
}

/// A dropped dead letter.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum DroppedLetter {
    /// The rows of a batch count as dropped.
    Batch {
        id: i64,
        run_id: String,
        /// The first row of the batch in the result, from 0.
        first_row: u64,
        rows_dropped: u64,
    },
    /// No row is dropped, and what that means.
    Other {
        id: i64,
        rows_dropped: i64,
        consequence: String,
    },
}

/// The dead letters to drop: these, or all unresolved ones, or those of one run. An unknown number or run is an error.
pub async fn plan(store: &Store, ids: Vec<i64>, run: Option<String>) -> Result<Vec<i64>, Failure> {
    for id in &ids {
        store.dead_letter(*id).await?;
    }
    if !ids.is_empty() {
        return Ok(ids);
    }
    let filter = DeadLetterFilter {
        run,
        ..DeadLetterFilter::default()
    };
    chosen(store, &filter).await
}

/// Drops one dead letter.
pub async fn act(store: &Store, id: i64, why: &str) -> Result<DroppedLetter, Failure> {
    let dead = store.dead_letter(id).await?;
    if let Some(resolution) = &dead.resolution {
        return Err(anyhow!(
            "the dead letter {id} was resolved before: {resolution}; nothing was changed"
        )
        .into());
    }
    let user = user();
    let other = |consequence| {
        Ok(DroppedLetter::Other {
            id,
            rows_dropped: 0,
            consequence,
        })
    };
    if let Some(task) = reread_in(&dead) {
        let run = &task.run;
        let end = store.drop_replay(&dead, run, task.generation, &user, why);
        return other(end_of_replay(&end.await?, run));
    }
    let resolution = format!("dropped by {user}: {why}");
    let resolve = async || store.resolve_dead_letter(&dead, &resolution).await;
    let (run, batch) = match batch_in(&dead) {
        Ok(Some(batch)) => batch,
        Ok(None) => {
            resolve().await?;
            return other(consequence(&dead));
        }
        // Nobody knows its rows. Nobody has to where no run waits for them.
        Err(unreadable) => {
            let Some(unneeded) = why_unneeded(store, &dead).await? else {
                return Err(unreadable);
            };
            resolve().await?;
            return other(unneeded);
        }
    };
    let unneeded = |reason: &str| {
        format!(
            "the ledger of {run} is unchanged: of the batch from row {} on, {reason}",
            batch.first_row
        )
    };
    match store.drop_batch(&run, &batch, &user, why).await? {
        Dropped::Counted => {}
        Dropped::NotNeeded(reason) => return other(unneeded(reason)),
        Dropped::Requested { removal } => {
            if let Err(reason) = removed(store, &run, removal).await? {
                return other(unneeded(&reason));
            }
        }
    }
    Ok(DroppedLetter::Batch {
        id,
        run_id: run.to_string(),
        first_row: batch.first_row,
        rows_dropped: batch.rows,
    })
}

/// Why no run waits for a batch that cannot be read, by its headers.
async fn why_unneeded(store: &Store, dead: &DeadLetter) -> Result<Option<String>, Failure> {
    let Some(name) = &dead.run_id else {
        return Ok(Some("it names no run".to_owned()));
    };
    let run = match store.exactly(name).await {
        Ok(run) => run,
        Err(ledger::Error::NotFound(_)) => {
            return Ok(Some(format!("the ledger has no run {name}")));
        }
        Err(error) => return Err(error.into()),
    };
    if run.state.is_over() {
        let state = run.state;
        return Ok(Some(format!(
            "the ledger of {name} is unchanged: the run is {state} without it"
        )));
    }
    let id = dead.message_id.as_deref().unwrap_or_default();
    let place = id.strip_prefix(name).and_then(|id| id.strip_prefix('/'));
    let place = place.and_then(|place| place.split_once('/'));
    let place = place.and_then(|(generation, first_row)| {
        Some((
            generation.parse::<i32>().ok()?,
            first_row.parse::<i64>().ok()?,
        ))
    });
    let Some((generation, first_row)) = place else {
        return Ok(None);
    };
    let is_there = store.has_batch(&run, first_row).await?;
    Ok((generation == run.generation && is_there)
        .then(|| format!("the ledger of {name} has the batch from row {first_row} on")))
}

/// The task of a replay from Athena that has not started to read.
fn reread_in(dead: &DeadLetter) -> Option<ExtractTask> {
    let (kind, body) = (dead.kind.as_deref()?, dead.body.as_deref()?);
    let task = read_body::<ExtractTask>(kind, body).ok()?;
    let is_reread = task.is_replay() && !matches!(task.state, TaskState::Start { .. });
    is_reread.then_some(task)
}

fn end_of_replay(end: &ReplayDropped, run: &RunId) -> String {
    match end {
        ReplayDropped::Restored => format!(
            "its replay is cancelled and the run {run} is complete, as it was before: none of its rows is lost"
        ),
        ReplayDropped::Failed => format!(
            "its replay is cancelled and the run {run} has failed, since it was not complete before; request a new run"
        ),
        ReplayDropped::NotNeeded => format!("the ledger of {run} is unchanged"),
    }
}

/// What it means to drop a dead letter that is not a batch.
fn consequence(dead: &DeadLetter) -> String {
    let run = dead.run_id.as_deref().unwrap_or("RUN");
    match dead.kind.as_deref().unwrap_or_default() {
        kind if ExtractTask::reads(kind) => format!(
            "only the dead letter is resolved: no extractor works on the run {run} any more, and it stays open until `etl cancel {run}`"
        ),
        kind if RunEvent::reads(kind) => format!(
            "only the dead letter is resolved: the ledger does not have the event. If the run {run} does not complete without it, `etl replay {run} --missing` looks for it in the archive, and `etl cancel {run}` ends the run"
        ),
        _ => {
            "only the dead letter is resolved, since it is not a message of this version".to_owned()
        }
    }
}

/// The batch in a dead letter, if it is of a batch's type. Refuses a batch that cannot be read: its rows are unknown.
fn batch_in(dead: &DeadLetter) -> Result<Option<(RunId, DroppedBatch)>, Failure> {
    let kind = dead.kind.as_deref().unwrap_or_default();
    let read = if RawBatch::reads(kind) {
        read_body::<RawBatch>(kind, body(dead)?).map(|batch| {
            let hash = ContentHash::of(&batch.columns, &batch.rows);
            (batch.id, hash, batch.result_id, batch.rows.len())
        })
    } else if ValidBatch::reads(kind) {
        read_body::<ValidBatch>(kind, body(dead)?).map(|batch| {
            let rows = batch.rows_extracted();
            (batch.id, batch.content_hash, batch.result_id, rows)
        })
    } else {
        return Ok(None);
    };
    let (id, hash, result_id, rows) = read.with_context(|| {
        let run = dead.run_id.as_deref().unwrap_or("RUN");
        format!(
            "the dead letter {} cannot be read, and the number of its rows is unknown; nothing was changed. `etl replay {run} --missing` sends the archived copy of the batch; then this dead letter is not needed",
            dead.id
        )
    })?;
    let BatchId {
        run,
        generation,
        first_row,
    } = id;
    let batch = DroppedBatch {
        generation: generation.try_into().with_context(|| {
            format!("the generation of the dead letter {} is too large", dead.id)
        })?,
        content_hash: hash.to_string(),
        result_id,
        first_row,
        rows: rows as u64,
        dead_letter: dead.id,
        received_at: dead.received_at.clone(),
    };
    Ok(Some((run, batch)))
}

impl Command for Arguments {
    /// True when every one is dropped. One that cannot be dropped does not keep the others from it.
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        if let [id] = self.ids[..] {
            show(self.json, &act(&store, id, &self.why).await?, sentence)?;
            return Ok(true);
        }
        let (mut dropped, mut refused) = (Vec::new(), Vec::new());
        for id in plan(&store, self.ids, self.run).await? {
            match act(&store, id, &self.why).await {
                Ok(one) => {
                    if !self.json {
                        print(&sentence(&one))?;
                    }
                    dropped.push(one);
                }
                Err(failure) => {
                    let why = failure.paragraph();
                    if !self.json {
                        note(&format!("the dead letter {id} was not dropped: {why}"));
                    }
                    refused.push(json!({ "id": id, "why": why }));
                }
            }
        }
        if self.json {
            print_json(&json!({ "dropped": dropped, "refused": refused }))?;
        } else {
            print(&total(size(&dropped), size(&refused)))?;
        }
        Ok(refused.is_empty())
    }
}

fn sentence(dropped: &DroppedLetter) -> String {
    match dropped {
        DroppedLetter::Batch {
            id,
            run_id,
            first_row,
            rows_dropped,
        } => format!(
            "dead letter {id} dropped: {} of the batch from row {first_row} of {run_id} on count as dropped, and the run completes without them",
            counted(i64::try_from(*rows_dropped).unwrap_or(i64::MAX), "row")
        ),
        DroppedLetter::Other {
            id, consequence, ..
        } => {
            format!("dead letter {id} dropped; {consequence}")
        }
    }
}

fn total(dropped: i64, refused: i64) -> String {
    match (dropped, refused) {
        (0, 0) => "no dead letter to drop".to_owned(),
        (dropped, 0) => format!("{} dropped", counted(dropped, "dead letter")),
        (dropped, refused) => format!("{} dropped, {refused} not", counted(dropped, "dead letter")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_dead_letters_as_text_and_as_json() {
        let batch = DroppedLetter::Batch {
            id: 17,
            run_id: "daily-2018-04-02".into(),
            first_row: 6_588,
            rows_dropped: 2_160,
        };
        let other = DroppedLetter::Other {
            id: 17,
            rows_dropped: 0,
            consequence: "only the dead letter is resolved".into(),
        };
        let mut said = Vec::new();
        for what in [&batch, &other] {
            said.push(sentence(what));
            said.push(serde_json::to_string(what).unwrap());
        }
        said.extend([(0, 0), (2, 0), (2, 1)].map(|(dropped, refused)| total(dropped, refused)));
        insta::assert_snapshot!(said.join("\n"));
    }
}
