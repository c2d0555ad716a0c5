//! `etl dead list`: the unresolved dead letters.

use comfy_table::Table;

use super::{Choice, age, beginning, check_run};
use crate::Failure;
use crate::commands::Command;
use crate::output::{note, show, table};
use crate::store;
use ledger::{DeadLetterFilter, DeadLetterSummary, Store};

/// List the unresolved dead letters.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl dead list --job clicks --stage loader")]
pub struct Arguments {
    #[command(flatten)]
    pub choice: Choice,
    /// The most to list; all with --json.
    #[arg(long, default_value_t = 100)]
    pub limit: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The first dead letters that are chosen, and how many there are.
pub async fn plan(
    store: &Store,
    filter: &DeadLetterFilter,
    limit: Option<u32>,
) -> Result<(Vec<DeadLetterSummary>, u64), Failure> {
    let dead = store.dead_letters(filter, limit).await?;
    if dead.is_empty() {
        check_run(store, filter).await?;
    }
    let count = match limit {
        Some(limit) if dead.len() >= limit as usize => {
            store.dead_letter_ids(filter).await?.len() as u64
        }
        _ => dead.len() as u64,
    };
    Ok((dead, count))
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let filter = DeadLetterFilter::from(self.choice);
        let limit = (!self.json).then_some(self.limit);
        let (dead, count) = plan(&store::open().await?, &filter, limit).await?;
        show(self.json, &dead, |dead| {
            let all = filter.run.is_none() && filter.job.is_none() && filter.stage.is_none();
            match (dead.is_empty(), all) {
                (true, true) => "no dead letters".to_owned(),
                (true, false) => "no such dead letters".to_owned(),
                (false, _) => list(dead).to_string(),
            }
        })?;
        if count > dead.len() as u64 {
            note(&format!(
                "these are the first {} of {count}; --limit lists more, --json all, and --run, --job and --stage filter",
                dead.len()
            ));
        }
        Ok(true)
    }
}

fn list(dead: &[DeadLetterSummary]) -> Table {
    let header = [
        "id", "message", "job", "stage", "attempts", "age", "reason", "body",
    ];
    let rows = dead.iter().map(|one| {
        let message = one.message_id.clone().or_else(|| one.run_id.clone());
        [
            one.id.to_string(),
            message.unwrap_or_else(|| "without an id".to_owned()),
            one.job.clone().unwrap_or_default(),
            one.stage.clone(),
            one.attempts.to_string(),
            age(one.age_seconds),
            one.reason.clone(),
            beginning(one, 40),
        ]
    });
    table(&header, 0..0, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::dead::tests::samples;
    use crate::output::on_a_terminal;

    #[test]
    fn dead_letters_on_a_terminal() {
        insta::assert_snapshot!(on_a_terminal(list(&samples()), 130));
    }

    #[test]
    fn dead_letters_as_json() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&samples()).unwrap());
    }
}
