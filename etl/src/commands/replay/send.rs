//! Batches from the archive to the transformers, with another generation and another job.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use common::failpoint;
use common::queue::Outgoing;

use super::{Replay, archive};
use crate::Failure;
use crate::broker::{Broker, Sender};

/// Bytes of messages that are published at once, and are in memory.
const WINDOW_BYTES: usize = 1 << 20;

/// Messages that are published together.
pub(super) struct Window<'a> {
    sender: Sender<'a>,
    messages: Vec<Outgoing>,
    bytes: usize,
}

impl<'a> Window<'a> {
    pub(super) fn new(sender: Sender<'a>) -> Self {
        Self {
            sender,
            messages: Vec::new(),
            bytes: 0,
        }
    }

    pub(super) async fn put(&mut self, message: Outgoing) -> anyhow::Result<()> {
        self.bytes += message.bytes();
        self.messages.push(message);
        if self.bytes >= WINDOW_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.sender.send(&self.messages).await?;
        self.messages.clear();
        self.bytes = 0;
        Ok(())
    }

    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        self.flush().await?;
        self.sender.close().await;
        Ok(())
    }
}

/// Sends every batch of the replay. An error when the archive has lost one since the check.
pub(super) async fn from_archive(
    broker: &Broker,
    replay: &Replay,
    generation: u32,
) -> Result<(), Failure> {
    let Replay {
        subject,
        seqs,
        spec,
        ..
    } = replay;
    let mut window = Window::new(broker.sender().await?);
    let search = archive::search(broker, subject, None, seqs, async |mut batch| {
        failpoint::reach("replay_batch").await;
        batch.id.generation = generation;
        batch.job = Arc::clone(spec);
        let message = Outgoing::of(&batch).context("a batch cannot be sent again")?;
        window.put(message).await
    });
    let search = search.await?;
    window.close().await?;
    if search.is_over() {
        return Ok(());
    }
    Err(anyhow!(
        "the archive has lost the batches {} since the check; `etl replay {} --from-athena` reads the query's result again",
        search.missing(),
        subject.id()
    )
    .into())
}
