//! Events of a run into its row. Events arrive at least once and in any order; each change here may be made twice, and the
//! first terminal state stays.

use common::message::{EventKind, RunEvent};
use sqlx::types::Json;
use sqlx::{Executor as _, PgConnection};

use crate::completion::End;
use crate::database::Store;
use crate::error::{Error, Refused};
use crate::quarantine::storable;
use crate::run::{LockedRun, RunRow, Standing, bigint, integer};
use crate::state::{RunState, Transition};

/// What became of an event. In each case it can be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// The ledger has it, now or since an earlier delivery.
    Noted,
    /// The run failed by it, now.
    Failed,
    /// A replay has superseded its generation.
    Stale,
    /// The run, or its extraction, had ended, and it says something else than the ledger.
    Ignored,
}

impl Noted {
    /// For metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Noted | Self::Failed => "noted",
            Self::Stale => "stale",
            Self::Ignored => "ignored",
        }
    }
}

/// Writes an event into the run's row. Waits only a moment for the run, since the events of every run wait in one line.
pub async fn note(store: &Store, event: &RunEvent) -> Result<Noted, Error> {
    let failure = "cannot write an event into the ledger";
    store
        .transaction(failure, async |tx: &mut PgConnection| {
            tx.execute("SET LOCAL lock_timeout = '2s'").await?;
            LockedRun::lock(tx, &event.run).await?.note(event).await
        })
        .await
}

impl LockedRun<'_> {
    async fn note(mut self, event: &RunEvent) -> Result<Noted, Error> {
        let standing = self.row.standing(event.generation)?;
        self.note_query(event).await?;
        match standing {
            // What a query cost does not depend on what became of its run.
            _ if is_of_query(&event.kind) => Ok(Noted::Noted),
            Standing::Stale => Ok(Noted::Stale),
            Standing::Ended => self.note_after_the_end(&event.kind).await,
            // The result was read to its end and every batch of it was published; the failure is of another delivery of the
            // task, and what it would have done is done.
            Standing::Live
                if matches!(event.kind, EventKind::Failed { .. }) && self.row.is_extracted =>
            {
                tracing::warn!(run.id = %event.run, "a failure after the whole result was published changes nothing");
                Ok(Noted::Ignored)
            }
            Standing::Live => self.apply(&event.kind).await,
        }
    }

    async fn note_after_the_end(mut self, kind: &EventKind) -> Result<Noted, Error> {
        // Another count of a run that is complete by the first one is an error, not a late duplicate.
        if self.row.state.has_all_batches() {
            self.row.check_extracted(kind)?;
        }
        if self.row.knows(kind) {
            return Ok(Noted::Noted);
        }
        // The target refused the run before its result was read to its end. A replay needs to know how many rows it has.
        if self.row.state == RunState::Failed
            && !self.row.is_extracted
            && matches!(kind, EventKind::Extracted { .. })
        {
            self.row.check_extracted(kind)?;
            self.record_extraction(kind, RunState::Failed).await?;
            return Ok(Noted::Noted);
        }
        let EventKind::Started {
            query_execution_id, ..
        } = kind
        else {
            return Ok(Noted::Ignored);
        };
        if !self.row.may_be_query(query_execution_id) {
            return Ok(Noted::Ignored);
        }
        // The last event of a short run may be noted before the first.
        sqlx::query("UPDATE etl.runs SET query_execution_id = $2 WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(storable(query_execution_id))
            .execute(self.tx)
            .await?;
        Ok(Noted::Noted)
    }

    async fn apply(self, kind: &EventKind) -> Result<Noted, Error> {
        match kind {
            EventKind::Started {
                query_execution_id, ..
            } => self.start(None, Some(query_execution_id)).await?,
            EventKind::Scanned { .. } | EventKind::QueryEnded { .. } => {}
            EventKind::Progress { batches, rows } => self.progress(*batches, *rows).await?,
            EventKind::Extracted { .. } => self.extract(kind).await?,
            EventKind::Failed { reason } => {
                self.fail(&storable(reason)).await?;
                return Ok(Noted::Failed);
            }
        }
        Ok(Noted::Noted)
    }

    /// The run is under way, with the result or the query that became known by it.
    pub(crate) async fn start(
        mut self,
        result_id: Option<&str>,
        query_execution_id: Option<&str>,
    ) -> Result<(), Error> {
        let state = self.to(Transition::Start)?;
        sqlx::query(
            "UPDATE etl.runs SET state = $2, started_at = coalesce(started_at, now()), result_id = coalesce($3, result_id),
                 query_execution_id = coalesce($4, query_execution_id)
             WHERE run_id = $1",
        )
        .bind(self.id.as_str())
        .bind(state.name())
        .bind(result_id)
        .bind(query_execution_id.map(storable))
        .execute(&mut *self.tx)
        .await?;
        Ok(self.tell_start().await?)
    }

    async fn progress(self, batches: u32, rows: u64) -> Result<(), Error> {
        sqlx::query(
            "UPDATE etl.runs SET batches_extracted = greatest(batches_extracted, $2), rows_extracted = greatest(rows_extracted, $3) WHERE run_id = $1",
        )
        .bind(self.id.as_str())
        .bind(integer("the number of batches", batches)?)
        .bind(bigint("the number of rows", rows)?)
        .execute(self.tx)
        .await?;
        Ok(())
    }

    async fn extract(mut self, kind: &EventKind) -> Result<(), Error> {
        self.row.check_extracted(kind)?;
        let state = self.to(Transition::Extract)?;
        self.record_extraction(kind, state).await?;
        Ok(self.tell_start().await?)
    }

    async fn record_extraction(&mut self, kind: &EventKind, state: RunState) -> Result<(), Error> {
        let EventKind::Extracted {
            result_id,
            batches,
            rows,
            result_location,
            columns,
            ..
        } = kind
        else {
            return Ok(());
        };
        sqlx::query(
            "UPDATE etl.runs SET state = $2, started_at = coalesce(started_at, now()), extracted_at = coalesce(extracted_at, now()),
                 result_id = $3, batches_expected = $4, rows_expected = $5, batches_extracted = $4, rows_extracted = $5,
                 result_location = coalesce($6, result_location), result_columns = coalesce($7, result_columns)
             WHERE run_id = $1",
        )
        .bind(self.id.as_str())
        .bind(state.name())
        .bind(storable(result_id))
        .bind(integer("the number of batches", *batches)?)
        .bind(bigint("the number of rows", *rows)?)
        .bind(result_location.as_deref().map(storable))
        .bind((!columns.is_empty()).then_some(Json(columns)))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// The run cannot be completed.
    pub(crate) async fn fail(self, reason: &str) -> Result<(), Error> {
        let run = self.id.clone();
        self.end(&End::Failed(reason.to_owned())).await?;
        tracing::warn!(run.id = %run, "run failed");
        Ok(())
    }
}

/// Whether an event is about the query alone.
fn is_of_query(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Scanned { .. } | EventKind::QueryEnded { .. }
    )
}

impl RunRow {
    /// Whether the ledger of a run that has ended says the same already: then it is a second delivery.
    fn knows(&self, kind: &EventKind) -> bool {
        match kind {
            EventKind::Started {
                query_execution_id, ..
            } => self.query_execution_id.as_ref() == Some(query_execution_id),
            EventKind::Scanned { .. } | EventKind::QueryEnded { .. } => true,
            EventKind::Progress { batches, .. } => self
                .batches_expected
                .is_some_and(|expected| i64::from(*batches) <= i64::from(expected)),
            EventKind::Extracted { .. } => self.is_extracted && self.check_extracted(kind).is_ok(),
            EventKind::Failed { .. } => self.state == RunState::Failed,
        }
    }

    /// Whether this may be the query of a run that has ended and of which the ledger knows no query. A result's id begins with
    /// that of its query.
    fn may_be_query(&self, query_execution_id: &str) -> bool {
        let is_known_result = |id: &String| {
            let rest = id.strip_prefix(query_execution_id);
            rest.is_some_and(|rest| rest.starts_with(':'))
        };
        self.query_execution_id.is_none()
            && (self.state.has_all_batches() || self.state == RunState::Failed)
            && self.result_id.as_ref().is_none_or(is_known_result)
    }

    /// The first count stays; another one is of another result, or of a bug. Other events have none.
    fn check_extracted(&self, kind: &EventKind) -> Result<(), Refused> {
        let EventKind::Extracted {
            result_id,
            batches,
            rows,
            ..
        } = kind
        else {
            return Ok(());
        };
        let (batches, rows) = (*batches, *rows);
        self.check_pinned(result_id)?;
        let same = |known_batches: i32, known_rows: i64| {
            i64::from(known_batches) == i64::from(batches) && u64::try_from(known_rows) == Ok(rows)
        };
        match (self.batches_expected, self.rows_expected) {
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
}
