//! `etl dead show`: one dead letter.

use common::message::{Message, RawBatch, ValidBatch};
use common::queue::read_body;
use serde::Serialize;

use super::{age, beginning, parse_id};
use crate::Failure;
use crate::commands::Command;
use crate::output::{Sheet, show};
use crate::store;
use ledger::{DeadLetter, DeadLetterSummary, Store};

/// Characters of a body that are shown.
const BODY: usize = 400;

/// Show one dead letter with the beginning of its body.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl dead show 17")]
pub struct Arguments {
    /// Its number, as the list has it.
    #[arg(value_parser = parse_id)]
    pub id: i64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A dead letter, its body as text where it is a batch.
pub async fn plan(store: &Store, id: i64) -> Result<DeadLetterSummary, Failure> {
    let mut dead = store.dead_letter_summary(id).await?;
    if let Some(text) = readable(&store.dead_letter(id).await?) {
        dead.body_start = text;
    }
    Ok(dead)
}

/// The beginning of a batch as text: its body is packed.
fn readable(dead: &DeadLetter) -> Option<String> {
    fn json<M: Message + Serialize>(kind: &str, body: &[u8]) -> Option<String> {
        serde_json::to_string(&read_body::<M>(kind, body).ok()?).ok()
    }
    let (kind, body) = (dead.kind.as_deref()?, dead.body.as_deref()?);
    let text = if RawBatch::reads(kind) {
        json::<RawBatch>(kind, body)?
    } else if ValidBatch::reads(kind) {
        json::<ValidBatch>(kind, body)?
    } else {
        return None;
    };
    Some(text.chars().take(BODY).collect())
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let dead = plan(&store::open().await?, self.id).await?;
        show(self.json, &dead, described)?;
        Ok(true)
    }
}

fn described(dead: &DeadLetterSummary) -> String {
    let mut sheet = Sheet::new(10);
    sheet.add("id", dead.id.to_string());
    for (name, value) in [
        ("message", &dead.message_id),
        ("type", &dead.kind),
        ("queue", &dead.queue),
        ("job", &dead.job),
        ("run", &dead.run_id),
    ] {
        sheet.add(name, value.as_deref().unwrap_or("none"));
    }
    sheet.add("stage", &dead.stage);
    sheet.add("attempts", dead.attempts.to_string());
    let age = age(dead.age_seconds);
    sheet.add("since", format!("{}, {age} ago", dead.received_at));
    sheet.add("reason", &dead.reason);
    let resolution = dead.resolution.as_deref();
    sheet.add("resolution", resolution.unwrap_or("none yet"));
    if dead.resolution.is_none() {
        sheet.add("next", next(dead));
    }
    let bytes = dead.body_bytes.map(|bytes| format!("{bytes} bytes: "));
    sheet.add("body", bytes.unwrap_or_default() + &beginning(dead, BODY));
    sheet.text()
}

/// What can be done about it. A message has the job of its run's request, or of its replay.
fn next(dead: &DeadLetterSummary) -> String {
    let id = dead.id;
    let again = format!("when the cause is fixed, `etl dead replay {id}` sends it again as it is");
    match &dead.run_id {
        Some(run) => format!(
            "{again}; after a change of the job, `etl replay {run}` sends the run's batches with it"
        ),
        None => again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::dead::tests::samples;

    #[test]
    fn dead_letter_is_shown_with_its_reason_and_its_body() {
        let shown: Vec<_> = samples().iter().map(described).collect();
        insta::assert_snapshot!(shown.join("\n\n"));
    }
}
