//! Which runs a command is about: by name, or by job and state. What a command would do to runs that were not named is shown
//! first, and a person or `--yes` agrees to it.

use std::io::{IsTerminal, stdin};

use anyhow::anyhow;
use clap::ArgGroup;
use common::message::RunId;

use crate::Failure;
use crate::output::{counted, note, size};
use ledger::{Run, RunFilter, RunState, Store};

/// The most runs that a command changes at once.
const MAX_RUNS: u32 = 1_000;

/// A state to filter by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum State {
    Requested,
    Running,
    Held,
    Completed,
    Failed,
    Cancelled,
    Superseded,
    /// Requested, running or held.
    Open,
    /// Open, and a dead letter keeps it from completing.
    Blocked,
}

impl State {
    /// The states in the ledger.
    pub(crate) fn in_ledger(self) -> &'static [RunState] {
        match self {
            Self::Requested => &[RunState::Requested],
            Self::Running => &[RunState::Running],
            Self::Held => &[RunState::Held],
            Self::Completed => &[RunState::Completed],
            Self::Failed => &[RunState::Failed],
            Self::Cancelled => &[RunState::Cancelled],
            Self::Superseded => &[RunState::Superseded],
            Self::Open | Self::Blocked => &[RunState::Requested, RunState::Running, RunState::Held],
        }
    }
}

/// Which runs.
#[derive(Debug, Default, clap::Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["runs", "job", "state", "last"]))]
pub struct Selection {
    /// The runs' whole names.
    #[arg(value_name = "RUN")]
    pub runs: Vec<RunId>,
    /// Runs of this job.
    #[arg(long, value_name = "JOB", conflicts_with = "runs")]
    pub job: Option<String>,
    /// Runs in this state.
    #[arg(long, value_name = "STATE", conflicts_with = "runs")]
    pub state: Option<State>,
    /// Only the latest of them.
    #[arg(long, conflicts_with = "runs")]
    pub last: bool,
    /// Do not ask before runs are changed that were not named.
    #[arg(long)]
    pub yes: bool,
}

impl Selection {
    /// The names of the runs, the oldest first where they were not named. `states`: those that the command is for, unless a
    /// state is given. Asks before a command `does` something to runs that were not named.
    pub async fn agreed(
        &self,
        store: &Store,
        does: &str,
        states: State,
    ) -> Result<Vec<RunId>, Failure> {
        if !self.runs.is_empty() {
            return Ok(self.runs.clone());
        }
        let state = self.state.unwrap_or(states);
        let filter = RunFilter {
            job: self.job.as_deref(),
            states: state.in_ledger(),
            only_blocked: state == State::Blocked,
            limit: if self.last { 1 } else { MAX_RUNS },
        };
        let mut runs = store.latest(&filter).await?;
        runs.reverse();
        if runs.is_empty() {
            return Err(anyhow!("there is no such run; `etl runs` lists the latest").into());
        }
        agree(does, &runs, self.yes)?;
        let names = runs.into_iter().map(|run| run.run_id.parse());
        let names = names.collect::<Result<_, _>>();
        names.map_err(|error| anyhow!("the ledger has a run whose name is none: {error}").into())
    }
}

/// Does something to each run. One that fails keeps no other from its turn; false where one did, or was not complete.
pub async fn each(
    runs: &[RunId],
    mut act: impl AsyncFnMut(&RunId) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    if let [run] = runs {
        return act(run).await;
    }
    let mut is_true = true;
    for run in runs {
        is_true &= act(run).await.unwrap_or_else(|failure| {
            note(&failure.paragraph());
            false
        });
    }
    Ok(is_true)
}

/// Shows the runs, and asks.
fn agree(does: &str, runs: &[Run], yes: bool) -> Result<(), Failure> {
    for run in runs {
        note(&format!(
            "{does} {} ({}, into {})",
            run.run_id, run.state, run.target_table
        ));
    }
    if yes {
        return Ok(());
    }
    if !stdin().is_terminal() {
        return Err(Failure::usage(anyhow!("{}", unasked(does, size(runs)))));
    }
    note(&format!("{does} {}? [y/N]", counted(size(runs), "run")));
    let mut answer = String::new();
    let read = stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(anyhow!("nothing was done").into())
}

/// That nothing was done, since nobody can be asked.
fn unasked(does: &str, count: i64) -> String {
    let (was, them) = if count == 1 {
        ("was", "it")
    } else {
        ("were", "them")
    };
    let runs = counted(count, "run");
    format!("nothing was done: {runs} {was} selected and not named; add --yes to {does} {them}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_counts_the_runs() {
        let one = unasked("discard", 1);
        assert!(one.contains("1 run was selected") && one.ends_with("to discard it"));
        let two = unasked("discard", 2);
        assert!(two.contains("2 runs were selected") && two.ends_with("to discard them"));
    }

    #[test]
    fn agreement_alone_selects_no_run() {
        #[derive(Debug, clap::Parser)]
        struct Command {
            #[command(flatten)]
            which: Selection,
        }
        let parsed = |words: &[&str]| <Command as clap::Parser>::try_parse_from(words);
        assert!(parsed(&["etl", "--yes"]).is_err());
        assert!(parsed(&["etl"]).is_err());
        assert!(parsed(&["etl", "--last", "--yes"]).is_ok_and(|parsed| parsed.which.yes));
    }
}
