//! `etl runs`: the latest runs, a line each.

use comfy_table::Table;

use super::Command;
use crate::Failure;
use crate::output::run::state;
use crate::output::{number, show, table};
use crate::store;
use ledger::{Run, RunFilter, RunState, Store};

/// List the latest runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl runs --job clicks --state failed --limit 50")]
pub struct Arguments {
    /// Only runs of this job.
    #[arg(long, value_name = "JOB")]
    pub job: Option<String>,
    /// Only runs in this state.
    #[arg(long, value_name = "STATE")]
    pub state: Option<State>,
    /// The most runs to list, the latest first.
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

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
    fn in_ledger(self) -> &'static [RunState] {
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

/// The latest runs that the arguments choose.
pub async fn plan(store: &Store, arguments: &Arguments) -> Result<Vec<Run>, Failure> {
    let filter = RunFilter {
        job: arguments.job.as_deref(),
        states: arguments.state.map(State::in_ledger).unwrap_or_default(),
        only_blocked: arguments.state == Some(State::Blocked),
        limit: arguments.limit,
    };
    Ok(store.latest(&filter).await?)
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let runs = plan(&store::open().await?, &self).await?;
        let is_filtered = self.job.is_some() || self.state.is_some();
        show(self.json, &runs, |runs| {
            match (runs.is_empty(), is_filtered) {
                (true, true) => "no such runs".to_owned(),
                (true, false) => "no runs yet; `etl run JOB` requests one".to_owned(),
                (false, _) => list(runs).to_string(),
            }
        })?;
        Ok(true)
    }
}

fn list(runs: &[Run]) -> Table {
    let header = [
        "run",
        "state",
        "extracted",
        "loaded",
        "rejected",
        "balanced",
        "requested",
    ];
    let rows = runs.iter().map(|run| {
        let balanced = match (run.balanced, run.state.is_over()) {
            (true, _) => "yes",
            (false, true) => "no",
            (false, false) => "not yet",
        };
        [
            run.run_id.clone(),
            state(run),
            number(run.rows_read),
            number(run.rows_loaded),
            number(run.rows_rejected),
            balanced.to_owned(),
            run.requested_at.clone(),
        ]
    });
    table(&header, 2..5, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{on_a_terminal, samples};

    #[test]
    fn runs_fit_a_terminal_of_any_width() {
        for width in [120, 70] {
            let shown = on_a_terminal(list(&samples::runs()), width);
            insta::assert_snapshot!(format!("runs_{width}"), shown);
        }
    }
}
