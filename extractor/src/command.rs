//! What a person can ask of the extractor's binary: whether it could work here, and how a job's
//! result looks. Results go to standard output, remarks to standard error.

mod check;
mod sample;

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use common::job::{Job, Results, Source};
use common::settings;
use serde::{Deserialize, Serialize};

/// The most rows of a sample: those of one page of `GetQueryResults`, its header included.
const MOST_ROWS: i64 = 999;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Try what the extractor needs of AWS: region, credentials, workgroup, output location, and each
    /// permission, a line each with the remedy. Nothing is changed and nothing costs, unless --query is given.
    #[command(
        after_help = "Examples:\n  extractor check\n  extractor check most_visited_url --query\n\nExit code 0 when nothing is amiss, 1 when something is, 2 when the command cannot be right."
    )]
    Check(CheckArguments),
    /// Ask Athena for a few rows of a job, and show them with their types and what the rules would reject.
    /// Nothing is loaded. Athena charges for what it scans, which a LIMIT does not bound.
    #[command(
        after_help = "Examples:\n  extractor sample most_visited_url --rows 5\n  extractor sample most_visited_url --set from=2018-04-03 --json"
    )]
    Sample(SampleArguments),
}

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// The job whose workgroup, output location and database are meant: the name of a file in
    /// `ETL_JOBS`, without .toml.
    job: Option<String>,
    /// Another workgroup than the job's, or than primary.
    #[arg(long)]
    workgroup: Option<String>,
    /// Another place for results than the job's, or than the workgroup's: `s3://bucket/prefix/`.
    #[arg(long)]
    output_location: Option<String>,
    /// Also run `SELECT 1`, and read its result on both ways. It scans nothing.
    #[arg(long)]
    query: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct SampleArguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    job: String,
    /// How many rows.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=MOST_ROWS))]
    rows: u32,
    /// Set a parameter of the job; the others have their defaults.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The command cannot be right, whatever the state of the world: exit code 2.
    #[error(transparent)]
    Misuse(anyhow::Error),
    /// It could not be done: exit code 1.
    #[error(transparent)]
    Untrue(#[from] anyhow::Error),
}

/// Runs a command to its exit code.
pub async fn run(command: Command) -> ExitCode {
    if let Err(error) = common::telemetry::start_command("extractor") {
        note(&format!("{error:#}"));
        return ExitCode::from(2);
    }
    common::service::install_tls();
    for sentence in settings::unknown_variables() {
        note(&sentence);
    }
    let done = match command {
        Command::Check(arguments) => Box::pin(check::run(arguments)).await,
        Command::Sample(arguments) => Box::pin(sample::run(arguments)).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure::Untrue(error)) => {
            note(&format!("{error:#}"));
            ExitCode::FAILURE
        }
        Err(Failure::Misuse(error)) => {
            note(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

/// A remark to the user, beside the result.
#[expect(clippy::print_stderr, reason = "a command talks to its user")]
fn note(text: &str) {
    eprintln!("extractor: {text}");
}

/// A result. A reader that went away (`| head`) is not an error.
fn print(text: &str) -> Result<(), Failure> {
    match writeln!(stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(error).context("cannot print").into())
        }
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value).context("cannot write JSON")?)
}

#[derive(Deserialize)]
struct JobSettings {
    #[serde(default = "default_jobs")]
    jobs: PathBuf,
}

fn default_jobs() -> PathBuf {
    PathBuf::from("jobs")
}

fn read_job(name: &str) -> Result<Job, Failure> {
    let settings: JobSettings = settings::load().map_err(|error| Failure::Misuse(error.into()))?;
    Job::read(&settings.jobs, name).map_err(|error| Failure::Misuse(error.into()))
}

/// Where a query is asked that belongs to no job.
fn no_jobs_source() -> Source {
    Source {
        database: "default".to_owned(),
        workgroup: None,
        catalog: None,
        output_location: None,
        results: Results::Auto,
        max_scanned: None,
        timeout: Duration::from_mins(2),
    }
}

/// A name for a query that belongs to no run, which nobody has used before: it is part of the token
/// by which Athena would take it for an earlier one.
fn fresh_name(what: &str) -> Result<common::message::RunId, Failure> {
    let name = format!("{what}-{:032x}", rand::random::<u128>());
    Ok(name.parse().context("cannot name the query")?)
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a parameter is set as NAME=VALUE, such as from=2018-04-02".to_owned()),
    }
}
