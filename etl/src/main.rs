//! `etl`: asks for runs, follows them, and proves them.
//!
//! Results go to standard output, everything else to standard error. The exit code is 0 only when
//! what was asked for is true, 1 when it is not, and 2 when the command itself cannot be right.

mod backfill;
mod books;
mod broker;
mod cli;
mod dead;
mod decide;
mod doctor;
mod follow;
mod jobs;
mod plan;
mod prune;
mod rejects;
mod replay;
mod report;
mod request;
mod run;
mod seqs;
mod status;
mod trace;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use common::telemetry;

use crate::books::Books;
use crate::cli::{Cli, Command};

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The command cannot be right, whatever the state of the world: exit code 2.
    #[error(transparent)]
    Misuse(anyhow::Error),
    /// What was asked for is not so, or could not be done: exit code 1.
    #[error(transparent)]
    Untrue(#[from] anyhow::Error),
}

impl Failure {
    fn misuse(error: impl Into<anyhow::Error>) -> Self {
        Self::Misuse(error.into())
    }

    fn error(&self) -> &anyhow::Error {
        match self {
            Self::Misuse(error) | Self::Untrue(error) => error,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    common::service::install_tls();
    let cli = Cli::parse();
    for sentence in common::settings::unknown_variables() {
        report::note(&sentence);
    }
    let traces = match telemetry::start_command("etl") {
        Ok(traces) => traces,
        Err(error) => {
            complain(&error);
            return ExitCode::from(2);
        }
    };
    let done = answer(cli).await;
    traces.finish().await;
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure::Untrue(error)) => {
            complain(&error);
            ExitCode::FAILURE
        }
        Err(Failure::Misuse(error)) => {
            complain(&error);
            ExitCode::from(2)
        }
    }
}

/// Runs a command; the answer is whether what was asked for is true.
async fn answer(cli: Cli) -> Result<bool, Failure> {
    match cli.command {
        Command::Plan(arguments) => plan::plan(&arguments).await,
        Command::Run(arguments) => run::run(&arguments).await,
        Command::Backfill(arguments) => backfill::run(&arguments).await,
        Command::Runs(arguments) => status::runs(&arguments).await,
        Command::Status(arguments) => status::status(&arguments).await,
        Command::Cancel(arguments) => decide::cancel(&arguments).await,
        Command::Approve(arguments) => decide::approve(&arguments).await,
        Command::Discard(arguments) => decide::discard(&arguments).await,
        Command::Doctor { json } => doctor::doctor(json).await,
        Command::Prune(arguments) => prune::prune(&arguments).await,
        Command::Completion { shell } => {
            report::completion(shell, &mut Cli::command())?;
            Ok(true)
        }
        Command::Reconcile { run, json } => {
            let books = Books::open().await?;
            let proven = match &run {
                Some(name) => books.exactly(name).await?.into(),
                None => books.all((!json).then_some(report::FEW)).await?,
            };
            report::reconcile(&books, &proven, run.is_some(), json).await
        }
        Command::Replay(arguments) => replay::run(&arguments).await,
        Command::Dead(command) => dead::run(command).await,
        Command::Rejects(arguments) => rejects::run(&arguments).await,
        Command::Trace(arguments) => trace::run(&arguments).await,
    }
}

#[expect(clippy::print_stderr, reason = "a command talks to its user")]
fn complain(error: &anyhow::Error) {
    eprintln!("etl: {}", paragraph(error));
}

/// An error as one paragraph: what was being done, and each cause behind it once.
fn paragraph(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors say what is behind them, too.
        if said.ends_with(&cause) {
            continue;
        }
        if !said.is_empty() {
            said += ": ";
        }
        said += &cause;
    }
    said
}
