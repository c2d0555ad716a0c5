//! `etl prune`: deletes old rejected values, bodies of dead letters, and messages that cannot be sent.

use std::time::Duration;

use super::Command;
use crate::Failure;
use crate::output::{counted, show};
use crate::store;
use ledger::{Prune, Pruned};

/// Delete old rejected values and bodies of dead letters.
///
/// Runs and batches stay.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
#[command(after_help = "Example: etl prune --older-than 30d --dry-run")]
pub struct Arguments {
    /// Delete values that are older than this, such as 30d; at least a day.
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub older_than: Duration,
    /// Also delete the bodies of unresolved dead letters whose run is over or not in the ledger.
    #[arg(long)]
    pub unresolved: bool,
    /// Also give up the messages to channels that were not sent for so long.
    #[arg(long)]
    pub unsent: bool,
    /// Count what would be deleted, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let what = Prune {
            older_than: self.older_than,
            unresolved: self.unresolved,
            unsent: self.unsent,
            dry_run: self.dry_run,
        };
        let pruned = store::open().await?.prune(what).await?;
        show(self.json, &pruned, |pruned| sentence(*pruned, self.dry_run))?;
        Ok(true)
    }
}

fn sentence(pruned: Pruned, dry_run: bool) -> String {
    let unsent = match pruned.unsent {
        0 => String::new(),
        unsent => format!(", and {} that nobody was told", counted(unsent, "message")),
    };
    format!(
        "{} the values of {} and the bodies of {}{unsent}",
        if dry_run { "would delete" } else { "deleted" },
        counted(pruned.rejected_values, "rejected row"),
        counted(pruned.dead_letter_bodies, "dead letter")
    )
}

/// Values of the last day may belong to a run that is still looked at.
fn parse_age(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text)
        .map_err(|error| format!("write an age such as 30d or 12w: {error}"))?;
    if age < Duration::from_hours(24) {
        return Err("values are kept for at least a day; write 1d or more".to_owned());
    }
    Ok(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_below_a_day_is_refused() {
        for text in ["0d", "0s", "23h 59m"] {
            assert!(
                parse_age(text).unwrap_err().contains("1d or more"),
                "{text}"
            );
        }
        assert!(parse_age("soon").unwrap_err().contains("30d"));
        assert_eq!(parse_age("1d"), Ok(Duration::from_hours(24)));
        assert_eq!(parse_age("24h"), parse_age("1d"));
    }

    #[test]
    fn sentence_counts_what_was_or_would_be_deleted() {
        let pruned = Pruned {
            rejected_values: 12_345,
            dead_letter_bodies: 2,
            unsent: 0,
        };
        let unsent = Pruned {
            unsent: 3,
            ..pruned
        };
        insta::assert_snapshot!(format!(
            "{}\n{}\n{}\n{}",
            sentence(pruned, false),
            sentence(pruned, true),
            sentence(unsent, false),
            serde_json::to_string_pretty(&pruned).unwrap()
        ));
    }
}
