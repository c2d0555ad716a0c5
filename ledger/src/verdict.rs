//! The verdict on a run: whether the ledger proves what the product promises. Pure.

use crate::state::RunState;
use crate::summary::Run;

/// Rows of a result as inclusive ranges.
pub type Ranges = Vec<(i64, i64)>;

/// What the ledger proves of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every row that Athena returned is loaded, rejected or dropped.
    Complete,
    /// It has not ended; these rows have not arrived, where their number is known.
    NotOver { missing: Ranges },
    /// A person has to decide.
    Held,
    /// It ended without a row in the target.
    NothingLoaded,
    /// A later run has replaced what its rows would replace.
    Superseded,
    /// A person ended it and left its rows in the target.
    RowsLeft,
    /// A person ended it, and a loader is to remove its rows.
    RowsLeaving,
    /// A person ended it, and a loader could not remove its rows.
    RemovalFailed,
    /// It failed, and rows of it are in the target.
    FailedWithRows,
    /// The ledger contradicts itself, or a dead letter blocks the run.
    Contradiction { missing: Ranges },
}

impl Run {
    /// The verdict, given the rows that the ledger lacks ([`crate::Store::missing`]); of a balanced run there is none.
    pub fn verdict(&self, missing: Ranges) -> Verdict {
        match self.state {
            RunState::Completed if self.is_complete() => Verdict::Complete,
            RunState::Failed | RunState::Cancelled if self.rows_loaded == 0 => {
                Verdict::NothingLoaded
            }
            RunState::Failed | RunState::Cancelled if self.removal_failed_at.is_some() => {
                Verdict::RemovalFailed
            }
            RunState::Cancelled if self.removal_pending => Verdict::RowsLeaving,
            RunState::Failed => Verdict::FailedWithRows,
            RunState::Cancelled => Verdict::RowsLeft,
            RunState::Superseded if self.dead_letters == 0 => Verdict::Superseded,
            RunState::Held if self.dead_letters == 0 => Verdict::Held,
            RunState::Requested | RunState::Running if self.dead_letters == 0 => {
                Verdict::NotOver { missing }
            }
            RunState::Requested
            | RunState::Running
            | RunState::Held
            | RunState::Completed
            | RunState::Superseded => Verdict::Contradiction { missing },
        }
    }
}

impl Verdict {
    /// Whether nothing is wrong. A run that has not ended, or ended without a row in the target, is no contradiction; but a
    /// question about it alone asks whether it is complete.
    pub fn holds(&self, alone: bool) -> bool {
        match self {
            Self::Complete => true,
            Self::NotOver { .. }
            | Self::Held
            | Self::NothingLoaded
            | Self::Superseded
            | Self::RowsLeft
            | Self::RowsLeaving => !alone,
            Self::FailedWithRows | Self::RemovalFailed | Self::Contradiction { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(state: RunState, rows_loaded: i64, dead_letters: i64) -> Run {
        Run {
            state,
            rows_loaded,
            dead_letters,
            balanced: true,
            ..Run::default()
        }
    }

    #[test]
    fn only_a_complete_run_is_proven_alone() {
        for state in RunState::ALL {
            for (rows, dead_letters) in [(0, 0), (7, 0), (0, 1), (7, 1)] {
                let verdict = run(state, rows, dead_letters).verdict(Vec::new());
                let is_complete = state == RunState::Completed && dead_letters == 0;
                assert_eq!(verdict.holds(true), is_complete, "{state}: {verdict:?}");
            }
        }
    }

    #[test]
    fn a_dead_letter_contradicts_every_run_that_waits_for_its_batches() {
        for state in [
            RunState::Requested,
            RunState::Running,
            RunState::Held,
            RunState::Completed,
            RunState::Superseded,
        ] {
            let verdict = run(state, 0, 1).verdict(vec![(1, 2)]);
            assert_eq!(
                verdict,
                Verdict::Contradiction {
                    missing: vec![(1, 2)]
                }
            );
            assert!(!verdict.holds(false), "{state}");
        }
    }

    #[test]
    fn rows_of_a_failed_run_are_wrong_and_those_of_a_cancelled_one_were_left() {
        assert!(!run(RunState::Failed, 7, 0).verdict(Vec::new()).holds(false));
        assert!(
            run(RunState::Cancelled, 7, 0)
                .verdict(Vec::new())
                .holds(false)
        );
        assert!(run(RunState::Failed, 0, 1).verdict(Vec::new()).holds(false));
    }
}
