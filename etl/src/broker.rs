//! The broker, as far as `etl` needs it: to send a task or a message once more, and to read the archive.

use std::time::SystemTime;

use anyhow::Context;
use common::queue::{self, ArchiveReader, Connection, Outgoing, Publisher, RawDelivery};
use common::service::ServiceSettings;
use common::settings;

use crate::Failure;

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
