//! The commands of the extractor's binary, which need AWS. Each is a file below.

mod check;
mod rds_token;
mod sample;

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use common::command::{self, Failure, jobs_folder};
use common::job::Job;
use common::message::RunId;

#[derive(Debug, Subcommand)]
pub enum Command {
    Check(check::Arguments),
    RdsToken(rds_token::Arguments),
    Sample(sample::Arguments),
}

/// Runs a command to its exit code.
pub async fn run(command: Command) -> ExitCode {
    let command = async {
        match command {
            Command::Check(arguments) => check::run(arguments).await,
            Command::RdsToken(arguments) => rds_token::run(arguments).await,
            Command::Sample(arguments) => sample::run(arguments).await,
        }
    };
    Box::pin(command::run("extractor", command)).await
}

fn read_job(name: &str) -> Result<Job, Failure> {
    Job::read(&jobs_folder()?, name).map_err(Failure::usage)
}

/// A unique name for a query that belongs to no run: Athena takes a query with the same name for an earlier one.
fn fresh_name(what: &str) -> Result<RunId, Failure> {
    let name = format!("{what}-{:032x}", rand::random::<u128>());
    Ok(name.parse().context("cannot name the query")?)
}
