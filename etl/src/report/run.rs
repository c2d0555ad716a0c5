//! How a run is told of where it ends, and in `etl status RUN`.

use common::message::RunId;
use indicatif::HumanBytes;
use serde_json::json;

use super::{note, number, print, print_json};
use crate::Failure;
use crate::books::{Books, Run};

/// What `etl run` answers without `--follow`: the run's name alone, for a script.
pub(crate) fn requested(run: &RunId, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&json!({ "run_id": run }))
    } else {
        print(run.as_str())
    }
}

/// The end of `etl run --follow`: true when every row is accounted for.
pub(crate) async fn outcome(books: &Books, run: &Run, json: bool) -> Result<bool, Failure> {
    if json {
        print_json(run)?;
        return Ok(run.is_complete());
    }
    let id = &run.run_id;
    match run.state.as_str() {
        "completed" => print(&format!("run {id} completed{}\n{}", took(run), sums(run)))?,
        "failed" => print(&format!(
            "run {id} failed: {}",
            run.failure.as_deref().unwrap_or("no reason was given")
        ))?,
        state => print(&format!("run {id} is {state}\n{}", sums(run)))?,
    }
    if run.dead_letters > 0 {
        note(&format!(
            "the run is stuck: {} of its messages could not be handled; `etl dead list` shows them",
            number(run.dead_letters)
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
    if run.state == "completed" && run.rows_rejected > 0 {
        note(&format!(
            "{} rows were rejected; `etl rejects {id}` shows why",
            number(run.rows_rejected)
        ));
    }
    Ok(run.is_complete())
}

/// `extracted = loaded + rejected`, and whether it is so.
fn sums(run: &Run) -> String {
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
        "  {} rows extracted = {} loaded{collapsed} + {} rejected{dropped}: {}",
        number(run.rows_expected.unwrap_or(run.rows_read)),
        number(run.rows_loaded),
        number(run.rows_rejected),
        balance(run),
    )
}

fn balance(run: &Run) -> &'static str {
    match (run.balanced, run.is_over()) {
        (true, _) => "balanced",
        (false, true) => "NOT BALANCED",
        (false, false) => "not over yet",
    }
}

fn took(run: &Run) -> String {
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    let span = run
        .finished_at
        .as_deref()
        .and_then(time)
        .zip(time(&run.requested_at))
        .map(|(end, start)| end.duration_since(start));
    span.map(|span| format!(" in {:.1} s", span.as_secs_f64()))
        .unwrap_or_default()
}

/// `etl status RUN`.
pub(crate) fn status(run: &Run, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(run);
    }
    let parameters = run
        .parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(" ");
    let batches = match run.batches_expected {
        Some(expected) => format!("{} of {}", number(run.batches), number(expected.into())),
        None => format!("{}, of how many is not known yet", number(run.batches)),
    };
    let mut lines: Vec<(&str, String)> = vec![
        (
            "run",
            format!(
                "{} (number {}, generation {})",
                run.run_id, run.run_no, run.generation
            ),
        ),
        ("job", format!("{} {parameters}", run.job)),
        ("target", format!("{} ({})", run.target_table, run.mode)),
        ("state", format!("{}{}", run.state, took(run))),
        ("requested", run.requested_at.clone()),
        (
            "query",
            run.query_execution_id
                .clone()
                .unwrap_or_else(|| "not started".to_owned()),
        ),
        ("batches", batches),
        ("rows", sums(run).trim_start().to_owned()),
    ];
    lines.extend(remarks(run));
    print(
        &lines
            .iter()
            .map(|(name, value)| format!("{name:>10}  {}", value.trim_end()))
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

/// What is only said of a run when there is something to say.
fn remarks(run: &Run) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(bytes) = run.bytes_scanned {
        lines.push((
            "scanned",
            HumanBytes(u64::try_from(bytes).unwrap_or(0)).to_string(),
        ));
    }
    if let Some(failure) = &run.failure {
        lines.push(("failure", failure.clone()));
    }
    if run.dead_letters > 0 {
        lines.push((
            "stuck",
            format!(
                "{} dead letters (`etl dead list`)",
                number(run.dead_letters)
            ),
        ));
    }
    if run.late_messages > 0 {
        lines.push((
            "late",
            format!(
                "{} messages came after the run was over and changed nothing",
                number(run.late_messages)
            ),
        ));
    }
    lines
}
