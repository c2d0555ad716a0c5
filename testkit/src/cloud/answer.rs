//! The course of a query: the states it shows, one per poll, its end, and its result.

use std::time::Duration;

use super::result::{Column, ResultSet};

/// A state of a query execution, in Athena's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl QueryState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// `Status.AthenaError` of a failed query (Athena user guide, "Athena error catalog").
#[derive(Clone, Debug)]
pub struct AthenaError {
    /// 1 system, 2 user, 3 other.
    pub category: i32,
    pub error_type: i32,
    pub retryable: bool,
    pub message: String,
}

#[derive(Clone, Debug)]
pub(crate) enum End {
    Succeeded,
    Failed(AthenaError),
    Cancelled(String),
    /// The state of the last poll is shown for ever.
    Never(QueryState),
    /// StartQueryExecution itself answers with `InvalidRequestException`.
    Refused(String),
}

/// The course of one query. By default: one poll QUEUED, one RUNNING, then SUCCEEDED.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(crate) result: ResultSet,
    pub(crate) polls: Vec<QueryState>,
    pub(crate) end: End,
    pub(crate) scanned: u64,
    pub(crate) grows: bool,
    pub(crate) at_least: Duration,
    pub(crate) header: bool,
    pub(crate) empty_last_page: bool,
    pub(crate) substatement: &'static str,
}

impl Answer {
    /// Succeeds with this result.
    pub fn rows(result: ResultSet) -> Self {
        Self {
            result,
            polls: vec![QueryState::Queued, QueryState::Running],
            end: End::Succeeded,
            scanned: 1_234_567,
            grows: false,
            at_least: Duration::ZERO,
            header: true,
            empty_last_page: false,
            substatement: "SELECT",
        }
    }

    fn without_result(end: End) -> Self {
        Self {
            end,
            ..Self::rows(ResultSet::empty(vec![Column::new("none", "varchar")]))
        }
    }

    /// Ends FAILED, with the error's message as `StateChangeReason` too.
    pub fn failed(error: AthenaError) -> Self {
        Self::without_result(End::Failed(error))
    }

    /// FAILED by an error in the query (category 2, type 1006): another attempt cannot succeed.
    pub fn failed_by_user(message: &str) -> Self {
        Self::failed(AthenaError {
            category: 2,
            error_type: 1006,
            retryable: false,
            message: message.to_owned(),
        })
    }

    /// FAILED by an error of Athena (category 1, type 1402): another attempt with another token may succeed.
    pub fn failed_by_system(message: &str) -> Self {
        Self::failed(AthenaError {
            category: 1,
            error_type: 1402,
            retryable: true,
            message: message.to_owned(),
        })
    }

    /// Ends CANCELLED, as by the StopQueryExecution of another client.
    pub fn cancelled(reason: &str) -> Self {
        Self::without_result(End::Cancelled(reason.to_owned()))
    }

    /// Stays QUEUED until it is stopped.
    pub fn queued_for_ever() -> Self {
        Self::without_result(End::Never(QueryState::Queued)).polls(&[])
    }

    /// Stays RUNNING until it is stopped.
    pub fn running_for_ever() -> Self {
        Self::without_result(End::Never(QueryState::Running)).polls(&[])
    }

    /// StartQueryExecution refuses it, as Athena does with SQL that it cannot parse.
    pub fn refused(message: &str) -> Self {
        Self::without_result(End::Refused(message.to_owned()))
    }

    /// Athena's `SubstatementType`; `SELECT` by default.
    #[must_use]
    pub fn substatement(mut self, name: &'static str) -> Self {
        self.substatement = name;
        self
    }

    /// The states that the first polls see, one each, before the end.
    #[must_use]
    pub fn polls(mut self, states: &[QueryState]) -> Self {
        self.polls = states.to_vec();
        self
    }

    /// SUCCEEDED (or its other end) at the first poll.
    #[must_use]
    pub fn at_once(self) -> Self {
        self.polls(&[])
    }

    /// RUNNING for at least this long after the start, whatever the polls.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.at_least = time;
        self
    }

    /// `Statistics.DataScannedInBytes`, shown from the first RUNNING on.
    #[must_use]
    pub fn scanned(mut self, bytes: u64) -> Self {
        self.scanned = bytes;
        self
    }

    /// While it is RUNNING, what was scanned grows with the time of [`Self::after`].
    #[must_use]
    pub fn scanning(mut self) -> Self {
        self.grows = true;
        self
    }

    /// The first page has no header row, as for SHOW and DESCRIBE.
    #[must_use]
    pub fn without_header(mut self) -> Self {
        self.header = false;
        self
    }

    /// The last page of rows has a token, and the page behind it is empty.
    #[must_use]
    pub fn with_empty_last_page(mut self) -> Self {
        self.empty_last_page = true;
        self
    }
}
