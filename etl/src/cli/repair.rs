//! What repairs: replays, dead letters, the quarantine, and the way back from a row.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::seqs::Seqs;

/// `etl replay`: which runs, which of their batches, and from where.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  etl replay daily-2018-04-09 --follow        all of it, with the job as it is now
  etl replay daily-2018-04-09 --rejected-only only the batches that have a rejected row (append)
  etl replay --job clicks --since 2018-04-01 --until 2018-05-01
  etl replay daily-2018-04-09 --missing       what a purged queue or a restored database lost
  etl replay daily-2018-04-09 --from-athena   when the archive no longer has it")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct ReplayArguments {
    /// The run's whole name.
    #[arg(required_unless_present = "job", conflicts_with = "job")]
    pub(crate) run: Option<String>,
    /// All runs of this job that were asked for from --since on.
    #[arg(long, requires = "since")]
    pub(crate) job: Option<String>,
    /// A date or a time in UTC, such as 2018-04-02 or 2018-04-02T10:00:00Z.
    #[arg(long, value_name = "TIME", requires = "job", value_parser = parse_time)]
    pub(crate) since: Option<Timestamp>,
    /// The first moment that is not meant any more.
    #[arg(long, value_name = "TIME", requires = "job", value_parser = parse_time)]
    pub(crate) until: Option<Timestamp>,
    /// Only these batches, the last one included. Where batches depend on each other (every mode but
    /// append, and whatever is published as a whole) the whole run is replayed, and that is said.
    #[arg(long, value_name = "A..B", conflicts_with_all = ["job", "rejected_only", "missing", "from_athena"])]
    pub(crate) seq: Option<Seqs>,
    /// Only the batches that have a rejected row, each of them whole.
    #[arg(long, conflicts_with_all = ["missing", "from_athena"])]
    pub(crate) rejected_only: bool,
    /// The batches that the books lack, in the same generation and as they were: lost with a queue,
    /// or with a database that was restored to an earlier time.
    #[arg(long, conflicts_with = "from_athena")]
    pub(crate) missing: bool,
    /// Read the query's result again, through the extractor, for a run that the archive no longer
    /// has. The whole run; no query is started.
    #[arg(long)]
    pub(crate) from_athena: bool,
    /// Also a run that is not over, where nothing works on it any more. What still comes of its
    /// older generation changes nothing.
    #[arg(long, conflicts_with_all = ["missing", "job"])]
    pub(crate) force: bool,
    /// Stay until the run is over, and exit with 0 only if it is complete.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print JSON, one line a run.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List the dead letters that nobody has dealt with.
    #[command(after_help = "Example: etl dead list --job clicks --stage loader")]
    List {
        #[command(flatten)]
        filter: LetterFilter,
        /// The most to list; all with --json.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with the beginning of its body.
    #[command(after_help = "Example: etl dead show 17")]
    Show {
        /// Its number, as the list has it.
        #[arg(value_parser = parse_letter)]
        id: i64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters back to the queues that they came from, once the cause is mended. Their
    /// identity stays, so that nothing can be loaded twice.
    #[command(
        after_help = "Example: etl dead replay 17 18\n         etl dead replay --all --run daily-2018-04-09"
    )]
    Replay(ReplayLettersArguments),
    /// Give dead letters up, each by itself. The rows of a batch are counted as dropped, in your name, and
    /// its run can complete without them; of a task or an event only the letter is dealt with.
    #[command(
        after_help = "Example: etl dead drop 17 18 --why 'the source was wrong, see mail of Monday'\n         etl dead drop --run daily-2018-04-09 --why 'the source was wrong'"
    )]
    Drop(DropLettersArguments),
}

/// Which dead letters are meant.
#[derive(Debug, Default, Args)]
pub(crate) struct LetterFilter {
    /// Only of this run.
    #[arg(long)]
    pub(crate) run: Option<String>,
    /// Only of runs of this job.
    #[arg(long)]
    pub(crate) job: Option<String>,
    /// Only what this stage gave up: extractor, transformer, loader or broker.
    #[arg(long)]
    pub(crate) stage: Option<String>,
}

impl LetterFilter {
    /// Whether it leaves any out.
    pub(crate) fn is_set(&self) -> bool {
        self.run.is_some() || self.job.is_some() || self.stage.is_some()
    }
}

#[derive(Debug, Args)]
pub(crate) struct ReplayLettersArguments {
    /// Their numbers, as the list has them.
    #[arg(required_unless_present_any = ["all", "run"], conflicts_with_all = ["all", "run", "job", "stage"], value_parser = parse_letter)]
    pub(crate) ids: Vec<i64>,
    /// All that nobody has dealt with, or all of those that --run, --job and --stage choose.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) filter: LetterFilter,
    /// Print JSON: the numbers of those that were sent.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub(crate) struct DropLettersArguments {
    /// Their numbers, as the list has them.
    #[arg(group = "which", value_parser = parse_letter)]
    pub(crate) ids: Vec<i64>,
    /// All of this run that nobody has dealt with; its whole name.
    #[arg(long, group = "which")]
    pub(crate) run: Option<String>,
    /// All that nobody has dealt with.
    #[arg(long, group = "which")]
    pub(crate) all: bool,
    /// Why, for whoever reads the books later.
    #[arg(long, value_parser = parse_reason)]
    pub(crate) why: String,
    /// Print JSON: an object for one number, else a list of what was dropped and of what was not.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `etl rejects`: of a run, or of all runs of a job.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  etl rejects clicks-20180409 --limit 5
  etl rejects --job clicks --rule none_of
  etl rejects clicks-20180409 --export csv > rejected.csv")]
pub(crate) struct RejectsArguments {
    /// The run, or the beginning of its name where only one run begins so.
    #[arg(required_unless_present = "job", conflicts_with = "job")]
    pub(crate) run: Option<String>,
    /// All runs of this job.
    #[arg(long)]
    pub(crate) job: Option<String>,
    /// Only rows that broke this rule.
    #[arg(long)]
    pub(crate) rule: Option<String>,
    /// Only rows that broke a rule of this column.
    #[arg(long)]
    pub(crate) column: Option<String>,
    /// The most rows: 20 of a list, all of an export.
    #[arg(long)]
    pub(crate) limit: Option<u32>,
    /// Every row with its raw values, for another program. In CSV, NULL is an empty field and the empty
    /// string is "".
    #[arg(long, value_enum, conflicts_with = "json")]
    pub(crate) export: Option<ExportFormat>,
    /// Print JSON: one array, every row with its raw values.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    Csv,
    Json,
}

/// `etl trace`: from a row to where it came from.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: etl trace --table clicks --where \"url = 'https://example.org/'\""
)]
pub(crate) struct TraceArguments {
    /// The target table, with its schema unless that is public.
    #[arg(long)]
    pub(crate) table: String,
    /// Which rows, as in SQL. It is run as you, in a transaction that can only read.
    #[arg(long = "where", value_name = "CONDITION")]
    pub(crate) condition: String,
    /// The most rows to look at.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
    /// Print JSON, each row with its values.
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    // Not `parse`, which takes the date out of a moment without a zone and forgets the rest.
    let midnight = Date::strptime("%Y-%m-%d", text).and_then(|date| date.to_zoned(TimeZone::UTC));
    midnight.map(|zoned| zoned.timestamp()).map_err(|_| {
        "a time is a date, 2018-04-02, or a moment with its zone, 2018-04-02T10:00:00Z".to_owned()
    })
}

fn parse_letter(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| {
        "a dead letter is named by its number, the first column of `etl dead list`".to_owned()
    })
}

fn parse_reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("say why in a few words".to_owned()),
        reason => Ok(reason.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    /// What clap says to this command line.
    fn refusal(line: &str) -> String {
        Cli::try_parse_from(line.split(' '))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn letters_are_named_one_way_at_a_time() {
        for line in [
            "etl dead drop --why x",
            "etl dead drop 1 --all --why x",
            "etl dead drop 1 --run daily --why x",
            "etl dead drop --run daily --all --why x",
            "etl dead drop --all",
            "etl dead replay",
            "etl dead replay --job clicks",
            "etl dead replay 1 --run daily",
        ] {
            refusal(line);
        }
        for line in [
            "etl dead drop 1 2 --why x",
            "etl dead drop --run daily --why x",
            "etl dead drop --all --why x",
            "etl dead replay 1 2",
            "etl dead replay --run daily --stage loader",
            "etl dead replay --all --run daily",
        ] {
            let read = Cli::try_parse_from(line.split(' '));
            assert!(read.is_ok(), "{line}: {read:?}");
        }
    }

    #[test]
    fn what_is_no_number_of_a_letter_is_said_to_be_none() {
        for line in [
            "etl dead show abc",
            "etl dead drop abc --why x",
            "etl dead replay 17 daily/0/3",
            "etl dead show 99999999999999999999",
        ] {
            let said = refusal(line);
            assert!(
                said.contains("by its number") && said.contains("`etl dead list`"),
                "{said}"
            );
            assert!(!said.contains("digit"), "{said}");
        }
    }

    #[test]
    fn a_date_is_its_first_moment() {
        let midnight = parse_time("2018-04-02").unwrap();
        assert_eq!(midnight, parse_time("2018-04-02T02:00:00+02:00").unwrap());
        assert!(parse_time("yesterday").is_err() && parse_time("2018-04-02T10:00:00").is_err());
    }
}
