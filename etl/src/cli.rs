//! What `etl` can be asked, as clap reads it.

use clap::{Args, Parser, Subcommand};
use common::message::RunId;

/// Athena results into PostgreSQL: asks for runs, follows them, and proves them.
///
/// Settings come from the environment: `ETL_AMQP_URL`, `ETL_DATABASE_URL`, and `ETL_JOBS`, the folder of the
/// jobs. Exit code 0 when what was asked for is true, 1 when it is not, 2 when the command cannot be right.
#[derive(Debug, Parser)]
#[command(
    name = "etl",
    version,
    after_help = "Example: etl run most_visited_url --set from=2018-04-02 --follow"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask for a run of a job.
    #[command(
        after_help = "Example: etl run most_visited_url --set from=2018-04-02 --set to=2018-04-08 --follow"
    )]
    Run(RunArguments),
    /// Show a run, or the latest runs.
    #[command(after_help = "Example: etl status most_visited_url-20180409 --json")]
    Status {
        /// The run, or the beginning of its name where only one run begins so.
        run: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prove that every row of a run is accounted for; all runs when none is named.
    #[command(after_help = "Example: etl reconcile daily-2018-04-09 && echo complete")]
    Reconcile {
        /// The run's whole name.
        run: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Send archived batches of a run again, without asking Athena.
    #[command(after_help = "Example: etl replay daily-2018-04-09 --missing")]
    Replay {
        /// The run's whole name.
        run: String,
        /// The batches that the books lack: lost with a queue, or with a database that was restored to
        /// an earlier time.
        #[arg(long, required = true)]
        missing: bool,
    },
    /// Look at messages that no stage could handle, and send them again.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Show the rows of a run that were rejected, and why.
    #[command(after_help = "Example: etl rejects clicks-20180409 --limit 5")]
    Rejects {
        /// The run, or the beginning of its name where only one run begins so.
        run: String,
        /// The most rows to list.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Print JSON: one array, every row with its raw values.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List the dead letters that nobody has dealt with.
    #[command(after_help = "Example: etl dead list --json")]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with the beginning of its body.
    #[command(after_help = "Example: etl dead show 17")]
    Show {
        /// Its number, as the list has it.
        id: i64,
    },
    /// Send dead letters back to the queues that they came from, once the cause is mended. Their
    /// identity stays, so that nothing can be loaded twice.
    #[command(after_help = "Example: etl dead replay 17 18")]
    Replay(ReplayArguments),
}

#[derive(Debug, Args)]
#[group(required = true)]
pub(crate) struct ReplayArguments {
    /// Their numbers, as the list has them.
    #[arg(conflicts_with = "all")]
    pub(crate) ids: Vec<i64>,
    /// All that nobody has dealt with.
    #[arg(long)]
    pub(crate) all: bool,
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
    /// Stay until the run is over, and exit with 0 only if it is complete.
    #[arg(long)]
    pub(crate) follow: bool,
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
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

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
