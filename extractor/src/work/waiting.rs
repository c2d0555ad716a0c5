//! From the SQL to a result that can be read.

use std::sync::Arc;
use std::time::Duration;

use common::failpoint;
use common::job::{Results, resolve};
use common::message::{Cursor, EventKind, ExtractTask, ResultLocation, TaskState};
use common::service::backoff;
use common::telemetry::retried;
use common::telemetry::trace::{self, KeyValue};
use tokio::time::{Instant, sleep};

use super::{Next, TURN, Worker};
use crate::athena::{Execution, ExecutionState, Query};
use crate::aws::AwsErrorKind;
use crate::batching::fitted;
use crate::query::{Verdict, choose, judge, pause};
use crate::trouble::Trouble;

impl Worker<'_> {
    pub(super) fn query(task: &ExtractTask, attempt: u32) -> Query<'_> {
        Query {
            run: &task.run,
            sql: &task.sql,
            source: &task.source,
            attempt,
        }
    }

    /// Starts the query, or finds it started.
    pub(super) async fn start(
        &mut self,
        task: &mut ExtractTask,
        attempt: u32,
    ) -> Result<Next, Trouble> {
        let query = Self::query(task, attempt);
        let id = self.clients.athena.start(query).await?;
        tracing::info!(query.id = id, query.attempt = attempt, "query started");
        failpoint::reach("after_start").await;
        let since = jiff::Timestamp::now();
        let query_execution_id = id.clone();
        task.state = TaskState::Waiting {
            attempt,
            query_execution_id,
            since,
        };
        self.tell(
            task,
            EventKind::Started {
                query_execution_id: id,
            },
        )
        .await?;
        Ok(Next::GoOn)
    }

    /// Looks at the query until it has ended or the turn is over.
    pub(super) async fn wait(&mut self, task: &mut ExtractTask) -> Result<Next, Trouble> {
        let TaskState::Waiting {
            attempt,
            query_execution_id: id,
            since,
        } = task.state.clone()
        else {
            return Ok(Next::GoOn);
        };
        let begun = Instant::now();
        // By the clocks of whoever started it and of this machine; for pace and timeout only.
        let waited =
            || Duration::try_from(jiff::Timestamp::now().duration_since(since)).unwrap_or_default();
        loop {
            sleep(pause(waited())).await;
            let execution = self.clients.athena.look(&id).await?;
            match judge(&execution, &task.source, waited(), attempt) {
                Verdict::Wait if begun.elapsed() < self.turn => {}
                Verdict::Wait => return Ok(Next::HandOn),
                Verdict::Read => {
                    let scanned = i64::try_from(execution.bytes_scanned).unwrap_or(i64::MAX);
                    let attributes = [
                        KeyValue::new("run.id", task.run.to_string()),
                        KeyValue::new("query.id", id.clone()),
                        KeyValue::new("query.bytes_scanned", scanned),
                    ];
                    trace::record("query", self.trace.as_deref(), since.into(), attributes);
                    let results = task.source.results;
                    return self.begin(task, &id, execution, results).await;
                }
                Verdict::Stop(reason) => {
                    self.stop(&id).await?;
                    return Err(Trouble::Run(reason));
                }
                Verdict::Again(reason) => {
                    tracing::warn!(query.id = id, reason, "query failed; starting it again");
                    retried("query", 1);
                    sleep(backoff(attempt, Duration::from_secs(1), TURN)).await;
                    task.state = TaskState::Start {
                        attempt: attempt + 1,
                    };
                    return Ok(Next::GoOn);
                }
                Verdict::Fail(reason) => return Err(Trouble::Run(reason)),
            }
        }
    }

    /// Finds a result that was read before: the one that the replay names, without another query.
    pub(super) async fn reread(&mut self, task: &mut ExtractTask) -> Result<Next, Trouble> {
        let TaskState::Reread {
            query_execution_id: id,
            result_id,
        } = task.state.clone()
        else {
            return Ok(Next::GoOn);
        };
        let execution = self.clients.athena.look(&id).await?;
        if execution.state != ExecutionState::Succeeded {
            return Err(Trouble::Run(format!(
                "the query {id} has no result in Athena"
            )));
        }
        let results = if result_id == ResultLocation::Pages.result_id(&id) {
            Results::Api
        } else {
            Results::Auto
        };
        self.begin(task, &id, execution, results).await
    }

    /// A query that cannot be stopped does not keep the run from failing, unless it is AWS that is
    /// away: then it is tried again, since it costs.
    pub(super) async fn stop(&self, id: &str) -> Result<(), Trouble> {
        match self.clients.athena.stop(id).await {
            Err(error) if error.kind == AwsErrorKind::Refused => {
                tracing::warn!(query.id = id, %error, "the query could not be stopped");
                Ok(())
            }
            stopped => Ok(stopped?),
        }
    }

    /// Settles what is read and how, once and for all, before the first batch. It is written down by
    /// a hand-off: the execution and the version of the object are part of what the batches are, and
    /// whoever goes on after a crash must not choose others.
    async fn begin(
        &mut self,
        task: &mut ExtractTask,
        id: &str,
        execution: Execution,
        results: Results,
    ) -> Result<Next, Trouble> {
        let columns = self.clients.athena.columns(id).await?;
        let job = &task.job;
        resolve(&job.columns, &columns, &job.target.key)
            .map_err(|error| Trouble::Run(error.to_string()))?;
        task.limits = fitted(task.limits, &columns);
        let place = choose(results, execution.output_location);
        let location = match place.map_err(|reason| Trouble::Run(reason.to_owned()))? {
            None => ResultLocation::Pages,
            Some(place) => {
                let object = self.clients.s3.find(&place).await?;
                let (bucket, key, etag, size) =
                    (object.bucket, object.key, object.etag, object.size);
                ResultLocation::S3 {
                    bucket,
                    key,
                    etag,
                    size,
                }
            }
        };
        let found = location.result_id(id);
        if let Some(wanted) = task.state.result_id().filter(|wanted| *wanted != found) {
            return Err(Trouble::Run(format!(
                "the result of query {id} is not the one that the run was loaded from: it is {found} now, and was {wanted}; ask for a new run"
            )));
        }
        let bytes_scanned = execution.bytes_scanned;
        tracing::info!(
            query.id = id,
            query.bytes_scanned = bytes_scanned,
            "query succeeded"
        );
        task.state = TaskState::Reading {
            query_execution_id: id.to_owned(),
            bytes_scanned,
            location,
            columns: Arc::new(columns),
            cursor: Cursor::default(),
        };
        Ok(Next::HandOn)
    }
}
