//! Consuming so that a message which takes its process down takes no others along.
//!
//! The broker counts each delivery that was not acked, and at a count a message is given up. After a
//! crash what was in hand is at the head of the queue again; a consumer that begins with one delivery
//! in hand gets the culprit alone, and from then on the count is its own. More is taken once a
//! delivery was handled well. Nothing is ever given back to narrow it down again: the broker counts
//! that as a delivery of the innocent messages too.

use super::{Connection, Consumer, Delivery, QueueError, RawDelivery};
use crate::message::Message;

/// From this delivery of a message on, it is suspected of taking processes down.
const SUSPECT: u32 = 3;

/// At this delivery a message is given up unprocessed.
const HOPELESS: u32 = 8;

/// A consumer that begins with one delivery in hand.
pub struct CautiousConsumer<M> {
    first: Consumer<M>,
    more: Option<Consumer<M>>,
    most: u16,
}

impl<M: Message> CautiousConsumer<M> {
    /// Starts consuming with one delivery in hand, and with at most `most` later.
    pub async fn open(connection: &Connection, most: u16) -> Result<Self, QueueError> {
        Ok(Self {
            first: Consumer::open(connection, 1).await?,
            more: None,
            most,
        })
    }

    /// A delivery that is no suspect was handled well: from now on more are in hand.
    pub async fn widen(&mut self, connection: &Connection) -> Result<(), QueueError> {
        if self.more.is_none() && self.most > 1 {
            self.more = Some(Consumer::open(connection, self.most - 1).await?);
        }
        Ok(())
    }

    /// The next delivery; waits for it. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Delivery<M>, QueueError> {
        match &mut self.more {
            None => self.first.next().await,
            Some(more) => tokio::select! {
                delivery = self.first.next() => delivery,
                delivery = more.next() => delivery,
            },
        }
    }

    /// A delivery that is already here.
    pub fn try_next(&mut self) -> Option<Result<Delivery<M>, QueueError>> {
        self.first
            .try_next()
            .or_else(|| self.more.as_mut()?.try_next())
    }

    /// Stops consuming; what was delivered and not acked goes back to the queue.
    pub async fn close(self, connection: &Connection) {
        self.first.close(connection).await;
        if let Some(more) = self.more {
            more.close(connection).await;
        }
    }
}

impl RawDelivery {
    /// Whether it came back so often that it should be handled alone.
    pub fn is_suspect(&self) -> bool {
        self.deliveries() >= SUSPECT
    }

    /// Whether it came back so often that it should be given up unprocessed.
    pub fn is_hopeless(&self) -> bool {
        self.deliveries() >= HOPELESS
    }
}
