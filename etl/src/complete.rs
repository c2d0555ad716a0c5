//! What a shell completes beside commands and options: names of jobs, of their parameters, and of runs. The shell calls `etl`
//! with COMPLETE set; what cannot be read is not completed.

use std::ffi::OsStr;
use std::time::Duration;

use clap::Command;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use common::job::Job;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::jobs::Jobs;
use crate::store;
use ledger::RunFilter;

/// The longest that a shell waits for the names of runs.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The most runs that are offered.
const RUNS: u32 = 50;

/// Gives each argument the values that it completes, by its name.
pub fn with_values(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_id().as_str() {
        "job" | "jobs" => arg.add(ArgValueCandidates::new(jobs)),
        "run" | "runs" => arg.add(ArgValueCompleter::new(runs)),
        "set" => arg.add(ArgValueCandidates::new(parameters)),
        _ => arg,
    });
    command.mut_subcommands(with_values)
}

fn jobs() -> Vec<CompletionCandidate> {
    let names = Jobs::load().and_then(|jobs| jobs.names());
    let names = names.unwrap_or_default().into_iter();
    names.map(CompletionCandidate::new).collect()
}

/// `name=` of each parameter of the job that the command line has.
fn parameters() -> Vec<CompletionCandidate> {
    let Ok(jobs) = Jobs::load() else {
        return Vec::new();
    };
    let words = std::env::args().skip_while(|word| word != "--");
    let job = words.skip(1).find_map(|word| jobs.read(&word).ok());
    let offer = |job: Job| {
        let names = job.parameters.into_keys();
        names
            .map(|name| CompletionCandidate::new(format!("{name}=")))
            .collect()
    };
    job.map(offer).unwrap_or_default()
}

/// The latest runs that begin with what is there.
fn runs(begun: &OsStr) -> Vec<CompletionCandidate> {
    let Some(begun) = begun.to_str() else {
        return Vec::new();
    };
    let filter = RunFilter {
        limit: RUNS,
        ..RunFilter::default()
    };
    let latest = async {
        let store = store::open().await.ok()?;
        store.latest(&filter).await.ok()
    };
    common::service::install_tls();
    let runtime = Builder::new_current_thread().enable_all().build();
    let found = runtime.ok().and_then(|runtime| {
        let latest = async { timeout(TIMEOUT, latest).await.ok().flatten() };
        runtime.block_on(latest)
    });
    let runs = found.unwrap_or_default().into_iter();
    let runs = runs.filter(|run| run.run_id.starts_with(begun));
    runs.map(|run| {
        let state = run.state.to_string();
        CompletionCandidate::new(run.run_id).help(Some(state.into()))
    })
    .collect()
}
