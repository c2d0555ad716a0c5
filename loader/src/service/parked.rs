//! The drain of `etl.parked`: batches whose target could not take them, and the tasks of runs that are paused meanwhile.
//! Targets are probed apart from the queue, with growing pauses and a batch each from memory; the queue is gone through when
//! one works again, at the start, and from time to time, since another loader may have parked something.
//!
//! Nothing is ever requeued, which would count as a delivery: what is not ready is published again at the tail, confirmed,
//! and then acked.

use std::time::{Duration, Instant};

use common::backoff::backoff;
use common::message::{ExtractTask, Message as _, ValidBatch};
use common::queue::{
    Delivery, Outgoing, Publisher, Puller, QueueName, RawDelivery, inspect, over_limit,
};
use common::service::{Fault, Session};
use common::telemetry::retried;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::batches::{End, Time, attempt};
use super::deliveries::{Deliveries, note};
use super::paused::Fate;

/// How often the probes are looked at.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// The pause before the queue is gone through unasked grows from the first to the second, while nothing of it can be loaded.
const FIRST_PAUSE: Duration = Duration::from_secs(4);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The most messages of the queue that are looked at unasked.
const MAX_UNASKED: u32 = 100;

/// Deliveries in hand: a batch that is slow keeps no batch of another target waiting.
const IN_HAND: usize = 3;

/// How long a batch that does not fit its target is parked before it is dead-lettered: a person may be changing the table.
const MAX_MISFIT: Duration = Duration::from_mins(2);

/// Probes unavailable targets until the session ends, side by side.
pub(super) async fn probe(shared: &Deliveries<'_>) -> Result<(), Fault> {
    let Deliveries {
        session, loader, ..
    } = shared;
    let mut probes = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = session.stop.cancelled() => break,
            Some(()) = probes.next() => continue,
            () = tokio::time::sleep(PROBE_INTERVAL) => {}
        }
        for (target, sample) in loader.parking.due() {
            probes.push(Box::pin(async move {
                retried("target", 1);
                match loader.accept(&sample).await {
                    Ok(_) => {
                        loader.parking.works(&target);
                        tracing::info!(target.table = target, "the target takes rows again");
                        shared.recovered.notify_one();
                    }
                    Err(error) => {
                        let why = error.sentence();
                        tracing::debug!(target.table = target, error = why, "probe failed");
                        let reason = error.reason();
                        loader.parking.failed(&target, &sample, reason.text());
                    }
                }
            }));
        }
    }
    // A probe has no delivery in hand: one that is under way is broken off.
    Ok(())
}

/// Goes through the queue until the session ends.
pub(super) async fn drain(shared: &Deliveries<'_>) -> Result<(), Fault> {
    let session = shared.session;
    let mut publisher = Publisher::open(&session.publishing).await?;
    let mut max = u32::MAX;
    let mut fruitless = 0;
    while !session.stop.is_cancelled() {
        let waiting = waiting(session).await.min(max);
        let has_loaded =
            waiting > 0 && Box::pin(go_through(shared, &mut publisher, waiting)).await?;
        fruitless = if has_loaded { 0 } else { fruitless + 1 };
        max = tokio::select! {
            biased;
            () = session.stop.cancelled() => break,
            () = shared.recovered.notified() => u32::MAX,
            () = tokio::time::sleep(backoff(fruitless, FIRST_PAUSE, MAX_PAUSE)) => MAX_UNASKED,
        };
    }
    publisher.close().await;
    Ok(())
}

/// The messages in the queue that can be handled: none where the broker takes no message that is not ready again.
async fn waiting(session: &Session) -> u32 {
    if session.publishing.is_blocked() {
        return 0;
    }
    // The end of the queue is found by taking its messages.
    if !session.may_look {
        return MAX_UNASKED;
    }
    match inspect::look(&session.consuming, QueueName::Parked).await {
        Ok(state) => state.map_or(0, |state| state.messages),
        Err(error) => {
            tracing::debug!(%error, "the depth of etl.parked is unknown");
            0
        }
    }
}

/// A delivery that was handled.
struct Handled {
    delivery: RawDelivery,
    batch: ValidBatch,
    started: Instant,
    end: End,
}

/// Handles so many messages of the queue. Returns whether one of them was settled. As with every consumer, the first message
/// is alone, and one that came back is.
async fn go_through(
    shared: &Deliveries<'_>,
    publisher: &mut Publisher<'_>,
    messages: u32,
) -> Result<bool, Fault> {
    let Session {
        consuming, stop, ..
    } = shared.session;
    let puller = Puller::open(consuming, QueueName::Parked).await?;
    let mut handled = FuturesUnordered::new();
    let (mut left, mut most, mut has_settled) = (messages, 1, false);
    loop {
        while left > 0 && handled.len() < most && !stop.is_cancelled() {
            left -= 1;
            let Some(delivery) = puller.next().await? else {
                left = 0;
                break;
            };
            if ExtractTask::reads(delivery.kind()) {
                match task(shared, publisher, delivery).await? {
                    Settled::Yes => has_settled = true,
                    Settled::Again => {}
                    Settled::Not => left = 0,
                }
                continue;
            }
            if let Some((delivery, batch)) = read(shared, publisher, delivery).await? {
                if delivery.is_isolated() {
                    most = 1;
                }
                handled.push(Box::pin(handle(shared, delivery, batch)));
            }
        }
        let Some(done) = handled.next().await else {
            break;
        };
        most = if done.delivery.is_isolated() {
            1
        } else {
            IN_HAND
        };
        match settle(shared, publisher, done).await? {
            Settled::Yes => has_settled = true,
            Settled::Again => {}
            Settled::Not => left = 0,
        }
    }
    drop(handled);
    puller.close(consuming).await;
    Ok(has_settled)
}

/// The batch of a delivery; none when it was dead-lettered.
async fn read(
    shared: &Deliveries<'_>,
    publisher: &mut Publisher<'_>,
    delivery: RawDelivery,
) -> Result<Option<(RawDelivery, ValidBatch)>, Fault> {
    let delivery: Delivery<ValidBatch> = delivery.into();
    let is_poison = delivery.is_over_limit() && !shared.database_may_be_at_fault().await;
    let reason = if is_poison {
        over_limit(&delivery)
    } else {
        match delivery.read() {
            Ok(batch) => return Ok(Some((delivery.into_raw(), batch))),
            Err(unreadable) => unreadable.into(),
        }
    };
    let attempts = delivery.deliveries();
    publisher
        .dead_letter(delivery.into_raw(), shared.session.name, &reason, attempts)
        .await?;
    Ok(None)
}

/// Handles the task of a paused run.
async fn task(
    shared: &Deliveries<'_>,
    publisher: &mut Publisher<'_>,
    delivery: RawDelivery,
) -> Result<Settled, Fault> {
    let delivery: Delivery<ExtractTask> = delivery.into();
    let fate = match delivery.read() {
        Ok(task) => shared.resume(publisher, &delivery, task).await?,
        Err(unreadable) => Fate::Refused(unreadable.into()),
    };
    let settled = match fate {
        Fate::Settled => Settled::Yes,
        Fate::Waits if put_back(publisher, &delivery).await? => Settled::Again,
        Fate::Waits => return Ok(Settled::Not),
        Fate::Refused(reason) => {
            let attempts = delivery.deliveries();
            publisher
                .dead_letter(delivery.into_raw(), shared.session.name, &reason, attempts)
                .await?;
            return Ok(Settled::Yes);
        }
    };
    delivery.ack().await?;
    Ok(settled)
}

async fn handle(shared: &Deliveries<'_>, delivery: RawDelivery, batch: ValidBatch) -> Handled {
    let started = Instant::now();
    let stop = &shared.session.stop;
    let end = Box::pin(attempt(shared.loader, stop, &batch, Time::Ample)).await;
    Handled {
        delivery,
        batch,
        started,
        end,
    }
}

enum Settled {
    Yes,
    /// It is at the tail again.
    Again,
    /// Nothing can be settled now.
    Not,
}

async fn settle(
    shared: &Deliveries<'_>,
    publisher: &mut Publisher<'_>,
    handled: Handled,
) -> Result<Settled, Fault> {
    let Handled {
        delivery,
        batch,
        started,
        end,
    } = handled;
    let (is_parked, settled) = match end {
        End::Settled(outcome) => {
            note(&batch, outcome, started);
            unpark(shared, &batch).await;
            delivery.ack().await?;
            return Ok(Settled::Yes);
        }
        End::Misfit(reason) if delivery.parked_for() > MAX_MISFIT => {
            let attempts = delivery.parked_attempts();
            publisher
                .dead_letter(delivery, shared.session.name, &reason, attempts)
                .await?;
            unpark(shared, &batch).await;
            return Ok(Settled::Yes);
        }
        End::Dead { reason, attempts } => {
            publisher
                .dead_letter(delivery, shared.session.name, &reason, attempts)
                .await?;
            unpark(shared, &batch).await;
            return Ok(Settled::Yes);
        }
        end @ (End::Parked(_) | End::Misfit(_)) => {
            let why = end.reason();
            match shared.park(publisher, &delivery, &batch, &why).await? {
                Ok(is_parked) => (is_parked, Settled::Again),
                Err(_) => (put_back(publisher, &delivery).await?, Settled::Not),
            }
        }
        // The lanes say that PostgreSQL is away.
        End::Pause(_) | End::Stopping => (put_back(publisher, &delivery).await?, Settled::Not),
    };
    if is_parked {
        delivery.ack().await?;
        return Ok(settled);
    }
    // Other loaders have filled the queue: the delivery returns when the channel is closed.
    Ok(Settled::Not)
}

/// Publishes a delivery at the tail, unchanged. False when the queue is full.
async fn put_back(publisher: &mut Publisher<'_>, delivery: &RawDelivery) -> Result<bool, Fault> {
    let again = Outgoing::again_to(delivery, QueueName::Parked);
    Ok(publisher.try_publish(&again).await?)
}

/// A row that is left over counts no more.
async fn unpark(shared: &Deliveries<'_>, batch: &ValidBatch) {
    if let Err(error) = shared.loader.store.unpark(&batch.id).await {
        tracing::debug!(run.id = %batch.id.run, %error, "the row of a parked batch stays");
    }
}
