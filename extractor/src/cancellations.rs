//! The cancelled runs, as `etl.control` names them. An extractor that works on one stops at once.
//!
//! The set is bounded and forgets the oldest run first. Work on a forgotten run is wasted and
//! harmless, since the loader drops the batches of a cancelled run.

use std::collections::{HashMap, VecDeque};

use common::message::{Command, Control, ExtractTask, RunId};
use tokio::sync::watch;

/// More than the stream keeps for long.
const MAX_RUNS: usize = 20_000;

/// The cancelled runs; clones share one set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancellations(watch::Sender<Runs>);

#[derive(Debug, Default)]
struct Runs {
    /// The highest cancelled generation of each run.
    generations: HashMap<RunId, u32>,
    /// Oldest first.
    order: VecDeque<RunId>,
}

impl Cancellations {
    /// Applies a control message.
    pub(crate) fn apply(&self, control: Control) {
        match control.command {
            Command::Cancel => self.0.send_modify(|runs| {
                runs.add(control.run, control.generation, MAX_RUNS);
            }),
        }
    }

    /// Whether the task's run is cancelled.
    pub(crate) fn contains(&self, task: &ExtractTask) -> bool {
        self.0.borrow().contains(&task.run, task.generation)
    }

    /// Returns once this generation of the run is cancelled.
    pub(crate) async fn wait_for(&self, run: &RunId, generation: u32) {
        let mut runs = self.0.subscribe();
        let cancelled = runs.wait_for(|runs| runs.contains(run, generation)).await;
        // Fails only when the sender is gone, and `self` holds it.
        if cancelled.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Runs {
    fn contains(&self, run: &RunId, generation: u32) -> bool {
        let cancelled = self.generations.get(run);
        cancelled.is_some_and(|cancelled| generation <= *cancelled)
    }

    fn add(&mut self, run: RunId, generation: u32, max_runs: usize) {
        if let Some(known) = self.generations.get_mut(&run) {
            *known = generation.max(*known);
            return;
        }
        if self.order.len() >= max_runs
            && let Some(oldest) = self.order.pop_front()
        {
            self.generations.remove(&oldest);
        }
        self.order.push_back(run.clone());
        self.generations.insert(run, generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_runs_are_forgotten_and_highest_generation_counts() {
        let run = |n: u32| -> RunId { format!("r{n}").parse().unwrap() };
        let mut runs = Runs::default();
        for n in 0..5 {
            runs.add(run(n), n, 3);
        }
        runs.add(run(4), 9, 3);
        runs.add(run(4), 1, 3);
        let mut known: Vec<_> = runs.generations.into_iter().collect();
        known.sort();
        assert_eq!(known, [(run(2), 2), (run(3), 3), (run(4), 9)]);
        assert_eq!(runs.order, [run(2), run(3), run(4)]);
    }
}
