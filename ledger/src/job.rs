//! What each job says about being told and about when it is expected, as its latest request had it: the loader has no job files.
//! And which jobs are late by that.

use std::time::Duration;

use common::job::{ChannelName, Job, MaxRejected};
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::notification::tell_late;

/// A job that was requested at least once.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct KnownJob {
    pub job: String,
    /// For how long it is late; none of a job that is in time, or has no `expected_every`.
    pub seconds_late: Option<f64>,
}

/// A job that is late, and has not been told to be.
#[derive(Debug, FromRow)]
pub(crate) struct LateJob {
    pub(crate) job: String,
    pub(crate) notify: Vec<String>,
    pub(crate) expected_seconds: f64,
    pub(crate) seconds_late: f64,
    /// When its newest completed run ended, or since when it is expected: RFC 3339 in UTC.
    pub(crate) since: String,
    pub(crate) run_id: Option<String>,
    pub(crate) run_state: Option<String>,
}

/// Whom to tell of a run of a job.
#[derive(Debug, FromRow)]
pub(crate) struct Listeners {
    pub(crate) notify: Vec<String>,
    warn_rejected: String,
}

impl Listeners {
    /// Of a job; none where nobody is to be told.
    pub(crate) async fn of(tx: &mut PgConnection, job: &str) -> Result<Option<Self>, sqlx::Error> {
        sqlx::query_as(
            "SELECT notify, warn_rejected FROM etl.jobs WHERE job = $1 AND cardinality(notify) > 0",
        )
        .bind(job)
        .fetch_optional(tx)
        .await
    }

    /// Whether so many rejected rows are worth telling.
    pub(crate) fn are_many(&self, rejected: i64, extracted: i64) -> bool {
        let limit = self.warn_rejected.parse();
        limit.map_or(rejected > 0, |limit: MaxRejected| {
            limit.is_exceeded(rejected.unsigned_abs(), extracted.unsigned_abs())
        })
    }
}

/// Records what a job says, in the transaction of its request.
pub(crate) async fn record(tx: &mut PgConnection, job: &Job) -> Result<(), sqlx::Error> {
    let notify = &job.notify;
    let channels: Vec<_> = notify.channels.iter().map(ChannelName::as_str).collect();
    // A job that is expected from now on, or more often, is not late for what was before.
    sqlx::query(
        "INSERT INTO etl.jobs AS j (job, notify, warn_rejected, expected_every) VALUES ($1, $2, $3, make_interval(secs => $4))
         ON CONFLICT (job) DO UPDATE SET notify = excluded.notify, warn_rejected = excluded.warn_rejected,
             expected_every = excluded.expected_every, requested_at = now(),
             expected_since = CASE WHEN j.expected_every IS DISTINCT FROM excluded.expected_every THEN now() ELSE j.expected_since END",
    )
    .bind(&job.spec.name)
    .bind(channels)
    .bind(notify.warn_rejected.to_string())
    .bind(notify.expected_every.as_ref().map(Duration::as_secs_f64))
    .execute(tx)
    .await
    .map(drop)
}

/// The jobs `j`, and since when each has no completed run: `seconds_late` is NULL while it is in time. No run takes as long as
/// another, so that a tenth of the time is added. A replay is no newer run, and while one is under way the run counts as before.
pub(crate) const LATENESS: &str = "
    SELECT j.*, s.since, CASE WHEN now() > s.since + j.expected_every * 1.1
        THEN extract(epoch FROM now() - s.since - j.expected_every)::float8 END AS seconds_late
    FROM etl.jobs j CROSS JOIN LATERAL (
        SELECT greatest(j.expected_since, (SELECT r.completed_at FROM etl.runs r
                                           WHERE r.job = j.job AND r.completed_at IS NOT NULL AND r.state NOT IN ('failed', 'cancelled')
                                           ORDER BY r.run_no DESC LIMIT 1)) AS since) s";

const TELL: &str = r#"
    UPDATE etl.jobs j SET told_late_of = l.since FROM lateness l
    LEFT JOIN LATERAL (SELECT run_id, state FROM etl.runs r WHERE r.job = l.job ORDER BY run_no DESC LIMIT 1) run ON true
    WHERE j.job = l.job AND l.seconds_late IS NOT NULL AND cardinality(j.notify) > 0 AND j.told_late_of IS DISTINCT FROM l.since
    RETURNING j.job, j.notify, extract(epoch FROM j.expected_every)::float8 AS expected_seconds, l.seconds_late,
        to_char(l.since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS since, run.run_id, run.state AS run_state"#;

impl Store {
    /// Every job that was requested, by name.
    pub async fn known_jobs(&self) -> Result<Vec<KnownJob>, Error> {
        self.read(
            "cannot read which jobs are late",
            async |tx: &mut PgConnection| {
                let select = format!("SELECT job, seconds_late FROM ({LATENESS}) l ORDER BY job");
                Ok(sqlx::query_as(sqlx::AssertSqlSafe(select))
                    .fetch_all(tx)
                    .await?)
            },
        )
        .await
    }

    /// Expects no more runs of a job, until it is requested again. Returns whether any were expected.
    pub async fn retire(&self, job: &str) -> Result<bool, Error> {
        let failure = format!("cannot write that the job {job} is expected no more");
        self.transaction(failure, async |tx: &mut PgConnection| {
            let retire = "UPDATE etl.jobs SET expected_every = NULL WHERE job = $1 AND expected_every IS NOT NULL";
            let retired = sqlx::query(retire).bind(job).execute(tx).await?;
            Ok(retired.rows_affected() == 1)
        })
        .await
    }

    /// Writes a message about each job that has become late: one for each time, whichever loaders look and however often.
    pub async fn tell_late(&self) -> Result<(), Error> {
        let failure = "cannot write which jobs have become late into the outbox";
        self.transaction(failure, async |tx: &mut PgConnection| {
            let tell = format!("WITH lateness AS ({LATENESS}) {TELL}");
            let late: Vec<LateJob> = sqlx::query_as(sqlx::AssertSqlSafe(tell))
                .fetch_all(&mut *tx)
                .await?;
            for job in &late {
                tell_late(tx, job).await?;
            }
            Ok(())
        })
        .await
    }
}
