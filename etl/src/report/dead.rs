//! `etl dead`.

use super::{note, print, print_json, shortened, table};
use crate::Failure;
use crate::books::DeadLetter;

/// `etl dead list`: these of so many.
pub(crate) fn dead_letters(letters: &[DeadLetter], all: u64, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&letters);
    }
    if letters.is_empty() {
        return print("no dead letters");
    }
    let mut table = table(&[
        "id", "message", "job", "stage", "attempts", "age", "reason", "body",
    ]);
    for letter in letters {
        table.add_row([
            letter.id.to_string(),
            letter
                .message_id
                .clone()
                .or_else(|| letter.run_id.clone())
                .unwrap_or_else(|| "without an id".to_owned()),
            letter.job.clone().unwrap_or_default(),
            letter.stage.clone(),
            letter.attempts.to_string(),
            age(letter.age_seconds),
            letter.reason.clone(),
            body(letter, 40),
        ]);
    }
    print(&table.to_string())?;
    if all > letters.len() as u64 {
        note(&format!(
            "the first {} of {all}; --limit shows more, --json all, and --run, --job and --stage choose",
            letters.len()
        ));
    }
    Ok(())
}

/// `etl dead show`.
pub(crate) fn dead_letter(letter: &DeadLetter) -> Result<(), Failure> {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let bytes = letter
        .body_bytes
        .map_or_else(String::new, |bytes| format!("{bytes} bytes: "));
    let lines = [
        ("id", letter.id.to_string()),
        ("message", or_none(&letter.message_id)),
        ("type", or_none(&letter.kind)),
        ("queue", or_none(&letter.queue)),
        ("job", or_none(&letter.job)),
        ("run", or_none(&letter.run_id)),
        ("stage", letter.stage.clone()),
        ("attempts", letter.attempts.to_string()),
        (
            "since",
            format!("{}, {} ago", letter.received_at, age(letter.age_seconds)),
        ),
        ("reason", letter.reason.clone()),
        (
            "resolution",
            letter
                .resolution
                .clone()
                .unwrap_or_else(|| "none yet".to_owned()),
        ),
        ("body", format!("{bytes}{}", body(letter, 400))),
    ];
    print(
        &lines
            .iter()
            .map(|(name, value)| format!("{name:>10}  {value}"))
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

/// `etl dead replay`.
pub(crate) fn replayed(letters: usize) -> Result<(), Failure> {
    print(&format!("{letters} dead letters sent again"))
}

/// `etl dead drop` of a batch.
pub(crate) fn dropped_batch(id: i64, run: &str, seq: i32, rows: i64) -> Result<(), Failure> {
    print(&format!(
        "dead letter {id} dropped: {rows} rows of batch {seq} of {run} count as dropped, and the run completes without them"
    ))
}

/// `etl dead drop` of anything else.
pub(crate) fn dropped_letter(id: i64, consequence: &str) -> Result<(), Failure> {
    print(&format!("dead letter {id} dropped; {consequence}"))
}

fn body(letter: &DeadLetter, most: usize) -> String {
    match letter.body_bytes {
        None => "pruned".to_owned(),
        Some(_) => shortened(&letter.body_start, most),
    }
}

/// `3 s`, `12 min`, `5 h`, `9 d`.
fn age(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_number_that_means_something() {
        let shown = [3, 119, 120, 7_199, 7_200, 172_799, 172_800].map(age);
        assert_eq!(
            shown,
            ["3 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]
        );
    }
}
