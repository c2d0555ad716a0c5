//! What `etl` can be asked, as clap reads it.

mod ask;
mod look;
mod repair;

use clap::{Parser, Subcommand};

pub(crate) use ask::{BackfillArguments, Bound, PlanArguments, RunArguments};
pub(crate) use look::{
    ApproveArguments, CancelArguments, DiscardArguments, PruneArguments, RunsArguments, State,
    StatusArguments,
};

pub(crate) use repair::{
    DeadCommand, DropLettersArguments, ExportFormat, LetterFilter, RejectsArguments,
    ReplayArguments, ReplayLettersArguments, TraceArguments,
};

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
    /// Show what a run would do: the SQL, the columns, the target's DDL. Nothing is written or sent.
    #[command(after_help = "Example: etl plan most_visited_url --set from=2018-04-02")]
    Plan(PlanArguments),
    /// Ask for a run of a job.
    #[command(
        after_help = "Example: etl run most_visited_url --set from=2018-04-02 --set to=2018-04-08 --follow --wait-timeout 1h"
    )]
    Run(RunArguments),
    /// Ask for a run for each window of a range of days, the last day not included.
    ///
    /// The same command again goes on where it stopped: every window has one run, whose name follows from the job,
    /// the range and the window.
    #[command(
        after_help = "Example: etl backfill clicks --from 2018-04-01 --to 2018-05-01 --every 1d --parallel 3"
    )]
    Backfill(BackfillArguments),
    /// List the latest runs.
    #[command(after_help = "Example: etl runs --job clicks --state failed --limit 50")]
    Runs(RunsArguments),
    /// Show a run: how far it is, how fast, what waits in the queues, what it cost.
    #[command(after_help = "Example: etl status most_visited_url-20180409 --watch")]
    Status(StatusArguments),
    /// Prove that every row of a run is accounted for; all runs when none is named.
    #[command(after_help = "Example: etl reconcile daily-2018-04-09 && echo complete")]
    Reconcile {
        /// The run's whole name.
        run: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give a run up: its query is stopped, and what is still on its way is not loaded.
    ///
    /// Rows that are in the target already stay there unless --undo removes them.
    #[command(after_help = "Example: etl cancel daily-2018-04-09 --undo --why 'the wrong week'")]
    Cancel(CancelArguments),
    /// Publish a run that is held, although it was held.
    #[command(after_help = "Example: etl approve daily-2018-04-09 --follow")]
    Approve(ApproveArguments),
    /// Give a run up that is held: none of its rows reaches the target.
    #[command(after_help = "Example: etl discard daily-2018-04-09 --why 'half of it was rejected'")]
    Discard(DiscardArguments),
    /// Put batches of runs through again, with the job as it is now and without asking Athena.
    Replay(ReplayArguments),
    /// Look at messages that no stage could handle, and send them again.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Check the broker, the database, the queues and the jobs: a line each, with the remedy.
    #[command(after_help = "Example: etl doctor")]
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Forget old rejected values and bodies of dead letters; runs and batches stay.
    #[command(after_help = "Example: etl prune --older-than 30d --dry-run")]
    Prune(PruneArguments),
    /// Print the completions for a shell.
    #[command(after_help = "Example: etl completion bash > /etc/bash_completion.d/etl")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Show the rows that were rejected, and why.
    Rejects(RejectsArguments),
    /// From a row of a target table to its batch, run, query and result.
    Trace(TraceArguments),
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
    fn every_command_has_an_example() {
        let mut command = Cli::command();
        command.build();
        let mut names = Vec::new();
        walk(&command, "etl", &mut names);
        assert!(names.len() > 15, "{names:?}");
    }

    fn walk(command: &clap::Command, path: &str, names: &mut Vec<String>) {
        let below: Vec<_> = command
            .get_subcommands()
            .filter(|below| below.get_name() != "help")
            .collect();
        for below in &below {
            walk(below, &format!("{path} {}", below.get_name()), names);
        }
        if below.is_empty() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.starts_with("Example") && help.contains(&format!(" {path}")),
                "`{path} --help` has no example of itself: {help:?}"
            );
            names.push(path.to_owned());
        }
    }
}
