//! Runs of a job that load the same rows: with the same parameters or, in mode `append`, with a range of the watermark's column
//! that overlaps. Nothing in the target tells such rows apart, so that one of two runs is refused.

use std::collections::BTreeMap;

use common::job::{Job, Mode, Request, WatermarkRange};
use common::message::RunId;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::database::{Store, lock, lock_key};
use crate::error::Error;
use crate::run::LockedRun;
use crate::state::RunState;

/// Whether a run `r` that is over has rows in its target. Of a failed one that was only staged nothing got there.
const HAS_ROWS: &str = "(state = 'completed' OR state IN ('failed', 'cancelled')
    AND NOT (state = 'failed' AND generation = first_generation AND commit = 'run')
    AND EXISTS (SELECT FROM etl.batches b WHERE b.run_id = r.run_id AND b.generation = r.generation AND b.rows_loaded > 0))";

/// A run of the same job that speaks against another one.
#[derive(Debug, Clone)]
pub struct ConflictingRun {
    pub run_id: String,
    pub state: RunState,
    /// Whether the job was another version of itself.
    is_of_older_job: bool,
    /// What it reads, where that is not the same as of the request, and overlaps.
    range: Option<WatermarkRange>,
    job: String,
}

impl ConflictingRun {
    /// Whether it ended without being complete, and rows of it are in the target.
    pub fn has_left_rows(&self) -> bool {
        matches!(self.state, RunState::Failed | RunState::Cancelled)
    }

    /// Whether it has loaded, or loads, what the request asks for.
    pub fn loads_the_same(&self) -> bool {
        let has_loaded_otherwise = self.state == RunState::Completed && self.is_of_older_job;
        self.range.is_none() && !self.has_left_rows() && !has_loaded_otherwise
    }

    /// Why it is in the way, and what to do.
    pub fn sentence(&self) -> String {
        let Self { run_id, state, .. } = self;
        let range = self.range.as_ref().map(|range| {
            let WatermarkRange {
                column, from, to, ..
            } = range;
            let to = to.as_deref().unwrap_or_default();
            format!("{column} from {from} and before {to}")
        });
        let which = match &range {
            Some(range) => format!("of the same job, which reads {range},"),
            None => "of the same job with the same parameters".to_owned(),
        };
        match state {
            RunState::Held => {
                return format!(
                    "the run {run_id} {which} is held; `etl approve {run_id}` commits its rows, `etl discard {run_id} --why ...` ends it; nothing was sent"
                );
            }
            RunState::Requested | RunState::Running | RunState::Superseded => {
                return format!(
                    "the run {run_id} {which} is {state}; wait for it, or end it with `etl cancel {run_id}`; nothing was sent"
                );
            }
            RunState::Failed | RunState::Cancelled => {
                let remedy = if range.is_some() {
                    format!("`etl cancel {run_id} --undo` removes them")
                } else {
                    format!(
                        "`etl run ... --run-id {run_id} --retry` takes them back and loads them anew"
                    )
                };
                return format!(
                    "the run {run_id} {which} is {state} and has left rows in the target, and in mode append another run adds its rows to them; {remedy}, or request it with --again if both are what you want; nothing was sent"
                );
            }
            RunState::Completed => {}
        }
        if let Some(range) = range {
            let job = &self.job;
            return format!(
                "the run {run_id} has loaded {range}, and in mode append another run adds the rows that are in both ranges again; choose a range without them (`etl watermark {job} --set VALUE --why ...` for the runs that read on), or request it with --again if that is what you want; nothing was sent"
            );
        }
        let (older, replay) = if self.is_of_older_job {
            let replay = format!("`etl replay {run_id}` loads them by the job as it is now; ");
            (" by an older version of the job", replay)
        } else {
            ("", String::new())
        };
        format!(
            "the run {run_id} has loaded the same{older}, and in mode append another run adds its rows again; {replay}request it with --again if that is what you want; nothing was sent"
        )
    }
}

/// What a run or a request reads.
#[derive(Debug, FromRow)]
struct Reads {
    #[sqlx(json)]
    parameters: BTreeMap<String, String>,
    range: Option<Json<WatermarkRange>>,
}

impl Reads {
    /// Whether other values of the same job are a range that overlaps with this one. A parameter that only one of them has tells no
    /// rows apart: the job did not have it once.
    fn overlaps(&self, other: &Self) -> bool {
        let (Some(one), Some(another)) = (&self.range, &other.range) else {
            return false;
        };
        // A range without an end is of a job with a key.
        let have_ends = one.to.is_some() && another.to.is_some();
        let is_comparable = one.column.eq_ignore_ascii_case(&another.column)
            && one.parameter_type == another.parameter_type;
        let is_bound =
            |name: &String| one.parameters.contains(name) || another.parameters.contains(name);
        let mut others = self.parameters.iter().filter(|(name, _)| !is_bound(name));
        let are_same = others.all(|(name, value)| {
            let there = other.parameters.get(name);
            there.is_none_or(|there| there == value)
        });
        have_ends && is_comparable && are_same && one.overlaps(another)
    }
}

/// A run of the job, and what it reads.
#[derive(Debug, FromRow)]
struct Candidate {
    run_id: String,
    #[sqlx(try_from = "String")]
    state: RunState,
    job_hash: String,
    #[sqlx(flatten)]
    reads: Reads,
}

/// What of a run `r` is a [`Candidate`].
const CANDIDATE: &str = "run_id, state, job_hash, parameters, job_spec -> 'watermark' AS range";

impl Store {
    /// The run that speaks against a request, if there is one.
    pub async fn conflicting_run(
        &self,
        job: &Job,
        request: &Request,
        again: bool,
    ) -> Result<Option<ConflictingRun>, Error> {
        let failure = "cannot look for runs of the same job that load the same rows";
        self.read(failure, async |tx: &mut PgConnection| {
            Ok(conflicting(tx, None, job, request, again).await?)
        })
        .await
    }
}

/// Another run of the same job and parameters that is under way or, in mode append, one that has, or will have, rows of the
/// request in the target.
pub(crate) async fn conflicting(
    tx: &mut PgConnection,
    run: Option<&RunId>,
    job: &Job,
    request: &Request,
    again: bool,
) -> Result<Option<ConflictingRun>, sqlx::Error> {
    let (schema, table) = job.spec.target.schema_and_table();
    let select = format!(
        "SELECT {CANDIDATE} FROM etl.runs r
         WHERE job = $1 AND run_id IS DISTINCT FROM $2 AND CASE WHEN parameters = $3
             THEN state IN ('requested', 'running', 'held') OR $4 AND target_table = $5 AND {HAS_ROWS}
             ELSE $4 AND target_table = $5 AND job_spec -> 'watermark' IS NOT NULL
                 AND (state IN ('requested', 'running', 'held') OR {HAS_ROWS}) END
         ORDER BY parameters <> $3, state = 'completed', run_no DESC"
    );
    let candidates: Vec<Candidate> = sqlx::query_as(AssertSqlSafe(select))
        .bind(&job.spec.name)
        .bind(run.map(RunId::as_str))
        .bind(Json(&request.parameters))
        .bind(job.spec.target.mode.adds() && !again)
        .bind(format!("{schema}.{table}"))
        .fetch_all(tx)
        .await?;
    let reads = Reads {
        parameters: request.parameters.clone(),
        range: request.spec.watermark.clone().map(Json),
    };
    let found = candidates.into_iter().find_map(|other| {
        let is_same = other.reads.parameters == reads.parameters;
        (is_same || other.reads.overlaps(&reads)).then(|| ConflictingRun {
            is_of_older_job: other.job_hash != job.hash(),
            range: other.reads.range.filter(|_| !is_same).map(|range| range.0),
            run_id: other.run_id,
            state: other.state,
            job: job.spec.name.clone(),
        })
    });
    Ok(found)
}

/// A run that read on from a watermark and ended without being complete, its rows in the target, and its range.
type Left = (String, i64, Json<WatermarkRange>);

async fn left(
    tx: &mut PgConnection,
    run: Option<&RunId>,
    (job, table): (&str, &str),
) -> Result<Vec<Left>, sqlx::Error> {
    let select = format!(
        "SELECT run_id, rows, job_spec -> 'watermark' FROM etl.runs r CROSS JOIN LATERAL (
             SELECT coalesce(sum(rows_loaded), 0)::bigint AS rows FROM etl.batches b
             WHERE b.run_id = r.run_id AND b.generation = r.generation) b
         WHERE job = $1 AND target_table = $2 AND run_id IS DISTINCT FROM $3 AND watermark_from IS NOT NULL
             AND mode = 'append' AND state IN ('failed', 'cancelled') AND {HAS_ROWS} ORDER BY run_no"
    );
    sqlx::query_as(AssertSqlSafe(select))
        .bind(job)
        .bind(table)
        .bind(run.map(RunId::as_str))
        .fetch_all(tx)
        .await
}

/// Another run that ended without being complete and whose rows in the target are in this range: a run would add them again.
pub(crate) async fn left_in(
    tx: &mut PgConnection,
    run: &RunId,
    place: (&str, &str),
    range: &WatermarkRange,
) -> Result<Option<(String, i64)>, sqlx::Error> {
    let left = left(tx, Some(run), place).await?;
    let mut left = left
        .into_iter()
        .filter(|(.., other)| other.0.overlaps(range));
    Ok(left.next().map(|(run, rows, _)| (run, rows)))
}

/// Refuses a watermark behind rows that a run which failed or was cancelled has left: its next run would remove them, and read them
/// no more.
pub(crate) async fn check_none_left_before(
    tx: &mut PgConnection,
    (job, table): (&str, &str),
    value: &str,
) -> Result<(), Error> {
    let left = left(tx, None, (job, table)).await?;
    let is_before = |(.., range): &&Left| range.0.is_before(&range.0.from, value);
    left.iter().find(is_before).map_or(Ok(()), |(run, rows, range)| {
        Err(Error::NotAllowed(format!(
            "the run {run} of the job {job} ended without being complete, and has left {rows} rows from {} on in the target; `etl cancel {run} --undo` removes them first",
            range.0.from
        )))
    })
}

impl LockedRun<'_> {
    /// Refuses to load a failed run after all where another run has loaded, or loads, the same.
    pub(crate) async fn check_no_other(&mut self, mode: Mode) -> Result<(), Error> {
        if self.row.state != RunState::Failed || !mode.adds() {
            return Ok(());
        }
        // Of a request at the same moment either this or that one sees the other.
        lock(self.tx, lock_key("request", &self.row.job)).await?;
        let select =
            "SELECT parameters, job_spec -> 'watermark' AS range FROM etl.runs WHERE run_id = $1";
        let reads: Reads = sqlx::query_as(select)
            .bind(self.id.as_str())
            .fetch_one(&mut *self.tx)
            .await?;
        let later: Vec<Candidate> = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT {CANDIDATE} FROM etl.runs r
             WHERE job = $1 AND target_table = $2 AND run_no > $3 AND (parameters = $4 OR job_spec -> 'watermark' IS NOT NULL)
                 AND (state IN ('requested', 'running', 'held') OR {HAS_ROWS})
             ORDER BY run_no DESC"
        )))
        .bind(&self.row.job)
        .bind(&self.row.target_table)
        .bind(self.row.run_no)
        .bind(Json(&reads.parameters))
        .fetch_all(&mut *self.tx)
        .await?;
        let is_same = |other: &&Candidate| {
            other.reads.parameters == reads.parameters || other.reads.overlaps(&reads)
        };
        let run = &self.id;
        later.iter().find(is_same).map_or(Ok(()), |Candidate { run_id, state, .. }| {
            Err(Error::NotAllowed(format!(
                "the run {run_id}, which was requested after {run} and reads the same rows, is {state}, and in mode append the rows of {run} would be added to its rows; `etl cancel {run} --undo` removes what is left of {run}"
            )))
        })
    }
}
