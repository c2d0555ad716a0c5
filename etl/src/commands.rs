//! The commands of `etl`. Each is a file below; `all` is the list of them.

pub mod approve;
pub mod backfill;
pub mod cancel;
pub mod completion;
pub mod dead;
pub mod discard;
pub mod doctor;
pub mod init;
pub mod jobs;
pub mod man;
pub mod plan;
pub mod prune;
pub mod reconcile;
pub mod rejects;
pub mod replay;
pub mod run;
pub mod runs;
pub mod schema;
pub mod status;
pub mod topology;
pub mod trace;
pub mod validate;
pub mod watermark;

use clap::{Arg, ArgMatches, Args, ColorChoice, ValueEnum as _, value_parser};
use common::command::error_as_json;
use futures::future::LocalBoxFuture;

use crate::output::terminal;
use crate::{Failure, complete};

/// Every command by its purpose, in the order of `etl --help`.
fn all() -> Vec<(&'static str, Vec<Entry>)> {
    vec![
        (
            "Jobs",
            vec![
                Entry::new::<init::Arguments>("init"),
                Entry::new::<validate::Arguments>("validate"),
                Entry::new::<jobs::Arguments>("jobs"),
                Entry::new::<plan::Arguments>("plan"),
            ],
        ),
        (
            "Load",
            vec![
                Entry::new::<run::Arguments>("run"),
                Entry::new::<backfill::Arguments>("backfill"),
                Entry::new::<watermark::Arguments>("watermark"),
            ],
        ),
        (
            "Look",
            vec![
                Entry::new::<status::Arguments>("status"),
                Entry::new::<runs::Arguments>("runs"),
                Entry::new::<reconcile::Arguments>("reconcile"),
                Entry::new::<rejects::Arguments>("rejects"),
                Entry::new::<trace::Arguments>("trace"),
            ],
        ),
        (
            "Decide and repair",
            vec![
                Entry::new::<cancel::Arguments>("cancel"),
                Entry::new::<approve::Arguments>("approve"),
                Entry::new::<discard::Arguments>("discard"),
                Entry::new::<replay::Arguments>("replay"),
                Entry::new::<dead::Arguments>("dead"),
            ],
        ),
        (
            "Operate",
            vec![
                Entry::new::<doctor::Arguments>("doctor"),
                Entry::new::<topology::Arguments>("topology"),
                Entry::new::<prune::Arguments>("prune"),
            ],
        ),
        (
            "Shells and editors",
            vec![
                Entry::new::<completion::Arguments>("completion"),
                Entry::new::<man::Arguments>("man"),
                Entry::new::<schema::Arguments>("schema"),
            ],
        ),
    ]
}

/// The commands without their groups.
fn entries() -> impl Iterator<Item = Entry> {
    all().into_iter().flat_map(|(_, entries)| entries)
}

/// The commands for `etl --help`, under the names of their groups.
fn listed() -> String {
    let groups = all().into_iter().map(|(name, entries)| {
        let lines = entries.into_iter().map(|entry| {
            let about = entry.command.get_about().map(ToString::to_string);
            format!("  {:<12}{}\n", entry.name, about.unwrap_or_default())
        });
        format!("{name}:\n{}", lines.collect::<String>())
    });
    groups.collect::<Vec<_>>().join("\n")
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
        .help_template("{about-with-newline}\n{usage-heading} {usage}\n\n{before-help}{options}\n\n{after-help}")
        .before_help(listed())
        .arg(color())
        .subcommand_required(true)
        .arg_required_else_help(true);
    complete::with_values(etl.subcommands(entries().map(|entry| entry.command)))
}

/// `--color`, of every command.
fn color() -> Arg {
    Arg::new("color")
        .long("color")
        .value_name("WHEN")
        .global(true)
        .value_parser(value_parser!(ColorChoice))
        .default_value("auto")
        .help("Colours: on a terminal and without `NO_COLOR` (auto), always, or never")
}

/// What `--color` says, for clap's own help and errors: it has not read the command line when it prints them.
fn color_in(arguments: impl Iterator<Item = String>) -> ColorChoice {
    let mut words = arguments.take_while(|word| word != "--");
    let mut value = None;
    while let Some(word) = words.next() {
        match word.strip_prefix("--color") {
            Some("") => value = words.next(),
            Some(rest) => value = rest.strip_prefix('=').map(str::to_owned).or(value),
            None => {}
        }
    }
    let choice = value.and_then(|value| ColorChoice::from_str(&value, false).ok());
    choice.unwrap_or_default()
}

/// Reads the command line: the command that it names. Help and usage errors of clap end the process.
pub fn parse() -> impl Future<Output = Result<bool, Failure>> {
    let color = color_in(std::env::args().skip(1));
    let matches = definition().color(color).try_get_matches();
    let matches = matches.unwrap_or_else(|error| {
        if error.exit_code() != 0 {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            // What is wrong and what is meant, without the usage.
            let (why, _) = text.split_once("\n\nUsage:").unwrap_or((text, ""));
            let words: Vec<_> = why.split_whitespace().collect();
            error_as_json(&words.join(" "), 2);
        }
        error.exit()
    });
    if let Some(choice) = matches.get_one("color") {
        terminal::choose(*choice);
    }
    let (name, arguments) = matches.subcommand().expect("a command is required");
    let entry = entries().find(|entry| entry.name == name);
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
    fn list_of_the_commands_fits_80_columns() {
        for line in listed().lines() {
            assert!(line.len() <= 80, "{} characters: {line}", line.len());
        }
    }

    #[test]
    fn every_command_has_an_example_and_a_description() {
        let mut command = definition();
        command.build();
        let mut names = Vec::new();
        walk(&command, "etl", &mut names);
        assert!(names.len() > 15, "{names:?}");
    }

    #[test]
    fn help_and_errors_have_the_colours_that_the_command_line_asks_for() {
        let color = |line: &str| color_in(line.split_whitespace().map(str::to_owned));
        for (line, expected) in [
            ("runs --help", ColorChoice::Auto),
            ("--color never runs", ColorChoice::Never),
            ("runs --color=always --help", ColorChoice::Always),
            ("runs --color", ColorChoice::Auto),
            ("runs --color green", ColorChoice::Auto),
            ("status -- --color=never", ColorChoice::Auto),
        ] {
            assert_eq!(color(line), expected, "{line}");
        }
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
