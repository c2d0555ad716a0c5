//! Which runs a command is about: by name, or by job and state. What a command would do to runs that were not named is shown
//! first, and a person or `--yes` agrees to it.

use std::io::{IsTerminal, stdin};

use anyhow::anyhow;
use clap::ArgGroup;
use common::command::error_as_json;
use common::message::RunId;
use common::nearest::did_you_mean;

use crate::Failure;
use crate::output::{counted, note, size};
use ledger::{Meant, Run, RunFilter, RunState, Store};

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

/// Which runs: by their names, or by job and state.
#[derive(Debug, Default, clap::Args)]
pub struct Which {
    /// Whole names of runs. To look at a run, the beginning of its name is enough where only one run begins so.
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
}

/// Runs as a person was shown them: what was requested or replayed again since is not meant.
pub fn shown(runs: &[Run]) -> Result<Vec<Meant>, Failure> {
    let meant = runs.iter().map(Meant::try_from).collect::<Result<_, _>>();
    meant.map_err(|error| anyhow!("the ledger has a run whose name is none: {error}").into())
}

/// For a command that needs a choice of runs.
pub fn required() -> ArgGroup {
    let group = ArgGroup::new("which").required(true).multiple(true);
    group.args(["runs", "job", "state", "last"])
}

impl Which {
    /// Whether nothing is chosen.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.job.is_none() && self.state.is_none() && !self.last
    }

    /// Whether it chooses one run at most, however many there are.
    pub fn is_one(&self) -> bool {
        self.runs.len() == 1 || self.last
    }

    /// The runs by job and state, the oldest first. `among`: those that the command is for; a state that is given comes before
    /// its states.
    pub async fn chosen(&self, store: &Store, among: RunFilter<'_>) -> Result<Vec<Run>, Failure> {
        let filter = RunFilter {
            job: self.job.as_deref(),
            states: self.state.map_or(among.states, |state| state.in_ledger()),
            only_blocked: self.state == Some(State::Blocked),
            limit: if self.last { 1 } else { among.limit },
            ..among
        };
        let mut runs = store.latest(&filter).await?;
        runs.reverse();
        Ok(runs)
    }

    /// The runs to look at, by name or as they are chosen. Refuses a job that never ran: its name may be another one.
    pub async fn found(&self, store: &Store, among: RunFilter<'_>) -> Result<Vec<Run>, Failure> {
        if self.runs.is_empty() {
            let found = self.chosen(store, among).await?;
            return match &self.job {
                Some(job) if found.is_empty() => check_has_run(store, job).await.map(|()| found),
                _ => Ok(found),
            };
        }
        let mut runs = Vec::with_capacity(self.runs.len());
        for name in &self.runs {
            runs.push(store.find(name.as_str()).await?);
        }
        Ok(runs)
    }
}

/// Refuses a job of which there is no run.
async fn check_has_run(store: &Store, job: &str) -> Result<(), Failure> {
    let all = store.freshness().await?.into_iter().map(|one| one.job);
    let known: Vec<_> = all.collect();
    if known.iter().any(|one| one == job) {
        return Ok(());
    }
    let meant = did_you_mean(job, &known);
    Err(anyhow!("there is no such run, nor any of a job {job:?}{meant}").into())
}

/// All open and held runs.
pub fn open() -> RunFilter<'static> {
    RunFilter {
        states: State::Open.in_ledger(),
        limit: u32::MAX,
        ..RunFilter::default()
    }
}

/// That no run was found.
pub fn none() -> Failure {
    Failure::Failed(anyhow!("there is no such run; `etl runs` lists the latest"))
}

/// Which runs a command changes.
#[derive(Debug, Default, clap::Args)]
#[command(group = required())]
pub struct Selection {
    #[command(flatten)]
    pub which: Which,
    /// Do not ask before runs are changed that were not named.
    #[arg(long)]
    pub yes: bool,
}

impl Selection {
    /// The runs, the oldest first where they were not named. `states`: those that the command is for, unless a
    /// state is given. Asks before a command `does` something to runs that were not named.
    pub async fn agreed(
        &self,
        store: &Store,
        does: &str,
        states: State,
    ) -> Result<Vec<Meant>, Failure> {
        if !self.which.runs.is_empty() {
            return Ok(self.which.runs.iter().map(Meant::from).collect());
        }
        let among = RunFilter {
            states: states.in_ledger(),
            limit: u32::MAX,
            ..RunFilter::default()
        };
        let runs = self.which.chosen(store, among).await?;
        if runs.is_empty() {
            return Err(none());
        }
        self.agree(does, &runs)?;
        shown(&runs)
    }

    /// Shows the runs that were not named, and asks.
    pub fn agree(&self, does: &str, runs: &[Run]) -> Result<(), Failure> {
        for run in runs {
            let (id, table) = (&run.run_id, &run.target_table);
            note(&format!("{does} {id} ({}, into {table})", run.state));
        }
        if self.yes {
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
}

/// Does something to each run. One that fails keeps no other from its turn, and is said as an error of the command is; false where
/// one did, or was not complete.
pub async fn each(
    runs: &[Meant],
    mut act: impl AsyncFnMut(&Meant) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    if let [run] = runs {
        return act(run).await;
    }
    let mut is_true = true;
    for run in runs {
        is_true &= act(run).await.unwrap_or_else(|failure| {
            let why = failure.paragraph();
            note(&why);
            error_as_json(&why, failure.number());
            false
        });
    }
    Ok(is_true)
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
            selection: Selection,
        }
        let parsed = |words: &[&str]| <Command as clap::Parser>::try_parse_from(words);
        assert!(parsed(&["etl", "--yes"]).is_err());
        assert!(parsed(&["etl"]).is_err());
        assert!(parsed(&["etl", "--last", "--yes"]).is_ok_and(|parsed| parsed.selection.yes));
    }
}
