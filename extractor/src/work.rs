//! One task from its delivery to the point where it can be acked: the run's result was read to its
//! end, the run failed, or a successor that knows how far it has come is confirmed.
//!
//! A delivery is never held for long: waiting and reading are handed on every few seconds, so that
//! the broker does not take this extractor for dead and a crash loses little.

mod reading;
mod waiting;

use std::time::Duration;

use common::lifecycle::Health;
use common::message::{EventKind, ExtractTask, RunEvent, TaskState};
use common::queue::{Outgoing, Publisher, QueueError};
use common::service::backoff;
use tokio::time::{Instant, sleep};

use crate::aws::{AwsError, AwsErrorKind};
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
    ) -> Result<Option<QueueError>, QueueError> {
        let held = Instant::now();
        let mut failures = 0;
        loop {
            match Box::pin(self.step(&mut task)).await {
                Ok(next) => {
                    self.health.clear("aws");
                    failures = 0;
                    match next {
                        Next::GoOn => {}
                        Next::HandOn => return self.hand_on(&task).await.map(|()| None),
                        Next::Done => return Ok(None),
                    }
                }
                Err(Trouble::Run(reason)) => return self.fail(&task, reason).await.map(|()| None),
                Err(Trouble::Queue(full @ QueueError::Full { .. })) => {
                    self.hand_on(&task).await?;
                    return Ok(Some(full));
                }
                Err(Trouble::Queue(error)) => return Err(error),
                Err(Trouble::World(error)) => {
                    self.endure(&error, failures).await;
                    failures += 1;
                    if held.elapsed() > PATIENCE {
                        self.hand_on(&task).await?;
                        self.health.clear("aws");
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn step(&mut self, task: &mut ExtractTask) -> Result<Next, Trouble> {
        match task.state {
            TaskState::Start { attempt } => self.start(task, attempt).await,
            TaskState::Waiting { .. } => self.wait(task).await,
            TaskState::Reading { .. } => self.read(task).await,
        }
    }

    /// Says that AWS cannot be used now, and waits a little.
    async fn endure(&mut self, error: &AwsError, failures: u32) {
        tracing::warn!(%error, "AWS cannot be used now; trying again");
        self.health.not_ready("aws", error.to_string());
        sleep(backoff(
            failures,
            Duration::from_secs(1),
            Duration::from_secs(30),
        ))
        .await;
        if error.kind == AwsErrorKind::ExpiredCredentials {
            match Clients::connect(self.settings).await {
                Ok(clients) => self.clients = clients,
                Err(error) => self.health.not_ready("aws", format!("{error:#}")),
            }
        }
    }

    /// Publishes the task as it is now. What it replaces is acked only after that: a crash in
    /// between leaves two tasks, which can only publish the same batches.
    async fn hand_on(&mut self, task: &ExtractTask) -> Result<(), QueueError> {
        match Outgoing::of(task) {
            Ok(successor) => self.publisher.publish(&[successor]).await,
            // Only a task that never should have been read.
            Err(error) => self.fail(task, error.to_string()).await,
        }
    }

    async fn fail(&mut self, task: &ExtractTask, reason: String) -> Result<(), QueueError> {
        tracing::error!(reason, "run failed");
        let event = event(task, EventKind::Failed { reason });
        self.publisher.publish(&[event]).await
    }

    async fn tell(&mut self, task: &ExtractTask, kind: EventKind) -> Result<(), QueueError> {
        self.publisher.publish(&[event(task, kind)]).await
    }
}

fn event(task: &ExtractTask, kind: EventKind) -> Outgoing {
    let event = RunEvent {
        run: task.run.clone(),
        generation: task.generation,
        job: task.job.name.clone(),
        kind,
    };
    Outgoing::of(&event).expect("an event is small and consistent")
}
