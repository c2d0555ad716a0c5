//! What a transformer does while it is connected: take what is ready, transform it, publish all of it,
//! and only then ack. A crash at any point means that the same batches are published again, and they
//! come out the same.

use common::failpoint;
use common::message::RawBatch;
use common::queue::{CautiousConsumer, Delivery, Publisher, QueueError};
use common::service::{Fault, Session};
use futures::future::try_join_all;
use tokio_util::sync::CancellationToken;

use crate::answer::answer;
use crate::transform::Plans;

/// So many deliveries a worker has in hand at most. More would not be faster, and a batch that takes the
/// process down counts against all of them.
const WINDOW: u16 = 4;

/// Deliveries of this many bytes are enough for a window: they, and what becomes of them, are in
/// memory together.
const WINDOW_BYTES: usize = 1 << 20;

/// Workers side by side: one computes while the other waits for its confirms.
const WORKERS: usize = 2;

/// Transforms batches until the session is to stop.
pub async fn run(session: &Session) -> Result<(), Fault> {
    // The first worker begins alone and with one delivery in hand, so that a batch that takes the process down is alone
    // when it does; the others follow once one was handled well.
    let proven = CancellationToken::new();
    let workers = (0..WORKERS).map(|worker| work(session, worker, &proven));
    try_join_all(workers.map(Box::pin)).await.map(drop)
}

async fn work(session: &Session, index: usize, proven: &CancellationToken) -> Result<(), Fault> {
    if index > 0 {
        tokio::select! {
            biased;
            () = session.stop.cancelled() => return Ok(()),
            () = proven.cancelled() => {}
        }
    }
    let mut consumer = CautiousConsumer::open(&session.consuming, WINDOW).await?;
    let mut worker = Worker {
        publisher: Publisher::open(&session.publishing).await?,
        plans: Plans::default(),
    };
    if index == 0 {
        session.begins();
    }
    loop {
        let first = tokio::select! {
            biased;
            () = session.stop.cancelled() => break,
            delivery = consumer.next() => delivery?,
        };
        let window = take(&mut consumer, first)?;
        let (suspects, innocents): (Vec<_>, Vec<_>) = window.into_iter().partition(is_suspect);
        let calm = suspects.is_empty();
        worker.handle(innocents).await?;
        for suspect in suspects {
            worker.handle(vec![suspect]).await?;
        }
        if calm {
            consumer.widen(&session.consuming).await?;
            proven.cancel();
        }
    }
    consumer.close(&session.consuming).await;
    worker.publisher.close().await;
    Ok(())
}

fn is_suspect(delivery: &Delivery<RawBatch>) -> bool {
    let suspect = delivery.is_suspect();
    if suspect {
        tracing::warn!(
            message.id = delivery.id(),
            deliveries = delivery.deliveries(),
            "message came back; handling it alone"
        );
    }
    suspect
}

/// The first delivery and those that are already here, up to a window.
fn take(
    consumer: &mut CautiousConsumer<RawBatch>,
    first: Delivery<RawBatch>,
) -> Result<Vec<Delivery<RawBatch>>, QueueError> {
    let mut bytes = first.body().len();
    let mut window = vec![first];
    while window.len() < usize::from(WINDOW) && bytes < WINDOW_BYTES {
        let Some(delivery) = consumer.try_next().transpose()? else {
            break;
        };
        bytes += delivery.body().len();
        window.push(delivery);
    }
    Ok(window)
}

struct Worker<'a> {
    publisher: Publisher<'a>,
    plans: Plans,
}

impl Worker<'_> {
    /// Answers every delivery, and acks them once all answers are confirmed.
    async fn handle(&mut self, window: Vec<Delivery<RawBatch>>) -> Result<(), Fault> {
        let mut outgoing = Vec::with_capacity(window.len());
        let mut counts = Vec::with_capacity(window.len());
        for delivery in &window {
            failpoint::reach("transform").await;
            let answer = answer(&mut self.plans, delivery);
            outgoing.push(answer.outgoing);
            counts.push(answer.counts);
        }
        self.publisher.publish(&outgoing).await?;
        failpoint::reach("after_confirm").await;
        for (delivery, counts) in window.into_iter().zip(counts) {
            delivery.ack().await?;
            counts.record();
        }
        Ok(())
    }
}
