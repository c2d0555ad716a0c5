//! What an extractor does while it is connected: it runs workers, each with a consumer and a publisher
//! of its own and one task in hand.

use std::time::Duration;

use common::failpoint;
use common::message::ExtractTask;
use common::queue::{ControlReader, Delivery, Handler, Intake, Prefetch, Publisher, QueueError};
use common::service::{Fault, Session};
use common::settings;
use common::telemetry::trace;
use futures::future::try_join;
use tracing::Instrument;

use crate::cancellations::Cancellations;
pub use crate::clients::Clients;
use crate::settings::Settings;
use crate::work::{CHECKPOINT_INTERVAL, Worker};

/// One task a worker: a task in hand waits for nothing but its own work. A worker may hold one for minutes, and keeps no other
/// worker waiting.
const PREFETCH: Prefetch = Prefetch {
    deliveries: 1,
    together: 1,
    bytes: 0,
    alone: Duration::ZERO,
};

/// Works on tasks until the session ends. Tasks that are in hand then are redelivered.
pub async fn run(session: &Session) -> Result<(), Fault> {
    let settings: Settings =
        settings::load().map_err(|error| Fault::Configuration(error.into()))?;
    let clients = Clients::connect(&settings)
        .await
        .map_err(|error| Fault::Configuration(error.into()))?;
    session.health.clear("aws");
    // Before the first task: Athena must not get the query of a run that was cancelled meanwhile.
    let cancelled = Cancellations::default();
    let apply = |control| cancelled.apply(control);
    let controls = tokio::select! {
        () = session.stop.cancelled() => return Ok(()),
        opened = ControlReader::open(&session.consuming, &session.publishing, apply) => opened?,
    };
    let mut handlers = Vec::new();
    for _ in 0..settings.tasks.get() {
        let worker = Worker {
            settings: &settings,
            clients: clients.clone(),
            publisher: Publisher::open(&session.publishing).await?,
            health: &session.health,
            cancellations: cancelled.clone(),
            trace: None,
            checkpoint_interval: CHECKPOINT_INTERVAL,
        };
        handlers.push(Tasks { session, worker });
    }
    let consume = session.consume(PREFETCH, handlers);
    let follow = follow(session, controls, &cancelled);
    try_join(Box::pin(follow), Box::pin(consume))
        .await
        .map(drop)
}

/// Applies every control message until the session ends.
async fn follow(
    session: &Session,
    mut controls: ControlReader,
    cancelled: &Cancellations,
) -> Result<(), Fault> {
    loop {
        let control = tokio::select! {
            () = session.stop.cancelled() => return Ok(()),
            control = controls.next() => control?,
        };
        tracing::info!(run.id = %control.run, "run cancelled");
        cancelled.apply(control);
    }
}

/// A worker as the handler of its deliveries.
struct Tasks<'a> {
    session: &'a Session,
    worker: Worker<'a>,
}

impl Handler<ExtractTask> for Tasks<'_> {
    type Fault = Fault;

    /// A cancelled task is only dropped, which takes no extractor down.
    async fn exempts(&mut self, delivery: &Delivery<ExtractTask>) -> bool {
        delivery
            .read()
            .is_ok_and(|task| self.worker.cancellations.contains(&task))
    }

    async fn handle(
        &mut self,
        deliveries: Vec<Delivery<ExtractTask>>,
        intake: &mut Intake<'_, ExtractTask>,
    ) -> Result<(), Fault> {
        let stop = &self.session.stop;
        for delivery in deliveries {
            let Some((delivery, task)) = intake.read(delivery).await? else {
                continue;
            };
            let full = tokio::select! {
                settled = Box::pin(self.work(task, &delivery)) => settled?,
                () = stop.cancelled() => return Ok(()),
                // The task is redelivered to another worker: this one must not go on with it.
                ended = intake.ended() => return Err(ended.into()),
            };
            failpoint::reach("before_ack").await;
            delivery.ack().await?;
            if let Some(error) = full {
                return Err(error.into());
            }
        }
        Ok(())
    }
}

impl Tasks<'_> {
    /// Works on a task until its delivery can be acked. The error in the result ends the session after
    /// the ack.
    async fn work(
        &mut self,
        task: ExtractTask,
        delivery: &Delivery<ExtractTask>,
    ) -> Result<Option<QueueError>, QueueError> {
        // A task that came back makes a checkpoint as soon as it advances: the deliveries of its
        // successor count anew, so that only a task without progress reaches the limit. Restarts of the
        // broker and killed extractors make tasks come back, too.
        self.worker.checkpoint_interval = if delivery.is_isolated() {
            Duration::ZERO
        } else {
            CHECKPOINT_INTERVAL
        };
        let parent = delivery.traceparent();
        // The request was not traced: the trace begins here, and the span ends with this work.
        let begun = parent
            .is_none()
            .then(|| tracing::info_span!(target: trace::TARGET, "run", run.id = %task.run));
        self.worker.trace = match &begun {
            Some(span) => trace::join(span, None),
            None => parent,
        };
        let deliveries = delivery.deliveries();
        let span = tracing::info_span!("task", run.id = %task.run, job = task.job.name, deliveries);
        failpoint::reach("extract").await;
        self.worker.work(task, delivery).instrument(span).await
    }
}
