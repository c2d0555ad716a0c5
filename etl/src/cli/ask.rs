//! What can be said when a run is planned or asked for.

use std::time::Duration;

use clap::{Args, ValueEnum};
use common::message::RunId;
use jiff::civil::Date;

use crate::backfill::Step;

#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    pub(crate) job: String,
    /// Set a parameter of the job; the others have their defaults.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_assignment)]
    pub(crate) set: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    pub(crate) job: String,
    /// Set a parameter of the job; the others have their defaults.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_assignment)]
    pub(crate) set: Vec<(String, String)>,
    /// A name for the run. Asking again under the same name is asking once.
    #[arg(long, value_name = "ID")]
    pub(crate) run_id: Option<RunId>,
    /// Ask although a run of the same job and parameters has appended the same rows before.
    #[arg(long)]
    pub(crate) again: bool,
    /// Stay until the run is over, and exit with 0 only if it is complete.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Follow no longer than this, such as 30m; the run goes on, and the exit code is 1.
    #[arg(long, value_name = "TIME", requires = "follow", value_parser = humantime::parse_duration)]
    pub(crate) wait_timeout: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whether a job counts the last day of its range in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bound {
    /// The parameter is the last day that is loaded.
    Inclusive,
    /// The parameter is the first day that is not.
    Exclusive,
}

#[derive(Debug, Args)]
pub(crate) struct BackfillArguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    pub(crate) job: String,
    /// The first day.
    #[arg(long, value_name = "DAY")]
    pub(crate) from: Date,
    /// The day to stop before: the first that is not loaded.
    #[arg(long, value_name = "DAY")]
    pub(crate) to: Date,
    /// The length of a window: a number of days, weeks or months.
    #[arg(long, value_name = "1d|1w|1mo")]
    pub(crate) every: Step,
    /// The most runs that are under way at the same time.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) parallel: u32,
    /// The job's parameters that take a window's first day and its end, or the one that takes its only day.
    #[arg(long, value_name = "FROM,TO", value_delimiter = ',', num_args = 1..=2, default_value = "from,to")]
    pub(crate) param_names: Vec<String>,
    /// How the job's SQL takes the end of a window: as its last day (`BETWEEN :from AND :to`), or as the day after
    /// (`< :to`). By default inclusive for a date and exclusive for a timestamp.
    #[arg(long, value_name = "HOW")]
    pub(crate) to_is: Option<Bound>,
    /// Set another parameter of the job, the same for every window.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_assignment)]
    pub(crate) set: Vec<(String, String)>,
    /// Ask once more for the windows whose runs came to nothing, under the next name.
    #[arg(long)]
    pub(crate) retry: bool,
    /// Go on with the other windows when one fails; otherwise no further one is begun.
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a parameter is set as NAME=VALUE, such as from=2018-04-02".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_keeps_what_stands_after_the_first_sign() {
        assert_eq!(
            parse_assignment("a=b=c").unwrap(),
            ("a".to_owned(), "b=c".to_owned())
        );
        assert_eq!(
            parse_assignment("a=").unwrap(),
            ("a".to_owned(), String::new())
        );
        assert!(parse_assignment("a").is_err() && parse_assignment("=a").is_err());
    }
}
