//! From the SQL to a result that can be read.

use std::sync::Arc;
use std::time::Duration;

use common::backoff::backoff;
use common::failpoint;
use common::job::resolve;
use common::message::{Cursor, EventKind, ExtractTask, ResultLocation, TaskState};
use common::reason::Reason;
use common::schema::ResultColumn;
use common::telemetry::retried;
use common::telemetry::trace::{self, KeyValue};
use jiff::Timestamp;
use tokio::time::sleep;

use super::{CHECKPOINT_INTERVAL, Next, WAIT_INTERVAL, Worker};
use crate::athena::{Athena, Execution, ExecutionState, Query};
use crate::batching::fitted;
use crate::clients::Clients;
use crate::error_policy::StepError;
use crate::query::{self, MAX_ATTEMPTS, Started, Waited};
use crate::results::{Choice, choose};

/// Whether something passed one of the ages that are a tenth apart: what it does is told then, first each second, and after an
/// hour every six minutes.
fn is_tenth_older(before: Duration, now: Duration) -> bool {
    let tenths = |age: Duration| age.as_secs_f64().max(1.0).log(1.1).floor();
    tenths(before) < tenths(now)
}

impl Worker<'_, '_> {
    pub(super) fn query(task: &ExtractTask, attempt: u32) -> Query<'_> {
        Query {
            run: &task.run,
            generation: task.first_generation,
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
        let clients = self.replica.clients(&task.source).await;
        let id = clients.athena.start(query).await?;
        tracing::info!(query.id = id, query.attempt = attempt, "query started");
        failpoint::reach("after_start").await;
        task.state = TaskState::Waiting {
            attempt,
            query_execution_id: id.clone(),
            since: Timestamp::now(),
        };
        let started = EventKind::Started {
            query_execution_id: id,
            attempt,
            principal: Some(clients.principal.name().await.to_owned()),
            region: clients.principal.region().map(str::to_owned),
        };
        self.tell(task, started).await?;
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
        let athena = self.replica.clients(&task.source).await.athena;
        let (waited, execution) = self.wait_and_tell(task, &athena, started).await?;
        if waited != Waited::Running {
            self.tell_end(task, id, &execution).await?;
        }
        match waited {
            Waited::Running => Ok(Next::Checkpoint),
            Waited::Succeeded => {
                let scanned = i64::try_from(execution.bytes_scanned).unwrap_or(i64::MAX);
                let attributes = [
                    KeyValue::new("run.id", task.run.to_string()),
                    KeyValue::new("query.id", id.to_owned()),
                    KeyValue::new("query.bytes_scanned", scanned),
                ];
                trace::record("query", self.trace.as_deref(), since.into(), attributes);
                tracing::info!(
                    query.id = id,
                    query.bytes_scanned = execution.bytes_scanned,
                    query.reused = execution.reused,
                    "query succeeded"
                );
                let columns = athena.columns(id).await?;
                let location = self.locate(task, id, &execution).await?;
                begin(task, id, execution.bytes_scanned, location, columns)
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

    /// Waits as [`query::wait`] does, for a moment, and tells now and then what the query has scanned.
    async fn wait_and_tell(
        &mut self,
        task: &ExtractTask,
        athena: &Athena,
        query: Started<'_>,
    ) -> Result<(Waited, Execution), StepError> {
        let (before, at_most) = (query.age(), self.checkpoint_interval().min(WAIT_INTERVAL));
        let (waited, execution) = query::wait(athena, query, at_most).await?;
        let bytes_scanned = execution.bytes_scanned;
        if waited == Waited::Running && bytes_scanned > 0 && is_tenth_older(before, query.age()) {
            let scanned = EventKind::Scanned {
                query_execution_id: query.id.to_owned(),
                bytes_scanned,
            };
            self.tell(task, scanned).await?;
        }
        Ok((waited, execution))
    }

    /// Finds the result that a replay names, without another query. An object that the ledger knows is read without Athena,
    /// which forgets a query after 45 days.
    pub(super) async fn reread(
        &mut self,
        task: &mut ExtractTask,
        id: &str,
        result_id: &str,
    ) -> Result<Next, StepError> {
        let Clients { athena, s3, .. } = self.replica.clients(&task.source).await;
        if let TaskState::Reread {
            result_location: Some(object),
            columns,
            ..
        } = &task.state
            && !columns.is_empty()
        {
            let columns = columns.clone();
            let location = ResultLocation::S3(s3.find(object).await?);
            return begin(task, id, 0, location, columns);
        }
        let execution = match athena.look(id).await {
            Ok(execution) if execution.state == ExecutionState::Succeeded => execution,
            Ok(_) => {
                let reason = format!("the query {id} has no result in Athena");
                return Err(StepError::FailRun(reason.into()));
            }
            // Athena's error for an id that it does not know.
            Err(error) if error.is_code("InvalidRequestException") => {
                let reason = format!(
                    "Athena does not know the query {id} any more (it forgets one after 45 days), and the ledger does not know the object of its result, or not its columns; request a new run"
                );
                return Err(StepError::FailRun(reason.into()));
            }
            Err(error) => return Err(error.into()),
        };
        let columns = athena.columns(id).await?;
        let location = match &execution.output_location {
            Some(object) if result_id != ResultLocation::Pages.result_id(id) => {
                ResultLocation::S3(s3.find(object).await?)
            }
            _ => ResultLocation::Pages,
        };
        begin(task, id, execution.bytes_scanned, location, columns)
    }

    /// Where to read the result of a query that succeeded. `auto` prefers the object in S3 and takes the pages of
    /// `GetQueryResults` where there is no object, or S3 refuses it, or only Athena can decrypt it.
    async fn locate(
        &self,
        task: &ExtractTask,
        id: &str,
        execution: &Execution,
    ) -> Result<ResultLocation, StepError> {
        let results = task.source.results;
        let output = execution.output_location.as_deref();
        let refused = |why: &str| StepError::FailRun(why.to_owned().into());
        let chosen = choose(results, output, execution.is_client_encrypted);
        let (output, or_pages) = match chosen.map_err(refused)? {
            Choice::Object { at, or_pages } => (at, or_pages),
            Choice::Pages(why) => {
                tracing::info!(query.id = id, "reading the result as pages: {why}");
                return Ok(ResultLocation::Pages);
            }
        };
        match self
            .replica
            .clients(&task.source)
            .await
            .s3
            .find(output)
            .await
        {
            Ok(object) => Ok(ResultLocation::S3(object)),
            Err(error) if or_pages && error.is_refusal() => {
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

/// Settles what is read and from where, once, before the first batch. A checkpoint records the decision: the execution
/// and the version of the object identify the batches, and no later delivery may choose others.
fn begin(
    task: &mut ExtractTask,
    id: &str,
    bytes_scanned: u64,
    location: ResultLocation,
    columns: Vec<ResultColumn>,
) -> Result<Next, StepError> {
    let job = &task.job;
    resolve(&job.columns, &columns, &job.target.key)
        .and_then(|_| {
            job.watermark
                .as_ref()
                .map(|range| range.position(&columns))
                .transpose()
        })
        .map_err(|error| StepError::FailRun(error.to_string().into()))?;
    task.limits = fitted(task.limits, &columns);
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
