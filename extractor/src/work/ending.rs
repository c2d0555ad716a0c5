//! How a task ends without a result: its run failed, a replay of it cannot be done, or somebody
//! cancelled it.

use common::message::{EventKind, ExtractTask, TaskState};
use common::queue::{Outgoing, QueueError, RawDelivery};

use super::{Next, Worker, event};
use crate::aws::AwsErrorKind;
use crate::trouble::Trouble;

impl Worker<'_> {
    /// The cause holds for every replica. A run that has no result fails. One that has, and whose
    /// result was to be read again, does not: its books stay as they are, and the task becomes a
    /// dead letter, which can be sent again once its cause is mended.
    pub(super) async fn fail(
        &mut self,
        task: &ExtractTask,
        delivery: &RawDelivery,
        reason: String,
    ) -> Result<(), QueueError> {
        if task.generation == 0 {
            tracing::error!(reason, "run failed");
            let event = event(task, EventKind::Failed { reason }).traced(self.trace.as_deref());
            return self.publisher.publish(&[event]).await;
        }
        let reason = format!("the result cannot be read again: {reason}");
        tracing::error!(reason, "task moved to etl.dead");
        let dead = Outgoing::dead(delivery, "extractor", &reason, delivery.deliveries());
        self.publisher.publish(&[dead]).await
    }

    /// The run was cancelled: what Athena still does for it is stopped, and the task has an end.
    /// `asked`: the attempt that Athena may have been asked for without the task saying so.
    pub(super) async fn put_away(
        &mut self,
        task: &ExtractTask,
        asked: Option<u32>,
    ) -> Result<Next, Trouble> {
        let query = match &task.state {
            TaskState::Waiting {
                query_execution_id, ..
            } => Some(query_execution_id.clone()),
            TaskState::Start { attempt } if asked == Some(*attempt) => {
                self.find(task, *attempt).await?
            }
            TaskState::Start { .. } | TaskState::Reread { .. } | TaskState::Reading { .. } => None,
        };
        if let Some(id) = &query {
            self.stop(id).await?;
        }
        tracing::warn!(
            query.id = query,
            "the run was cancelled; its task is dropped"
        );
        Ok(Next::Done)
    }

    /// The execution that a worker before this one may have asked for and died. There is one way to
    /// its id, to ask with the same token: if there is none it begins now, and is stopped at once.
    async fn find(&self, task: &ExtractTask, attempt: u32) -> Result<Option<String>, Trouble> {
        match self.clients.athena.start(Self::query(task, attempt)).await {
            Err(error) if error.kind == AwsErrorKind::Refused => Ok(None),
            found => Ok(Some(found?)),
        }
    }
}
