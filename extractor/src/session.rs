//! What an extractor does while it is connected: it runs workers, each with a consumer and a publisher
//! of its own and one task in hand.

use std::time::Duration;

use common::backoff::Repetition;
use common::failpoint;
use common::message::{Command, ExtractTask};
use common::queue::{
    self, ControlReader, Delivery, Handler, Intake, Prefetch, Publisher, QueueError, QueueName,
    Workers,
};
use common::service::{Fault, Session};
use common::settings;
use common::telemetry::trace;
use futures::future::try_join3;
use tokio::time::sleep;
use tracing::Instrument;

pub use crate::clients::{Access, Clients};
use crate::controls::Controls;
use crate::replica::Replica;
use crate::setbacks::Setbacks;
use crate::settings::Settings;
use crate::work::{Outcome, Worker};

/// One task a worker: a task in hand waits for nothing but its own work. A worker may hold one for minutes, and keeps no other
/// worker waiting.
const PREFETCH: Prefetch = Prefetch {
    deliveries: 1,
    together: 1,
    bytes: 0,
    alone: Duration::ZERO,
};

/// How many tasks wait for a query or read the beginning of a result beside so many long results that are read: more, since the
/// next ones wait behind them. Only where one long result is read at a time, it is one.
fn short_tasks(tasks: u32) -> u32 {
    (tasks - 1).saturating_mul(4).saturating_add(1)
}

/// Works on tasks until the session ends. Tasks that are in hand then are redelivered.
pub async fn run(session: &Session) -> Result<(), Fault> {
    let settings: Settings =
        settings::load().map_err(|error| Fault::Configuration(error.into()))?;
    let access = Access::read(&settings, &session.health)
        .await
        .map_err(|error| Fault::Configuration(error.into()))?;
    session.health.clear("aws");
    let replica = Replica::new(&settings, &session.health, access);
    // Before the first task: Athena must not get the query of a run that was cancelled meanwhile.
    let controls = Controls::default();
    let apply = |control| controls.apply(control);
    let reader = tokio::select! {
        () = session.stop.cancelled() => return Ok(()),
        opened = ControlReader::open(&session.consuming, &session.publishing, apply) => opened?,
    };
    let workers = |queue, count: u32| {
        let tasks = |_| Tasks {
            session,
            replica: &replica,
            controls: &controls,
            repetition: Repetition::default(),
        };
        Workers {
            queue,
            handlers: (0..count).map(tasks).collect(),
        }
    };
    let tasks = settings.tasks.get();
    let queues = [
        workers(QueueName::Extract, short_tasks(tasks)),
        workers(QueueName::ExtractBulk, tasks),
    ];
    let consume = session.consume(PREFETCH, queues);
    let follow = follow(session, reader, &controls);
    try_join3(
        Box::pin(follow),
        Box::pin(consume),
        Box::pin(limit_age(session)),
    )
    .await
    .map(drop)
}

/// How often the age of the archive is looked at, on average.
const AGE_INTERVAL: Duration = Duration::from_hours(1);

/// Keeps the archive from growing older than it should, until the session ends. What fails is tried again an hour later.
async fn limit_age(session: &Session) -> Result<(), Fault> {
    if !session.archived.is_yes() {
        return Ok(());
    }
    loop {
        // Not at the same time as another extractor, which then finds the padding of this one.
        let pause = AGE_INTERVAL.mul_f64(rand::random_range(0.5..1.5));
        tokio::select! {
            () = session.stop.cancelled() => return Ok(()),
            () = sleep(pause) => {}
        }
        let limited = tokio::select! {
            () = session.stop.cancelled() => return Ok(()),
            limited = queue::limit_age(&session.consuming) => limited,
        };
        match limited {
            Ok(true) => tracing::info!(
                "a segment of the archive was ended, so that the broker removes old ones"
            ),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                %error,
                "the age of the archive was not limited; raw batches stay in it for longer"
            ),
        }
    }
}

/// Applies every control message until the session ends.
async fn follow(
    session: &Session,
    mut reader: ControlReader<'_>,
    controls: &Controls,
) -> Result<(), Fault> {
    loop {
        let control = tokio::select! {
            () = session.stop.cancelled() => return Ok(()),
            control = reader.next() => control?,
        };
        match control.command {
            Command::Cancel => tracing::info!(run.id = %control.run, "run cancelled"),
            Command::Pause => tracing::info!(run.id = %control.run, "extraction paused"),
        }
        controls.apply(control);
    }
}

/// The handler of a worker's deliveries.
struct Tasks<'a> {
    session: &'a Session,
    replica: &'a Replica<'a>,
    controls: &'a Controls,
    /// Which failures of AWS are logged.
    repetition: Repetition,
}

impl Handler<ExtractTask> for Tasks<'_> {
    type Fault = Fault;

    /// A cancelled task is only dropped, which takes no extractor down.
    async fn exempts(&mut self, delivery: &Delivery<ExtractTask>) -> bool {
        delivery
            .read()
            .is_ok_and(|task| self.controls.is_cancelled(&task))
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
            let setbacks = Setbacks::of(&delivery);
            if let Some(reason) = setbacks.poison()
                && !self.controls.is_cancelled(&task)
            {
                let attempts = setbacks.interruptions + 1;
                intake
                    .dead_letter(delivery, &reason.into(), attempts)
                    .await?;
                continue;
            }
            let (publisher, ended) = intake.at_work();
            let outcome = tokio::select! {
                outcome = Box::pin(self.work(task, &delivery, setbacks, publisher)) => outcome?,
                () = stop.cancelled() => return Ok(()),
                // The task is redelivered to another worker: this one must not go on with it.
                ended = ended => return Err(ended.into()),
            };
            failpoint::reach("before_ack").await;
            match outcome {
                Outcome::Settled => delivery.ack().await?,
                Outcome::Full(full) => {
                    intake.ack_and_release(delivery).await?;
                    Box::pin(self.session.wait_for_room(intake, full)).await?;
                }
                Outcome::Pause(time) => {
                    intake.ack_and_release(delivery).await?;
                    self.rest(sleep(time)).await;
                }
                Outcome::Unable => {
                    intake.ack_and_release(delivery).await?;
                    Box::pin(self.rest(self.replica.recovers())).await;
                }
            }
        }
        Ok(())
    }
}

impl Tasks<'_> {
    /// Works on a task until its delivery can be acked.
    async fn work(
        &mut self,
        task: ExtractTask,
        delivery: &Delivery<ExtractTask>,
        setbacks: Setbacks,
        publisher: &mut Publisher<'_>,
    ) -> Result<Outcome, QueueError> {
        let parent = delivery.traceparent();
        // The request was not traced: the trace begins here, and the span ends with this work.
        let begun = parent
            .is_none()
            .then(|| tracing::info_span!(target: trace::TARGET, "run", run.id = %task.run));
        let mut worker = Worker {
            replica: self.replica,
            publisher,
            health: &self.session.health,
            controls: self.controls,
            archives: self.session.archived.is_yes(),
            trace: match &begun {
                Some(span) => trace::join(span, None),
                None => parent,
            },
            setbacks,
            repetition: &mut self.repetition,
        };
        let deliveries = delivery.deliveries();
        if !self.controls.is_cancelled(&task) {
            if self.replica.is_at_fault() {
                worker.hand_on(&task, delivery).await?;
                return Ok(Outcome::Unable);
            }
            // The deliveries of the successor count anew. Restarts of the broker, lost connections and killed extractors
            // make tasks come back, too: only one without progress is dead-lettered.
            if deliveries > 1 {
                tracing::info!(run.id = %task.run, deliveries, "task came back; publishing it again");
                worker.hand_on(&task, delivery).await?;
                return Ok(Outcome::Settled);
            }
        }
        let span = tracing::info_span!("task", run.id = %task.run, job = task.job.name, deliveries);
        failpoint::reach("extract").await;
        worker.work(task, delivery).instrument(span).await
    }

    /// Waits until `until`, or until the session ends.
    async fn rest(&self, until: impl Future<Output = ()>) {
        tokio::select! {
            () = self.session.stop.cancelled() => {}
            () = until => {}
        }
    }
}
