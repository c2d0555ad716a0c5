//! The consumers' policy, the same for every service: how many deliveries a process has in hand, and
//! what happens to one that comes back. It isolates poison messages.
//!
//! The broker counts every delivery that was not acked, and after a crash the deliveries that were in
//! hand are at the head of their queue again. Therefore:
//!
//! - A session begins with one worker and one delivery in hand, so that a message that takes the
//!   process down counts alone. More deliveries and the other workers follow a success, or the time
//!   that the service gives the first one: a slow delivery keeps no other waiting for ever.
//! - From its third delivery on, a message is handled alone, and its success widens nothing.
//! - At its eighth delivery, it is dead-lettered unprocessed.
//! - No delivery is returned to narrow the prefetch again: the broker counts a return as a delivery.
//! - Bulk has a queue and workers of its own, so that it keeps no short run waiting. They begin in the same way, after the
//!   first worker of the queue before.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Connection, Consumer, Delivery, Outgoing, Publisher, QueueError, RawDelivery};
use crate::message::{Message, QueueName};
use crate::reason::Reason;

/// From this delivery on, a message is handled alone.
const ISOLATE_AT: u32 = 3;

/// At this delivery, a message is dead-lettered unprocessed.
pub(super) const DELIVERY_LIMIT: u32 = 8;

/// How often the other workers look whether the first one still handles a message that came back.
const ISOLATION_INTERVAL: Duration = Duration::from_millis(100);

/// How long the first worker of a queue is alone at most before the workers of the next queue begin: an empty queue keeps no
/// other waiting.
const QUEUE_INTERVAL: Duration = Duration::from_secs(1);

/// How much a worker takes.
#[derive(Debug, Clone, Copy)]
pub struct Prefetch {
    /// Deliveries that a worker has in hand at most.
    pub deliveries: u16,
    /// Deliveries that it handles together at most.
    pub together: usize,
    /// Bytes of bodies that are enough for one handling.
    pub bytes: usize,
    /// How long the first worker is alone before the others begin, unless it succeeds earlier. It stays alone for as long
    /// as it handles a message that came back.
    pub alone: Duration,
}

/// What a service does with the deliveries of a worker.
pub trait Handler<M: Message> {
    /// What ends the session.
    type Fault: From<QueueError>;

    /// Handles deliveries and settles each of them. Deliveries that it leaves unsettled are
    /// redelivered once the worker ends or [releases](Intake::release) its consumers.
    fn handle(
        &mut self,
        deliveries: Vec<Delivery<M>>,
        intake: &mut Intake<'_, M>,
    ) -> impl Future<Output = Result<(), Self::Fault>>;

    /// Whether a delivery over the limit is handled all the same, since something other than the
    /// message made it come back.
    fn exempts(&mut self, _delivery: &Delivery<M>) -> impl Future<Output = bool> {
        std::future::ready(false)
    }
}

/// A service at work with the broker.
pub struct Stage<'a> {
    /// Its name, in dead letters.
    pub name: &'static str,
    pub consuming: &'a Connection,
    pub publishing: &'a Connection,
    /// Cancelled when no more deliveries are to be taken.
    pub stop: &'a CancellationToken,
}

/// The workers of one queue.
pub struct Workers<H> {
    pub queue: QueueName,
    /// One a worker.
    pub handlers: Vec<H>,
}

/// Consumes queues of messages `M` until the stage stops. Calls `begun` once the first worker consumes. Ends with the first
/// fault.
pub async fn consume<M: Message, H: Handler<M>>(
    stage: &Stage<'_>,
    prefetch: Prefetch,
    queues: impl IntoIterator<Item = Workers<H>>,
    begun: impl Fn(),
) -> Result<(), H::Fault> {
    let mut workers = Vec::new();
    for (place, Workers { queue, handlers }) in queues.into_iter().enumerate() {
        for (index, handler) in handlers.into_iter().enumerate() {
            let intake = Intake {
                stage,
                queue,
                // All of them before the first delivery: an alarm may block the connection later, and opens no channel then.
                publisher: Publisher::open(stage.publishing).await?,
                prefetch,
                consumers: None,
                waiting: VecDeque::new(),
            };
            workers.push((place, index, intake, handler));
        }
    }
    let firsts: Vec<_> = workers.iter().map(|_| First::default()).collect();
    let begins = async |place: usize, index: usize| match (place, index) {
        (0, 0) => {}
        (place, 0) => {
            let alone = prefetch.alone.min(QUEUE_INTERVAL);
            firsts[place - 1].has_gone_ahead(alone).await;
        }
        (place, _) => firsts[place].has_gone_ahead(prefetch.alone).await,
    };
    let workers = workers.into_iter();
    let workers = workers.map(async |(place, index, mut intake, handler)| {
        tokio::select! {
            biased;
            () = stage.stop.cancelled() => return Ok(()),
            () = begins(place, index) => {}
        }
        intake.open().await?;
        if (place, index) == (0, 0) {
            begun();
        }
        work(intake, handler, &firsts[place]).await
    });
    try_join_all(workers.map(Box::pin)).await.map(drop)
}

/// What the others know of the first worker of a queue.
#[derive(Default)]
struct First {
    /// It succeeded.
    proven: CancellationToken,
    /// It handles a message that came back.
    is_isolating: AtomicBool,
}

impl First {
    /// Waits until it has succeeded, or was alone for so long.
    async fn has_gone_ahead(&self, alone: Duration) {
        tokio::select! {
            biased;
            () = self.proven.cancelled() => {}
            () = self.was_alone_for(alone) => {}
        }
    }

    async fn was_alone_for(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        sleep(time).await;
        while self.is_isolating.load(Ordering::Relaxed) {
            sleep(ISOLATION_INTERVAL).await;
        }
    }
}

async fn work<M: Message, H: Handler<M>>(
    mut intake: Intake<'_, M>,
    mut handler: H,
    first: &First,
) -> Result<(), H::Fault> {
    loop {
        let deliveries = tokio::select! {
            biased;
            () = intake.stage.stop.cancelled() => break,
            taken = intake.take() => taken?,
        };
        let (isolated, others): (Vec<_>, Vec<_>) =
            deliveries.into_iter().partition(|one| one.is_isolated());
        let widens = isolated.is_empty();
        if !others.is_empty() {
            Box::pin(handler.handle(others, &mut intake)).await?;
        }
        for delivery in isolated {
            if intake.is_open() {
                first.is_isolating.store(true, Ordering::Relaxed);
                Box::pin(alone(&mut handler, delivery, &mut intake)).await?;
            }
        }
        first.is_isolating.store(false, Ordering::Relaxed);
        if widens && intake.is_open() {
            intake.widen().await?;
            first.proven.cancel();
        }
    }
    intake.release().await;
    Ok(())
}

/// Handles a delivery that came back so often that others must not be in hand with it.
async fn alone<M: Message, H: Handler<M>>(
    handler: &mut H,
    delivery: Delivery<M>,
    intake: &mut Intake<'_, M>,
) -> Result<(), H::Fault> {
    let deliveries = delivery.deliveries();
    if delivery.is_over_limit() && !handler.exempts(&delivery).await {
        let reason = over_limit(&delivery);
        return Ok(intake.dead_letter(delivery, &reason, deliveries).await?);
    }
    tracing::warn!(
        message.id = delivery.id(),
        deliveries,
        "message came back; handling it alone"
    );
    handler.handle(vec![delivery], intake).await
}

/// Why a delivery over the limit is dead-lettered.
pub fn over_limit(delivery: &RawDelivery) -> Reason {
    let reason = format!(
        "it was delivered {} times and never settled, so it may take the process down; it was not processed again",
        delivery.deliveries()
    );
    reason.into()
}

/// The channels of one worker.
pub struct Intake<'a, M> {
    stage: &'a Stage<'a>,
    queue: QueueName,
    pub publisher: Publisher<'a>,
    prefetch: Prefetch,
    /// The first has one delivery in hand, the second the rest of the prefetch. None once released.
    consumers: Option<(Consumer<M>, Option<Consumer<M>>)>,
    /// Delivered while the handler [worked](Self::at_work).
    waiting: VecDeque<Delivery<M>>,
}

impl<'a, M: Message> Intake<'a, M> {
    async fn open(&mut self) -> Result<(), QueueError> {
        self.consumers = Some((self.consumer(1).await?, None));
        Ok(())
    }

    async fn consumer(&self, prefetch: u16) -> Result<Consumer<M>, QueueError> {
        Consumer::open_from(self.stage.consuming, self.queue, prefetch).await
    }

    fn is_open(&self) -> bool {
        self.consumers.is_some()
    }

    /// Closes the consumers: what is in hand returns to the queue. The worker opens them again, with
    /// one delivery in hand, when it takes the next delivery.
    pub async fn release(&mut self) {
        self.waiting.clear();
        if let Some((first, more)) = self.consumers.take() {
            first.close(self.stage.consuming).await;
            if let Some(more) = more {
                more.close(self.stage.consuming).await;
            }
        }
    }

    /// Acks a delivery after which the worker takes nothing for a while, and closes the consumers. They take nothing from before
    /// the ack on: what the broker delivered in its place would come back, and count as an interruption of a message that
    /// nothing interrupted.
    pub async fn ack_and_release(&mut self, delivery: Delivery<M>) -> Result<(), QueueError> {
        if let Some((first, more)) = &self.consumers {
            first.cancel().await?;
            if let Some(more) = more {
                more.cancel().await?;
            }
        }
        delivery.ack().await?;
        self.release().await;
        Ok(())
    }

    /// The message of a delivery; none when it cannot be read and was dead-lettered.
    pub async fn read(
        &mut self,
        delivery: Delivery<M>,
    ) -> Result<Option<(Delivery<M>, M)>, QueueError> {
        match delivery.read() {
            Ok(message) => Ok(Some((delivery, message))),
            Err(unreadable) => {
                let attempts = delivery.deliveries();
                self.dead_letter(delivery, &unreadable.into(), attempts)
                    .await?;
                Ok(None)
            }
        }
    }

    /// Publishes a message to `etl.dead` with the reason, and acks it once that is confirmed.
    pub async fn dead_letter(
        &mut self,
        delivery: Delivery<M>,
        reason: &Reason,
        attempts: u32,
    ) -> Result<(), QueueError> {
        let stage = self.stage.name;
        self.publisher
            .dead_letter(delivery.into_raw(), stage, reason, attempts)
            .await
    }

    /// For work on deliveries in hand: the publisher, and a wait for as long as they can be settled, which says why they
    /// no longer can.
    pub fn at_work(&mut self) -> (&mut Publisher<'a>, impl Future<Output = QueueError>) {
        let Self {
            publisher,
            consumers,
            waiting,
            ..
        } = self;
        let ended = async {
            loop {
                match next(consumers).await {
                    Ok(delivery) => waiting.push_back(delivery),
                    Err(error) => return error,
                }
            }
        };
        (publisher, ended)
    }

    /// Puts a delivery off: publishes it again at the tail of its queue, and acks it once that is confirmed, so that it does
    /// not count as delivered. A queue without room gets it back, and everything else that the worker has in hand.
    pub async fn put_off(&mut self, delivery: Delivery<M>) -> Result<(), QueueError> {
        let again = Outgoing::again_to(&delivery, self.queue);
        if self.publisher.try_publish(&again).await? {
            delivery.ack().await
        } else {
            self.release().await;
            Ok(())
        }
    }

    async fn widen(&mut self) -> Result<(), QueueError> {
        let rest = self.prefetch.deliveries.saturating_sub(1);
        if rest > 0 && matches!(self.consumers, Some((_, None))) {
            let added = self.consumer(rest).await?;
            if let Some((_, more)) = &mut self.consumers {
                *more = Some(added);
            }
        }
        Ok(())
    }

    /// Waits for a delivery, and takes those that are already here with it. Dropping the future loses
    /// nothing.
    async fn take(&mut self) -> Result<Vec<Delivery<M>>, QueueError> {
        if !self.is_open() {
            self.open().await?;
        }
        let first = match self.waiting.pop_front() {
            Some(delivery) => delivery,
            None => next(&mut self.consumers).await?,
        };
        let mut bytes = first.body().len();
        let mut taken = vec![first];
        while taken.len() < self.prefetch.together && bytes < self.prefetch.bytes {
            let Some(delivery) = self.ready().transpose()? else {
                break;
            };
            bytes += delivery.body().len();
            taken.push(delivery);
        }
        Ok(taken)
    }

    fn ready(&mut self) -> Option<Result<Delivery<M>, QueueError>> {
        if let Some(delivery) = self.waiting.pop_front() {
            return Some(Ok(delivery));
        }
        let (first, more) = self.consumers.as_mut()?;
        first.try_next().or_else(|| more.as_mut()?.try_next())
    }
}

/// Waits for the next delivery.
async fn next<M: Message>(
    consumers: &mut Option<(Consumer<M>, Option<Consumer<M>>)>,
) -> Result<Delivery<M>, QueueError> {
    match consumers {
        // Released: there is nothing to wait for.
        None => std::future::pending().await,
        Some((first, None)) => first.next().await,
        Some((first, Some(more))) => tokio::select! {
            delivery = first.next() => delivery,
            delivery = more.next() => delivery,
        },
    }
}

impl RawDelivery {
    /// Whether the message came back so often that it is handled alone.
    pub fn is_isolated(&self) -> bool {
        self.deliveries() >= ISOLATE_AT
    }
}
