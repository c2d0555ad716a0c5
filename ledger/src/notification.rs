//! What is told of a run or of a job, and to whom: written into the outbox by the transaction that makes it true. Promise: no
//! message has a value of a row, and so none has the reason of a failure, which may quote one; the ledger has it.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::completion::End;
use crate::job::{LateJob, Listeners};
use crate::outbox::{NewMessage, post};
use crate::run::LockedRun;

/// The counts of a run that has ended, by the ledger.
type Counts = (i64, i64, i64);

impl LockedRun<'_> {
    /// Tells the job's channels that the run failed, is held, or completed with many rejected rows.
    pub(crate) async fn tell(&mut self, end: &End) -> Result<(), sqlx::Error> {
        let Some(listeners) = Listeners::of(self.tx, &self.row.job).await? else {
            return Ok(());
        };
        let counts: Counts = sqlx::query_as(
            "SELECT rows_extracted, rows_loaded, rows_rejected FROM etl.run_balance WHERE run_id = $1",
        )
        .bind(self.id.as_str())
        .fetch_one(&mut *self.tx)
        .await?;
        let (extracted, _, rejected) = counts;
        let event = match end {
            End::Failed(_) => "failed",
            End::Held(_) => "held",
            End::Completed if listeners.are_many(rejected, extracted) => "rejected",
            End::Completed | End::Superseded(_) => return Ok(()),
        };
        let body = self.body(event, counts);
        let message = NewMessage {
            event,
            job: &self.row.job,
            run: Some(self.id.as_str()),
            body: &body,
        };
        post(self.tx, &listeners.notify, message).await
    }

    fn body(&self, event: &str, (extracted, loaded, rejected): Counts) -> Value {
        let (run, job) = (self.id.as_str(), &self.row.job);
        let text = match event {
            "held" => format!(
                "The run {run} of the job {job} is held, and none of its rows is in its target. `etl status {run}` says why; `etl approve {run}` commits it, `etl discard {run} --why ...` ends it."
            ),
            "rejected" => format!(
                "The run {run} of the job {job} is completed, with {rejected} of {extracted} rows rejected. `etl rejects {run}` shows which and why."
            ),
            _ => {
                format!("The run {run} of the job {job} has failed. `etl status {run}` says why.")
            }
        };
        json!({
            "event": event,
            "job": job,
            "run": run,
            "run_no": self.row.run_no,
            "generation": self.row.generation,
            "target": self.row.target_table,
            "rows_extracted": extracted,
            "rows_loaded": loaded,
            "rows_rejected": rejected,
            "text": text,
        })
    }
}

/// Tells the job's channels that it is late.
pub(crate) async fn tell_late(tx: &mut PgConnection, late: &LateJob) -> Result<(), sqlx::Error> {
    let LateJob { job, since, .. } = late;
    let every = humantime::format_duration(whole_seconds(late.expected_seconds));
    let latest = match (&late.run_id, &late.run_state) {
        (Some(run), Some(state)) => format!(" Its latest run {run} is {state}."),
        _ => String::new(),
    };
    let body = json!({
        "event": "late",
        "job": job,
        "since": since,
        "expected_every_seconds": late.expected_seconds,
        "seconds_late": late.seconds_late.round(),
        "run": late.run_id,
        "run_state": late.run_state,
        "text": format!("The job {job} is late: it is expected every {every}, and no run of it has completed since {since}.{latest} `etl jobs` shows all jobs."),
    });
    let message = NewMessage {
        event: "late",
        job,
        run: None,
        body: &body,
    };
    post(tx, &late.notify, message).await
}

fn whole_seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.round()).unwrap_or_default()
}
