//! The cancelled and the paused runs, as control messages name them. An extractor that works on a cancelled one stops at
//! once; one that reads the result of a paused one moves its task to `etl.parked`.
//!
//! The sets are bounded and forget the oldest run first. Work on a forgotten run is wasted and harmless: the loader drops
//! the batches of a cancelled run, and parks those of a paused one.

use std::collections::{HashMap, VecDeque};

use common::message::{Command, Control, ExtractTask, RunId};
use tokio::sync::watch;

/// More than the broker keeps.
const MAX_RUNS: usize = 20_000;

/// What the control messages say.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    cancelled: watch::Sender<Runs>,
    paused: watch::Sender<Runs>,
}

/// The latest command about each run, of one kind.
#[derive(Debug, Default)]
struct Runs {
    latest: HashMap<RunId, Control>,
    /// Oldest first.
    order: VecDeque<RunId>,
}

impl Controls {
    /// Applies a control message.
    pub(crate) fn apply(&self, control: Control) {
        let runs = match control.command {
            Command::Cancel => &self.cancelled,
            Command::Pause => &self.paused,
        };
        runs.send_modify(|runs| runs.add(control, MAX_RUNS));
    }

    pub(crate) fn is_cancelled(&self, task: &ExtractTask) -> bool {
        self.cancelled.borrow().contains(task)
    }

    pub(crate) fn is_paused(&self, task: &ExtractTask) -> bool {
        self.paused.borrow().contains(task)
    }

    /// Whether a run of the task's name was cancelled, and requested again in a restored ledger.
    pub(crate) fn was_cancelled_before(&self, task: &ExtractTask) -> bool {
        let runs = self.cancelled.borrow();
        let control = runs.latest.get(&task.run);
        control.is_some_and(|control| control.is_older_than(task))
    }

    /// Returns once the task's run is cancelled.
    pub(crate) async fn until_cancelled(&self, task: &ExtractTask) {
        let mut runs = self.cancelled.subscribe();
        let cancelled = runs.wait_for(|runs| runs.contains(task)).await;
        // Fails only when the sender is gone, and `self` holds it.
        if cancelled.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Runs {
    fn contains(&self, task: &ExtractTask) -> bool {
        let control = self.latest.get(&task.run);
        control.is_some_and(|control| control.applies_to(task))
    }

    fn add(&mut self, control: Control, max_runs: usize) {
        if let Some(known) = self.latest.get_mut(&control.run) {
            // Messages may come twice and in any order.
            if known.at < control.at {
                *known = control;
            }
            return;
        }
        if self.order.len() >= max_runs
            && let Some(oldest) = self.order.pop_front()
        {
            self.latest.remove(&oldest);
        }
        self.order.push_back(control.run.clone());
        self.latest.insert(control.run.clone(), control);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn cancel(run: &str, generation: u32, second: i64) -> Control {
        Control {
            run: run.parse().unwrap(),
            run_no: 7,
            generation,
            at: Timestamp::from_second(second).unwrap(),
            job: "clicks".into(),
            command: Command::Cancel,
        }
    }

    #[test]
    fn oldest_runs_are_forgotten_and_the_latest_cancellation_counts() {
        let mut runs = Runs::default();
        for n in 0..5 {
            runs.add(cancel(&format!("r{n}"), n, 10), 3);
        }
        runs.add(cancel("r4", 9, 12), 3);
        runs.add(cancel("r4", 1, 11), 3);
        let mut known: Vec<_> = (runs.latest.values())
            .map(|control| (control.run.to_string(), control.generation))
            .collect();
        known.sort();
        let wanted = [("r2", 2), ("r3", 3), ("r4", 9)];
        assert_eq!(known, wanted.map(|(run, n)| (run.to_owned(), n)));
        let order: Vec<_> = runs.order.iter().map(RunId::as_str).collect();
        assert_eq!(order, ["r2", "r3", "r4"]);
    }
}
