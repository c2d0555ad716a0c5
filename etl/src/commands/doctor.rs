//! `etl doctor`: checks everything that a run needs, a line each with the remedy.

mod archive;
mod broker;
mod database;
mod jobs;

use common::findings::Findings;

use super::Command;
use crate::{Failure, loss};

/// Check broker, database, queues and jobs, with the remedies.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl doctor")]
pub struct Arguments {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Checks everything. What cannot be checked is not wrong.
pub async fn plan() -> Findings {
    let mut findings = Findings::default();
    let store = database::examine(&mut findings).await;
    let store = found(&mut findings, "database", store);
    let broker = broker::examine(store.as_ref(), &mut findings).await;
    found(&mut findings, "broker", broker);
    if let Some(store) = &store {
        let lost = loss::latest(store).await;
        for (run, why) in found(&mut findings, "runs", lost) {
            findings.warning("runs", format!("{run}: {why}"));
        }
    }
    let jobs = jobs::examine(store.as_ref(), &mut findings).await;
    found(&mut findings, "jobs", jobs);
    findings
}

/// What a check returns. Its error is a finding.
fn found<T: Default>(
    findings: &mut Findings,
    what: &'static str,
    checked: Result<T, Failure>,
) -> T {
    checked.unwrap_or_else(|failure| {
        findings.wrong(what, failure.paragraph());
        T::default()
    })
}

impl Command for Arguments {
    /// True when nothing is wrong.
    async fn run(self) -> Result<bool, Failure> {
        plan().await.report(self.json)
    }
}
