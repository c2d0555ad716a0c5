//! The summary of a backfill.

use comfy_table::Table;
use serde::Serialize;

use super::run::by_whom;
use super::{align_numbers, note, number, print, print_json, table};
use crate::Failure;
use crate::books::Run;

/// A window and its run, if there is one yet.
#[derive(Debug, Serialize)]
pub(crate) struct WindowReport {
    pub(crate) from: String,
    /// The day after its last.
    pub(crate) until: String,
    pub(crate) run: Option<Run>,
}

impl WindowReport {
    /// Whether the window's rows are in the target, all accounted for; by this run or, where it is
    /// superseded, by a later one.
    fn is_loaded(&self) -> bool {
        let is_loaded = |run: &Run| run.is_complete() || run.state == "superseded";
        self.run.as_ref().is_some_and(is_loaded)
    }
}

/// `etl backfill`: true when every window is loaded.
pub(crate) fn backfilled(windows: &[WindowReport], json: bool) -> Result<bool, Failure> {
    if json {
        print_json(&windows)?;
    } else {
        print(&list(windows).to_string())?;
        print(&total(windows))?;
    }
    for remark in remarks(windows) {
        note(&remark);
    }
    Ok(windows.iter().all(WindowReport::is_loaded))
}

fn list(windows: &[WindowReport]) -> Table {
    let mut table = table(&[
        "from",
        "until",
        "run",
        "state",
        "extracted",
        "loaded",
        "rejected",
    ]);
    for window in windows {
        let Some(run) = &window.run else {
            table.add_row([&window.from, &window.until, "", "not begun", "", "", ""]);
            continue;
        };
        let state = if run.waits_for_a_person() && run.state != "held" {
            format!("{}, stuck", run.state)
        } else if run.state == "completed" && !run.is_complete() {
            "completed, NOT BALANCED".to_owned()
        } else {
            run.state.clone()
        };
        table.add_row([
            window.from.clone(),
            window.until.clone(),
            run.run_id.clone(),
            state,
            number(run.rows_read),
            number(run.rows_loaded),
            number(run.rows_rejected),
        ]);
    }
    align_numbers(&mut table, 4..7);
    table
}

fn total(windows: &[WindowReport]) -> String {
    let sum = |rows: fn(&Run) -> i64| {
        number(
            windows
                .iter()
                .filter_map(|one| one.run.as_ref())
                .map(rows)
                .sum(),
        )
    };
    format!(
        "{} of {} windows loaded: {} rows extracted, {} loaded, {} rejected",
        windows.iter().filter(|one| one.is_loaded()).count(),
        windows.len(),
        sum(|run| run.rows_read),
        sum(|run| run.rows_loaded),
        sum(|run| run.rows_rejected)
    )
}

/// What is left to do, and how.
fn remarks(windows: &[WindowReport]) -> Vec<String> {
    let mut remarks = Vec::new();
    let runs = windows.iter().filter_map(|one| one.run.as_ref());
    for run in runs
        .clone()
        .filter(|run| matches!(run.state.as_str(), "failed" | "cancelled"))
    {
        let why = run.failure.as_ref().map(|why| format!(": {why}"));
        remarks.push(format!(
            "{} {}{}",
            run.run_id,
            run.state,
            why.unwrap_or_else(|| by_whom(run))
        ));
    }
    if !remarks.is_empty() {
        remarks.push("the same command with --retry asks for these windows again, under the next name; with --keep-going for those that were not begun".to_owned());
    }
    for run in runs.filter(|run| run.waits_for_a_person()) {
        let id = &run.run_id;
        remarks.push(if run.state == "held" {
            format!("{id} is held; `etl approve {id}` or `etl discard {id} --why ...`")
        } else {
            format!("{id} is stuck; `etl dead list` shows why")
        });
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{on_a_terminal, samples};

    fn windows() -> Vec<WindowReport> {
        let runs = samples::runs().into_iter().map(Some).chain([None]);
        let windows = runs.enumerate().map(|(day, run)| WindowReport {
            from: format!("2018-04-{:02}", day + 1),
            until: format!("2018-04-{:02}", day + 2),
            run,
        });
        windows.collect()
    }

    #[test]
    fn on_a_terminal_with_what_is_left_to_do() {
        let windows = windows();
        let shown = on_a_terminal(list(&windows), 120);
        insta::assert_snapshot!(format!(
            "{shown}\n{}\n{}",
            total(&windows),
            remarks(&windows).join("\n")
        ));
    }

    #[test]
    fn as_json() {
        let mut windows = windows();
        windows.drain(..7);
        insta::assert_snapshot!(serde_json::to_string_pretty(&windows).unwrap());
    }
}
