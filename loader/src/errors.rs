//! The consequence of a failure for the message in hand. [`ledger::classify`] decides what an error of PostgreSQL
//! means; its consequence differs between the ledger's tables and a target. Pure.

use common::reason::Reason;
use ledger::{Class, cause, classify, remedy, words};
use sqlx::error::DatabaseError;

use crate::ddl::{Fault, Refusal};

/// A failure to load a batch, or to write an event into the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A statement on the ledger failed.
    #[error("{0}")]
    Ledger(ledger::Error),
    /// A statement on the target failed.
    #[error("{failure}")]
    Target {
        failure: String,
        source: sqlx::Error,
    },
    /// Completing the run failed; the batch in hand is loaded.
    #[error("{failure}")]
    Completion {
        failure: String,
        source: sqlx::Error,
    },
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<ledger::Error> for LoadError {
    fn from(error: ledger::Error) -> Self {
        match error {
            ledger::Error::Refused(refused) => Self::Refused(refused.into()),
            error => Self::Ledger(error),
        }
    }
}

impl From<sqlx::Error> for LoadError {
    fn from(source: sqlx::Error) -> Self {
        Self::Ledger(source.into())
    }
}

/// A permanent error in a message, the same for every replica.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Target(#[from] Refusal),
    #[error(transparent)]
    Ledger(#[from] ledger::Refused),
    #[error(
        "PostgreSQL stored {stored} of the {sent} rows that it took for {table}; a trigger or a rule drops rows there, and dropped rows would be lost: disable it for the loader's role"
    )]
    RowsVanished {
        table: String,
        sent: u64,
        stored: u64,
    },
    #[error(
        "PostgreSQL reports that rows of {table} were deleted, and they are still there; a trigger or a rule keeps them, and they would be there twice: disable it for the loader's role"
    )]
    RowsKept { table: String },
    #[error(
        "the ledger knows {known} rows that are to be replaced in {table}, and {found} have their _batch; another ledger wrote the others: run UPDATE {table} SET _batch = 0 on those, and then replay"
    )]
    MoreRows {
        table: String,
        found: i64,
        known: i64,
    },
    #[error(
        "{known} rows that are to be deleted from {table} should be there, and {found} are found by their _batch; the table has rows without a batch or of an unknown one, which may be the others: was the column _batch made anew? Restore its values, or delete these rows, or run UPDATE {table} SET _batch = 0 WHERE _batch IS NULL where they are rows of another program; then try again"
    )]
    RowsNotFound {
        table: String,
        found: i64,
        known: i64,
    },
    #[error(
        "rows of {table} came with a batch that this ledger does not know (_batch is {number}) and would win over rows of this one, as if they were newer; the table or the schema etl was copied, restored or made anew; run: UPDATE {table} SET _batch = 0 WHERE NOT EXISTS (SELECT FROM etl.runs r JOIN etl.batches b USING (run_id) WHERE etl.batch_no(r.run_no, b.first_row) = _batch), then replay this batch; it was not loaded"
    )]
    UnknownWinner { table: String, number: i64 },
    #[error(
        "rows of {table} came with a batch that this ledger does not know (_batch is {number}) and count as newer than this run's; the table or the schema etl was copied, restored or made anew; run: UPDATE {table} SET _batch = 0 WHERE NOT EXISTS (SELECT FROM etl.runs r JOIN etl.batches b USING (run_id) WHERE etl.batch_no(r.run_no, b.first_row) = _batch), then approve the run"
    )]
    UnknownNewer { table: String, number: i64 },
    #[error(
        "the staging table {table} is in the ledger and not in the database, so that rows of the run that were waiting there are lost; replay the whole run, then drop this dead letter"
    )]
    StagingGone { table: String },
}

/// The consequence of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Retry in place, soon.
    Retry,
    /// Stop consuming until it works.
    Pause,
    /// The target's fault, or PostgreSQL's: a probe of the ledger decides.
    Target,
    /// The batch does not fit its target: park it for some minutes, since a person may be changing the table; then
    /// dead-letter it.
    Misfit,
    /// Dead-letter it.
    Dead,
}

impl LoadError {
    /// A failure of a statement on a target, for `map_err`. `failure` is a sentence that names the target.
    pub fn target(failure: impl FnOnce() -> String) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Target {
            failure: failure(),
            source,
        }
    }

    /// The failure of a transaction whose statements are on a target.
    pub(crate) fn of_target(error: ledger::Error) -> Self {
        match error {
            ledger::Error::Postgres { failure, source } => Self::Target {
                failure: failure.into_owned(),
                source,
            },
            error => error.into(),
        }
    }

    /// The failure of a transaction that completes a run.
    pub(crate) fn completion(error: ledger::Error) -> Self {
        match error {
            ledger::Error::Postgres { failure, source } => Self::Completion {
                failure: failure.into_owned(),
                source,
            },
            error => error.into(),
        }
    }

    /// The consequence of this failure.
    pub fn verdict(&self) -> Verdict {
        match self {
            // The table fits, and a GRANT is enough: for example, the privilege was revoked during a run.
            Self::Refused(Refused::Target(refusal)) if refusal.fault() == Fault::Role => {
                Verdict::Target
            }
            // A misfit between our own statement and our own tables is a wrong schema, not an error in the message:
            // dead-lettering every message would not help.
            Self::Ledger(ledger::Error::Postgres { source, .. }) => match classify(source) {
                Class::Conflict => Verdict::Retry,
                Class::World | Class::Message | Class::Configuration => Verdict::Pause,
                Class::Row => Verdict::Dead,
            },
            Self::Refused(_)
            | Self::Ledger(
                ledger::Error::Refused(_)
                | ledger::Error::NotAllowed(_)
                | ledger::Error::NotFound(_),
            ) => Verdict::Dead,
            // An obstacle to the commit of a run holds the run. The batch in hand is loaded either way.
            Self::Completion { source, .. } => match classify(source) {
                Class::Conflict => Verdict::Retry,
                Class::World | Class::Row | Class::Message | Class::Configuration => Verdict::Pause,
            },
            Self::Target { source, .. } => match classify(source) {
                Class::Conflict => Verdict::Retry,
                Class::World | Class::Configuration => Verdict::Target,
                Class::Row | Class::Message => Verdict::Misfit,
            },
        }
    }

    /// Whether the failure is of a target, and not of the ledger.
    pub(crate) fn is_of_target(&self) -> bool {
        matches!(
            self,
            Self::Target { .. } | Self::Refused(Refused::Target(_))
        )
    }

    /// Whether it has waited for a lock in vain, for as long as it may.
    pub(crate) fn has_waited_for_a_lock(&self) -> bool {
        let code = self.postgres().and_then(sqlx::Error::as_database_error);
        code.and_then(DatabaseError::code).as_deref() == Some("55P03")
    }

    /// The sentence for the log, with its cause and the remedy, without the values of rows.
    pub fn sentence(&self) -> String {
        match self.postgres() {
            Some(error) => format!("{self}: {}{}", cause(error), remedy(error)),
            None => self.to_string(),
        }
    }

    /// The reason for the ledger, with PostgreSQL's own words.
    pub fn reason(&self) -> Reason {
        let words = self.postgres().map(words).unwrap_or_default();
        Reason::quoting(self.sentence() + &words, self.sentence())
    }

    fn postgres(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Target { source, .. }
            | Self::Completion { source, .. }
            | Self::Ledger(ledger::Error::Postgres { source, .. }) => Some(source),
            Self::Refused(_) | Self::Ledger(_) => None,
        }
    }
}

/// Why a run cannot be committed, for the ledger: PostgreSQL's own words, and the constraint or column at fault.
pub(crate) fn held_because(error: &sqlx::Error) -> String {
    let named = error.as_database_error().map_or_else(String::new, |error| {
        let constraint = error
            .constraint()
            .map(|name| format!(", by the constraint {name}"));
        let table = error.table().map(|name| format!(", in the table {name}"));
        [table, constraint].into_iter().flatten().collect()
    });
    format!(
        "{}{named}{}; nothing of the run was committed: fix the table and approve the run, or discard it{}",
        cause(error),
        remedy(error),
        words(error)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_schema_etl_pauses_and_broken_target_parks() {
        let error: LoadError = sqlx::Error::ColumnNotFound("x".into()).into();
        assert_eq!(error.verdict(), Verdict::Pause);
        let error = LoadError::target(|| "cannot load t".into())(sqlx::Error::RowNotFound);
        assert_eq!(error.verdict(), Verdict::Misfit);
    }
}
