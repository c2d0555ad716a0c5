//! `etl dead`: the dead letters, which no stage could handle.

pub mod drop;
pub mod list;
pub mod replay;
pub mod show;

use anyhow::anyhow;
use clap::{Args, Subcommand};

use super::Command;
use crate::Failure;
use crate::output::shortened;
use ledger::{DeadLetter, DeadLetterFilter, DeadLetterSummary, Store};

/// List, show, replay and drop what no service could process.
#[derive(Debug, Args)]
#[command(after_help = "Example: etl dead list --run daily-2018-04-09")]
pub struct Arguments {
    #[command(subcommand)]
    command: DeadCommand,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    List(list::Arguments),
    Show(show::Arguments),
    Replay(replay::Arguments),
    Drop(drop::Arguments),
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        match self.command {
            DeadCommand::List(command) => command.run().await,
            DeadCommand::Show(command) => command.run().await,
            DeadCommand::Replay(command) => command.run().await,
            DeadCommand::Drop(command) => command.run().await,
        }
    }
}

/// Which dead letters are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct Choice {
    /// Only of this run; its whole name.
    #[arg(long)]
    pub run: Option<String>,
    /// Only of runs of this job.
    #[arg(long)]
    pub job: Option<String>,
    /// Only from this stage: extractor, transformer, loader, broker or unknown.
    #[arg(long)]
    pub stage: Option<String>,
}

impl From<Choice> for DeadLetterFilter {
    fn from(Choice { run, job, stage }: Choice) -> Self {
        Self { run, job, stage }
    }
}

/// The unresolved dead letters that the filter chooses. An unknown run is an error, not an empty answer.
async fn chosen(store: &Store, filter: &DeadLetterFilter) -> Result<Vec<i64>, Failure> {
    let ids = store.dead_letter_ids(filter).await?;
    if ids.is_empty() {
        check_run(store, filter).await?;
    }
    Ok(ids)
}

/// An error when the filter names a run that the ledger does not have.
async fn check_run(store: &Store, filter: &DeadLetterFilter) -> Result<(), Failure> {
    if let Some(run) = &filter.run {
        store.exactly(run).await?;
    }
    Ok(())
}

fn parse_id(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| {
        "name a dead letter by its number, the first column of `etl dead list`".to_owned()
    })
}

/// The body of a dead letter, unless it was pruned.
fn body(dead: &DeadLetter) -> Result<&[u8], Failure> {
    dead.body.as_deref().ok_or_else(|| {
        let id = dead.id;
        anyhow!("the body of the dead letter {id} was pruned; nothing was sent or changed").into()
    })
}

/// The beginning of a body.
fn beginning(dead: &DeadLetterSummary, most: usize) -> String {
    match dead.body_bytes {
        None => "pruned".to_owned(),
        Some(_) => shortened(&dead.body_start, most),
    }
}

/// `3 s`, `12 min`, `5 h`, `9 d`.
fn age(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::definition;

    /// What clap says about a wrong command line.
    fn usage_error(line: &str) -> String {
        let matches = definition().try_get_matches_from(line.split(' '));
        matches.unwrap_err().to_string()
    }

    #[test]
    fn dead_letters_are_chosen_in_one_way_at_a_time() {
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
            usage_error(line);
        }
        for line in [
            "etl dead drop 1 2 --why x",
            "etl dead drop --run daily --why x",
            "etl dead drop --all --why x",
            "etl dead replay 1 2",
            "etl dead replay --run daily --stage loader",
            "etl dead replay --all --run daily",
        ] {
            let read = definition().try_get_matches_from(line.split(' '));
            assert!(read.is_ok(), "{line}: {read:?}");
        }
    }

    #[test]
    fn text_that_is_not_a_number_is_a_usage_error_that_says_where_the_numbers_are() {
        for line in [
            "etl dead show abc",
            "etl dead drop abc --why x",
            "etl dead replay 17 daily/0/3",
            "etl dead show 99999999999999999999",
        ] {
            let said = usage_error(line);
            assert!(
                said.contains("by its number") && said.contains("`etl dead list`"),
                "{said}"
            );
            assert!(!said.contains("digit"), "{said}");
        }
    }

    #[test]
    fn age_has_the_unit_that_fits() {
        let shown = [3, 119, 120, 7_199, 7_200, 172_799, 172_800].map(age);
        assert_eq!(
            shown,
            ["3 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]
        );
    }

    /// A batch, and a message of no type that was dropped and pruned.
    pub(super) fn samples() -> Vec<DeadLetterSummary> {
        let batch = DeadLetterSummary {
            id: 17,
            message_id: Some("daily-2018-04-02/0/3".into()),
            stage: "loader".into(),
            reason: "\"public\".\"clicks\" has no column \"_batch\"; run: ALTER TABLE \"public\".\"clicks\" ADD COLUMN \"_batch\" bigint".into(),
            attempts: 5,
            job: Some("clicks".into()),
            run_id: Some("daily-2018-04-02".into()),
            queue: Some("etl.valid".into()),
            kind: Some("valid-batch.v3".into()),
            received_at: "2018-04-03T02:00:11Z".into(),
            age_seconds: 260,
            resolution: None,
            body_bytes: Some(195_203),
            body_start: r#"{"id":{"run":"daily-2018-04-02","generation":0,"first_row":6588},"result_id":"4bcb4933"#.into(),
        };
        let junk = DeadLetterSummary {
            id: 18,
            message_id: None,
            stage: "transformer".into(),
            reason: "it has no type, and so it is no message of this system".into(),
            attempts: 1,
            job: None,
            run_id: None,
            queue: Some("etl.raw".into()),
            kind: None,
            received_at: "2018-04-03T02:00:12Z".into(),
            age_seconds: 200_000,
            resolution: Some("dropped by ana: a test of Monday, see mail".into()),
            body_bytes: None,
            body_start: String::new(),
        };
        vec![batch, junk]
    }
}
