//! `etl dead`.

use comfy_table::Table;
use serde::Serialize;
use serde_json::{Value, json};

use super::{counted, note, print, print_json, shortened, table};
use crate::Failure;
use crate::books::DeadLetter;

/// `etl dead list`: these of so many.
pub(crate) fn dead_letters(
    letters: &[DeadLetter],
    all: u64,
    is_filtered: bool,
    json: bool,
) -> Result<(), Failure> {
    if json {
        return print_json(&letters);
    }
    if letters.is_empty() {
        return print(if is_filtered {
            "no such dead letters"
        } else {
            "no dead letters"
        });
    }
    print(&list(letters).to_string())?;
    if all > letters.len() as u64 {
        note(&format!(
            "the first {} of {all}; --limit shows more, --json all, and --run, --job and --stage choose",
            letters.len()
        ));
    }
    Ok(())
}

fn list(letters: &[DeadLetter]) -> Table {
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
    table
}

/// `etl dead show`.
pub(crate) fn dead_letter(letter: &DeadLetter, json: bool) -> Result<(), Failure> {
    if json {
        print_json(letter)
    } else {
        print(&described(letter))
    }
}

fn described(letter: &DeadLetter) -> String {
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
    let lines: Vec<_> = lines
        .iter()
        .map(|(name, value)| format!("{name:>10}  {value}"))
        .collect();
    lines.join("\n")
}

/// `etl dead replay`.
pub(crate) fn replayed(ids: &[i64], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&json!({ "replayed": ids }));
    }
    print(&replayed_text(ids.len().try_into().unwrap_or(i64::MAX)))
}

fn replayed_text(letters: i64) -> String {
    match letters {
        0 => "there is no dead letter to send again".to_owned(),
        _ => format!("{} sent again", counted(letters, "dead letter")),
    }
}

/// What became of the books when a dead letter was dropped.
pub(crate) enum DroppedLetter {
    /// Rows of a batch count as dropped.
    Batch {
        id: i64,
        run: String,
        seq: i32,
        rows: i64,
    },
    /// No row does, and what that means.
    Other { id: i64, consequence: String },
}

/// One of many that could not be dropped.
#[derive(Debug, Serialize)]
pub(crate) struct UndroppedLetter {
    pub(crate) id: i64,
    pub(crate) why: String,
}

/// `etl dead drop ID`.
pub(crate) fn dropped(what: &DroppedLetter, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&dropped_json(what))
    } else {
        print(&dropped_text(what))
    }
}

/// `etl dead drop` of many: one of them, as soon as it is done.
pub(crate) fn one_of_many(what: &Result<DroppedLetter, UndroppedLetter>) -> Result<(), Failure> {
    match what {
        Ok(dropped) => print(&dropped_text(dropped)),
        Err(refused) => {
            note(&refused_text(refused));
            Ok(())
        }
    }
}

/// `etl dead drop` of many: all of them.
pub(crate) fn dropped_many(
    done: &[Result<DroppedLetter, UndroppedLetter>],
    json: bool,
) -> Result<(), Failure> {
    if json {
        print_json(&many_json(done))
    } else {
        print(&many_text(done))
    }
}

fn refused_text(refused: &UndroppedLetter) -> String {
    format!(
        "the dead letter {} was not dropped: {}",
        refused.id, refused.why
    )
}

fn many_text(done: &[Result<DroppedLetter, UndroppedLetter>]) -> String {
    let count = |count: usize| counted(count.try_into().unwrap_or(i64::MAX), "dead letter");
    let refused = done.iter().filter(|what| what.is_err()).count();
    match (done.len(), refused) {
        (0, _) => "there is no dead letter to drop".to_owned(),
        (all, 0) => format!("{} dropped", count(all)),
        (all, refused) => format!("{} dropped, {refused} not", count(all - refused)),
    }
}

fn many_json(done: &[Result<DroppedLetter, UndroppedLetter>]) -> Value {
    let dropped: Vec<_> = done.iter().flatten().map(dropped_json).collect();
    let refused: Vec<_> = done.iter().filter_map(|what| what.as_ref().err()).collect();
    json!({ "dropped": dropped, "refused": refused })
}

fn dropped_text(what: &DroppedLetter) -> String {
    match what {
        DroppedLetter::Batch { id, run, seq, rows } => format!(
            "dead letter {id} dropped: {} of batch {seq} of {run} count as dropped, and the run completes without them",
            counted(*rows, "row")
        ),
        DroppedLetter::Other { id, consequence } => {
            format!("dead letter {id} dropped; {consequence}")
        }
    }
}

fn dropped_json(what: &DroppedLetter) -> Value {
    match what {
        DroppedLetter::Batch { id, run, seq, rows } => {
            json!({ "id": id, "run_id": run, "seq": seq, "rows_dropped": rows })
        }
        DroppedLetter::Other { id, consequence } => {
            json!({ "id": id, "rows_dropped": 0, "consequence": consequence })
        }
    }
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
    use crate::report::on_a_terminal;

    #[test]
    fn an_age_is_a_number_that_means_something() {
        let shown = [3, 119, 120, 7_199, 7_200, 172_799, 172_800].map(age);
        assert_eq!(
            shown,
            ["3 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]
        );
    }

    fn letters() -> Vec<DeadLetter> {
        let batch = DeadLetter {
            id: 17,
            message_id: Some("daily-2018-04-02/0/3".into()),
            stage: "loader".into(),
            reason: "\"public\".\"clicks\" has no column \"_batch\"; run: ALTER TABLE \"public\".\"clicks\" ADD COLUMN \"_batch\" bigint".into(),
            attempts: 5,
            job: Some("clicks".into()),
            run_id: Some("daily-2018-04-02".into()),
            queue: Some("etl.valid".into()),
            kind: Some("valid-batch.v1".into()),
            received_at: "2018-04-03T02:00:11Z".into(),
            age_seconds: 260,
            resolution: None,
            body_bytes: Some(195_203),
            body_start: r#"{"id":{"run":"daily-2018-04-02","generation":0,"seq":3},"first_row":6588,"result_id":"4bcb4933"#.into(),
        };
        let junk = DeadLetter {
            id: 18,
            message_id: None,
            stage: "transformer".into(),
            reason: "it has no type, and so it is no message of this system".into(),
            attempts: 1,
            job: None,
            run_id: None,
            queue: Some("etl.raw".into()),
            kind: None,
            received_at: "2018-04-03T02:00:12Z".into(),
            age_seconds: 200_000,
            resolution: Some("dropped by ana: a test of Monday, see mail".into()),
            body_bytes: None,
            body_start: String::new(),
        };
        vec![batch, junk]
    }

    #[test]
    fn letters_on_a_terminal() {
        let listed = on_a_terminal(list(&letters()), 130);
        let shown: Vec<_> = letters().iter().map(described).collect();
        insta::assert_snapshot!(format!("{listed}\n\n{}", shown.join("\n\n")));
    }

    #[test]
    fn letters_as_json() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&letters()).unwrap());
    }

    #[test]
    fn what_became_of_them() {
        let batch = DroppedLetter::Batch {
            id: 17,
            run: "daily-2018-04-02".into(),
            seq: 3,
            rows: 2_160,
        };
        let other = DroppedLetter::Other {
            id: 17,
            consequence: "only the letter is dealt with".into(),
        };
        let mut said: Vec<_> = [0, 1, 2].map(replayed_text).into();
        for what in [&batch, &other] {
            said.push(dropped_text(what));
            said.push(dropped_json(what).to_string());
        }
        let refused = UndroppedLetter {
            id: 18,
            why: "its body was pruned".into(),
        };
        said.push(refused_text(&refused));
        said.push(many_text(&[]));
        let done = [Ok(batch), Ok(other), Err(refused)];
        said.push(many_text(&done[..2]));
        said.push(many_text(&done));
        said.push(many_json(&done).to_string());
        insta::assert_snapshot!(said.join("\n"));
    }
}
