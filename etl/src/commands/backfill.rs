//! `etl backfill`: a run for each window of a range of days, a number of them at a time.
//!
//! Only the ledger remembers a backfill. The name of a window's run follows from the command, so that the same command
//! finds the runs that it requested before, and continues.

mod windows;
mod work;

use anyhow::anyhow;
use comfy_table::Table;
use common::command::assignment;
use common::job::{Job, Request};
use jiff::civil::Date;
use serde::Serialize;

pub use windows::{Bound, Step, Window};
use windows::{Bounds, Identity, windows};
pub use work::{Event, act};

use super::Command;
use crate::Failure;
use crate::broker::Broker;
use crate::jobs::{Jobs, filled_in};
use crate::output::progress::Progress;
use crate::output::run::{by_whom, choice, none_loaded, state};
use crate::output::{counted, note, notes, number, show, size, table};
use crate::store;
use ledger::{Run, RunState};

/// Request a run for each window of a range of days.
///
/// The last day is not included. The same command continues where it stopped: each window has one run, whose name follows from the job, the range and
/// the window.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
#[command(
    after_help = "Example: etl backfill clicks --from 2018-04-01 --to 2018-05-01 --every 1d --parallel 3"
)]
pub struct Arguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    pub job: String,
    /// The first day.
    #[arg(long, value_name = "DAY")]
    pub from: Date,
    /// The day after the last.
    #[arg(long, value_name = "DAY")]
    pub to: Date,
    /// The length of a window: a number of days, weeks or months.
    #[arg(long, value_name = "1d|1w|1mo")]
    pub every: Step,
    /// The most runs at the same time.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub parallel: u32,
    /// The job's parameters that take a window's first day and its end, or the one that takes its only day.
    #[arg(long, value_name = "FROM,TO", value_delimiter = ',', num_args = 1..=2, default_value = "from,to")]
    pub param_names: Vec<String>,
    /// How the job's SQL takes the end of a window: as its last day (`BETWEEN :from AND :to`), or as the day after
    /// (`< :to`). By default inclusive for a date and exclusive for a timestamp.
    #[arg(long, value_name = "HOW")]
    pub to_is: Option<Bound>,
    /// Set another parameter of the job, the same for every window.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// Request the run of each window again that failed or was cancelled, under its name: rows that it had loaded are removed
    /// first.
    #[arg(long)]
    pub retry: bool,
    /// Request another run, with the next name, also for each window that an older version of the job has loaded.
    #[arg(long)]
    pub all: bool,
    /// Request another run, with the next name, for each window that was loaded.
    #[arg(long)]
    pub again: bool,
    /// Continue with the other windows when one fails; otherwise no further run is requested.
    #[arg(long)]
    pub keep_going: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The runs that a backfill needs.
pub struct Plan {
    job: Job,
    identity: Identity,
    pub slots: Vec<Slot>,
    /// The windows in a sentence.
    pub summary: String,
}

/// A window and the request of its run.
pub struct Slot {
    pub window: Window,
    pub request: Request,
    /// The values that the command gives it.
    set: Vec<(String, String)>,
    /// The number in the name of its run.
    attempt: u32,
    /// The run that loads the window, once there is one; it may be a run that was requested with another command.
    run: Option<String>,
}

/// A window and its run, if there is one yet.
#[derive(Debug, Serialize)]
pub struct WindowReport {
    #[serde(flatten)]
    pub window: Window,
    pub run: Option<Run>,
}

impl WindowReport {
    /// Whether the window's rows are in the target, all accounted for and not all of them rejected: by this run or, where it
    /// is superseded, by a later one.
    pub fn is_loaded(&self) -> bool {
        let is_loaded = |run: &Run| {
            (run.is_complete() && !run.loaded_nothing()) || run.state == RunState::Superseded
        };
        self.run.as_ref().is_some_and(is_loaded)
    }
}

/// The windows of a backfill. Every window's request is made before the first is sent.
pub fn plan(job: Job, arguments: &Arguments) -> Result<Plan, Failure> {
    let usage = |sentence: String| Failure::usage(anyhow!(sentence));
    let Arguments {
        from, to, every, ..
    } = *arguments;
    let all = windows(from, to, every).map_err(usage)?;
    let bounds = Bounds::new(&job, &arguments.param_names, arguments.to_is, every);
    let bounds = bounds.map_err(usage)?;
    if let Some((name, _)) = arguments.set.iter().find(|(name, _)| bounds.takes(name)) {
        return Err(usage(format!(
            "the parameter {name:?} is set for each window; remove its --set"
        )));
    }
    let slot = |window| {
        let set = [arguments.set.clone(), bounds.values(window)].concat();
        Ok(Slot {
            window,
            request: filled_in(&job, &set, None)?,
            set,
            attempt: 1,
            run: None,
        })
    };
    let slots = all
        .into_iter()
        .map(slot)
        .collect::<Result<Vec<_>, Failure>>()?;
    let summary = format!(
        "{} of {every} from {from} up to, and not including, {to}; {}",
        counted(size(&slots), "window"),
        bounds.sentence()
    );
    let set = slots.first().map(|slot| canonical(&arguments.set, slot));
    let set = set.unwrap_or_default();
    let identity = Identity::new(&job.spec.name, (from, to), every, &bounds, &set);
    Ok(Plan {
        job,
        identity,
        slots,
        summary,
    })
}

/// The values that the command sets, as its requests have them: however they are written, it is the same backfill.
fn canonical(set: &[(String, String)], slot: &Slot) -> Vec<(String, String)> {
    let value = |name: &String| slot.request.parameters.get(name).cloned();
    let values = set
        .iter()
        .filter_map(|(name, _)| Some((name.clone(), value(name)?)));
    values.collect()
}

impl Plan {
    fn name(&self, index: usize, attempt: u32) -> String {
        self.identity
            .run(self.slots[index].window, attempt)
            .to_string()
    }
}

/// Whether a run comes to its end by itself.
fn moves(run: &Run) -> bool {
    !run.state.is_over() && !run.waits_for_a_person()
}

impl Command for Arguments {
    /// True when every window is loaded.
    async fn run(self) -> Result<bool, Failure> {
        let jobs = Jobs::load()?;
        let plan = plan(jobs.read(&self.job)?, &self)?;
        let store = store::open().await?;
        let broker = Broker::open(note)
            .await
            .map_err(|failure| failure.context("no run was requested"))?;
        note(&plan.summary);
        let (mut progress, count) = (Progress::default(), size(&plan.slots));
        let look = &mut |event: Event<'_>| show_event(&mut progress, count, &event);
        let windows = act(&store, &broker, &jobs.schemas, plan, &self, look).await;
        broker.close().await;
        progress.close();
        let windows = windows?;
        show(self.json, &windows, |windows| {
            format!("{}\n{}", list(windows), total(windows))
        })?;
        notes(&remarks(&windows));
        Ok(windows.iter().all(WindowReport::is_loaded))
    }
}

fn show_event(progress: &mut Progress, windows: i64, event: &Event<'_>) {
    let runs = match event {
        Event::Progress(runs) => runs,
        Event::Note(text) => return progress.note(text),
    };
    let count = |is: fn(&Run) -> bool| runs.values().map(|run| i64::from(is(run))).sum();
    let done: i64 = count(|run| run.state.is_over() && !run.has_failed());
    let text = format!(
        "{done} of {windows} windows done, {} under way, {} failed or cancelled, {} waiting for a person",
        count(moves),
        count(Run::has_failed),
        count(Run::waits_for_a_person)
    );
    progress.show(done, Some(windows), &text, &text);
}

fn list(windows: &[WindowReport]) -> Table {
    let header = [
        "from",
        "until",
        "run",
        "state",
        "extracted",
        "loaded",
        "rejected",
    ];
    let rows = windows.iter().map(|WindowReport { window, run }| {
        let (from, until) = (window.from.to_string(), window.until.to_string());
        let Some(run) = run else {
            let none = String::new;
            return [
                from,
                until,
                none(),
                "pending".to_owned(),
                none(),
                none(),
                none(),
            ];
        };
        let state = if run.state == RunState::Completed && !run.is_complete() {
            "completed, NOT BALANCED".to_owned()
        } else if run.state.is_over() {
            run.state.to_string()
        } else {
            state(run)
        };
        [
            from,
            until,
            run.run_id.clone(),
            state,
            number(run.rows_read),
            number(run.rows_loaded),
            number(run.rows_rejected),
        ]
    });
    table(&header, 4..7, rows)
}

fn total(windows: &[WindowReport]) -> String {
    let runs = || windows.iter().filter_map(|one| one.run.as_ref());
    let sum = |rows: fn(&Run) -> i64| number(runs().map(rows).sum());
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
    let runs = || windows.iter().filter_map(|one| one.run.as_ref());
    let failed = runs().filter(|run| run.has_failed()).map(|run| {
        let why = run.failure.as_ref().map(|why| format!(": {why}"));
        let why = why.unwrap_or_else(|| by_whom(run));
        format!("{} {}{why}", run.run_id, run.state)
    });
    let mut remarks: Vec<_> = failed.collect();
    if !remarks.is_empty() {
        let pending = if windows.iter().any(|one| one.run.is_none()) {
            "; with --keep-going it requests the pending ones"
        } else {
            ""
        };
        remarks.push(format!(
            "the same command with --retry requests these windows again{pending}"
        ));
    }
    let waiting = runs().filter(|run| run.waits_for_a_person()).map(|run| {
        let id = &run.run_id;
        if run.state == RunState::Held {
            format!("{id} is held; {}", choice(run))
        } else {
            format!("{id} is blocked; `etl dead list` shows why")
        }
    });
    remarks.extend(waiting);
    remarks.extend(runs().filter(|run| run.loaded_nothing()).map(none_loaded));
    let is_empty = |one: &&WindowReport| {
        one.run
            .as_ref()
            .is_some_and(|run| run.rows_expected == Some(0))
    };
    let empty = windows
        .iter()
        .filter(is_empty)
        .map(|one| one.window.from.to_string());
    let empty: Vec<_> = empty.collect();
    if !empty.is_empty() {
        remarks.push(format!("Athena returned no rows for {}", listed(&empty)));
    }
    remarks
}

/// The first of these words, and how many there are besides.
fn listed(words: &[String]) -> String {
    const FEW: usize = 5;
    let first = words
        .iter()
        .take(FEW)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match words.len().saturating_sub(FEW) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{on_a_terminal, samples};

    fn windows() -> Vec<WindowReport> {
        let runs = samples::runs().into_iter().map(Some).chain([None]);
        let windows = (1..).zip(runs).map(|(day, run)| WindowReport {
            window: Window {
                from: jiff::civil::date(2018, 4, day),
                until: jiff::civil::date(2018, 4, day + 1),
            },
            run,
        });
        windows.collect()
    }

    #[test]
    fn windows_are_listed_with_what_is_left_to_do() {
        let windows = windows();
        let shown = on_a_terminal(list(&windows), 120);
        insta::assert_snapshot!(format!(
            "{shown}\n{}\n{}",
            total(&windows),
            remarks(&windows).join("\n")
        ));
    }

    #[test]
    fn windows_as_json() {
        let mut windows = windows();
        windows.drain(..7);
        insta::assert_snapshot!(serde_json::to_string_pretty(&windows).unwrap());
    }
}
