//! What can go wrong with the ledger, and whose fault an error of PostgreSQL is.
//!
//! Source: PostgreSQL documentation, Appendix A, "PostgreSQL Error Codes".

use std::borrow::Cow;

use common::command::Failure;
use sqlx::postgres::PgDatabaseError;

/// A failure to read or change the ledger.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL failed or could not be reached. `failure` is a sentence that says what could not be done.
    #[error("{failure}")]
    Postgres {
        failure: Cow<'static, str>,
        source: sqlx::Error,
    },
    /// A message contradicts the ledger.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The run's state, or what was done to the run meanwhile, does not allow what a person requests.
    #[error("{0}; nothing was changed")]
    NotAllowed(String),
    /// The ledger has nothing of this name.
    #[error("{0}")]
    NotFound(String),
}

impl Error {
    /// The sentence of an error of PostgreSQL unless the transaction around it says a better one.
    const UNSAID: Cow<'static, str> = Cow::Borrowed("cannot read or write the ledger");

    /// A failure of PostgreSQL, for `map_err`.
    pub fn postgres(failure: impl Into<Cow<'static, str>>) -> impl FnOnce(sqlx::Error) -> Self {
        let failure = failure.into();
        move |source| Self::Postgres { failure, source }
    }

    /// Says what could not be done, where the error does not say it yet.
    pub(crate) fn while_doing(self, what: impl FnOnce() -> Cow<'static, str>) -> Self {
        match self {
            Self::Postgres { failure, source } if failure == Self::UNSAID => Self::Postgres {
                failure: what(),
                source,
            },
            said => said,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        Self::Postgres {
            failure: Self::UNSAID,
            source,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(_) => Self::usage(error),
            Error::Postgres { failure, source } if is_denied(&source) => {
                let why = anyhow::anyhow!(
                    "{}; etl doctor names the privileges that the role lacks",
                    cause(&source)
                );
                Self::Failed(why.context(failure))
            }
            Error::Postgres { .. } | Error::Refused(_) | Error::NotAllowed(_) => {
                Self::Failed(error.into())
            }
        }
    }
}

/// What is wrong with a message by what the ledger knows, at any time and for every replica.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "the ledger has no run {run:?}; the message belongs to another database, or this one went back to a time before the request, by a restore or a failover: then request the run again by this name, and run: etl dead replay --run {run}"
    )]
    UnknownRun { run: String },
    #[error(
        "generation {found} of the run is ahead of its live generation {live}; a replay records its generation before it publishes"
    )]
    FutureGeneration { found: u32, live: i32 },
    #[error(
        "the batch {id} is in the ledger with other contents: there its hash is {ledger}, here it is {found}; it was not loaded"
    )]
    OtherContent {
        id: String,
        ledger: String,
        found: String,
    },
    #[error(
        "the batch is of the result {found:?}, and the run's first batch was of {pinned:?}; the query's result changed or two queries ran, and one run holds the rows of one result only"
    )]
    OtherResult { found: String, pinned: String },
    #[error(
        "the batch has the rows from {first_row} to {end} (excluded), and the run's result has {expected} rows; it was not loaded"
    )]
    BeyondResult {
        first_row: u64,
        end: u64,
        expected: i64,
    },
    #[error(
        "the event says that the result has {batches} batches and {rows} rows; another one said {known_batches} and {known_rows}"
    )]
    OtherCount {
        batches: u32,
        rows: u64,
        known_batches: i32,
        known_rows: i64,
    },
    #[error(
        "the batch {id} has the rows from {first_row} to {end} (excluded) of the result, and these {contradiction}; the result was cut into batches in two ways, and rows would be loaded twice or not at all; it was not loaded"
    )]
    OutOfLine {
        id: String,
        first_row: u64,
        end: u64,
        contradiction: String,
    },
    #[error(
        "the batch has another target or other columns than the batches of generation {generation} of the run {run} that are staged; the job changed while the run was under way: replay the whole run, so that all of it is loaded as the job is now"
    )]
    OtherShape { run: String, generation: i32 },
    #[error("{what} is {value}, beyond what the ledger can hold")]
    OutOfRange { what: &'static str, value: u64 },
}

/// Whose fault an error of PostgreSQL is, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Another transaction was in the way: a retry at once may succeed.
    Conflict,
    /// PostgreSQL is away, full, read-only or overloaded: wait until it is not.
    World,
    /// The table does not take a row.
    Row,
    /// The statement does not fit the table.
    Message,
    /// User, password, database.
    Configuration,
}

/// Maps an error to whose fault it is. The one place that decides.
pub fn classify(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Database(error) => error
            .code()
            .map_or(Class::World, |code| classify_state(&code)),
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => Class::Configuration,
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => Class::World,
        // Answers that were not understood: a schema etl of another version, or a bug. sqlx's enum may grow, which forbids a
        // match without this arm.
        _ => Class::Message,
    }
}

/// How the SQLSTATEs of [`Class::Row`] begin: values, constraints, a view's check option, a value that an index does not take for
/// its size, and what a trigger raises. The other limits of class 54 are those of a statement, whatever its rows.
pub(crate) const ROW_FAULTS: [&str; 5] = ["22", "23", "44", "54000", "P0001"];

fn classify_state(code: &str) -> Class {
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        // Serialization failure, deadlock, a lock that was not to be had in time, an old snapshot.
        ("40" | "72", _) | (_, "55P03") => Class::Conflict,
        // Connection, resources (full disk, memory, connections), operator intervention (shutdown, and our own
        // statement_timeout), the system, its configuration, damaged data; a server that became read-only; a transaction that
        // it ended for being idle; a privilege that was there when the target was checked, and is not any more.
        ("08" | "53" | "57" | "58" | "F0", _)
        | (_, "25006" | "25P03" | "25P04" | "42501" | "XX001" | "XX002") => Class::World,
        ("28", _) | (_, "3D000") => Class::Configuration,
        _ if ROW_FAULTS.iter().any(|start| code.starts_with(start)) => Class::Row,
        _ => Class::Message,
    }
}

/// What [`cause`] does not say, since it may quote a row: the end of a sentence for the ledger.
pub fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) if may_quote(&**database) => {
            format!("; PostgreSQL says: {}", database.message())
        }
        _ => String::new(),
    }
}

/// An error's own words, said once, without what may quote a row: for logs.
pub fn cause(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) if may_quote(&**database) => {
            format!(
                "PostgreSQL refused it with SQLSTATE {}",
                database.code().unwrap_or_default()
            )
        }
        sqlx::Error::Database(error) => {
            format!("{} ({})", error.message(), error.code().unwrap_or_default())
        }
        sqlx::Error::PoolTimedOut => {
            "no connection was available: PostgreSQL cannot be reached, or has none left".to_owned()
        }
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Configuration(error) | sqlx::Error::Tls(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Whether a message may quote a value: it is about one, or comes from a function, such as a trigger's, which says what it
/// likes under any SQLSTATE.
fn may_quote(error: &dyn sqlx::error::DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    let is_limit = code.starts_with("54");
    let context = error
        .try_downcast_ref::<PgDatabaseError>()
        .and_then(PgDatabaseError::r#where);
    // A COPY names its place, and has no function's words.
    let mut lines = context.unwrap_or_default().lines();
    (classify_state(&code) == Class::Row && !is_limit)
        || lines.any(|line| !line.starts_with("COPY "))
}

/// Whether the role lacks a privilege.
pub fn is_denied(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.is_some_and(|error| error.code().as_deref() == Some("42501"))
}

/// What a person can do about it, where that is known: the end of a sentence.
pub fn remedy(error: &sqlx::Error) -> &'static str {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .unwrap_or_default();
    match &*code {
        "42P01" | "42703" | "42804" | "42P10" => {
            "; compare the table with the job, then run it again"
        }
        "42501" => "; GRANT it to the loader's role",
        "25006" => {
            "; the server is read-only: make it writable, or see that the address leads to the primary"
        }
        "53100" => "; free disk space on the server",
        "53300" => {
            "; the server has no connection left: raise max_connections or run fewer replicas"
        }
        "55P03" => "; another session holds a lock on it: look in pg_stat_activity",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_that_matters_has_its_class() {
        use Class::{Configuration, Conflict, Message, Row, World};
        for (codes, class) in [
            ("40001 40P01 55P03", Conflict),
            (
                "08000 08006 53100 53200 53300 57014 57P01 57P02 57P03 58030 25006 25P03 42501 XX001",
                World,
            ),
            (
                "22P02 22003 22001 22021 22P04 23502 23503 23505 23514 23P01 54000 P0001",
                Row,
            ),
            (
                "42P01 42703 42804 42P10 0A000 21000 54001 54011 54023 XX000 25P02",
                Message,
            ),
            ("28000 28P01 3D000", Configuration),
        ] {
            for code in codes.split(' ') {
                assert_eq!(classify_state(code), class, "{code}");
            }
        }
    }

    #[test]
    fn errors_without_a_sqlstate_are_the_worlds_fault() {
        assert_eq!(classify(&sqlx::Error::PoolTimedOut), Class::World);
        assert_eq!(
            classify(&sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into())),
            Class::World
        );
        assert_eq!(classify(&sqlx::Error::RowNotFound), Class::Message);
    }
}
