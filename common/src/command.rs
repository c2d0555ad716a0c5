//! What the commands of `etl` and of the extractor share: the error and its exit code, and how a result and a note are
//! printed. Results go to standard output, notes and errors to standard error.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};

use crate::reason::paragraph;
use crate::settings::{self, variable};
use crate::telemetry;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line, a setting or a job is wrong: the same command fails again. Exit code 2.
    #[error(transparent)]
    Usage(anyhow::Error),
    /// The command is right and did not succeed. Exit code 1.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Failure {
    /// A usage error.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }

    /// Says first what was not done because of it.
    #[must_use]
    pub fn context(self, what: impl std::fmt::Display + Send + Sync + 'static) -> Self {
        match self {
            Self::Usage(error) => Self::Usage(error.context(what)),
            Self::Failed(error) => Self::Failed(error.context(what)),
        }
    }

    /// The error and each cause behind it once, as one paragraph.
    pub fn paragraph(&self) -> String {
        let (Self::Usage(error) | Self::Failed(error)) = self;
        paragraph(error)
    }

    /// The exit code.
    pub fn number(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
        }
    }
}

/// Runs a command to its exit code. 0: success. 1: failed, or not true (the command returned false). 2: usage error.
pub async fn run(
    program: &'static str,
    command: impl Future<Output = Result<bool, Failure>>,
) -> ExitCode {
    crate::service::install_tls();
    for sentence in settings::unknown_variables() {
        note(program, &sentence);
    }
    let done = match telemetry::start_command(program) {
        Ok(traces) => {
            let done = command.await;
            traces.finish().await;
            done
        }
        Err(error) => Err(Failure::Usage(error)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            let why = failure.paragraph();
            note(program, &why);
            error_as_json(&why, failure.number());
            ExitCode::from(failure.number())
        }
    }
}

/// Prints an error as JSON where the command line wants JSON: `{"error": "...", "exit_code": 2}`. A reader of standard output
/// gets an answer in any case.
pub fn error_as_json(why: &str, exit_code: u8) {
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if wants_json {
        // What cannot be printed cannot be told here, either.
        print_json(&serde_json::json!({ "error": why, "exit_code": exit_code })).ok();
    }
}

/// Prints a note or an error to standard error, after the name of the program.
#[expect(clippy::print_stderr, reason = "a command talks to its user")]
pub fn note(program: &str, text: &str) {
    eprintln!("{program}: {text}");
}

/// Prints a line of the result. A reader that closed the pipe (`| head`) is not an error.
pub fn print(text: &str) -> Result<(), Failure> {
    match writeln!(stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(error).context("cannot print").into())
        }
        _ => Ok(()),
    }
}

/// Prints the result as indented JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value).context("cannot write JSON")?)
}

/// The user that a command acts for, as the ledger records it: `USER`, else the number of the user, since containers and
/// cron often leave `USER` unset.
pub fn user() -> String {
    variable("USER").unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// Parses the argument of `--set`.
pub fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write a parameter as NAME=VALUE, such as from=2018-04-02".to_owned()),
    }
}

/// The values of all `--set` by name. A parameter that is set twice is a usage error.
pub fn assignments(set: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    let mut values = BTreeMap::new();
    for (name, value) in set {
        if values.insert(name.clone(), value.clone()).is_some() {
            return Err(Failure::usage(anyhow!(
                "the parameter {name:?} is set twice"
            )));
        }
    }
    Ok(values)
}

/// The folder of the job files, as `ETL_JOBS` names it.
pub fn jobs_folder() -> Result<PathBuf, Failure> {
    #[derive(Deserialize)]
    struct Settings {
        jobs: Option<PathBuf>,
    }
    let settings: Settings = settings::load().map_err(Failure::usage)?;
    Ok(settings.jobs.unwrap_or_else(|| PathBuf::from("jobs")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignment_keeps_everything_after_the_first_equals_sign() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(assignment("a=b=c"), pair("a", "b=c"));
        assert_eq!(assignment("a="), pair("a", ""));
        assert!(assignment("a").is_err() && assignment("=a").is_err());
    }

    #[test]
    fn parameter_set_twice_is_a_usage_error() {
        let twice = ["1", "2"].map(|value| ("a".to_owned(), value.to_owned()));
        assert!(matches!(assignments(&twice), Err(Failure::Usage(_))));
        assert_eq!(assignments(&twice[..1]).unwrap()["a"], "1");
    }
}
