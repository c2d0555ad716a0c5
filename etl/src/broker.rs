//! The broker, as far as `etl` needs it: to send messages, to read the archive, and to look at the queues.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use common::queue::{
    self, Archived, Begin, Connection, Outgoing, Publisher, QueueError, QueueName, RawDelivery,
    StreamReader, inspect,
};
use common::reason::paragraph;
use common::service::ServiceSettings;
use common::settings::{self, SecretUrl};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::Failure;

/// How long a look at the queues may take, for each host of the broker: one that does not answer must not hide the others.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the broker may take for a test message. Under an alarm it takes none.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the archive may be without a leader, and how often that is looked at.
const LEADER_TIMEOUT: Duration = Duration::from_secs(20);
const LEADER_INTERVAL: Duration = Duration::from_millis(500);

/// The longest that a command waits for room in a full queue that takes nothing.
const FULL_TIMEOUT: Duration = Duration::from_mins(5);

/// What is said of messages whose confirm did not come: a publish that timed out may still be sent later.
const UNCONFIRMED: &str =
    "the broker did not confirm a message, and may or may not have it now or later";

/// The depth of a queue.
#[derive(Debug, Clone, Serialize)]
pub struct Depth {
    /// Its name.
    pub queue: &'static str,
    /// Messages that wait; unacknowledged ones do not count.
    pub messages: u32,
    /// Its consumers.
    pub consumers: u32,
}

/// The depth of each work queue, or why it is unknown. Declares no queue.
pub async fn depths() -> Result<Vec<Depth>, String> {
    let settings: ServiceSettings = settings::load().map_err(|error| paragraph(&error.into()))?;
    let hosts = u32::try_from(settings.amqp_url.expose_each().count()).unwrap_or(1);
    let limit = LOOK_TIMEOUT * hosts;
    let looked = timeout(limit, async {
        let connection = Connection::open(&settings.amqp_url, "etl status").await?;
        let depths = depths_on(&connection).await;
        connection.close().await;
        anyhow::Ok(depths?)
    });
    match looked.await {
        Ok(depths) => depths.map_err(|error| paragraph(&error)),
        Err(_) => Err(format!(
            "the broker did not answer within {} s",
            limit.as_secs()
        )),
    }
}

async fn depths_on(connection: &Connection) -> Result<Vec<Depth>, QueueError> {
    use QueueName::{Dead, Events, Extract, ExtractBulk, Raw, RawBulk, Valid, ValidBulk};
    let mut depths = Vec::new();
    for queue in [
        Extract,
        ExtractBulk,
        Raw,
        RawBulk,
        Valid,
        ValidBulk,
        Events,
        Dead,
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
pub struct Broker {
    url: SecretUrl,
    connection: Connection,
    archived: Archived,
    /// Tells the user why sending waits.
    notice: fn(&str),
}

impl Broker {
    /// Connects to the broker that `ETL_AMQP_URL` names, and checks that it takes messages. `notice` gets the reason
    /// when sending waits for a full queue.
    pub async fn open(notice: fn(&str)) -> Result<Self, Failure> {
        let settings: ServiceSettings = settings::load().map_err(Failure::usage)?;
        let remedy = "check that the broker runs and that ETL_AMQP_URL is right";
        let connection = Connection::open(&settings.amqp_url, "etl")
            .await
            .context(remedy)?;
        let declared = queue::declare(&connection, settings.topology()).await;
        let archived = declared.context("cannot use the queues")?;
        let mut publisher = Publisher::open(&connection).await.context(remedy)?;
        let probe = timeout(PROBE_TIMEOUT, publisher.probe()).await;
        probe
            .unwrap_or_else(|_| {
                let reason = format!(
                    "it blocks this connection for {} s",
                    PROBE_TIMEOUT.as_secs()
                );
                Err(QueueError::Blocked { reason })
            })
            .context("nothing was sent")?;
        publisher.close().await;
        Ok(Self {
            url: settings.amqp_url,
            connection,
            archived,
            notice,
        })
    }

    /// Why there is no archive; none where there is.
    pub fn no_archive(&self) -> Option<&str> {
        match &self.archived {
            Archived::Yes => None,
            Archived::No(why) => Some(why),
        }
    }

    /// Returns when the broker has confirmed the messages.
    pub async fn send(&self, messages: &[Outgoing]) -> anyhow::Result<()> {
        let mut publisher = Publisher::open(&self.connection).await?;
        publisher.publish(messages).await.context(UNCONFIRMED)?;
        publisher.close().await;
        Ok(())
    }

    /// A sender for many messages, which may fill a queue.
    pub async fn sender(&self) -> anyhow::Result<Sender<'_>> {
        Ok(Sender {
            publisher: Publisher::open(&self.connection).await?,
            notice: self.notice,
            full_since: None,
            patience: FULL_TIMEOUT,
            window: Vec::new(),
            bytes: 0,
        })
    }

    /// Reads the archive from a time on up to now. Each message goes to `look` once, until it returns true. Where the
    /// connection ends, another one reads on behind the last message: after a message that no client can receive, which is
    /// left out, and while the archive gets another leader.
    pub async fn read_archive(
        &self,
        since: SystemTime,
        mut look: impl AsyncFnMut(RawDelivery) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let mut begin = Begin::Time(since);
        let mut failing = None;
        loop {
            let mut last = None;
            let error = match self.read_from(begin, &mut last, &mut look).await {
                Ok(()) => return Ok(()),
                Err(End::Look(error)) => return Err(error),
                Err(End::Archive(error)) => error,
            };
            if let QueueError::Unreceivable { .. } = error {
                begin = behind(begin, last).ok_or(error)?;
                tracing::warn!("a message in the archive that no client can receive is skipped");
                continue;
            }
            if let Some(last) = last {
                begin = Begin::Offset(last + 1);
                failing = None;
            }
            let failing = failing.get_or_insert_with(Instant::now);
            if !is_transient(&error) || failing.elapsed() > LEADER_TIMEOUT {
                return Err(error.into());
            }
            sleep(LEADER_INTERVAL).await;
        }
    }

    /// Reads on a connection of its own; `last` is the place of the last message that `look` got.
    async fn read_from(
        &self,
        begin: Begin,
        last: &mut Option<u64>,
        look: &mut impl AsyncFnMut(RawDelivery) -> anyhow::Result<bool>,
    ) -> Result<(), End> {
        let connection = Connection::open(&self.url, "etl archive").await?;
        let read = async {
            let mut archive = StreamReader::open_archive(&connection, begin).await?;
            while let Some(message) = archive.next_earlier().await? {
                *last = message.offset().or(*last);
                if look(message).await.map_err(End::Look)? {
                    break;
                }
            }
            Ok(())
        };
        let read = read.await;
        connection.close().await;
        read
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.connection.close().await;
    }
}

/// What ended the reading of the archive.
enum End {
    Archive(QueueError),
    /// The caller failed at a message, which it must not lose.
    Look(anyhow::Error),
}

impl From<QueueError> for End {
    fn from(error: QueueError) -> Self {
        Self::Archive(error)
    }
}

/// Whether the broker may do soon what it refused or broke off at once.
fn is_transient(error: &QueueError) -> bool {
    use QueueError::{Broker, ConsumerEnded, Lost, NoHost};
    matches!(
        error,
        Broker { .. } | ConsumerEnded { .. } | Lost { .. } | NoHost { .. }
    )
}

/// Where to read on behind a message that cannot be received, after the last one that was. None where the place is unknown:
/// it is the very first one of a time.
fn behind(begin: Begin, last: Option<u64>) -> Option<Begin> {
    let offset = match (last, begin) {
        // The messages from here to the one that ended the connection, which may have arrived and were not read.
        (Some(last), _) => last + 1,
        (None, Begin::Offset(offset)) => offset + 1,
        (None, Begin::Time(_)) => return None,
    };
    Some(Begin::Offset(offset))
}

/// Bytes of messages that [`Sender::put`] collects, and publishes together.
const WINDOW_BYTES: usize = 1 << 20;

/// Sends many messages, and waits where a queue is full.
pub struct Sender<'a> {
    publisher: Publisher<'a>,
    notice: fn(&str),
    /// Since when a queue takes nothing.
    full_since: Option<Instant>,
    /// The longest that it waits for that queue.
    patience: Duration,
    window: Vec<Outgoing>,
    bytes: usize,
}

impl Sender<'_> {
    /// Returns when the broker has confirmed the messages. A full queue is waited for while it takes messages.
    pub async fn send(&mut self, messages: &[Outgoing]) -> anyhow::Result<()> {
        loop {
            match self.publisher.publish(messages).await {
                // The confirmed ones are sent again, too: a consumer knows them by their identity.
                Err(full @ QueueError::Full { .. }) => {
                    let since = *self.full_since.get_or_insert_with(|| {
                        (self.notice)(&format!("{full}; waiting until it has room"));
                        Instant::now()
                    });
                    if since.elapsed() > self.patience {
                        return Err(full.into());
                    }
                }
                answer => {
                    self.full_since = None;
                    return answer.context(UNCONFIRMED);
                }
            }
        }
    }

    /// Sends a message together with others. [`Self::close`] sends the last ones.
    pub async fn put(&mut self, message: Outgoing) -> anyhow::Result<()> {
        self.bytes += message.bytes();
        self.window.push(message);
        if self.bytes >= WINDOW_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        let window = std::mem::take(&mut self.window);
        self.bytes = 0;
        self.send(&window).await
    }

    /// Returns when the broker has confirmed every message.
    pub async fn close(mut self) -> anyhow::Result<()> {
        self.flush().await?;
        self.publisher.close().await;
        Ok(())
    }
}
