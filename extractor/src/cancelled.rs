//! The runs that were cancelled, as `etl.control` tells of them. Whoever works on one stops at once.
//!
//! Bounded: the oldest are forgotten. Work on a run that was cancelled and forgotten is in vain and
//! does no harm, since the books have the last word.

use std::collections::{HashMap, VecDeque};

use common::message::{Command, Control, ExtractTask, RunId};
use tokio::sync::watch;

/// More than the stream keeps for long.
const MOST: usize = 20_000;

/// The cancelled runs; clones know the same.
#[derive(Debug, Clone)]
pub(crate) struct Cancelled(watch::Sender<Runs>);

#[derive(Debug, Default)]
struct Runs {
    /// The highest generation that was cancelled.
    generations: HashMap<RunId, u32>,
    /// Oldest first.
    order: VecDeque<RunId>,
}

impl Cancelled {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Runs::default()))
    }

    /// Takes note of an order.
    pub(crate) fn obey(&self, control: Control) {
        match control.command {
            Command::Cancel => self.0.send_modify(|runs| {
                runs.add(control.run, control.generation, MOST);
            }),
        }
    }

    pub(crate) fn has(&self, task: &ExtractTask) -> bool {
        self.0.borrow().has(&task.run, task.generation)
    }

    /// Returns once this generation of the run is cancelled.
    pub(crate) async fn until(&self, run: &RunId, generation: u32) {
        let mut runs = self.0.subscribe();
        let cancelled = runs.wait_for(|runs| runs.has(run, generation)).await;
        // Cannot end otherwise: the sender is here.
        if cancelled.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Runs {
    fn has(&self, run: &RunId, generation: u32) -> bool {
        let cancelled = self.generations.get(run);
        cancelled.is_some_and(|cancelled| generation <= *cancelled)
    }

    fn add(&mut self, run: RunId, generation: u32, most: usize) {
        if let Some(known) = self.generations.get_mut(&run) {
            *known = generation.max(*known);
            return;
        }
        if self.order.len() >= most
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
    fn the_oldest_are_forgotten_and_a_later_generation_counts() {
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
