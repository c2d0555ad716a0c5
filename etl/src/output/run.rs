//! How a run reads: its sums, its end, and what there is to do about it.

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::Instant;

use super::phase::{self, Pace, Phase, accounted};
use super::progress::Progress;
use super::{by, counted, note, number, show};
use crate::Failure;
use crate::follow::{self, End, Seen};
use ledger::{DeadLetterFilter, Run, RunState, Store};

/// Dead letters that the end of a run names.
const DEAD_LETTERS: u32 = 5;

/// How long a run may stay requested before a note says what may be wrong.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// For a decision or a failure without a reason.
pub const NO_REASON: &str = "no reason is recorded";

/// Follows a run with its progress, and prints how it ended.
pub async fn follow(
    store: &Store,
    run: &str,
    limit: Option<Duration>,
    json: bool,
) -> Result<End, Failure> {
    let (mut progress, mut pace) = (Progress::default(), Pace::default());
    let (started, mut is_warned) = (Instant::now(), false);
    let end = follow::to_the_end(store, run, limit, |seen| {
        let run = match seen {
            Seen::Run(run) => run,
            Seen::Note(note) => return progress.note(&note),
        };
        let rows = accounted(run);
        let text = phase::line(run, pace.seen(Instant::now(), rows));
        progress.show(rows, run.rows_expected, Phase::of(run).name(), &text);
        if run.state == RunState::Requested && !is_warned && started.elapsed() > START_TIMEOUT {
            progress.note("the run has not started yet; check that an extractor and a loader run, on the same broker and database");
            is_warned = true;
        }
    });
    let end = tokio::select! {
        end = end => end,
        stopped = follow::interrupted() => Err(stopped.err().unwrap_or_else(|| {
            anyhow!("interrupted; the run {run} goes on: `etl status {run} --watch` follows it, `etl cancel {run}` ends it").into()
        })),
    };
    if end.is_err() {
        progress.clear();
    }
    progress.close();
    let end = end?;
    let run = &end.run;
    show(json, run, ending)?;
    super::notes(&notes(&end));
    if run.dead_letters > 0 {
        for dead in store
            .dead_letters(&DeadLetterFilter::of_run(&run.run_id), Some(DEAD_LETTERS))
            .await?
        {
            let message = dead
                .message_id
                .as_deref()
                .unwrap_or("a message without an id");
            note(&format!(
                "  {message} in the {}: {}",
                dead.stage, dead.reason
            ));
        }
    }
    Ok(end)
}

/// What is said beside the end of a run.
fn notes(end: &End) -> Vec<String> {
    let run = &end.run;
    let id = &run.run_id;
    let mut notes = Vec::new();
    if let Some(waited) = end.timed_out {
        notes.push(format!(
            "the run {id} is still {} after {}; it goes on, and `etl status {id} --watch` follows it",
            run.state,
            humantime::format_duration(waited)
        ));
    }
    if run.dead_letters > 0 {
        notes.push(format!(
            "the run {id} is blocked by {}; `etl dead list` shows why:",
            counted(run.dead_letters, "dead letter")
        ));
    }
    if let Some(why) = &run.replay_abandoned {
        notes.push(format!(
            "the replay of the run {id} was not completed: {why}"
        ));
    }
    notes.extend(removed_columns(run));
    if run.loaded_nothing() {
        notes.push(none_loaded(run));
    }
    let has_advice = |why: &String| why.contains("--retry");
    if run.state == RunState::Failed && !run.failure.as_ref().is_some_and(has_advice) {
        notes.push(format!(
            "once the cause is corrected, the same request with `--run-id {id} --retry` goes on under this name"
        ));
    }
    if run.state == RunState::Completed && run.rows_rejected > 0 {
        let were = if run.rows_rejected == 1 {
            "was"
        } else {
            "were"
        };
        notes.push(format!(
            "{} {were} rejected; `etl rejects {id}` shows why",
            counted(run.rows_rejected, "row")
        ));
    }
    notes
}

/// That the query has columns less than that of the run before.
pub fn removed_columns(run: &Run) -> Option<String> {
    let names = run.removed_columns.join(", ");
    (!names.is_empty()).then(|| {
        format!("the query no longer has {names}, which the run before loaded: rows of this run have no value there")
    })
}

/// That a run loaded nothing, and how a job allows it.
pub fn none_loaded(run: &Run) -> String {
    format!(
        "0 of {} rows of the run {} loaded; a job for which that is right has allow_all_rejected = true in [target]",
        number(run.rows_read),
        run.run_id
    )
}

/// How a run stands, in a sentence and its sums.
fn ending(run: &Run) -> String {
    let (id, target) = (&run.run_id, &run.target_table);
    match run.state {
        RunState::Completed => format!("run {id} completed{}\n  {}", took(run), sums(run)),
        RunState::Failed => format!(
            "run {id} failed: {}",
            run.failure.as_deref().unwrap_or(NO_REASON)
        ),
        RunState::Held => {
            let (what, where_) = if run.is_replay() {
                (
                    "the replay of run",
                    ", which is as it was before the replay",
                )
            } else {
                ("run", "")
            };
            format!(
                "{what} {id} is held, and none of its rows is in {target}{where_}: {}\n  {}\n  {}",
                run.held_because.as_deref().unwrap_or(NO_REASON),
                sums(run),
                choice(run)
            )
        }
        RunState::Cancelled => format!("run {id} is cancelled{}\n  {}", by_whom(run), sums(run)),
        RunState::Superseded => format!(
            "run {id} is superseded: a later run has replaced the same rows of {target}, and none of its own was committed\n  {}",
            sums(run)
        ),
        state => format!("run {id} is {state}\n  {}", sums(run)),
    }
}

/// What a person can decide about a held run.
pub fn choice(run: &Run) -> String {
    let id = &run.run_id;
    let what = if run.is_replay() {
        "the replay"
    } else {
        "the run"
    };
    format!("`etl approve {id}` commits its rows, `etl discard {id} --why ...` discards {what}")
}

/// The state of a run for a table: a run that is blocked or does not balance says so.
pub fn state(run: &Run) -> String {
    if run.dead_letters > 0 {
        format!("{}, blocked", run.state)
    } else if run.state == RunState::Completed && !run.balanced {
        format!("{}, not balanced", run.state)
    } else {
        run.state.to_string()
    }
}

/// Who cancelled a run, and why.
pub fn by_whom(run: &Run) -> String {
    let what = run
        .decision
        .as_deref()
        .filter(|what| *what != RunState::Cancelled.name());
    let what = what.map(|what| what.strip_prefix("cancelled: ").unwrap_or(what));
    let what = what.map(|what| format!(": {what}"));
    format!(
        "{}{}",
        by(run.decided_by.as_ref()),
        what.unwrap_or_default()
    )
}

/// `extracted = loaded + rejected`, and whether it is so.
pub fn sums(run: &Run) -> String {
    let deduplicated = match run.rows_deduplicated {
        0 => String::new(),
        rows => format!(" ({} deduplicated by key)", number(rows)),
    };
    let dropped = match run.rows_dropped {
        0 => String::new(),
        rows => format!(" + {} dropped", number(rows)),
    };
    let balance = match (run.balanced, run.state.is_over()) {
        // As `etl reconcile` says it.
        (true, true) if run.dead_letters > 0 => "NOT BALANCED, since it has dead letters",
        (true, _) => "balanced",
        // It ended before its end, and the ledger has what was loaded until then.
        (false, true) if matches!(run.state, RunState::Cancelled | RunState::Failed) => {
            "not complete"
        }
        (false, true) => "NOT BALANCED",
        (false, false) => "not over yet",
    };
    format!(
        "{} rows extracted = {} loaded{deduplicated} + {} rejected{dropped}: {balance}",
        number(run.rows_expected.unwrap_or(run.rows_read)),
        number(run.rows_loaded),
        number(run.rows_rejected),
    )
}

/// ` in 5.5 s`, of a run that is over.
pub fn took(run: &Run) -> String {
    match run.finished_at {
        Some(_) => format!(" in {:.1} s", run.seconds),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn every_ending_is_a_sentence_with_what_to_do() {
        let all: Vec<_> = samples::runs().iter().map(ending).collect();
        insta::assert_snapshot!(all.join("\n\n"));
    }

    #[test]
    fn complete_run_with_dead_letters_is_not_balanced() {
        let mut run = samples::completed();
        assert!(sums(&run).ends_with(": balanced"));
        run.dead_letters = 1;
        assert!(sums(&run).contains("NOT BALANCED"));
    }

    #[test]
    fn table_says_which_completed_run_does_not_balance() {
        let mut run = samples::completed();
        assert_eq!(state(&run), "completed");
        run.balanced = false;
        assert_eq!(state(&run), "completed, not balanced");
        run.dead_letters = 1;
        assert_eq!(state(&run), "completed, blocked");
    }

    #[test]
    fn run_as_json() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&samples::completed()).unwrap());
    }
}
