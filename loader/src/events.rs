//! What happened to a run, into its row. Events come at least once and in any order; each change
//! here may be made twice, and the first terminal state stays.

use common::message::{EventKind, RunEvent};
use sqlx::{PgConnection, PgPool};

use crate::completion;
use crate::database::{Held, bounded};
use crate::errors::{LoadError, Refused};
use crate::ledger::{self, Lock, Run, Standing, bigint, integer};
use crate::quarantine::storable;

/// What became of an event. In each case it can be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// The books have it, now or since an earlier delivery.
    Noted,
    /// It is of a generation that a replay has superseded.
    Stale,
    /// The run, or its extraction, was over, and this says something else than the books.
    Late,
}

impl Noted {
    /// For metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Noted => "noted",
            Self::Stale => "stale",
            Self::Late => "late",
        }
    }
}

/// Writes an event into the books, and completes the run if it was the last thing missing.
pub async fn handle(pool: &PgPool, event: &RunEvent) -> Result<Noted, LoadError> {
    let noted = bounded(note(pool, event)).await?;
    if noted == Noted::Late {
        ledger::count_late(pool, &event.run).await?;
    }
    completion::ask(pool, &event.run).await?;
    Ok(noted)
}

async fn note(pool: &PgPool, event: &RunEvent) -> Result<Noted, LoadError> {
    let mut connection = Held::acquire(pool).await?;
    let mut tx = connection.begin().await?;
    let run = ledger::find(&mut tx, &event.run, Lock::Alone).await?;
    let noted = match run.standing(event.generation)? {
        Standing::Stale => Noted::Stale,
        Standing::Over => {
            // Another count of a run that is complete by the first one is to be heard.
            if run.is_counted()
                && let EventKind::Extracted {
                    result_id,
                    batches,
                    rows,
                    ..
                } = &event.kind
            {
                check_extracted(&run, result_id, *batches, *rows)?;
            }
            if is_known(&run, &event.kind) {
                Noted::Noted
            } else if let EventKind::Started { query_execution_id } = &event.kind
                && run.may_be_of(query_execution_id)
            {
                // Of a short run the last event may be noted before the first.
                sqlx::query("UPDATE etl.runs SET query_execution_id = $2 WHERE run_id = $1")
                    .bind(event.run.as_str())
                    .bind(storable(query_execution_id))
                    .execute(&mut *tx)
                    .await
                    .map_err(LoadError::books("told of an event"))?;
                Noted::Noted
            } else {
                Noted::Late
            }
        }
        // The result was read to its end and every batch of it was published; who failed after that
        // is another delivery of the job, and what it would have done is done.
        Standing::Live
            if matches!(event.kind, EventKind::Failed { .. }) && run.batches_expected.is_some() =>
        {
            tracing::warn!(run.id = %event.run, "a failure after the whole result was published changes nothing");
            Noted::Late
        }
        Standing::Live => {
            apply(&mut tx, &run, event).await?;
            Noted::Noted
        }
    };
    let fails = noted == Noted::Noted && !run.is_over();
    tx.commit().await?;
    connection.give_back();
    if fails && matches!(event.kind, EventKind::Failed { .. }) {
        completion::count("failed");
    }
    Ok(noted)
}

/// Whether the books of a run that is over say the same already: then it is a second delivery.
fn is_known(run: &Run, kind: &EventKind) -> bool {
    match kind {
        EventKind::Started { query_execution_id } => {
            run.query_execution_id.as_ref() == Some(query_execution_id)
        }
        EventKind::Progress { batches, .. } => run
            .batches_expected
            .is_some_and(|expected| i64::from(*batches) <= i64::from(expected)),
        EventKind::Extracted {
            result_id,
            batches,
            rows,
            ..
        } => {
            run.batches_expected.is_some()
                && check_extracted(run, result_id, *batches, *rows).is_ok()
        }
        EventKind::Failed { .. } => run.state == "failed",
    }
}

async fn apply(tx: &mut PgConnection, run: &Run, event: &RunEvent) -> Result<(), LoadError> {
    let id = event.run.as_str();
    let update = match &event.kind {
        EventKind::Started { query_execution_id } => sqlx::query(
            "UPDATE etl.runs SET state = 'running', started_at = coalesce(started_at, now()), query_execution_id = $2 WHERE run_id = $1",
        )
        .bind(id)
        .bind(storable(query_execution_id)),
        EventKind::Progress { batches, rows } => sqlx::query(
            "UPDATE etl.runs SET batches_extracted = greatest(batches_extracted, $2), rows_extracted = greatest(rows_extracted, $3) WHERE run_id = $1",
        )
        .bind(id)
        .bind(integer("the number of batches", *batches)?)
        .bind(bigint("the number of rows", *rows)?),
        EventKind::Extracted { result_id, batches, rows, bytes_scanned, result_location } => {
            check_extracted(run, result_id, *batches, *rows)?;
            sqlx::query(
                "UPDATE etl.runs SET state = 'running', started_at = coalesce(started_at, now()), extracted_at = coalesce(extracted_at, now()),
                     result_id = $2, batches_expected = $3, rows_expected = $4, bytes_scanned = $5, batches_extracted = $3, rows_extracted = $4,
                     result_location = coalesce($6, result_location)
                 WHERE run_id = $1",
            )
            .bind(id)
            .bind(storable(result_id))
            .bind(integer("the number of batches", *batches)?)
            .bind(bigint("the number of rows", *rows)?)
            .bind(bigint("the bytes scanned", *bytes_scanned)?)
            .bind(result_location.as_deref().map(storable))
        }
        EventKind::Failed { reason } => {
            tracing::warn!(run.id = id, "run failed");
            sqlx::query("UPDATE etl.runs SET state = 'failed', failure = $2, finished_at = now() WHERE run_id = $1").bind(id).bind(storable(reason))
        }
    };
    update
        .execute(tx)
        .await
        .map(drop)
        .map_err(LoadError::books("told of an event"))
}

/// The first count stays; another one would be of another result, or of a bug.
fn check_extracted(run: &Run, result_id: &str, batches: u32, rows: u64) -> Result<(), Refused> {
    if let Some(pinned) = run.result_id.as_ref().filter(|pinned| *pinned != result_id) {
        return Err(Refused::OtherResult {
            found: result_id.to_owned(),
            pinned: pinned.clone(),
        });
    }
    let same = |known_batches: i32, known_rows: i64| {
        i64::from(known_batches) == i64::from(batches) && u64::try_from(known_rows) == Ok(rows)
    };
    match (run.batches_expected, run.rows_expected) {
        (Some(known_batches), Some(known_rows)) if !same(known_batches, known_rows) => {
            Err(Refused::OtherCount {
                batches,
                rows,
                known_batches,
                known_rows,
            })
        }
        _ => Ok(()),
    }
}
