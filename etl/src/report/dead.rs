//! `etl dead` and `etl replay`.

use super::{print, print_json, shortened, table};
use crate::Failure;
use crate::books::DeadLetter;

/// `etl dead list`.
pub(crate) fn dead_letters(letters: &[DeadLetter], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&letters);
    }
    if letters.is_empty() {
        return print("no dead letters");
    }
    let mut table = table(&["id", "message", "stage", "attempts", "since", "reason"]);
    for letter in letters {
        table.add_row([
            letter.id.to_string(),
            letter
                .message_id
                .clone()
                .unwrap_or_else(|| "without an id".to_owned()),
            letter.stage.clone(),
            letter.attempts.to_string(),
            letter.received_at.clone(),
            letter.reason.clone(),
        ]);
    }
    print(&table.to_string())
}

/// `etl dead show`.
pub(crate) fn dead_letter(letter: &DeadLetter, body: Option<&[u8]>) -> Result<(), Failure> {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let body = body.map_or_else(
        || "pruned".to_owned(),
        |body| {
            format!(
                "{} bytes: {}",
                body.len(),
                shortened(&String::from_utf8_lossy(body), 400)
            )
        },
    );
    let lines = [
        ("id", letter.id.to_string()),
        ("message", or_none(&letter.message_id)),
        ("type", or_none(&letter.kind)),
        ("queue", or_none(&letter.queue)),
        ("job", or_none(&letter.job)),
        ("run", or_none(&letter.run_id)),
        ("stage", letter.stage.clone()),
        ("attempts", letter.attempts.to_string()),
        ("since", letter.received_at.clone()),
        ("reason", letter.reason.clone()),
        (
            "resolution",
            letter
                .resolution
                .clone()
                .unwrap_or_else(|| "none yet".to_owned()),
        ),
        ("body", body),
    ];
    print(
        &lines
            .iter()
            .map(|(name, value)| format!("{name:>10}  {value}"))
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

/// `etl replay RUN --missing`, where there is nothing to do.
pub(crate) fn nothing_missing(run: &str) -> Result<(), Failure> {
    print(&format!("no batch of {run} is missing"))
}

/// `etl replay RUN --missing`.
pub(crate) fn restored(run: &str, batches: usize) -> Result<(), Failure> {
    print(&format!("{batches} batches of {run} sent again"))
}

/// `etl dead replay`.
pub(crate) fn replayed(letters: usize) -> Result<(), Failure> {
    print(&format!("{letters} dead letters sent again"))
}
