//! The queries that Athena executed for a run, and what they cost. Each is recorded whatever became of its run, and in
//! whatever order its events arrive.

use common::job::Job;
use common::message::{EventKind, QueryEnd, RunEvent};
use serde::Serialize;
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::quarantine::storable;
use crate::run::{LockedRun, bigint, integer};

/// A query that Athena executed for a run. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Query {
    pub query_execution_id: String,
    /// Of the run: each retry has queries of its own.
    pub generation: i32,
    /// From 1.
    pub attempt: i32,
    /// Who asked Athena, and where.
    pub principal: Option<String>,
    pub region: Option<String>,
    /// `started`, `succeeded`, `failed` or `stopped`.
    pub state: String,
    pub bytes_scanned: i64,
    /// Athena answered with the result of an earlier query.
    pub reused: bool,
    pub started_at: String,
    pub ended_at: Option<String>,
}

impl Store {
    /// The queries of a run, in the order of its attempts.
    pub async fn queries(&self, run: &str) -> Result<Vec<Query>, Error> {
        let failure = format!("cannot read the queries of the run {run}");
        self.read(failure, async |tx: &mut PgConnection| {
            let queries = sqlx::query_as(
                r#"SELECT query_execution_id, generation, attempt, principal, region, state, bytes_scanned, reused,
                          to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS started_at,
                          to_char(ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS ended_at
                   FROM etl.queries WHERE run_id = $1 ORDER BY generation, attempt, started_at, query_execution_id"#,
            );
            Ok(queries.bind(run).fetch_all(tx).await?)
        })
        .await
    }

    /// Why the job may not query any more this month, if so.
    pub async fn over_monthly_limit(&self, job: &Job) -> Result<Option<String>, Error> {
        let failure = "cannot add up what the job has scanned";
        self.read(failure, async |tx: &mut PgConnection| {
            over_monthly_limit(tx, job).await
        })
        .await
    }
}

/// Compares what the job's queries have scanned since the month began, in UTC, with its limit.
pub(crate) async fn over_monthly_limit(
    tx: &mut PgConnection,
    job: &Job,
) -> Result<Option<String>, Error> {
    let Some(most) = job.max_scanned_per_month else {
        return Ok(None);
    };
    let name = &job.spec.name;
    let (scanned, next): (i64, String) = sqlx::query_as(
        "SELECT coalesce(sum(q.bytes_scanned), 0)::bigint, to_char(m.start + interval '1 month', 'YYYY-MM-DD')
         FROM (SELECT date_trunc('month', now() AT TIME ZONE 'UTC') AS start) m
         LEFT JOIN (etl.queries q JOIN etl.runs r ON r.run_id = q.run_id AND r.job = $1)
             ON q.started_at >= m.start AT TIME ZONE 'UTC'
         GROUP BY m.start",
    )
    .bind(name)
    .fetch_one(tx)
    .await?;
    let is_over = u64::try_from(scanned).is_ok_and(|scanned| scanned >= most);
    Ok(is_over.then(|| {
        format!(
            "the queries of the job {name} have scanned {scanned} bytes this month, and it has max_scanned_per_month = {most}; raise the limit in the job's [source], or wait until {next} (UTC); nothing was sent"
        )
    }))
}

impl LockedRun<'_> {
    /// Records what an event says about a query of the run.
    pub(crate) async fn note_query(&mut self, event: &RunEvent) -> Result<(), Error> {
        match &event.kind {
            EventKind::Started {
                query_execution_id,
                attempt,
                principal,
                region,
            } => {
                sqlx::query(
                    "INSERT INTO etl.queries (run_id, query_execution_id, generation, attempt, principal, region) VALUES ($1, $2, $6, $3, $4, $5)
                     ON CONFLICT (run_id, query_execution_id) DO UPDATE SET
                         generation = excluded.generation, attempt = excluded.attempt,
                         principal = coalesce(queries.principal, excluded.principal), region = coalesce(queries.region, excluded.region)",
                )
                .bind(self.id.as_str())
                .bind(storable(query_execution_id))
                .bind(integer("the attempt", (*attempt).max(1))?)
                .bind(principal.as_deref().map(storable))
                .bind(region.as_deref().map(storable))
                .bind(integer("the generation", event.generation)?)
                .execute(&mut *self.tx)
                .await?;
                Ok(())
            }
            EventKind::Scanned {
                query_execution_id,
                bytes_scanned,
            } => self.scanned(query_execution_id, *bytes_scanned).await,
            EventKind::QueryEnded {
                query_execution_id,
                end,
                bytes_scanned,
                reused,
            } => {
                self.end_query(event, query_execution_id, *end, *bytes_scanned, *reused)
                    .await
            }
            // An extractor of the version before reports no end; and a ledger that was restored to an earlier time gets this
            // event again.
            EventKind::Extracted {
                result_id,
                bytes_scanned,
                ..
            } => match result_id.split_once(':') {
                Some((query, _)) => {
                    self.end_query(event, query, QueryEnd::Succeeded, *bytes_scanned, false)
                        .await
                }
                None => Ok(()),
            },
            EventKind::Progress { .. } | EventKind::Failed { .. } => Ok(()),
        }
    }

    /// What a query has scanned so far. One that comes late, or before the ledger has the query, changes nothing.
    async fn scanned(&mut self, query: &str, scanned: u64) -> Result<(), Error> {
        sqlx::query(
            "UPDATE etl.queries SET bytes_scanned = greatest(bytes_scanned, $3)
             WHERE run_id = $1 AND query_execution_id = $2 AND state = 'started'",
        )
        .bind(self.id.as_str())
        .bind(storable(query))
        .bind(bigint("the bytes scanned", scanned)?)
        .execute(&mut *self.tx)
        .await?;
        self.sum_scanned().await
    }

    async fn end_query(
        &mut self,
        event: &RunEvent,
        query: &str,
        end: QueryEnd,
        scanned: u64,
        reused: bool,
    ) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO etl.queries (run_id, query_execution_id, generation, state, bytes_scanned, reused, ended_at) VALUES ($1, $2, $6, $3, $4, $5, now())
             ON CONFLICT (run_id, query_execution_id) DO UPDATE SET state = excluded.state,
                 bytes_scanned = greatest(queries.bytes_scanned, excluded.bytes_scanned),
                 reused = queries.reused OR excluded.reused, ended_at = coalesce(queries.ended_at, excluded.ended_at)",
        )
        .bind(self.id.as_str())
        .bind(storable(query))
        .bind(end.name())
        .bind(bigint("the bytes scanned", scanned)?)
        .bind(reused)
        .bind(integer("the generation", event.generation)?)
        .execute(&mut *self.tx)
        .await?;
        self.sum_scanned().await
    }

    async fn sum_scanned(&mut self) -> Result<(), Error> {
        sqlx::query(
            "UPDATE etl.runs SET bytes_scanned = (SELECT sum(bytes_scanned) FROM etl.queries WHERE run_id = $1) WHERE run_id = $1",
        )
        .bind(self.id.as_str())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}
