//! Batches from the archive to the transformers, under another generation and with another job. One
//! window of them is in memory at a time.

use std::sync::Arc;

use anyhow::Context;
use common::failpoint;
use common::job::JobSpec;
use common::queue::Outgoing;

use super::archive;
use crate::Failure;
use crate::books::Subject;
use crate::broker::{Broker, Sender};
use crate::seqs::Seqs;

/// Bytes of messages that are published at once.
const WINDOW: usize = 1 << 20;

/// What is sent.
pub(super) struct Batches<'a> {
    pub(super) subject: &'a Subject,
    pub(super) seqs: &'a Seqs,
    pub(super) generation: u32,
    pub(super) spec: &'a Arc<JobSpec>,
}

/// Messages that wait for each other.
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
        if self.bytes >= WINDOW {
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

/// Returns when the broker has every one of them. The archive was looked through before; should it
/// have lost some meanwhile, that is said.
pub(super) async fn from_archive(broker: &Broker, batches: &Batches<'_>) -> Result<(), Failure> {
    let mut window = Window::new(broker.sender().await?);
    let Batches {
        subject,
        seqs,
        generation,
        spec,
    } = batches;
    let search = archive::search(broker, subject, None, seqs, async |mut batch| {
        failpoint::reach("replay_batch").await;
        batch.id.generation = *generation;
        batch.job = Arc::clone(spec);
        let message = Outgoing::of(&batch).context("a batch cannot be sent again")?;
        window.put(message).await
    });
    let search = search.await?;
    window.close().await?;
    if search.is_over() {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "the archive has lost the batches {} meanwhile; `etl replay {} --from-athena` reads the query's result again",
        search.missing(),
        subject.id()
    )
    .into())
}
