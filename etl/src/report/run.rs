//! How a run ended, for whoever asked for it or followed it.

use common::message::RunId;
use serde_json::json;

use super::{counted, note, number, print, print_json};
use crate::Failure;
use crate::books::{Books, Run};
use crate::follow::End;

/// What `etl run` answers without `--follow`: the run's name alone, for a script.
pub(crate) fn requested(run: &RunId, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&json!({ "run_id": run }))
    } else {
        print(run.as_str())
    }
}

/// The end of `--follow`: true when every row is accounted for.
pub(crate) async fn outcome(books: &Books, end: &End, json: bool) -> Result<bool, Failure> {
    let (run, waited) = match end {
        End::There(run) => (run, None),
        End::TooLong(run, waited) => (run, Some(*waited)),
    };
    if json {
        print_json(run)?;
    } else {
        print(&ending(run))?;
    }
    if let Some(waited) = waited {
        let id = &run.run_id;
        note(&format!(
            "the run {id} is still {} after {}; it goes on, and `etl status {id} --watch` follows it",
            run.state,
            humantime::format_duration(waited)
        ));
    }
    if run.dead_letters > 0 {
        note(&format!(
            "the run is stuck: {} could not be handled; `etl dead list` shows why",
            counted(run.dead_letters, "message")
        ));
        for letter in books.dead_letters(Some(run), Some(5)).await? {
            note(&format!(
                "  {} in the {}: {}",
                letter.message_id.as_deref().unwrap_or("?"),
                letter.stage,
                letter.reason
            ));
        }
    }
    if let Some(why) = &run.replay_given_up {
        note(&format!("its replay was {why}"));
    }
    if run.state == "completed" && run.rows_rejected > 0 {
        note(&format!(
            "{} {} rejected; `etl rejects {}` shows why",
            counted(run.rows_rejected, "row"),
            if run.rows_rejected == 1 {
                "was"
            } else {
                "were"
            },
            run.run_id
        ));
    }
    Ok(run.is_complete() && waited.is_none())
}

/// How a run stands, in a sentence and its sums.
fn ending(run: &Run) -> String {
    let id = &run.run_id;
    match run.state.as_str() {
        "completed" => format!("run {id} completed{}\n  {}", took(run), sums(run)),
        "failed" => format!(
            "run {id} failed: {}",
            run.failure.as_deref().unwrap_or("no reason was given")
        ),
        "held" if run.generation > 0 => format!(
            "the replay of run {id} is held, and none of its rows is in {}, where everything is as it was before it: {}\n  {}\n  `etl approve {id}` publishes it all the same, `etl discard {id} --why ...` gives the replay up",
            run.target_table,
            run.held_because.as_deref().unwrap_or("no reason was given"),
            sums(run)
        ),
        "held" => format!(
            "run {id} is held, and none of its rows is in {}: {}\n  {}\n  `etl approve {id}` publishes it all the same, `etl discard {id} --why ...` gives it up",
            run.target_table,
            run.held_because.as_deref().unwrap_or("no reason was given"),
            sums(run)
        ),
        "cancelled" => format!("run {id} is cancelled{}\n  {}", by_whom(run), sums(run)),
        "superseded" => format!(
            "run {id} is superseded: a later run has replaced the same rows of {}, and none of its own was published\n  {}",
            run.target_table,
            sums(run)
        ),
        state => format!("run {id} is {state}\n  {}", sums(run)),
    }
}

/// Who decided about a run that is cancelled, and what and why.
pub(super) fn by_whom(run: &Run) -> String {
    let who = run.decided_by.as_ref().map(|who| format!(" by {who}"));
    // That it is cancelled was said.
    let what = run.decision.as_deref().filter(|what| *what != "cancelled");
    let what = what.map(|what| what.strip_prefix("cancelled: ").unwrap_or(what));
    let what = what.map(|what| format!(": {what}"));
    format!("{}{}", who.unwrap_or_default(), what.unwrap_or_default())
}

/// `extracted = loaded + rejected`, and whether it is so.
pub(super) fn sums(run: &Run) -> String {
    let collapsed = if run.rows_collapsed > 0 {
        format!(
            " ({} collapsed into another row of the same key)",
            number(run.rows_collapsed)
        )
    } else {
        String::new()
    };
    let dropped = if run.rows_dropped > 0 {
        format!(" + {} dropped", number(run.rows_dropped))
    } else {
        String::new()
    };
    format!(
        "{} rows extracted = {} loaded{collapsed} + {} rejected{dropped}: {}",
        number(run.rows_expected.unwrap_or(run.rows_read)),
        number(run.rows_loaded),
        number(run.rows_rejected),
        balance(run),
    )
}

fn balance(run: &Run) -> &'static str {
    match (run.balanced, run.is_over()) {
        (true, _) => "balanced",
        // It was ended before its end, and the ledger has what came until then.
        (false, true) if matches!(run.state.as_str(), "cancelled" | "failed") => "not complete",
        (false, true) => "NOT BALANCED",
        (false, false) => "not over yet",
    }
}

/// ` in 5.5 s`, of a run that is over.
pub(super) fn took(run: &Run) -> String {
    if run.finished_at.is_some() {
        format!(" in {:.1} s", run.seconds)
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn every_end_is_a_sentence_with_what_to_do() {
        let all: Vec<_> = samples::runs().iter().map(ending).collect();
        insta::assert_snapshot!(all.join("\n\n"));
    }

    #[test]
    fn as_json() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&samples::completed()).unwrap());
    }
}
