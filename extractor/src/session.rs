//! What an extractor does while it is connected: so many workers, each with a consumer and a
//! publisher of its own, each with one task in hand.

use std::time::Duration;

use common::failpoint;
use common::message::ExtractTask;
use common::queue::{Consumer, ControlReader, Delivery, Outgoing, Publisher, QueueError};
use common::service::{Fault, Session};
use common::settings;
use common::telemetry::trace::Span;
use futures::future::{try_join, try_join_all};
use tracing::Instrument;

use crate::cancellations::Cancellations;
pub use crate::clients::Clients;
use crate::settings::Settings;
use crate::work::{CHECKPOINT_INTERVAL, Worker};

/// A task that has been delivered this often without an end is not worked on any more: it takes its
/// extractors down.
const DELIVERIES: u32 = 8;

/// Works on tasks until the session is to stop. What is in hand then is left to whoever receives it
/// next.
pub async fn run(session: &Session) -> Result<(), Fault> {
    let settings: Settings =
        settings::load().map_err(|error| Fault::Configuration(error.into()))?;
    let clients = Clients::connect(&settings)
        .await
        .map_err(|error| Fault::Configuration(error.into()))?;
    session.health.clear("aws");
    // Before the first task: one of a run that was cancelled meanwhile must not reach Athena.
    let cancelled = Cancellations::default();
    let obey = |control| cancelled.apply(control);
    let orders = tokio::select! {
        () = session.stop.cancelled() => return Ok(()),
        opened = ControlReader::open(&session.consuming, &session.publishing, obey) => opened?,
    };
    let workers = (0..settings.tasks.get()).map(|index| {
        consume(
            session,
            index,
            &settings,
            clients.clone(),
            cancelled.clone(),
        )
    });
    let workers = try_join_all(workers.map(Box::pin));
    try_join(Box::pin(follow(session, orders, &cancelled)), workers)
        .await
        .map(drop)
}

/// Takes note of every order, for as long as the session lives.
async fn follow(
    session: &Session,
    mut orders: ControlReader,
    cancelled: &Cancellations,
) -> Result<(), Fault> {
    loop {
        let order = tokio::select! {
            () = session.stop.cancelled() => return Ok(()),
            order = orders.next() => order?,
        };
        tracing::info!(run.id = %order.run, "run cancelled");
        cancelled.apply(order);
    }
}

async fn consume(
    session: &Session,
    index: u32,
    settings: &Settings,
    clients: Clients,
    cancelled: Cancellations,
) -> Result<(), Fault> {
    let mut consumer = Consumer::<ExtractTask>::open(&session.consuming, 1).await?;
    let publisher = Publisher::open(&session.publishing).await?;
    let mut worker = Worker {
        settings,
        clients,
        publisher,
        health: &session.health,
        cancellations: cancelled,
        trace: None,
        checkpoint_interval: CHECKPOINT_INTERVAL,
    };
    if index == 0 {
        session.begins();
    }
    loop {
        let delivery = tokio::select! {
            biased;
            () = session.stop.cancelled() => return Ok(()),
            delivery = consumer.next() => delivery?,
        };
        let then = tokio::select! {
            settled = handle(&mut worker, &delivery) => settled?,
            () = session.stop.cancelled() => return Ok(()),
            // Nothing more is delivered while this one is not acked, so that this can only be the
            // channel's end. The task is somebody else's from now on.
            lost = consumer.next() => {
                lost?;
                return Err(Fault::World(anyhow::anyhow!("the broker delivered more than it was asked for")));
            }
        };
        failpoint::reach("before_ack").await;
        delivery.ack().await?;
        if let Some(error) = then {
            return Err(error.into());
        }
    }
}

/// Works on a delivery until it can be acked. May give an error that ends the session after that.
async fn handle(
    worker: &mut Worker<'_>,
    delivery: &Delivery<ExtractTask>,
) -> Result<Option<QueueError>, QueueError> {
    let deliveries = delivery.deliveries();
    let problem = match delivery.read() {
        // A cancelled one is only put away, however often it took its extractor down.
        Ok(task) if deliveries < DELIVERIES || worker.cancellations.contains(&task) => {
            let span =
                tracing::info_span!("task", run.id = %task.run, job = task.job.name, deliveries);
            // One that came back is handed on as soon as it came forward at all: its successor counts
            // anew, so that only what makes no progress is ever given up. A broker that goes down
            // again and again, and extractors that are killed, make a task come back too.
            worker.checkpoint_interval = if delivery.is_suspect() {
                Duration::ZERO
            } else {
                CHECKPOINT_INTERVAL
            };
            // Asked for by somebody who traces nothing, the trace begins here.
            let begun = match delivery.trace() {
                Some(_) => None,
                None => Some(Span::begin("run", None).with("run.id", task.run.as_str())),
            };
            worker.trace = delivery
                .trace()
                .or_else(|| begun.as_ref().and_then(Span::context));
            failpoint::reach("extract").await;
            return Box::pin(worker.work(task, delivery)).instrument(span).await;
        }
        Ok(_) => format!(
            "it was delivered {deliveries} times and never finished: it takes the extractor down"
        ),
        Err(unreadable) => unreadable.to_string(),
    };
    tracing::error!(
        message.id = delivery.id(),
        problem,
        "task moved to etl.dead"
    );
    let dead = Outgoing::dead(delivery, "extractor", &problem, deliveries);
    worker.publisher.publish(&[dead]).await.map(|()| None)
}
