//! The broker, as far as `etl` needs it: to send a task or a message once more, and to read the archive.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use common::queue::{
    self, ArchiveReader, Connection, Outgoing, Publisher, QueueError, QueueName, RawDelivery,
    inspect,
};
use common::service::ServiceSettings;
use common::settings;
use serde::Serialize;
use tokio::time::timeout;

use crate::Failure;
use crate::report::note;

/// How long somebody who only looks waits for the broker.
const GLANCE: Duration = Duration::from_secs(5);

/// What waits in a queue.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Depth {
    pub(crate) queue: &'static str,
    /// Those that a service has in hand are not among them.
    pub(crate) messages: u32,
    pub(crate) consumers: u32,
}

/// What waits in each work queue, or why that cannot be known now. Declares nothing.
pub(crate) async fn depths() -> Result<Vec<Depth>, String> {
    let looked = timeout(GLANCE, async {
        let settings: ServiceSettings = settings::load().map_err(anyhow::Error::from)?;
        let connection = Connection::open(&settings.amqp_url, "etl status").await?;
        let queues = depths_on(&connection).await;
        connection.close().await;
        queues
    });
    match looked.await {
        Ok(Ok(depths)) => Ok(depths),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!(
            "the broker did not answer within {} s",
            GLANCE.as_secs()
        )),
    }
}

async fn depths_on(connection: &Connection) -> anyhow::Result<Vec<Depth>> {
    let mut depths = Vec::new();
    for queue in [
        QueueName::Extract,
        QueueName::Raw,
        QueueName::Valid,
        QueueName::Events,
        QueueName::Dead,
    ] {
        if let Some(state) = inspect::look(connection, queue).await? {
            depths.push(Depth {
                queue: queue.name(),
                messages: state.messages,
                consumers: state.consumers,
            });
        }
    }
    Ok(depths)
}

/// A connection to the broker, with the queues declared.
pub(crate) struct Broker {
    connection: Connection,
}

impl Broker {
    /// Connects to the broker that `ETL_AMQP_URL` names, and makes sure that it takes messages.
    pub(crate) async fn open() -> Result<Self, Failure> {
        let settings: ServiceSettings = settings::load().map_err(Failure::misuse)?;
        let remedy = "check that the broker runs and that ETL_AMQP_URL is right";
        let connection = Connection::open(&settings.amqp_url, "etl")
            .await
            .context(remedy)?;
        queue::declare(&connection)
            .await
            .context("cannot declare the queues")?;
        let mut publisher = Publisher::open(&connection).await.context(remedy)?;
        publisher
            .probe()
            .await
            .context("the broker takes no messages now")?;
        publisher.close().await;
        Ok(Self { connection })
    }

    /// Returns when the broker has the messages.
    pub(crate) async fn send(&self, messages: &[Outgoing]) -> anyhow::Result<()> {
        let mut publisher = Publisher::open(&self.connection).await?;
        publisher.publish(messages).await?;
        publisher.close().await;
        Ok(())
    }

    /// For whoever sends so much that a queue may fill up with it.
    pub(crate) async fn sender(&self) -> anyhow::Result<Sender<'_>> {
        Ok(Sender {
            publisher: Publisher::open(&self.connection).await?,
            has_waited: false,
        })
    }

    /// Reads the archive from a time on up to now, and hands each message to `look`, until that says
    /// that it has seen enough.
    pub(crate) async fn read_archive(
        &self,
        since: SystemTime,
        mut look: impl AsyncFnMut(RawDelivery) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let end = format!("marker/{:032x}", rand::random::<u128>());
        self.send(&[Outgoing::marker(&end)]).await?;
        let mut archive = ArchiveReader::open(&self.connection, since).await?;
        loop {
            let message = archive.next().await?;
            if message.id() == end || look(message).await? {
                break;
            }
        }
        archive.close(&self.connection).await;
        Ok(())
    }

    pub(crate) async fn close(self) {
        self.connection.close().await;
    }
}

/// Sends many messages, and waits where a queue is full.
pub(crate) struct Sender<'a> {
    publisher: Publisher<'a>,
    has_waited: bool,
}

impl Sender<'_> {
    /// Returns when the broker has the messages, however long the stage behind the queue takes.
    pub(crate) async fn send(&mut self, messages: &[Outgoing]) -> anyhow::Result<()> {
        loop {
            match self.publisher.publish(messages).await {
                // Those that were taken are sent again: whoever reads them knows them by their identity.
                Err(full @ QueueError::Full { .. }) => {
                    if !self.has_waited {
                        note(&format!("{full}; waiting for it"));
                    }
                    self.has_waited = true;
                }
                answer => return Ok(answer?),
            }
        }
    }

    pub(crate) async fn close(self) {
        self.publisher.close().await;
    }
}
