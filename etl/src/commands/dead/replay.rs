//! `etl dead replay`: sends dead letters back to their queues.

use anyhow::anyhow;
use clap::ArgGroup;
use common::command::user;
use common::queue::Outgoing;
use serde_json::json;

use super::{Choice, body, chosen, parse_id};
use crate::Failure;
use crate::broker::Broker;
use crate::commands::Command;
use crate::output::{counted, note, show, size};
use crate::store;
use ledger::{DeadLetter, DeadLetterFilter, Store};

/// Send dead letters back to the queues that they came from, once the cause is fixed.
///
/// Their identity stays, so that nothing is loaded twice.
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("which").required(true).multiple(true).args(["ids", "all", "run"]),
    after_help = "Example: etl dead replay 17 18\n         etl dead replay --all --run daily-2018-04-09"
)]
pub struct Arguments {
    /// Their numbers, as the list has them.
    #[arg(conflicts_with_all = ["all", "run", "job", "stage"], value_parser = parse_id)]
    pub ids: Vec<i64>,
    /// All unresolved ones, or all of those that --run, --job and --stage choose.
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub choice: Choice,
    /// Print JSON: the numbers of those that were sent.
    #[arg(long)]
    pub json: bool,
}

/// The dead letters to send: these, or all that the filter chooses. An error when one of them cannot be sent.
pub async fn plan(
    store: &Store,
    ids: Vec<i64>,
    filter: &DeadLetterFilter,
) -> Result<Vec<i64>, Failure> {
    let ids = if ids.is_empty() {
        chosen(store, filter).await?
    } else {
        ids
    };
    // One body is in memory at a time.
    for id in &ids {
        let dead = store.dead_letter(*id).await?;
        if let Some(resolution) = &dead.resolution {
            return Err(anyhow!(
                "the dead letter {id} was resolved before: {resolution}; nothing was sent"
            )
            .into());
        }
        outgoing(&dead)?;
    }
    Ok(ids)
}

/// Sends the dead letters and resolves each.
pub async fn act(store: &Store, broker: &Broker, ids: &[i64]) -> Result<(), Failure> {
    let mut sender = broker.sender().await?;
    let resolution = format!("replayed by {}", user());
    for (sent, id) in ids.iter().enumerate() {
        let again = async {
            let dead = store.dead_letter(*id).await?;
            sender.send(&[outgoing(&dead)?]).await?;
            Ok::<_, Failure>(store.resolve_dead_letter(&dead, &resolution).await?)
        };
        again.await.map_err(|failure| {
            failure.context(format!(
                "{sent} of {} dead letters were sent; the others are still listed from {id} on, and the same command without the sent ones sends them (one that was sent twice changes nothing)",
                ids.len()
            ))
        })?;
    }
    Ok(sender.close().await?)
}

/// The message as it was, for the queue that it came from.
fn outgoing(dead: &DeadLetter) -> Result<Outgoing, Failure> {
    let id = dead.id;
    let body = body(dead)?.to_vec();
    let queue = dead.queue.as_deref().unwrap_or_default();
    let message = dead.message_id.as_deref().unwrap_or_default();
    let kind = dead.kind.as_deref().unwrap_or_default();
    Outgoing::again(queue, message, kind, &dead.headers, body).ok_or_else(|| {
        Failure::usage(anyhow!("the dead letter {id} came from {queue:?}, which is not a queue that it can go back to; nothing was sent"))
    })
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        let ids = plan(&store, self.ids, &self.choice.into()).await?;
        let broker = Broker::open(note)
            .await
            .map_err(|failure| failure.context("no dead letter was sent"))?;
        act(&store, &broker, &ids).await?;
        broker.close().await;
        show(self.json, &json!({ "replayed": ids }), |_| {
            sentence(size(&ids))
        })?;
        Ok(true)
    }
}

fn sentence(count: i64) -> String {
    match count {
        0 => "no dead letter to replay".to_owned(),
        _ => format!("{} replayed", counted(count, "dead letter")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_counts_the_dead_letters() {
        assert_eq!(
            [0, 1, 2].map(sentence),
            [
                "no dead letter to replay",
                "1 dead letter replayed",
                "2 dead letters replayed"
            ]
        );
    }
}
