//! One task, from its delivery until it can be acked: the result was read to its end, the run
//! failed, or a successor task is confirmed that continues from here.
//!
//! Publishing the successor is a checkpoint. Waiting and reading checkpoint every few seconds, so
//! that no delivery is held for long and a crash repeats little work.

mod reading;
mod waiting;

use std::time::Duration;

use common::backoff::{Repetition, backoff};
use common::lifecycle::Health;
use common::message::{EventKind, ExtractTask, RunEvent, TaskState};
use common::queue::{Outgoing, Publisher, QueueError, RawDelivery};
use common::reason::Reason;
use common::telemetry::retried;
use tokio::time::{Instant, sleep, timeout};

use crate::athena::Execution;
use crate::aws::AwsError;
use crate::controls::Controls;
use crate::error_policy::StepError;
use crate::query;
use crate::replica::Replica;
use crate::setbacks::Setbacks;

/// How long one delivery reads before a checkpoint.
pub(crate) const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// How long one delivery waits for a query before a checkpoint: other tasks wait behind it.
pub(crate) const WAIT_INTERVAL: Duration = Duration::from_secs(1);
/// How long one delivery waits for AWS or for the first batch before a checkpoint.
const OUTAGE_TIMEOUT: Duration = Duration::from_mins(5);

/// The pause where a paused task cannot be parked.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// What follows a step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The task's state has changed: take the next step.
    Step,
    /// Publish the task as it is now.
    Checkpoint,
    /// The run is paused: publish the task where it waits.
    Pause,
    /// The task is complete.
    Done,
}

/// What follows from the work on a task, once its delivery is acked.
pub(crate) enum Outcome {
    /// The next delivery.
    Settled,
    /// A queue is full: this worker waits until it has room.
    Full(QueueError),
    /// This worker takes nothing for so long: AWS denied it what the task needs, and another one may take the task; or no queue
    /// has room for a paused task.
    Pause(Duration),
    /// AWS does not accept this replica: it takes nothing until AWS does.
    Unable,
}

/// Works on one task.
pub(crate) struct Worker<'a, 'c> {
    pub(crate) replica: &'a Replica<'a>,
    pub(crate) publisher: &'a mut Publisher<'c>,
    pub(crate) health: &'a Health,
    pub(crate) controls: &'a Controls,
    /// Whether batches are archived.
    pub(crate) archives: bool,
    /// The `traceparent` of the span that is the parent of the run's spans.
    pub(crate) trace: Option<String>,
    pub(crate) setbacks: Setbacks,
    /// Which failures of AWS are logged.
    pub(crate) repetition: &'a mut Repetition,
}

impl Worker<'_, '_> {
    /// Works on a task until its delivery can be acked.
    pub(crate) async fn work(
        mut self,
        mut task: ExtractTask,
        delivery: &RawDelivery,
    ) -> Result<Outcome, QueueError> {
        let held = Instant::now();
        let mut failures = 0;
        let mut has_reloaded = false;
        loop {
            let might_have_started = self.setbacks.may_have_started;
            let stepped = if self.controls.is_cancelled(&task) {
                self.drop_cancelled(&task).await
            } else {
                // A request that gets no answer may have started the query.
                self.setbacks.may_have_started = attempt(&task).is_some();
                Box::pin(self.step(&mut task)).await
            };
            let stepped = match stepped {
                Err(StepError::Replica(error)) => Err(self.replica.judge(&task, error).await),
                stepped => stepped,
            };
            let refused = matches!(stepped, Err(StepError::Replica(_) | StepError::Denied(_)));
            if refused {
                self.setbacks.may_have_started = might_have_started;
                // The credentials may have been renewed since they were read.
                if !has_reloaded && self.replica.reload().await {
                    has_reloaded = true;
                    continue;
                }
            }
            match stepped {
                Ok(next) => {
                    self.health.clear("aws");
                    self.repetition.clear();
                    self.replica.works();
                    self.setbacks.progress();
                    (failures, has_reloaded) = (0, false);
                    match next {
                        Next::Step => {}
                        Next::Checkpoint => {
                            self.checkpoint(&task, delivery).await?;
                            return Ok(Outcome::Settled);
                        }
                        Next::Pause => return self.pause(&task, delivery).await,
                        Next::Done => return Ok(Outcome::Settled),
                    }
                }
                Err(StepError::Retry(error)) if held.elapsed() <= OUTAGE_TIMEOUT => {
                    self.back_off(&task, &error, failures).await;
                    failures += 1;
                }
                Err(error) => return self.give_up(&task, delivery, error).await,
            }
        }
    }

    /// How long the delivery may be held while it makes progress. A task that was interrupted makes a checkpoint as soon
    /// as it advances.
    fn checkpoint_interval(&self) -> Duration {
        if self.setbacks.interruptions > 0 {
            Duration::ZERO
        } else {
            CHECKPOINT_INTERVAL
        }
    }

    /// Ends the work on a task after an error that waiting here does not pass.
    async fn give_up(
        &mut self,
        task: &ExtractTask,
        delivery: &RawDelivery,
        error: StepError,
    ) -> Result<Outcome, QueueError> {
        let reason = match error {
            // The checkpoint keeps the wait from counting as a failed delivery.
            StepError::Queue(full @ QueueError::Full { .. }) => {
                self.checkpoint(task, delivery).await?;
                return Ok(Outcome::Full(full));
            }
            StepError::Queue(error) => return Err(error),
            StepError::Replica(error) => {
                // Before the task is in the queue again: no other worker of this replica takes it up.
                self.replica.fault(task, &error);
                self.checkpoint(task, delivery).await?;
                return Ok(Outcome::Unable);
            }
            StepError::Denied(error) => {
                self.setbacks.deny(self.replica.name(&task.source.account));
                if !self.setbacks.are_final(task) {
                    let why = error.logged();
                    tracing::warn!(
                        error = why,
                        "AWS denies this extractor what the task needs; giving the task back"
                    );
                    retried(error.kind.cause(), 1);
                    self.checkpoint(task, delivery).await?;
                    return Ok(Outcome::Pause(self.setbacks.pause()));
                }
                let hint = error.hint().unwrap_or_default();
                let denied = self.setbacks.denied();
                Reason::quoting(
                    format!("{error}; {hint}; AWS denied it to {denied}"),
                    format!("{}; AWS denied it to {denied}", error.logged()),
                )
            }
            StepError::Retry(_) => {
                self.checkpoint(task, delivery).await?;
                self.health.clear("aws");
                return Ok(Outcome::Settled);
            }
            StepError::FailRun(reason) => reason,
        };
        self.fail(task, delivery, reason).await?;
        Ok(Outcome::Settled)
    }

    /// Takes the step that the task's state asks for. Ends early, with the task unchanged, when its
    /// run is cancelled.
    async fn step(&mut self, task: &mut ExtractTask) -> Result<Next, StepError> {
        let is_start = attempt(task).is_some();
        let (controls, current) = (self.controls, task.clone());
        let cancelled = controls.until_cancelled(&current);
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
                    ..
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
        let why = error.logged();
        if self.repetition.is_due(&why) {
            tracing::warn!(error = why, "AWS cannot be used now; retrying");
        }
        retried(error.kind.cause(), 1);
        self.health.not_ready("aws", error.to_string());
        let pause = backoff(failures, Duration::from_secs(1), Duration::from_secs(30));
        if self.controls.is_cancelled(task) {
            sleep(pause).await;
        } else {
            let cancelled = self.controls.until_cancelled(task);
            // The next step sees which of the two it was.
            timeout(pause, cancelled).await.unwrap_or(());
        }
    }

    /// Publishes the task as it is now. This process has survived it.
    async fn checkpoint(
        &mut self,
        task: &ExtractTask,
        delivery: &RawDelivery,
    ) -> Result<(), QueueError> {
        self.setbacks.interruptions = 0;
        self.hand_on(task, delivery).await
    }

    /// Moves the task of a paused run to `etl.parked`, from which the loader sends it on. Where that queue is full, the
    /// task stays in its own.
    async fn pause(
        &mut self,
        task: &ExtractTask,
        delivery: &RawDelivery,
    ) -> Result<Outcome, QueueError> {
        if let Ok(message) = Outgoing::of(task) {
            let paused = message.traced(self.trace.as_deref()).paused();
            if self.publisher.try_publish(&paused).await? {
                tracing::info!("extraction paused: too much waits for the run's target");
                return Ok(Outcome::Settled);
            }
        }
        self.checkpoint(task, delivery).await?;
        Ok(Outcome::Pause(FULL_PAUSE))
    }

    /// Publishes the task with its setbacks. Its delivery is acked only after that: a crash in between
    /// leaves two tasks, which can only publish the same batches.
    pub(crate) async fn hand_on(
        &mut self,
        task: &ExtractTask,
        delivery: &RawDelivery,
    ) -> Result<(), QueueError> {
        match Outgoing::of(task) {
            Ok(successor) => {
                let successor = self.setbacks.put_on(successor);
                let successor = successor.traced(self.trace.as_deref());
                self.publisher.publish(&[successor]).await
            }
            // Only a task that should not have passed the checks of its reader.
            Err(error) => self.fail(task, delivery, error.to_string().into()).await,
        }
    }

    /// Ends a task whose cause of failure holds for every replica. A first extraction fails the run.
    /// A replay from Athena does not, since the run has its rows: the task becomes a dead letter,
    /// which can be replayed once its cause is fixed.
    async fn fail(
        &mut self,
        task: &ExtractTask,
        delivery: &RawDelivery,
        reason: Reason,
    ) -> Result<(), QueueError> {
        if !task.is_replay() {
            tracing::error!(reason = reason.logged(), "run failed");
            let reason = reason.text().to_owned();
            return self.tell(task, EventKind::Failed { reason }).await;
        }
        let reason = reason.after("the result cannot be read again: ");
        tracing::error!(reason = reason.logged(), "message dead-lettered");
        let dead = Outgoing::dead(delivery, "extractor", reason.text(), delivery.deliveries());
        self.publisher.publish(&[dead]).await
    }

    /// Drops the task of a cancelled run, and stops its query.
    async fn drop_cancelled(&mut self, task: &ExtractTask) -> Result<Next, StepError> {
        let clients = self.replica.clients(&task.source).await;
        let id = match &task.state {
            TaskState::Waiting {
                query_execution_id, ..
            } => Some(query_execution_id.clone()),
            // The same token finds the execution, or starts one that is stopped at once: Athena has
            // no other way to look it up.
            TaskState::Start { attempt } if self.setbacks.may_have_started => {
                let query = Self::query(task, *attempt);
                match clients.athena.start(query).await {
                    Err(error) if error.kind.is_answer() => None,
                    found => Some(found?),
                }
            }
            TaskState::Start { .. } | TaskState::Reread { .. } | TaskState::Reading { .. } => None,
        };
        if let Some(id) = &id {
            query::stop(&clients.athena, id).await?;
            if let Some(execution) = query::stopped(&clients.athena, id).await? {
                self.tell_end(task, id, &execution).await?;
            }
        }
        tracing::warn!(query.id = id, "the run was cancelled; its task is dropped");
        Ok(Next::Done)
    }

    /// Reports what a query has cost, however it ended.
    async fn tell_end(
        &mut self,
        task: &ExtractTask,
        id: &str,
        execution: &Execution,
    ) -> Result<(), QueueError> {
        let end = EventKind::QueryEnded {
            query_execution_id: id.to_owned(),
            end: query::end(execution),
            bytes_scanned: execution.bytes_scanned,
            reused: execution.reused,
        };
        self.tell(task, end).await
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
