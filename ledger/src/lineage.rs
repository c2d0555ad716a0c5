//! What OpenLineage is told about a run: what the ledger knows of it when it begins and when it ends, written into the outbox by the
//! transaction that makes it true. Nothing is written where no loader sends to OpenLineage.

use common::job::JobSpec;
use common::schema::ResultColumn;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;

use crate::outbox::{NewMessage, post};
use crate::run::LockedRun;
use crate::state::RunState;

/// The channel in the outbox. No job can name it: it is not the name of a channel of theirs.
pub const CHANNEL: &str = "OpenLineage";

/// What happened to one generation of a run: each retry and each replay is a run of its own to OpenLineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occurrence {
    Start,
    Complete,
    Fail,
    /// It was cancelled, discarded or abandoned, or a later run has replaced its rows.
    Abort,
}

impl Occurrence {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Complete => "complete",
            Self::Fail => "fail",
            Self::Abort => "abort",
        }
    }

    /// The end of a run in this state; none of one that has not ended.
    fn of_end(state: RunState) -> Option<Self> {
        match state {
            RunState::Requested | RunState::Running | RunState::Held => None,
            RunState::Completed => Some(Self::Complete),
            RunState::Failed => Some(Self::Fail),
            RunState::Cancelled | RunState::Superseded => Some(Self::Abort),
        }
    }
}

/// What the ledger knows of the run then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    pub occurrence: Occurrence,
    pub at: Timestamp,
    pub run_id: String,
    pub run_no: i64,
    pub generation: i32,
    pub requested_at: Timestamp,
    pub job: String,
    pub description: Option<String>,
    /// The query, with the catalog and the database that its names are of.
    pub sql: String,
    pub catalog: Option<String>,
    pub database: Option<String>,
    /// Where Athena executed it, once that is known.
    pub region: Option<String>,
    pub query_execution_id: Option<String>,
    /// The job of this generation.
    pub spec: JobSpec,
    /// Empty until the result was read.
    pub result_columns: Vec<ResultColumn>,
    pub rows: RowCounts,
}

/// The rows of the generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    pub extracted: i64,
    pub loaded: i64,
    /// Of the loaded ones, those that lost to another row of their key.
    pub deduplicated: i64,
    pub rejected: i64,
    pub dropped: i64,
}

impl LockedRun<'_> {
    /// Tells that the live generation began, if it was only requested until now.
    pub(crate) async fn tell_start(&mut self) -> Result<(), sqlx::Error> {
        match self.row.state {
            RunState::Requested => self.tell_lineage(Occurrence::Start).await,
            _ => Ok(()),
        }
    }

    /// Tells that the live generation ended in this state. The end of one that did not begin needs a beginning; that it was
    /// cancelled before is no news.
    pub(crate) async fn tell_end(&mut self, state: RunState) -> Result<(), sqlx::Error> {
        match Occurrence::of_end(state) {
            Some(Occurrence::Abort) if self.row.state == RunState::Requested => Ok(()),
            Some(end) => {
                self.tell_start().await?;
                self.tell_lineage(end).await
            }
            None => Ok(()),
        }
    }

    /// Tells that the live generation, if it is under way, gives way to another one.
    pub(crate) async fn tell_abandoned(&mut self) -> Result<(), sqlx::Error> {
        match self.row.state {
            RunState::Running | RunState::Held => self.tell_lineage(Occurrence::Abort).await,
            _ => Ok(()),
        }
    }

    /// The loader makes the event of it when it sends it: only the loader knows the names of the target's server, and how to read
    /// SQL.
    pub(crate) async fn tell_lineage(&mut self, occurrence: Occurrence) -> Result<(), sqlx::Error> {
        let known: Option<Json<Value>> = sqlx::query_scalar(
            r#"SELECT jsonb_build_object(
                   'occurrence', $2::text,
                   'at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                   'run_id', r.run_id, 'run_no', r.run_no, 'generation', r.generation,
                   'requested_at', to_char(r.requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                   'job', r.job, 'description', r.description, 'sql', r.sql, 'catalog', r.catalog, 'database', r.database,
                   'region', (SELECT region FROM etl.queries q WHERE q.run_id = r.run_id AND region IS NOT NULL
                              ORDER BY q.generation DESC, attempt DESC LIMIT 1),
                   'query_execution_id', r.query_execution_id,
                   'spec', coalesce(p.job_spec, r.job_spec),
                   'result_columns', coalesce(r.result_columns, '[]'),
                   'rows', jsonb_build_object('extracted', b.rows_extracted, 'loaded', b.rows_loaded,
                                              'deduplicated', b.rows_deduplicated, 'rejected', b.rows_rejected,
                                              'dropped', b.rows_dropped))
               FROM etl.runs r JOIN etl.run_balance b USING (run_id)
               LEFT JOIN etl.replays p ON p.run_id = r.run_id AND p.generation = r.generation
               WHERE r.run_id = $1 AND EXISTS (
                   SELECT FROM etl.loaders WHERE $3 = ANY (channels)
                       AND seen_at > (SELECT max(seen_at) FROM etl.loaders) - interval '10 minutes')"#,
        )
        .bind(self.id.as_str())
        .bind(occurrence.name())
        .bind(CHANNEL)
        .fetch_optional(&mut *self.tx)
        .await?;
        let Some(Json(body)) = known else {
            return Ok(());
        };
        let message = NewMessage {
            event: occurrence.name(),
            job: &self.row.job,
            run: Some(self.id.as_str()),
            body: &body,
        };
        post(self.tx, &[CHANNEL.to_owned()], message).await
    }
}
