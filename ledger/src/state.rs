//! The states of a run and the transitions between them. Pure: one table says which transition leads from which state to
//! which, and [`crate::LockedRun`] is the only way to carry one out.

use std::fmt;

use serde::de::{IntoDeserializer as _, value};
use serde::{Deserialize, Serialize};

/// The state of a run, as `etl.runs.state` has it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// In the ledger; nothing of it has arrived.
    #[default]
    Requested,
    /// Its query, its batches or its replay are under way.
    Running,
    /// Every batch is in the ledger, and a person has to decide whether its rows are committed.
    Held,
    /// Every row is accounted for.
    Completed,
    /// It cannot be completed.
    Failed,
    /// A person ended it.
    Cancelled,
    /// A later run has replaced what its rows would replace.
    Superseded,
}

impl RunState {
    /// Every state, in the order of a run's life.
    pub const ALL: [Self; 7] = [
        Self::Requested,
        Self::Running,
        Self::Held,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Superseded,
    ];

    /// As the ledger, metrics and people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Running => "running",
            Self::Held => "held",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }

    /// Whether batches and events of the run still change something.
    pub fn takes_batches(self) -> bool {
        matches!(self, Self::Requested | Self::Running)
    }

    /// Whether the run has ended, for good unless a person replays it. A held run has not.
    pub fn is_over(self) -> bool {
        !self.takes_batches() && self != Self::Held
    }

    /// Whether the ledger has every batch of the run's result.
    pub fn has_all_batches(self) -> bool {
        matches!(self, Self::Held | Self::Completed | Self::Superseded)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TryFrom<String> for RunState {
    type Error = value::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::deserialize(text.into_deserializer())
    }
}

/// What may happen to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Athena has the query, or the first batch arrived.
    Start,
    /// The result was read to its end: the number of batches and rows is known.
    Extract,
    /// Every row is accounted for.
    Complete,
    /// Every batch is in the ledger, and something speaks against committing the rows.
    Hold,
    /// Every batch is in the ledger, and a later run has replaced the same rows.
    Supersede,
    /// The extractor, or the ledger's sums, say that the run cannot be completed.
    Fail,
    /// A person lets a held run be committed.
    Approve,
    /// A person ends a held run; none of its rows is in the target.
    Discard,
    /// A person ends a run; its rows stay where they are.
    Cancel,
    /// A person ends a run that may have ended before; its rows leave the target.
    Undo,
    /// A person withdraws an undo that no loader has executed; the rows stay.
    Withdraw,
    /// A person drops a batch that no stage can process.
    DropBatch,
    /// A person sends batches of the run again, in a new generation.
    Replay,
    /// A replay is abandoned, and the run is complete as it was before.
    Restore,
    /// A person requests a run again that failed or was cancelled, and none of its rows is in the target.
    Retry,
}

impl Transition {
    /// Every transition.
    pub const ALL: [Self; 15] = [
        Self::Start,
        Self::Extract,
        Self::Complete,
        Self::Hold,
        Self::Supersede,
        Self::Fail,
        Self::Approve,
        Self::Discard,
        Self::Cancel,
        Self::Undo,
        Self::Withdraw,
        Self::DropBatch,
        Self::Replay,
        Self::Restore,
        Self::Retry,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Extract => "extract",
            Self::Complete => "complete",
            Self::Hold => "hold",
            Self::Supersede => "supersede",
            Self::Fail => "fail",
            Self::Approve => "approve",
            Self::Discard => "discard",
            Self::Cancel => "cancel",
            Self::Undo => "undo",
            Self::Withdraw => "withdraw the undo",
            Self::DropBatch => "drop a batch",
            Self::Replay => "replay",
            Self::Restore => "abandon the replay",
            Self::Retry => "retry",
        }
    }

    /// The state that it leads to from `state`; none where it is not allowed. docs/architecture.md has the picture.
    pub fn leads_to(self, state: RunState) -> Option<RunState> {
        use RunState::{Cancelled, Completed, Failed, Held, Requested, Running, Superseded};
        match (self, state) {
            (Self::Start | Self::Extract | Self::DropBatch, Requested | Running)
            | (Self::Approve, Held)
            | (Self::Replay, Requested | Running | Held | Completed | Failed) => Some(Running),
            (Self::Retry, Failed | Cancelled) => Some(Requested),
            (Self::Hold, Requested | Running) => Some(Held),
            (Self::Complete, Requested | Running) | (Self::Restore, Running | Held) => {
                Some(Completed)
            }
            (Self::Supersede, Requested | Running) => Some(Superseded),
            // By an undo a failed run stays failed; only its rows go.
            (Self::Fail, Requested | Running) | (Self::Undo | Self::Withdraw, Failed) => {
                Some(Failed)
            }
            (Self::Discard, Held)
            | (Self::Cancel | Self::Undo, Requested | Running | Cancelled)
            | (Self::Withdraw, Cancelled) => Some(Cancelled),
            _ => None,
        }
    }

    /// Why it is not allowed from `state`, and what to do, for a person.
    pub fn refusal(self, run: &str, state: RunState) -> String {
        match (self, state) {
            (Self::Cancel, RunState::Failed) => format!(
                "the run {run} has failed, so that there is nothing to stop; --undo removes the rows that it had loaded"
            ),
            (Self::Cancel | Self::Undo, RunState::Held) => format!(
                "the run {run} is held; `etl discard {run} --why ...` ends it, `etl approve {run}` commits its rows"
            ),
            (Self::Cancel | Self::Undo, RunState::Completed) => format!(
                "the run {run} is completed, and its rows stay; `etl replay {run}` loads them again by the job as it is now"
            ),
            (Self::Cancel | Self::Undo, _) => {
                format!(
                    "the run {run} is {state}: it has ended, and none of its rows is in the target"
                )
            }
            (Self::Approve | Self::Discard, _) => format!("the run {run} is {state}, not held"),
            (Self::Replay, RunState::Superseded) => format!(
                "a later run has replaced the rows that the run {run} would bring back; request a new run"
            ),
            (Self::Replay, _) => format!(
                "the run {run} is {state}, and its rows were dropped; request it again with `etl run ... --run-id {run} --retry`"
            ),
            _ => format!(
                "the run {run} is {state}, and the transition \"{}\" does not start there",
                self.name()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for state in RunState::ALL {
            assert_eq!(state.name().to_owned().try_into(), Ok(state));
        }
        assert!(RunState::try_from("done".to_owned()).is_err());
    }

    #[test]
    fn every_state_allows_exactly_these_transitions() {
        use Transition::{
            Approve, Cancel, Complete, Discard, DropBatch, Extract, Fail, Hold, Replay, Restore,
            Retry, Start, Supersede, Undo, Withdraw,
        };
        let open = &[
            Start, Extract, Complete, Hold, Supersede, Fail, Cancel, Undo, DropBatch, Replay,
        ];
        for (state, allowed) in [
            (RunState::Requested, &open[..]),
            (RunState::Running, &[&open[..], &[Restore]].concat()),
            (RunState::Held, &[Approve, Discard, Replay, Restore]),
            (RunState::Completed, &[Replay]),
            (RunState::Failed, &[Undo, Withdraw, Replay, Retry]),
            (RunState::Cancelled, &[Cancel, Undo, Withdraw, Retry]),
            (RunState::Superseded, &[]),
        ] {
            for transition in Transition::ALL {
                let is_allowed = transition.leads_to(state).is_some();
                assert_eq!(
                    is_allowed,
                    allowed.contains(&transition),
                    "{transition:?} from {state}"
                );
                assert!(!transition.refusal("r", state).is_empty());
            }
        }
    }

    /// The transitions as a Mermaid diagram: one arrow for each pair of states.
    fn diagram() -> String {
        let mut lines = vec![
            "stateDiagram-v2".to_owned(),
            "    [*] --> requested: request".to_owned(),
        ];
        for from in RunState::ALL {
            for to in RunState::ALL {
                let between = Transition::ALL
                    .into_iter()
                    .filter(|transition| transition.leads_to(from) == Some(to));
                let names: Vec<_> = between.map(Transition::name).collect();
                if !names.is_empty() {
                    lines.push(format!("    {from} --> {to}: {}", names.join(", ")));
                }
            }
        }
        lines.join("\n")
    }

    #[test]
    fn the_documented_diagram_has_every_transition() {
        let documented = include_str!("../../docs/architecture.md");
        let diagram = diagram();
        assert!(
            documented.contains(&diagram),
            "docs/architecture.md has to have this diagram:\n{diagram}"
        );
    }

    #[test]
    fn an_ended_run_takes_no_batches_and_a_held_run_has_not_ended() {
        let of = |is: fn(RunState) -> bool| RunState::ALL.into_iter().filter(|s| is(*s)).count();
        assert_eq!(of(RunState::takes_batches), 2);
        assert_eq!(of(RunState::is_over), 4);
        assert_eq!(of(RunState::has_all_batches), 3);
        assert!(!RunState::Held.is_over() && !RunState::Held.takes_batches());
    }
}
