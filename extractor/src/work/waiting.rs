//! From the SQL to a result that can be read.

use std::sync::Arc;
use std::time::Duration;

use common::backoff::backoff;
use common::failpoint;
use common::job::{Results, resolve};
use common::message::{Cursor, EventKind, ExtractTask, ResultLocation, TaskState};
use common::reason::Reason;
use common::telemetry::retried;
use common::telemetry::trace::{self, KeyValue};
use jiff::Timestamp;
use tokio::time::sleep;

use super::{CHECKPOINT_INTERVAL, Next, Worker};
use crate::athena::{Execution, ExecutionState, Query};
use crate::batching::fitted;
use crate::error_policy::StepError;
use crate::query::{self, MAX_ATTEMPTS, Started, Waited};

impl Worker<'_, '_> {
    pub(super) fn query(task: &ExtractTask, attempt: u32) -> Query<'_> {
        Query {
            run: &task.run,
            sql: &task.sql,
            source: &task.source,
            attempt,
        }
    }

    /// Starts the query, or finds the execution that an earlier delivery started.
    pub(super) async fn start(
        &mut self,
        task: &mut ExtractTask,
        attempt: u32,
    ) -> Result<Next, StepError> {
        let query = Self::query(task, attempt);
        let id = self.replica.clients().athena.start(query).await?;
        tracing::info!(query.id = id, query.attempt = attempt, "query started");
        failpoint::reach("after_start").await;
        task.state = TaskState::Waiting {
            attempt,
            query_execution_id: id.clone(),
            since: Timestamp::now(),
        };
        let query_execution_id = id;
        self.tell(task, EventKind::Started { query_execution_id })
            .await?;
        Ok(Next::Step)
    }

    /// Waits for the query until it has ended or a checkpoint is due.
    pub(super) async fn wait(
        &mut self,
        task: &mut ExtractTask,
        attempt: u32,
        id: &str,
        since: Timestamp,
    ) -> Result<Next, StepError> {
        let started = Started {
            id,
            source: &task.source,
            attempt,
            since,
        };
        let athena = self.replica.clients().athena;
        match query::wait(&athena, started, self.checkpoint_interval()).await? {
            Waited::Running => Ok(Next::Checkpoint),
            Waited::Succeeded(execution) => {
                let scanned = i64::try_from(execution.bytes_scanned).unwrap_or(i64::MAX);
                let attributes = [
                    KeyValue::new("run.id", task.run.to_string()),
                    KeyValue::new("query.id", id.to_owned()),
                    KeyValue::new("query.bytes_scanned", scanned),
                ];
                trace::record("query", self.trace.as_deref(), since.into(), attributes);
                let results = task.source.results;
                self.begin(task, id, execution, results).await
            }
            Waited::Retryable(reason) => Ok(again(task, attempt, id, &reason).await),
            // A request that was cancelled before the ledger was restored had the same token.
            Waited::Cancelled(reason)
                if attempt < MAX_ATTEMPTS && self.controls.was_cancelled_before(task) =>
            {
                Ok(again(task, attempt, id, &reason).await)
            }
            Waited::Cancelled(reason) | Waited::Failed(reason) => Err(StepError::FailRun(reason)),
        }
    }

    /// Finds the result that a replay names, without another query.
    pub(super) async fn reread(
        &mut self,
        task: &mut ExtractTask,
        id: &str,
        result_id: &str,
    ) -> Result<Next, StepError> {
        let execution = self.replica.clients().athena.look(id).await?;
        if execution.state != ExecutionState::Succeeded {
            let reason = format!("the query {id} has no result in Athena");
            return Err(StepError::FailRun(reason.into()));
        }
        let results = if result_id == ResultLocation::Pages.result_id(id) {
            Results::Api
        } else {
            Results::S3
        };
        self.begin(task, id, execution, results).await
    }

    /// Decides what is read and from where, once, before the first batch. A checkpoint records the
    /// decision: the execution and the version of the object identify the batches, and no later
    /// delivery may choose others.
    async fn begin(
        &mut self,
        task: &mut ExtractTask,
        id: &str,
        execution: Execution,
        results: Results,
    ) -> Result<Next, StepError> {
        let bytes_scanned = execution.bytes_scanned;
        tracing::info!(
            query.id = id,
            query.bytes_scanned = bytes_scanned,
            "query succeeded"
        );
        let columns = self.replica.clients().athena.columns(id).await?;
        let job = &task.job;
        resolve(&job.columns, &columns, &job.target.key)
            .map_err(|error| StepError::FailRun(error.to_string().into()))?;
        task.limits = fitted(task.limits, &columns);
        let location = self.locate(id, execution.output_location, results).await?;
        let found = location.result_id(id);
        if let Some(wanted) = task.state.result_id().filter(|wanted| *wanted != found) {
            let reason = format!(
                "the result of query {id} is not the one that the run was loaded from: it is {found} now, and was {wanted}; request a new run"
            );
            return Err(StepError::FailRun(reason.into()));
        }
        task.state = TaskState::Reading {
            query_execution_id: id.to_owned(),
            bytes_scanned,
            location,
            columns: Arc::new(columns),
            cursor: Cursor::default(),
        };
        Ok(Next::Checkpoint)
    }

    /// Where to read the result. `auto` prefers the object in S3 and takes the pages of
    /// `GetQueryResults` where there is no object or S3 refuses it.
    async fn locate(
        &self,
        id: &str,
        output: Option<String>,
        results: Results,
    ) -> Result<ResultLocation, StepError> {
        let output = match (results, output) {
            (Results::Api, _) => return Ok(ResultLocation::Pages),
            (Results::Auto, None) => {
                tracing::info!(
                    query.id = id,
                    "reading the result as pages: the query has no output location (managed query results)"
                );
                return Ok(ResultLocation::Pages);
            }
            (Results::S3, None) => {
                return Err(StepError::FailRun(
                    "the job says results = \"s3\", and the workgroup keeps results itself (managed query results); set results = \"auto\" or \"api\"".to_owned().into(),
                ));
            }
            (Results::Auto | Results::S3, Some(output)) => output,
        };
        match self.replica.clients().s3.find(&output).await {
            Ok(object) => Ok(ResultLocation::S3(object)),
            Err(error) if results == Results::Auto && error.is_refusal() => {
                tracing::warn!(
                    query.id = id,
                    error = error.logged(),
                    "reading the result as pages: its object in S3 cannot be read"
                );
                Ok(ResultLocation::Pages)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes the next attempt at a query, after a pause.
async fn again(task: &mut ExtractTask, attempt: u32, id: &str, reason: &Reason) -> Next {
    let reason = reason.logged();
    tracing::warn!(query.id = id, reason, "query failed; starting it again");
    retried("query", 1);
    let pause = backoff(attempt, Duration::from_secs(1), CHECKPOINT_INTERVAL);
    sleep(pause).await;
    task.state = TaskState::Start {
        attempt: attempt + 1,
    };
    Next::Step
}
