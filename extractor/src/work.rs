//! One task, from its delivery until it can be acked: the result was read to its end, the run
//! failed, or a successor task is confirmed that continues from here.
//!
//! Publishing the successor is a checkpoint. Waiting and reading checkpoint every few seconds, so
//! that no delivery is held for long and a crash repeats little work.

mod reading;
mod waiting;

use std::time::Duration;

use common::backoff::backoff;
use common::lifecycle::Health;
use common::message::{EventKind, ExtractTask, RunEvent, TaskState};
use common::queue::{Outgoing, Publisher, QueueError, RawDelivery};
use common::telemetry::retried;
use tokio::time::{Instant, sleep, timeout};

use crate::aws::{AwsError, AwsErrorKind};
use crate::cancellations::Cancellations;
use crate::clients::Clients;
use crate::error_policy::StepError;
use crate::query;
use crate::settings::Settings;

/// How long one delivery waits for a query, or reads, before a checkpoint.
pub(crate) const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// How long one delivery waits for AWS or for the first batch before a checkpoint.
const OUTAGE_TIMEOUT: Duration = Duration::from_mins(5);

/// What follows a step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The task's state has changed: take the next step.
    Step,
    /// Publish the task as it is now.
    Checkpoint,
    /// The task is complete.
    Done,
}

/// Works on tasks, one after the other.
pub(crate) struct Worker<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) clients: Clients,
    pub(crate) publisher: Publisher<'a>,
    pub(crate) health: &'a Health,
    pub(crate) cancellations: Cancellations,
    /// The `traceparent` of the span that is the parent of the run's spans.
    pub(crate) trace: Option<String>,
    /// How long the current delivery may be held while it makes progress: at most
    /// [`CHECKPOINT_INTERVAL`].
    pub(crate) checkpoint_interval: Duration,
}

impl Worker<'_> {
    /// Works on a task until its delivery can be acked.
    ///
    /// Returns an error that ends the session after the ack when the queue of batches is full: the
    /// checkpoint keeps that wait from counting as a failed delivery.
    pub(crate) async fn work(
        &mut self,
        mut task: ExtractTask,
        delivery: &RawDelivery,
    ) -> Result<Option<QueueError>, QueueError> {
        let held = Instant::now();
        let mut failures = 0;
        // An extractor that crashed, or whose request got no answer, may have started the query.
        let mut sent = attempt(&task).filter(|_| delivery.deliveries() > 1);
        loop {
            let stepped = if self.cancellations.contains(&task) {
                self.drop_cancelled(&task, sent).await
            } else {
                sent = attempt(&task);
                Box::pin(self.step(&mut task)).await
            };
            match stepped {
                Ok(next) => {
                    self.health.clear("aws");
                    failures = 0;
                    match next {
                        Next::Step => {}
                        Next::Checkpoint => {
                            return self.checkpoint(&task, delivery).await.map(|()| None);
                        }
                        Next::Done => return Ok(None),
                    }
                }
                Err(StepError::FailRun(reason)) => {
                    return self.fail(&task, delivery, reason).await.map(|()| None);
                }
                Err(StepError::Queue(full @ QueueError::Full { .. })) => {
                    self.checkpoint(&task, delivery).await?;
                    return Ok(Some(full));
                }
                Err(StepError::Queue(error)) => return Err(error),
                Err(StepError::Retry(error)) => {
                    self.back_off(&task, &error, failures).await;
                    failures += 1;
                    if held.elapsed() > OUTAGE_TIMEOUT {
                        self.checkpoint(&task, delivery).await?;
                        self.health.clear("aws");
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Takes the step that the task's state asks for. Ends early, with the task unchanged, when its
    /// run is cancelled.
    async fn step(&mut self, task: &mut ExtractTask) -> Result<Next, StepError> {
        let is_start = attempt(task).is_some();
        let (cancellations, current) = (self.cancellations.clone(), task.clone());
        let cancelled = cancellations.wait_for(&current);
        let step = async {
            match task.state.clone() {
                TaskState::Start { attempt } => self.start(task, attempt).await,
                TaskState::Waiting {
                    attempt,
                    query_execution_id: id,
                    since,
                } => self.wait(task, attempt, &id, since).await,
                TaskState::Reread {
                    query_execution_id: id,
                    result_id,
                } => self.reread(task, &id, &result_id).await,
                TaskState::Reading { .. } => self.read(task).await,
            }
        };
        // A start is never interrupted: its answer has the execution id, without which the query
        // cannot be stopped.
        if is_start {
            return step.await;
        }
        tokio::select! {
            biased;
            () = cancelled => {}
            next = step => return next,
        }
        self.publisher.renew().await?;
        Ok(Next::Step)
    }

    /// Reports that AWS is unavailable, and waits before the retry or until the run is cancelled.
    async fn back_off(&mut self, task: &ExtractTask, error: &AwsError, failures: u32) {
        tracing::warn!(%error, "AWS cannot be used now; retrying");
        retried(error.kind.cause(), 1);
        self.health.not_ready("aws", error.to_string());
        let pause = backoff(failures, Duration::from_secs(1), Duration::from_secs(30));
        if self.cancellations.contains(task) {
            sleep(pause).await;
        } else {
            let cancelled = self.cancellations.wait_for(task);
            // The next step sees which of the two it was.
            timeout(pause, cancelled).await.unwrap_or(());
        }
        if error.kind == AwsErrorKind::ExpiredCredentials {
            match Clients::connect(self.settings).await {
                Ok(clients) => self.clients = clients,
                Err(error) => self.health.not_ready("aws", format!("{error:#}")),
            }
        }
    }

    /// Publishes the task as it is now. Its delivery is acked only after that: a crash in between
    /// leaves two tasks, which can only publish the same batches.
    async fn checkpoint(
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
            // Only a task that should not have passed the checks of its reader.
            Err(error) => self.fail(task, delivery, error.to_string()).await,
        }
    }

    /// Ends a task whose cause of failure holds for every replica. A first extraction fails the run.
    /// A replay from Athena does not, since the run has its rows: the task becomes a dead letter,
    /// which can be replayed once its cause is fixed.
    async fn fail(
        &mut self,
        task: &ExtractTask,
        delivery: &RawDelivery,
        reason: String,
    ) -> Result<(), QueueError> {
        if task.generation == 0 {
            tracing::error!(reason, "run failed");
            return self.tell(task, EventKind::Failed { reason }).await;
        }
        let reason = format!("the result cannot be read again: {reason}");
        tracing::error!(reason, "task moved to etl.dead");
        let dead = Outgoing::dead(delivery, "extractor", &reason, delivery.deliveries());
        self.publisher.publish(&[dead]).await
    }

    /// Drops the task of a cancelled run, and stops its query. `sent`: the attempt whose query may
    /// have been started although the task does not know it.
    async fn drop_cancelled(
        &mut self,
        task: &ExtractTask,
        sent: Option<u32>,
    ) -> Result<Next, StepError> {
        let id = match &task.state {
            TaskState::Waiting {
                query_execution_id, ..
            } => Some(query_execution_id.clone()),
            // The same token finds the execution, or starts one that is stopped at once: Athena has
            // no other way to look it up.
            TaskState::Start { attempt } if sent == Some(*attempt) => {
                let query = Self::query(task, *attempt);
                match self.clients.athena.start(query).await {
                    Err(error) if error.kind == AwsErrorKind::Refused => None,
                    found => Some(found?),
                }
            }
            TaskState::Start { .. } | TaskState::Reread { .. } | TaskState::Reading { .. } => None,
        };
        if let Some(id) = &id {
            query::stop(&self.clients.athena, id).await?;
        }
        tracing::warn!(query.id = id, "the run was cancelled; its task is dropped");
        Ok(Next::Done)
    }

    async fn tell(&mut self, task: &ExtractTask, kind: EventKind) -> Result<(), QueueError> {
        let event = outgoing(&run_event(task, kind)).traced(self.trace.as_deref());
        self.publisher.publish(&[event]).await
    }
}

/// The attempt whose query the task is to start.
fn attempt(task: &ExtractTask) -> Option<u32> {
    match task.state {
        TaskState::Start { attempt } => Some(attempt),
        TaskState::Waiting { .. } | TaskState::Reread { .. } | TaskState::Reading { .. } => None,
    }
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
