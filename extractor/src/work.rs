//! One task from its delivery to the point where it can be acked: the run's result was read to its
//! end, the run failed, or a successor that knows how far it has come is confirmed.
//!
//! A delivery is never held for long: waiting and reading are handed on every few seconds, so that
//! the broker does not take this extractor for dead and a crash loses little.

mod ending;
mod reading;
mod waiting;

use std::time::Duration;

use common::lifecycle::Health;
use common::message::{EventKind, ExtractTask, RunEvent, TaskState};
use common::queue::{Outgoing, Publisher, QueueError, RawDelivery};
use common::service::backoff;
use common::telemetry::retried;
use tokio::time::{Instant, sleep, timeout};

use crate::aws::{AwsError, AwsErrorKind};
use crate::cancelled::Cancelled;
use crate::session::Clients;
use crate::settings::Settings;
use crate::trouble::Trouble;

/// How long one delivery waits for a query, or reads, before it is handed on.
pub(crate) const TURN: Duration = Duration::from_secs(10);
/// How long one delivery waits for AWS to come back before it is handed on.
const PATIENCE: Duration = Duration::from_mins(5);

/// What a step led to.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The task's state is another one: go on with it.
    GoOn,
    /// The task is to be published as it is now.
    HandOn,
    /// Nothing is left to do.
    Done,
}

/// Works on tasks, one after the other.
pub(crate) struct Worker<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) clients: Clients,
    pub(crate) publisher: Publisher<'a>,
    pub(crate) health: &'a Health,
    pub(crate) cancelled: Cancelled,
    /// The `traceparent` of the span that the run's work is below.
    pub(crate) trace: Option<String>,
    /// How long the delivery in hand may be held while it comes forward: [`TURN`] at most.
    pub(crate) turn: Duration,
}

impl Worker<'_> {
    /// Works on a task until its delivery can be acked.
    ///
    /// Gives an error that ends the session after the ack: the queue of batches is full, and the
    /// task was handed on so that this wait does not count as a failed delivery.
    pub(crate) async fn work(
        &mut self,
        mut task: ExtractTask,
        delivery: &RawDelivery,
    ) -> Result<Option<QueueError>, QueueError> {
        let held = Instant::now();
        let mut failures = 0;
        // Somebody who died, or whose request got no answer, may have asked Athena.
        let mut asked = attempt(&task).filter(|_| delivery.deliveries() > 1);
        loop {
            let stepped = if self.cancelled.has(&task) {
                self.put_away(&task, asked).await
            } else {
                asked = attempt(&task);
                Box::pin(self.step(&mut task)).await
            };
            match stepped {
                Ok(next) => {
                    self.health.clear("aws");
                    failures = 0;
                    match next {
                        Next::GoOn => {}
                        Next::HandOn => return self.hand_on(&task, delivery).await.map(|()| None),
                        Next::Done => return Ok(None),
                    }
                }
                Err(Trouble::Run(reason)) => {
                    return self.fail(&task, delivery, reason).await.map(|()| None);
                }
                Err(Trouble::Queue(full @ QueueError::Full { .. })) => {
                    self.hand_on(&task, delivery).await?;
                    return Ok(Some(full));
                }
                Err(Trouble::Queue(error)) => return Err(error),
                Err(Trouble::World(error)) => {
                    self.endure(&task, &error, failures).await;
                    failures += 1;
                    if held.elapsed() > PATIENCE {
                        self.hand_on(&task, delivery).await?;
                        self.health.clear("aws");
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Ends early, with the task as it is, when its run is cancelled.
    async fn step(&mut self, task: &mut ExtractTask) -> Result<Next, Trouble> {
        let is_start = attempt(task).is_some();
        let (cancelled, run) = (self.cancelled.clone(), task.run.clone());
        let cancelled = cancelled.until(&run, task.generation);
        let step = async {
            match task.state {
                TaskState::Start { attempt } => self.start(task, attempt).await,
                TaskState::Waiting { .. } => self.wait(task).await,
                TaskState::Reread { .. } => self.reread(task).await,
                TaskState::Reading { .. } => self.read(task).await,
            }
        };
        // What was asked of Athena is waited for: only who knows the execution can stop it.
        if is_start {
            return step.await;
        }
        tokio::select! {
            biased;
            () = cancelled => {}
            next = step => return next,
        }
        self.publisher.renew().await?;
        Ok(Next::GoOn)
    }

    /// Says that AWS cannot be used now, and waits a little.
    async fn endure(&mut self, task: &ExtractTask, error: &AwsError, failures: u32) {
        tracing::warn!(%error, "AWS cannot be used now; trying again");
        retried(error.kind.cause(), 1);
        self.health.not_ready("aws", error.to_string());
        let pause = backoff(failures, Duration::from_secs(1), Duration::from_secs(30));
        if self.cancelled.has(task) {
            sleep(pause).await;
        } else {
            let cancelled = self.cancelled.until(&task.run, task.generation);
            // Whichever it was is seen at the next step.
            timeout(pause, cancelled).await.unwrap_or(());
        }
        if error.kind == AwsErrorKind::ExpiredCredentials {
            match Clients::connect(self.settings).await {
                Ok(clients) => self.clients = clients,
                Err(error) => self.health.not_ready("aws", format!("{error:#}")),
            }
        }
    }

    /// Publishes the task as it is now. What it replaces is acked only after that: a crash in
    /// between leaves two tasks, which can only publish the same batches.
    async fn hand_on(
        &mut self,
        task: &ExtractTask,
        delivery: &RawDelivery,
    ) -> Result<(), QueueError> {
        match Outgoing::of(task) {
            Ok(successor) => {
                self.publisher
                    .publish(&[successor.traced(self.trace.as_deref())])
                    .await
            }
            // Only a task that never should have been read.
            Err(error) => self.fail(task, delivery, error.to_string()).await,
        }
    }

    async fn tell(&mut self, task: &ExtractTask, kind: EventKind) -> Result<(), QueueError> {
        self.publisher
            .publish(&[event(task, kind).traced(self.trace.as_deref())])
            .await
    }
}

/// The attempt at the query that Athena is to be asked for.
fn attempt(task: &ExtractTask) -> Option<u32> {
    match task.state {
        TaskState::Start { attempt } => Some(attempt),
        TaskState::Waiting { .. } | TaskState::Reread { .. } | TaskState::Reading { .. } => None,
    }
}

fn event(task: &ExtractTask, kind: EventKind) -> Outgoing {
    outgoing(&run_event(task, kind))
}

fn run_event(task: &ExtractTask, kind: EventKind) -> RunEvent {
    RunEvent {
        run: task.run.clone(),
        generation: task.generation,
        job: task.job.name.clone(),
        kind,
    }
}

fn outgoing(event: &RunEvent) -> Outgoing {
    Outgoing::of(event).expect("an event is small and consistent")
}
