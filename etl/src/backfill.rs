//! `etl backfill`: a run for each window of a range of days, so many at a time.
//!
//! Nothing is remembered but the books: a window's run has a name that follows from the command, so
//! that the same command finds what it asked for before, whatever ended it, and goes on from there.

mod windows;

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

use anyhow::{Context, anyhow};
use common::job::{Job, Request};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::sleep;

use windows::{Bounds, Identity, windows};
pub(crate) use windows::{Step, Window};

use crate::Failure;
use crate::books::{Books, Run};
use crate::broker::Broker;
use crate::cli::BackfillArguments;
use crate::jobs::{Jobs, checkable, filled_in};
use crate::report::{self, WindowReport, note};
use crate::request::{Asked, ask};

/// How often the books are looked at.
const LOOK: Duration = Duration::from_millis(300);

/// A window and its run.
struct Slot {
    window: Window,
    request: Request,
    /// Of the name that its run has, or will have.
    attempt: u32,
    /// The run that loads the window, once there is one; perhaps one that somebody else asked for.
    run: Option<String>,
}

/// A backfill that is under way.
struct Backfill<'a> {
    books: &'a Books,
    broker: &'a Broker,
    job: &'a Job,
    identity: Identity,
    slots: Vec<Slot>,
    parallel: usize,
    keep_going: bool,
}

/// Asks for what is missing, and stays until nothing moves any more: true when every window is loaded.
pub(crate) async fn run(arguments: &BackfillArguments) -> Result<bool, Failure> {
    let misuse = |sentence: String| Failure::misuse(anyhow!(sentence));
    let jobs = Jobs::load()?;
    let job = jobs.read(&arguments.job)?;
    let range = (arguments.from, arguments.to);
    let all = windows(range.0, range.1, arguments.every).map_err(misuse)?;
    let bounds = Bounds::of(
        &job,
        &arguments.param_names,
        arguments.to_is,
        arguments.every,
    )
    .map_err(misuse)?;
    if let Some((name, _)) = arguments.set.iter().find(|(name, _)| bounds.takes(name)) {
        return Err(misuse(format!(
            "the parameter {name:?} is set for each window; take its --set away"
        )));
    }
    // Every window's request is made before the first is sent.
    let slots = slots(&job, &arguments.set, &bounds, all)?;
    let books = Books::open().await?;
    let identity = Identity::of(
        &job.spec.name,
        range,
        arguments.every,
        &bounds,
        &arguments.set,
    );
    let lock = books.lock_alone(&identity.key()).await?.ok_or_else(|| {
        anyhow!("the same backfill is being worked on by another `etl backfill`; nothing was sent")
    })?;
    if let Some(slot) = slots.first() {
        let spec = checkable(&slot.request);
        books.check_target(&spec, &jobs.schemas).await?;
    }
    note(&format!(
        "{} windows of {} from {} up to, and not including, {}; {}",
        slots.len(),
        arguments.every,
        range.0,
        range.1,
        bounds.sentence()
    ));
    let broker = Broker::open().await?;
    let mut backfill = Backfill {
        books: &books,
        broker: &broker,
        job: &job,
        identity,
        slots,
        parallel: arguments.parallel as usize,
        keep_going: arguments.keep_going,
    };
    let worked = backfill.work(arguments.retry).await;
    let windows = worked.map(|runs| backfill.report(runs));
    broker.close().await;
    drop(lock);
    let windows = windows.context("the backfill stopped; runs that were asked for go on, and the same command goes on from here")?;
    report::backfilled(&windows, arguments.json)
}

fn slots(
    job: &Job,
    set: &[(String, String)],
    bounds: &Bounds,
    all: Vec<Window>,
) -> Result<Vec<Slot>, Failure> {
    let slot = |window| {
        let set = [set.to_vec(), bounds.values(window)].concat();
        Ok(Slot {
            window,
            request: filled_in(job, &set)?,
            attempt: 1,
            run: None,
        })
    };
    all.into_iter().map(slot).collect()
}

impl Backfill<'_> {
    async fn work(&mut self, retry: bool) -> Result<BTreeMap<String, Run>, anyhow::Error> {
        self.find_runs(retry).await?;
        let view = View::new(self.slots.len());
        loop {
            let mut runs = self.runs().await?;
            let mut moving = runs.values().filter(|run| moves(run)).count();
            let may_ask = self.keep_going || !runs.values().any(is_lost);
            while may_ask && moving < self.parallel {
                let Some(index) = self.slots.iter().position(|slot| slot.run.is_none()) else {
                    break;
                };
                self.ask(index).await?;
                moving += 1;
            }
            runs = self.runs().await?;
            view.show(&runs);
            let is_moving = runs.values().any(moves);
            let is_asking = may_ask && self.slots.iter().any(|slot| slot.run.is_none());
            if !is_moving && !is_asking {
                view.close();
                return Ok(runs);
            }
            sleep(LOOK).await;
        }
    }

    /// Finds what was asked for before: of each window the last attempt. `retry`: those that came to
    /// nothing get another.
    async fn find_runs(&mut self, retry: bool) -> Result<(), anyhow::Error> {
        let mut open: Vec<usize> = (0..self.slots.len()).collect();
        for attempt in 1.. {
            let names: Vec<String> = open
                .iter()
                .map(|index| self.name(*index, attempt))
                .collect();
            let mut found = self.books.named(&names).await?;
            // Known by its name, and to be looked at for the next attempt if this one came to nothing.
            let mut next = Vec::new();
            for (index, name) in open.into_iter().zip(names) {
                let Some(run) = found.remove(&name) else {
                    continue;
                };
                let slot = &mut self.slots[index];
                (slot.attempt, slot.run) = (attempt, Some(name));
                if run.state == "requested" {
                    self.send_again(index, &run).await?;
                } else if is_lost(&run) {
                    next.push(index);
                }
            }
            if next.is_empty() {
                break;
            }
            open = next;
        }
        if retry {
            let runs = self.runs().await?;
            for slot in &mut self.slots {
                if slot
                    .run
                    .as_ref()
                    .and_then(|name| runs.get(name))
                    .is_some_and(is_lost)
                {
                    (slot.attempt, slot.run) = (slot.attempt + 1, None);
                }
            }
        }
        Ok(())
    }

    fn name(&self, index: usize, attempt: u32) -> String {
        self.identity
            .run(self.slots[index].window, attempt)
            .to_string()
    }

    /// Whoever wrote the run into the books may have died before its task was sent.
    async fn send_again(&mut self, index: usize, run: &Run) -> Result<(), anyhow::Error> {
        if run.job_hash == self.job.hash() {
            return self.ask(index).await;
        }
        note(&format!(
            "the run {} was asked for with an older version of the job, and nothing has happened to it yet; if it stays so, `etl cancel {}` and --retry",
            run.run_id, run.run_id
        ));
        Ok(())
    }

    async fn ask(&mut self, index: usize) -> Result<(), anyhow::Error> {
        let slot = &mut self.slots[index];
        let run = self.identity.run(slot.window, slot.attempt);
        let asked = ask(
            self.books,
            self.broker,
            &run,
            self.job,
            &slot.request,
            false,
        );
        slot.run = Some(match asked.await? {
            Asked::New | Asked::Known(_) => run.to_string(),
            // The window's rows are, or will be, there by another run.
            Asked::Refused(rival) => rival.run_id,
        });
        Ok(())
    }

    async fn runs(&self) -> Result<BTreeMap<String, Run>, anyhow::Error> {
        let names: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| slot.run.clone())
            .collect();
        Ok(self.books.named(&names).await?)
    }

    fn report(&self, mut runs: BTreeMap<String, Run>) -> Vec<WindowReport> {
        self.slots
            .iter()
            .map(|slot| WindowReport {
                from: slot.window.from.to_string(),
                until: slot.window.until.to_string(),
                run: slot.run.as_ref().and_then(|name| runs.remove(name)),
            })
            .collect()
    }
}

/// Whether a run comes to its end by itself.
fn moves(run: &Run) -> bool {
    !run.is_over() && !run.waits_for_a_person()
}

/// Whether a run came to nothing, so that its window needs another.
fn is_lost(run: &Run) -> bool {
    matches!(run.state.as_str(), "failed" | "cancelled")
}

/// What is seen while it goes: a bar on a terminal, a line for each change elsewhere.
struct View {
    bar: Option<ProgressBar>,
    windows: usize,
    last: std::cell::RefCell<String>,
}

impl View {
    fn new(windows: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {msg}");
            ProgressBar::new(windows as u64).with_style(style.expect("a constant template"))
        });
        Self {
            bar,
            windows,
            last: std::cell::RefCell::default(),
        }
    }

    fn show(&self, runs: &BTreeMap<String, Run>) {
        let count = |is: fn(&Run) -> bool| runs.values().filter(|run| is(run)).count();
        let done = count(|run| run.is_over() && !is_lost(run));
        let text = format!(
            "{done} of {} windows done, {} under way, {} lost, {} waiting for a person",
            self.windows,
            count(moves),
            count(is_lost),
            count(Run::waits_for_a_person)
        );
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(text);
        } else if *self.last.borrow() != text {
            note(&text);
            self.last.replace(text);
        }
    }

    fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
