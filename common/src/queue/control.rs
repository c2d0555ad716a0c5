//! Control messages. Each goes to the exchange `etl.control`, and from there to two kinds of queues: to
//! `etl.control`, which keeps it for the extractors that start later, and to a queue of each extractor
//! that is connected.
//!
//! `etl.control` is read without taking anything: a reader has every message in hand at once, and then
//! closes its channel, which returns them. Its readers take turns (a single active consumer), so that
//! none misses what another one has in hand. An extractor that may not declare a queue of its own reads
//! `etl.control` again and again instead.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use lapin::options::QueuePurgeOptions;
use lapin::types::FieldTable;
use tokio::time::{sleep, timeout};

use super::consumer::{Any, Consumer};
use super::{Connection, Delivery, Outgoing, Publisher, QueueError, topology, within};
use crate::message::{Control, Message, QueueName};
use crate::reason::Reason;
use crate::secret::SecretUrl;

/// How long reading may take, the turns of other extractors included. The broker notices a dead one within
/// half a minute.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// How often `etl.control` is read by an extractor without a queue of its own.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// A reader of the control messages that has applied every one from before it was opened.
pub struct ControlReader<'a> {
    consuming: &'a Connection,
    publishing: &'a Connection,
    /// Gets each message; none where the user may not declare it.
    follower: Option<Consumer<Control>>,
    /// What `etl.control` had when it was read last.
    known: HashSet<String>,
    /// Read, and not returned yet.
    new: VecDeque<Control>,
}

impl<'a> ControlReader<'a> {
    /// Calls `apply` with each message that is kept, oldest first. A message that is sent meanwhile may
    /// come twice.
    pub async fn open(
        consuming: &'a Connection,
        publishing: &'a Connection,
        apply: impl FnMut(Control),
    ) -> Result<Self, QueueError> {
        let (queue, none) = (QueueName::Control, FieldTable::default());
        let follower = if may_declare(consuming).await? {
            let own = topology::declare_control_follower(consuming).await?;
            Some(Consumer::open_named(consuming, queue, &own, 1, none).await?)
        } else {
            None
        };
        let mut reader = Self {
            consuming,
            publishing,
            follower,
            known: HashSet::new(),
            new: VecDeque::new(),
        };
        reader.read().await?;
        reader.new.drain(..).for_each(apply);
        Ok(reader)
    }

    /// Waits for the next control message, without a timeout.
    pub async fn next(&mut self) -> Result<Control, QueueError> {
        loop {
            if let Some(control) = self.new.pop_front() {
                return Ok(control);
            }
            let Some(follower) = &mut self.follower else {
                sleep(POLL_INTERVAL).await;
                self.read().await?;
                continue;
            };
            let delivery = follower.next().await?;
            let control = read(&delivery);
            delivery.ack().await?;
            if let Some(control) = control {
                return Ok(control);
            }
        }
    }

    /// Reads what `etl.control` has and this reader has not seen.
    async fn read(&mut self) -> Result<(), QueueError> {
        let mut kept = HashSet::new();
        let reading = read_kept(self.consuming, self.publishing, |control| {
            // A run is paused more than once.
            let key = format!("{} {}", control.id(), control.at);
            if !self.known.contains(&key) {
                self.new.push_back(control);
            }
            kept.insert(key);
        });
        let read = timeout(READ_TIMEOUT, reading).await;
        read.map_err(|_| QueueError::Timeout {
            doing: format!(
                "reading the control messages in {}",
                QueueName::Control.name()
            ),
            after: READ_TIMEOUT,
        })??;
        self.known = kept;
        Ok(())
    }
}

/// Whether the user may declare a follower's queue. On a connection of its own: a session counts a refusal as the loss of its
/// connection.
async fn may_declare(connection: &Connection) -> Result<bool, QueueError> {
    let own = connection.another("etl probing").await?;
    let declared = topology::declare_control_follower(&own).await;
    own.close().await;
    match declared {
        Ok(_) => Ok(true),
        Err(QueueError::Denied { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads what `etl.control` keeps, up to a marker that is published first, and takes the marker alone.
async fn read_kept(
    consuming: &Connection,
    publishing: &Connection,
    mut apply: impl FnMut(Control),
) -> Result<(), QueueError> {
    let marker = format!("marker/{:032x}", rand::random::<u128>());
    let mut publisher = Publisher::open(publishing).await?;
    let message = Outgoing::marker(QueueName::Control, &marker);
    publisher.publish(&[message]).await?;
    publisher.close().await;
    let (queue, none) = (QueueName::Control, FieldTable::default());
    let prefetch = topology::CONTROL_PREFETCH;
    let mut kept = Consumer::<Any>::open_queue(consuming, queue, prefetch, none).await?;
    loop {
        let delivery = kept.next_raw().await?;
        if delivery.id() == marker {
            delivery.ack().await?;
            break;
        }
        if let Some(control) = read(&delivery.into()) {
            apply(control);
        }
    }
    kept.close(consuming).await;
    Ok(())
}

/// Makes `etl.control` readable again after a message in it that no client can receive, and that no delivery limit moves on: each
/// of its readers returns what it reads. What is before that message is published again, and what is behind it is lost, which
/// costs work and no row.
pub(crate) async fn restore(url: &SecretUrl, service: &str) -> Result<(), QueueError> {
    let name = &format!("{service} probing");
    let consuming = Connection::open(url, name).await?;
    let publishing = Connection::open(url, name).await?;
    let mut readable = Vec::new();
    let read = read_kept(&consuming, &publishing, |control| readable.push(control)).await;
    let is_to_be_emptied = match read {
        Ok(()) => false,
        Err(QueueError::Unreceivable { .. }) => true,
        Err(error) => return Err(error),
    };
    if is_to_be_emptied {
        let queue = QueueName::Control.name();
        let channel = publishing.channel().await?;
        let purging = channel.queue_purge(queue.into(), QueuePurgeOptions::default());
        within(&format!("emptying {queue}"), purging).await?;
        publishing.close_channel(&channel).await;
        let again: Vec<_> = readable
            .iter()
            .filter_map(|one| Outgoing::of(one).ok())
            .collect();
        let mut publisher = Publisher::open(&publishing).await?;
        publisher.publish(&again).await?;
        publisher.close().await;
        tracing::warn!(
            queue.name = queue,
            commands = again.len(),
            "the queue had a message that no client can receive; it was emptied, and the commands before that message were published again"
        );
    }
    futures::join!(consuming.close(), publishing.close());
    Ok(())
}

/// None for a marker of another reader, and for a message that this version cannot read: the ledger
/// decides without it.
fn read(delivery: &Delivery<Control>) -> Option<Control> {
    if delivery.kind() == Outgoing::MARKER {
        return None;
    }
    match delivery.read() {
        Ok(control) => Some(control),
        Err(problem) => {
            let problem = Reason::from(problem);
            tracing::warn!(
                message.id = delivery.id(),
                problem = problem.logged(),
                "control message skipped: it cannot be read"
            );
            None
        }
    }
}
