//! What `etl` prints: tables for people, JSON for scripts, both on standard output.

use std::io::{Write, stdout};

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use common::message::RunId;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use serde_json::json;

use crate::Failure;
use crate::books::{Books, DeadLetter, RejectedRow, Run, shown};

/// A remark to the user, beside the result.
#[expect(clippy::print_stderr, reason = "a command talks to its user")]
pub(crate) fn note(text: &str) {
    eprintln!("etl: {text}");
}

/// A result. A reader that went away (`| head`) is not an error.
fn print(text: &str) -> Result<(), Failure> {
    match writeln!(stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(error).context("cannot print").into())
        }
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value).context("cannot write JSON")?)
}

fn number(rows: i64) -> String {
    HumanCount(u64::try_from(rows).unwrap_or(0)).to_string()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

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

/// `etl status`: the latest runs, a line each.
pub(crate) fn runs(runs: &[Run], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&runs);
    }
    if runs.is_empty() {
        return print("no runs yet; `etl run JOB` asks for one");
    }
    let mut table = table(&[
        "run",
        "state",
        "extracted",
        "loaded",
        "rejected",
        "balanced",
        "requested",
    ]);
    for run in runs {
        let balanced = if run.balanced {
            "yes"
        } else if run.is_over() {
            "no"
        } else {
            "not yet"
        };
        let state = if run.dead_letters > 0 {
            format!("{}, stuck", run.state)
        } else {
            run.state.clone()
        };
        table.add_row([
            run.run_id.clone(),
            state,
            number(run.rows_read),
            number(run.rows_loaded),
            number(run.rows_rejected),
            balanced.to_owned(),
            run.requested_at.clone(),
        ]);
    }
    align_numbers(&mut table, 2..5);
    print(&table.to_string())
}

fn align_numbers(table: &mut Table, columns: std::ops::Range<usize>) {
    for index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
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

/// `etl reconcile`: true when every run that is over balances, and the one that was named is over.
pub(crate) async fn reconcile(books: &Books, runs: &[Run], json: bool) -> Result<bool, Failure> {
    let mut reports = Vec::new();
    let mut table = table(&[
        "run",
        "state",
        "extracted",
        "loaded",
        "rejected",
        "dropped",
        "batches",
        "verdict",
    ]);
    let mut all_true = true;
    for run in runs {
        let missing = books.missing(run).await?;
        let (is_true, verdict) = verdict(run, &missing, runs.len() == 1);
        all_true &= is_true;
        let expected = run
            .batches_expected
            .map_or_else(|| "?".to_owned(), |expected| number(expected.into()));
        table.add_row([
            run.run_id.clone(),
            run.state.clone(),
            number(run.rows_expected.unwrap_or(run.rows_read)),
            number(run.rows_loaded),
            number(run.rows_rejected),
            number(run.rows_dropped),
            format!("{} of {expected}", number(run.batches)),
            verdict.clone(),
        ]);
        reports.push(
            json!({ "run": run, "missing": missing, "verdict": verdict, "balanced": is_true }),
        );
    }
    align_numbers(&mut table, 2..7);
    if runs.is_empty() {
        note(
            "there are no runs in these books, and so nothing is proven; is ETL_DATABASE_URL right?",
        );
    }
    if json {
        print_json(&reports)?;
    } else if runs.is_empty() {
        return Ok(false);
    } else {
        print(&table.to_string())?;
    }
    Ok(all_true && !runs.is_empty())
}

/// Whether a run's books balance, and what to say of it.
fn verdict(run: &Run, missing: &[(i32, i32)], alone: bool) -> (bool, String) {
    match run.state.as_str() {
        "completed" if run.is_complete() => (true, "extracted = loaded + rejected".to_owned()),
        state @ ("failed" | "cancelled") if run.rows_loaded == 0 => {
            (!alone, format!("{state}, no row of it is in the target"))
        }
        state @ ("failed" | "cancelled") => {
            let loaded = number(run.rows_loaded);
            (
                false,
                format!("{state}, and {loaded} rows of it are in the target"),
            )
        }
        "requested" | "running" if run.dead_letters == 0 => (!alone, "not over yet".to_owned()),
        _ => {
            let mut problems = Vec::new();
            if run.dead_letters > 0 {
                problems.push(format!("{} dead letters", number(run.dead_letters)));
            }
            if !missing.is_empty() {
                problems.push(format!(
                    "missing batches {}; `etl replay {} --missing` sends them again",
                    shown(missing),
                    run.run_id
                ));
            }
            if !run.balanced && missing.is_empty() {
                problems.push("the rows do not add up".to_owned());
            }
            (false, format!("NOT BALANCED: {}", problems.join("; ")))
        }
    }
}

/// `etl rejects RUN`.
pub(crate) async fn rejects(
    books: &Books,
    run: &Run,
    limit: u32,
    json: bool,
) -> Result<(), Failure> {
    if json {
        return print_json(&books.rejected_rows(run, None).await?);
    }
    let counts = books.reject_counts(run).await?;
    if counts.is_empty() {
        return print(&format!("no row of {} was rejected", run.run_id));
    }
    let mut summary = table(&["column", "rule", "rows"]);
    for count in &counts {
        summary.add_row([
            count.column_name.clone().unwrap_or_default(),
            count.rule.clone(),
            number(count.rows),
        ]);
    }
    align_numbers(&mut summary, 2..3);
    print(&summary.to_string())?;
    let mut listed = table(&["row", "column", "rule", "reason", "raw values"]);
    for row in books.rejected_rows(run, Some(limit)).await? {
        let RejectedRow {
            row_number,
            column_name,
            rule,
            reason,
            raw,
            ..
        } = row;
        let raw = raw.map_or_else(|| "pruned".to_owned(), |raw| raw.0.get().to_owned());
        listed.add_row([
            number(row_number),
            column_name.unwrap_or_default(),
            rule,
            reason,
            shortened(&raw, 200),
        ]);
    }
    print(&listed.to_string())?;
    if run.rows_rejected > i64::from(limit) {
        note(&format!(
            "the first {limit} of {}; --limit shows more, --json all",
            number(run.rows_rejected)
        ));
    }
    Ok(())
}

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

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
