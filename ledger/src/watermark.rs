//! Watermarks: where the next run of a job reads on. One run at a time reads on from it, and moves it in the transaction that
//! completes the run. The history is kept; its latest entry counts.

use std::collections::BTreeMap;

use common::command::user;
use common::job::{Job, Mode, ReadOn, WatermarkRange};
use common::message::RunId;
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use crate::database::{Store, lock, lock_key};
use crate::error::Error;
use crate::run::LockedRun;
use crate::same_rows::{check_none_left_before, left_in};
use crate::state::RunState;

/// A change of a job's watermark. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct WatermarkChange {
    pub value: String,
    /// The run that was completed or undone.
    pub run_id: Option<String>,
    /// The person who set it.
    pub set_by: Option<String>,
    pub reason: String,
    pub set_at: String,
}

/// A run that reads on from a watermark.
#[derive(Debug, FromRow)]
struct Reader {
    job: String,
    watermark_from: String,
    #[sqlx(json)]
    range: WatermarkRange,
}

/// What a watermark speaks of: rows before it are in this table.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct Place {
    #[sqlx(rename = "target_table")]
    pub(crate) table: String,
    #[sqlx(try_from = "String")]
    mode: Mode,
}

impl Place {
    pub(crate) fn of(job: &Job) -> Self {
        let (schema, table) = job.spec.target.schema_and_table();
        Self {
            table: format!("{schema}.{table}"),
            mode: job.spec.target.mode,
        }
    }

    /// Whether a watermark of the other place is one of this place, too. With a key it is the latest value that was read, and in
    /// mode append the first that was not.
    fn is_of(&self, other: &Self) -> bool {
        self.table == other.table && self.mode.adds() == other.mode.adds()
    }
}

/// A job's latest watermark, and which run moved it there.
#[derive(Debug, FromRow)]
struct Latest {
    value: String,
    run_id: Option<String>,
    #[sqlx(flatten)]
    place: Place,
}

const UNREADABLE: &str = "cannot read the watermark";

impl Store {
    /// From where the next run of a job reads; none where that is the job's initial value.
    pub async fn watermark(&self, job: &str) -> Result<Option<String>, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            Ok(latest(tx, job).await?.map(|latest| latest.value))
        })
        .await
    }

    /// The watermarks that were moved or set, by job.
    pub async fn watermarks(&self) -> Result<BTreeMap<String, String>, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let all: Vec<(String, String)> = sqlx::query_as(
                "SELECT DISTINCT ON (job) job, value FROM etl.watermarks ORDER BY job, id DESC",
            )
            .fetch_all(tx)
            .await?;
            Ok(all.into_iter().collect())
        })
        .await
    }

    /// The latest changes of a job's watermark, the newest first.
    pub async fn watermark_changes(
        &self,
        job: &str,
        limit: u32,
    ) -> Result<Vec<WatermarkChange>, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let changes = sqlx::query_as(
                r#"SELECT value, run_id, set_by, reason, to_char(set_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS set_at
                   FROM etl.watermarks WHERE job = $1 ORDER BY id DESC LIMIT $2"#,
            );
            let changes = changes.bind(job).bind(i64::from(limit));
            Ok(changes.fetch_all(tx).await?)
        })
        .await
    }

    /// Sets a job's watermark. Refused while a run reads on from it.
    pub async fn set_watermark(&self, job: &Job, value: &str, why: &str) -> Result<(), Error> {
        let (place, job) = (Place::of(job), &job.spec.name);
        let failure = format!("cannot set the watermark of the job {job}");
        self.transaction(failure, async |tx: &mut PgConnection| {
            lock(tx, lock_key("request", job)).await?;
            check_no_reader(tx, job, None).await?;
            check_none_left_before(tx, (job, &place.table), value).await?;
            sqlx::query(
                "INSERT INTO etl.watermarks (job, value, set_by, reason, target_table, mode) VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(job)
            .bind(value)
            .bind(user())
            .bind(why)
            .bind(&place.table)
            .bind(place.mode.name())
            .execute(tx)
            .await?;
            Ok(())
        })
        .await
    }
}

async fn latest(tx: &mut PgConnection, job: &str) -> Result<Option<Latest>, sqlx::Error> {
    sqlx::query_as(
        "SELECT value, run_id, target_table, mode FROM etl.watermarks WHERE job = $1 ORDER BY id DESC LIMIT 1",
    )
    .bind(job)
    .fetch_optional(tx)
    .await
}

/// Refuses a second run that reads on from the same watermark.
async fn check_no_reader(
    tx: &mut PgConnection,
    job: &str,
    run: Option<&RunId>,
) -> Result<(), Error> {
    let reader: Option<(String, String)> = sqlx::query_as(
        "SELECT run_id, state FROM etl.runs WHERE job = $1 AND watermark_from IS NOT NULL AND run_id IS DISTINCT FROM $2
             AND state IN ('requested', 'running', 'held') ORDER BY run_no DESC LIMIT 1",
    )
    .bind(job)
    .bind(run.map(RunId::as_str))
    .fetch_optional(tx)
    .await?;
    match reader {
        None => Ok(()),
        Some((reader, state)) => {
            let remedy = if state == RunState::Held.name() {
                format!("`etl approve {reader}` or `etl discard {reader} --why ...` ends it")
            } else {
                format!("wait for it, or end it with `etl cancel {reader}`")
            };
            Err(Error::NotAllowed(format!(
                "the run {reader} of the job {job} reads on from the same watermark and is {state}; {remedy}"
            )))
        }
    }
}

impl Store {
    /// Refuses a request that does not begin at its job's watermark, or while another run reads on from it.
    pub async fn check_watermark(
        &self,
        job: &Job,
        read_on: &ReadOn,
        parameters: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let (name, place) = (&job.spec.name, Place::of(job));
            check_watermark(tx, None, name, &place, read_on, &read_on.watermark).await?;
            check_same_values(tx, job, read_on, parameters).await
        })
        .await
    }
}

/// Refuses a request that reads on with other values of the remaining parameters than the run that moved the watermark: rows before
/// it that are not of these values were not read. Dates and times are other ones every day.
pub(crate) async fn check_same_values(
    tx: &mut PgConnection,
    job: &Job,
    read_on: &ReadOn,
    parameters: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let name = &job.spec.name;
    let Some(run) = latest(tx, name).await?.and_then(|latest| latest.run_id) else {
        return Ok(());
    };
    let before: Json<BTreeMap<String, String>> =
        sqlx::query_scalar("SELECT parameters FROM etl.runs WHERE run_id = $1")
            .bind(&run)
            .fetch_one(tx)
            .await?;
    let tells_apart = |parameter: &&String| {
        let kind = job
            .parameters
            .get(*parameter)
            .map(|spec| spec.parameter_type);
        !read_on.range.parameters.contains(parameter) && kind.is_some_and(|kind| !kind.is_moment())
    };
    for parameter in parameters.keys().filter(tells_apart) {
        let (was, is) = (before.0.get(parameter), &parameters[parameter]);
        if let Some(was) = was.filter(|was| *was != is) {
            return Err(Error::NotAllowed(format!(
                "the watermark of the job {name} says what was read with {parameter} = {was:?}, by the run {run}, and this request has {is:?}: rows before the watermark would never be read; write a job for each value, set the range by hand, or say with `etl watermark {name} --set VALUE --why ...` from where to read with it"
            )));
        }
    }
    Ok(())
}

/// Refuses a request that does not begin at the job's watermark, which is `initial` before the first run is complete, and one
/// whose target is another one than the watermark speaks of. The open runs first: one that is completed in between has moved the
/// watermark, which is then seen.
pub(crate) async fn check_watermark(
    tx: &mut PgConnection,
    run: Option<&RunId>,
    job: &str,
    place: &Place,
    read_on: &ReadOn,
    initial: &str,
) -> Result<(), Error> {
    check_no_reader(tx, job, run).await?;
    let latest = latest(tx, job).await?;
    if let Some(latest) = latest.as_ref().filter(|latest| !latest.place.is_of(place)) {
        let (Place { table, mode }, value) = (&latest.place, &latest.value);
        return Err(Error::NotAllowed(format!(
            "the watermark {value} of the job {job} says what is in {table} (mode {mode}), and the target is {} (mode {}) now; say from where to read for it: `etl watermark {job} --reset --why ...` for all rows, or `--set VALUE --why ...`",
            place.table, place.mode
        )));
    }
    let latest = latest.map(|latest| (latest.value, latest.run_id));
    let (current, by) = latest.unwrap_or_else(|| (initial.to_owned(), None));
    let from = &read_on.watermark;
    if read_on.range.is_same(&current, from) {
        return Ok(());
    }
    let why = match (run, by) {
        (Some(run), Some(by)) if by == run.as_str() => format!(
            "the run {run} was complete and moved it; `etl replay {run}` loads its rows again, and `etl cancel {run} --undo` removes them, so that it can be requested again"
        ),
        (_, Some(by)) => format!("the run {by} has moved it meanwhile; request a new run"),
        (_, None) => "it was set meanwhile; request a new run".to_owned(),
    };
    Err(Error::NotAllowed(format!(
        "the watermark of the job {job} is {current}, and this request reads on from {from}: {why}"
    )))
}

impl LockedRun<'_> {
    async fn reader(&mut self) -> Result<Option<Reader>, sqlx::Error> {
        sqlx::query_as(
            "SELECT job, watermark_from, job_spec -> 'watermark' AS range FROM etl.runs WHERE run_id = $1 AND watermark_from IS NOT NULL",
        )
        .bind(self.id.as_str())
        .fetch_optional(&mut *self.tx)
        .await
    }

    /// Whether the run was complete once, and its rows were not removed since.
    async fn has_moved_watermark(&mut self) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT coalesce((
                 SELECT w.value = r.watermark_to FROM etl.watermarks w JOIN etl.runs r USING (run_no)
                 WHERE run_no = $1 ORDER BY w.id DESC LIMIT 1), false)",
        )
        .bind(self.row.run_no)
        .fetch_one(&mut *self.tx)
        .await
    }

    /// The run is complete: the next one reads on from its end. A replay moves nothing.
    pub(crate) async fn advance_watermark(&mut self) -> Result<(), Error> {
        let Some(run) = self.reader().await? else {
            return Ok(());
        };
        if self.has_moved_watermark().await? {
            return Ok(());
        }
        let found = self.latest_value(&run.range).await?;
        let next = run.range.next(&run.watermark_from, found.as_deref());
        sqlx::query("UPDATE etl.runs SET watermark_to = $2 WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(&next)
            .execute(&mut *self.tx)
            .await?;
        let now = latest(self.tx, &run.job).await?;
        let (range, place) = (&run.range, self.place());
        let is_elsewhere = |now: &Latest| match range.to {
            _ if !now.place.is_of(&place) => true,
            Some(_) => !range.is_same(&now.value, &run.watermark_from),
            // What it has read does not reach back to there.
            None => range.is_before(&now.value, &range.from) || !range.is_before(&now.value, &next),
        };
        if now.as_ref().is_some_and(is_elsewhere) {
            let (job, run) = (&run.job, self.id.as_str());
            tracing::warn!(
                run.id = run,
                job.name = job,
                "the watermark stays: it is not where the run began to read"
            );
            return Ok(());
        }
        self.move_watermark(&run.job, &next, "the run is complete")
            .await
    }

    /// The latest value of the column in the rows of the live generation.
    async fn latest_value(
        &mut self,
        range: &WatermarkRange,
    ) -> Result<Option<String>, sqlx::Error> {
        let values: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT watermark FROM etl.batches WHERE run_id = $1 AND generation = $2 AND watermark IS NOT NULL",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(range.latest(values))
    }

    fn place(&self) -> Place {
        Place {
            table: self.row.target_table.clone(),
            mode: self.row.mode,
        }
    }

    async fn move_watermark(&mut self, job: &str, to: &str, reason: &str) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO etl.watermarks (job, value, run_id, run_no, reason, target_table, mode) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(job)
        .bind(to)
        .bind(self.id.as_str())
        .bind(self.row.run_no)
        .bind(reason)
        .bind(&self.row.target_table)
        .bind(self.row.mode.name())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Refuses to append the rows of a run that failed before it moved the watermark, once another run has read, or reads, its
    /// range.
    pub(crate) async fn check_reads_on(&mut self) -> Result<(), Error> {
        if self.row.state != RunState::Failed || self.has_moved_watermark().await? {
            return Ok(());
        }
        let Some(run) = self.reader().await?.filter(|run| run.range.to.is_some()) else {
            return Ok(());
        };
        // Of a request at the same moment either this or that one sees the other.
        lock(self.tx, lock_key("request", &run.job)).await?;
        let read_on = ReadOn {
            watermark: run.watermark_from,
            range: run.range,
        };
        // Before the first change the watermark is the initial one, and so was this run's.
        let (id, initial) = (self.id.clone(), &read_on.watermark);
        let place = self.place();
        check_watermark(self.tx, Some(&id), &run.job, &place, &read_on, initial).await?;
        let left = left_in(self.tx, &id, (&run.job, &place.table), &read_on.range).await?;
        left.map_or(Ok(()), |(other, rows)| {
            Err(Error::NotAllowed(format!(
                "the run {other} of the job {} has read the same range and left {rows} rows of it in the target; remove them first with `etl cancel {other} --undo`",
                run.job
            )))
        })
    }

    /// Refuses to remove the rows of a run whose range later runs have read on from.
    pub(crate) async fn check_watermark_undo(&mut self) -> Result<(), Error> {
        let Some(run) = self.reader().await? else {
            return Ok(());
        };
        if !self.has_moved_watermark().await? {
            return Ok(());
        }
        lock(self.tx, lock_key("request", &run.job)).await?;
        let id = self.id.clone();
        check_no_reader(self.tx, &run.job, Some(&id)).await?;
        if run.range.to.is_none() {
            return Ok(());
        }
        let later: Option<String> = sqlx::query_scalar(
            "SELECT coalesce(run_id, set_by) FROM etl.watermarks WHERE job = $1 AND run_no IS DISTINCT FROM $2
                 AND id > (SELECT max(id) FROM etl.watermarks WHERE run_no = $2) ORDER BY id DESC LIMIT 1",
        )
        .bind(&run.job)
        .bind(self.row.run_no)
        .fetch_optional(&mut *self.tx)
        .await?;
        later.map_or(Ok(()), |later| {
            Err(Error::NotAllowed(format!(
                "the watermark of the job {} was moved on by {later} since, and no later run would read the rows of the run {id} again; `etl replay {id}` loads them",
                run.job
            )))
        })
    }

    /// The rows of the run were removed: the next run reads them again.
    pub(crate) async fn move_watermark_back(&mut self) -> Result<(), Error> {
        let Some(run) = self.reader().await? else {
            return Ok(());
        };
        if !self.has_moved_watermark().await? {
            return Ok(());
        }
        let (now, place) = (latest(self.tx, &run.job).await?, self.place());
        let is_elsewhere = |now: Latest| {
            !now.place.is_of(&place) || run.range.is_before(&now.value, &run.watermark_from)
        };
        if now.is_some_and(is_elsewhere) {
            return Ok(());
        }
        self.move_watermark(&run.job, &run.watermark_from, "the run's rows were removed")
            .await
    }
}
