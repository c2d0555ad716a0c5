//! What decides the outcome of an error of Postgres: one exhaustive function over the SQLSTATE, and
//! what it means depending on whose tables the statement was about. Pure.
//!
//! Source: PostgreSQL documentation, Appendix A, "PostgreSQL Error Codes".

use common::queue::Unreadable;

use crate::ddl::Refusal;

/// Whose fault an error is, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody else was in the way: trying again at once may do.
    Conflict,
    /// Postgres is away, full, read-only or overloaded: wait until it is not.
    World,
    /// A row that this table does not take.
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
        sqlx::Error::Configuration(_) => Class::Configuration,
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => Class::World,
        // Answers that were not understood: a schema etl of another version, or a bug. sqlx's enum
        // may grow, which forbids a match without this arm.
        _ => Class::Message,
    }
}

fn classify_state(code: &str) -> Class {
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        // Serialization failure, deadlock, a lock that was not to be had in time, an old snapshot.
        ("40" | "72", _) | (_, "55P03") => Class::Conflict,
        // Connection, resources (full disk, memory, connections), operator intervention (shutdown,
        // and our own statement_timeout), the system, its configuration, damaged data; a server that
        // became read-only; a transaction that it ended for being idle; a privilege that was there when
        // the target was checked, and is not any more.
        ("08" | "53" | "57" | "58" | "F0", _)
        | (_, "25006" | "25P03" | "25P04" | "42501" | "XX001" | "XX002") => Class::World,
        ("28", _) | (_, "3D000") => Class::Configuration,
        // Values, constraints, a view's check option, a size that an index does not take, and what a
        // trigger raises.
        ("22" | "23" | "44" | "54", _) | (_, "P0001") => Class::Row,
        _ => Class::Message,
    }
}

/// A failure to load a batch, or to write an event into the books.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the books in schema etl could not be {doing}")]
    Books {
        doing: &'static str,
        source: sqlx::Error,
    },
    #[error("the target {table} could not be {doing}")]
    Target {
        table: String,
        doing: &'static str,
        source: sqlx::Error,
    },
    #[error("the run {run} could not be completed")]
    Completion { run: String, source: sqlx::Error },
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What is wrong with a message, whoever handles it, and at any time.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Target(#[from] Refusal),
    #[error(
        "no run {run:?} is in the books; etl run writes it there before it publishes, so that this message belongs to another database or to nobody"
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
        "the batch has seq {seq}, and the run's result has {expected} batches; it was not loaded"
    )]
    BeyondResult { seq: u32, expected: i32 },
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
        "Postgres stored {stored} of the {sent} rows that it took for {table}; a trigger or a rule drops rows there, and dropped rows would be lost: disable it for the loader's role"
    )]
    RowsVanished {
        table: String,
        sent: u64,
        stored: u64,
    },
    #[error(
        "rows of {table} came with a batch that these books do not know (_batch is {number}) and would win over rows of this one, as if they were newer; the table or the schema etl was copied, restored or made anew; run: UPDATE {table} SET _batch = 0 WHERE NOT EXISTS (SELECT FROM etl.runs r JOIN etl.batches b USING (run_id) WHERE (r.run_no << 24 | b.seq) = _batch), then replay this batch; it was not loaded"
    )]
    UnknownWinner { table: String, number: i64 },
    #[error(
        "rows of {table} came with a batch that these books do not know (_batch is {number}) and count as newer than this run's; the table or the schema etl was copied, restored or made anew; run: UPDATE {table} SET _batch = 0 WHERE NOT EXISTS (SELECT FROM etl.runs r JOIN etl.batches b USING (run_id) WHERE (r.run_no << 24 | b.seq) = _batch), then approve the run"
    )]
    UnknownNewer { table: String, number: i64 },
    #[error(
        "the batch {id} has the rows from {first_row} to {end} (excluded) of the result, which {contradiction}; the result was cut into batches in two ways, and rows would be loaded twice or not at all; it was not loaded"
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
    #[error(
        "the staging table {table} is in the books and not in the database, so that rows of the run that were waiting there are lost; replay the whole run, then drop this dead letter"
    )]
    StagingGone { table: String },
    #[error("{what} is {value}, beyond what the books can hold")]
    OutOfRange { what: &'static str, value: u64 },
    #[error(
        "it was delivered {deliveries} times and never finished: whoever handles it seems to die of it"
    )]
    Poison { deliveries: u32 },
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again in place, soon.
    Retry,
    /// Stop consuming until it works.
    Pause,
    /// Try again in place a few times, since somebody may be changing the table right now; then
    /// dead-letter it.
    RetryThenDead,
    /// Dead-letter it.
    Dead,
}

impl LoadError {
    /// A failure of a statement about the books, for `map_err`.
    pub fn books(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Books { doing, source }
    }

    /// A failure of a statement about a target.
    pub fn target(table: impl Into<String>, doing: &'static str, source: sqlx::Error) -> Self {
        Self::Target {
            table: table.into(),
            doing,
            source,
        }
    }

    /// What to do about it.
    pub fn verdict(&self) -> Verdict {
        match self {
            // The table is fit, and a GRANT is all that it takes: as when the privilege is lost under way.
            Self::Refused(Refused::Target(Refusal::MayNotWrite { .. })) => Verdict::Pause,
            Self::Refused(_) => Verdict::Dead,
            // A statement of our own that does not fit our own tables is a wrong schema, whatever
            // the message: dead-lettering every message would help nobody.
            Self::Books { source, .. } => match classify(source) {
                Class::Conflict => Verdict::Retry,
                Class::World | Class::Message | Class::Configuration => Verdict::Pause,
                Class::Row => Verdict::Dead,
            },
            // What speaks against publishing a run holds it. Whatever else it is, the batch that is in
            // hand is loaded and not to blame.
            Self::Completion { source, .. } => match classify(source) {
                Class::Conflict => Verdict::Retry,
                Class::World | Class::Row | Class::Message | Class::Configuration => Verdict::Pause,
            },
            Self::Target { source, .. } => match classify(source) {
                Class::Conflict => Verdict::Retry,
                Class::World | Class::Configuration => Verdict::Pause,
                Class::Row | Class::Message => Verdict::RetryThenDead,
            },
        }
    }

    /// The sentence for a dead letter or the log, with its cause and what to do now. Values of rows,
    /// which Postgres puts into details, are not in it.
    pub fn sentence(&self) -> String {
        match self {
            Self::Refused(refused) => refused.to_string(),
            Self::Books { source, .. }
            | Self::Target { source, .. }
            | Self::Completion { source, .. } => {
                format!("{self}: {}{}", cause(source), remedy(source))
            }
        }
    }
}

/// An error's own words, said once, without what may quote a row.
pub(crate) fn cause(error: &sqlx::Error) -> String {
    match error {
        // Messages of these two classes quote values.
        sqlx::Error::Database(error)
            if classify_state(&error.code().unwrap_or_default()) == Class::Row =>
        {
            format!(
                "Postgres refused it with SQLSTATE {}",
                error.code().unwrap_or_default()
            )
        }
        sqlx::Error::Database(error) => {
            format!("{} ({})", error.message(), error.code().unwrap_or_default())
        }
        sqlx::Error::PoolTimedOut => {
            "no connection was to be had: Postgres cannot be reached, or has none left".to_owned()
        }
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Configuration(error) | sqlx::Error::Tls(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Why a run could not be published, with what is to blame and without a row's values.
pub(crate) fn held_because(error: &sqlx::Error) -> String {
    let named = error.as_database_error().map_or_else(String::new, |error| {
        let constraint = error
            .constraint()
            .map(|name| format!(", by the constraint {name}"));
        let table = error.table().map(|name| format!(", in the table {name}"));
        [table, constraint].into_iter().flatten().collect()
    });
    format!(
        "{}{named}{}; nothing of the run was published: mend the table and approve the run, or discard it",
        cause(error),
        remedy(error)
    )
}

/// What a person can do, where that is known.
fn remedy(error: &sqlx::Error) -> &'static str {
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
        "55P03" => "; somebody holds a lock on it: look in pg_stat_activity",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_that_matters_is_somebodys_fault() {
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
            ("42P01 42703 42804 42P10 0A000 21000 XX000 25P02", Message),
            ("28000 28P01 3D000", Configuration),
        ] {
            for code in codes.split(' ') {
                assert_eq!(classify_state(code), class, "{code}");
            }
        }
    }

    #[test]
    fn what_is_not_sqlstate_is_the_worlds() {
        assert_eq!(classify(&sqlx::Error::PoolTimedOut), Class::World);
        assert_eq!(
            classify(&sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into())),
            Class::World
        );
        assert_eq!(classify(&sqlx::Error::RowNotFound), Class::Message);
    }

    #[test]
    fn a_broken_schema_etl_pauses_and_fills_no_dead_letters() {
        let error = LoadError::Books {
            doing: "read",
            source: sqlx::Error::ColumnNotFound("x".into()),
        };
        assert_eq!(error.verdict(), Verdict::Pause);
        let error = LoadError::Target {
            table: "t".into(),
            doing: "loaded",
            source: sqlx::Error::RowNotFound,
        };
        assert_eq!(error.verdict(), Verdict::RetryThenDead);
    }
}
