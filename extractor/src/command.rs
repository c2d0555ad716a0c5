//! The commands of the extractor's binary, which need AWS. Each is a file below.

mod check;
mod columns;
mod rds_token;
mod sample;

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Subcommand;
use common::command::{self, Failure, jobs_folder};
use common::job::{Job, Source};
use common::message::RunId;

use crate::athena::Query;
use crate::aws::{self, AwsError, Patience};
use crate::query::{self, Started};
use crate::session::{Access, Clients};
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub enum Command {
    Check(check::Arguments),
    Columns(columns::Arguments),
    RdsToken(rds_token::Arguments),
    Sample(sample::Arguments),
}

/// Runs a command to its exit code.
pub async fn run(command: Command) -> ExitCode {
    let command = async {
        match command {
            Command::Check(arguments) => check::run(arguments).await,
            Command::Columns(arguments) => columns::run(arguments).await,
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

/// Athena and S3 with a job's account.
async fn clients(source: &Source) -> Result<Clients, Failure> {
    let settings: Settings = common::settings::load().map_err(Failure::usage)?;
    let config = aws::configure(Patience::Command).await;
    let config = config.map_err(anyhow::Error::from)?;
    let access = Access::new(config, &settings, String::new());
    Ok(access.clients(&source.account).await.of(source))
}

/// Runs a query to its end, within the source's limits. Returns its execution's id, and the bytes that it scanned.
async fn to_the_end(
    clients: &Clients,
    source: &Source,
    sql: &str,
    what: &str,
) -> Result<(String, u64), Failure> {
    let run = fresh_name(what)?;
    let query = Query::once(&run, sql, source);
    let id = clients.athena.start(query).await.map_err(hinted)?;
    let ended = query::wait_to_the_end(&clients.athena, Started::now(&id, source));
    // An interrupt saves the cost of the rest.
    let ended = tokio::select! {
        ended = ended => ended.map_err(hinted)?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot listen for an interrupt")?;
            clients.athena.stop(&id).await.map_err(hinted)?;
            return Err(anyhow!("interrupted; the query {id} is stopped").into());
        }
    };
    match ended {
        Ok(execution) => Ok((id, execution.bytes_scanned)),
        Err(reason) => Err(anyhow!(reason).into()),
    }
}

fn hinted(error: AwsError) -> Failure {
    let hint = error.hint();
    let error = anyhow::Error::from(error);
    Failure::Failed(match hint {
        Some(hint) => error.context(hint),
        None => error,
    })
}
