//! The commands of `etl`. Each is a file below; `all` is the list of them.

pub mod approve;
pub mod backfill;
pub mod cancel;
pub mod completion;
pub mod dead;
pub mod discard;
pub mod doctor;
pub mod plan;
pub mod prune;
pub mod reconcile;
pub mod rejects;
pub mod replay;
pub mod run;
pub mod runs;
pub mod status;
pub mod topology;
pub mod trace;

use clap::{ArgMatches, Args};
use futures::future::LocalBoxFuture;

use crate::Failure;

/// Every command, in the order of `etl --help`.
fn all() -> Vec<Entry> {
    vec![
        Entry::new::<plan::Arguments>("plan"),
        Entry::new::<run::Arguments>("run"),
        Entry::new::<backfill::Arguments>("backfill"),
        Entry::new::<runs::Arguments>("runs"),
        Entry::new::<status::Arguments>("status"),
        Entry::new::<reconcile::Arguments>("reconcile"),
        Entry::new::<cancel::Arguments>("cancel"),
        Entry::new::<approve::Arguments>("approve"),
        Entry::new::<discard::Arguments>("discard"),
        Entry::new::<replay::Arguments>("replay"),
        Entry::new::<dead::Arguments>("dead"),
        Entry::new::<rejects::Arguments>("rejects"),
        Entry::new::<trace::Arguments>("trace"),
        Entry::new::<doctor::Arguments>("doctor"),
        Entry::new::<topology::Arguments>("topology"),
        Entry::new::<prune::Arguments>("prune"),
        Entry::new::<completion::Arguments>("completion"),
    ]
}

/// A command: its arguments, whose documentation is its help, and what it does.
trait Command: Args + 'static {
    /// Runs the command and prints its result. False: what the command is to achieve or to prove is not so.
    async fn run(self) -> Result<bool, Failure>;
}

/// A running command.
type Running = LocalBoxFuture<'static, Result<bool, Failure>>;

/// A command as clap and [`parse`] see it.
struct Entry {
    name: &'static str,
    command: clap::Command,
    run: fn(&ArgMatches) -> Running,
}

impl Entry {
    fn new<C: Command>(name: &'static str) -> Self {
        Self {
            name,
            command: C::augment_args(clap::Command::new(name)),
            run: |matches| match C::from_arg_matches(matches) {
                Ok(command) => Box::pin(command.run()),
                Err(error) => error.exit(),
            },
        }
    }
}

/// `etl` with all of its commands, as clap reads it.
pub fn definition() -> clap::Command {
    let etl = clap::Command::new("etl")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Athena results into PostgreSQL: requests runs, follows them, and proves them.")
        .long_about(
            "Athena results into PostgreSQL: requests runs, follows them, and proves them.\n\n\
             The environment has the settings: `ETL_AMQP_URL`, `ETL_DATABASE_URL`, and `ETL_JOBS`, the folder of the job \
             files. Exit code 0: success. 1: failed, or not true. 2: usage error.",
        )
        .after_help("Example: etl run most_visited_url --set from=2018-04-02 --follow")
        .subcommand_required(true)
        .arg_required_else_help(true);
    etl.subcommands(all().into_iter().map(|entry| entry.command))
}

/// Reads the command line: the command that it names. Help and usage errors of clap end the process.
pub fn parse() -> impl Future<Output = Result<bool, Failure>> {
    let matches = definition().get_matches();
    let (name, arguments) = matches.subcommand().expect("a command is required");
    let entry = all().into_iter().find(|entry| entry.name == name);
    (entry.expect("clap accepts the commands of the list").run)(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_and_a_description() {
        let mut command = definition();
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
        assert!(command.get_about().is_some(), "`{path}` has no description");
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
