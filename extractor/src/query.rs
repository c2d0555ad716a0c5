//! Waits for a query execution, and decides what follows from its state.

use std::time::Duration;

use common::job::Source;
use common::message::QueryEnd;
use common::reason::Reason;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::athena::{Athena, Execution, ExecutionState, QueryFailure};
use crate::aws::denial::{self, Denial};
use crate::aws::{AwsError, AwsErrorKind};

/// Attempts at a query that fails for a reason that Athena calls retryable.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// How long the end of a query that was stopped is waited for. Its cost may still grow until then.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A query execution that was started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started<'a> {
    pub(crate) id: &'a str,
    /// Its limits: `timeout` and `max_scanned`.
    pub(crate) source: &'a Source,
    /// From 1.
    pub(crate) attempt: u32,
    /// By the clock of the machine that started it. Only the pace of polling and the timeout depend on it.
    pub(crate) since: Timestamp,
}

/// How waiting for a query ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The query has not ended yet.
    Running,
    /// The result can be read.
    Succeeded,
    /// The query failed; another attempt may succeed.
    Retryable(Reason),
    /// Somebody cancelled the query in Athena.
    Cancelled(Reason),
    /// The query failed, or was stopped since it passed a limit.
    Failed(Reason),
}

/// Polls the query until it ends, stops it when it passes a limit, and returns `Running` after `at_most`. Also returns the
/// execution as it was last seen.
pub(crate) async fn wait(
    athena: &Athena,
    query: Started<'_>,
    at_most: Duration,
) -> Result<(Waited, Execution), AwsError> {
    let begun = Instant::now();
    loop {
        // A caller without time wants one look.
        if at_most > Duration::ZERO {
            sleep(poll_interval(query.age())).await;
        }
        let execution = athena.look(query.id).await?;
        let is_working = execution.state == ExecutionState::Working;
        let waited = judge(&execution, query.source, query.age(), query.attempt);
        if is_working && waited != Waited::Running {
            stop(athena, query.id).await?;
            // Only its cost may be more by now.
            let stopped = stopped(athena, query.id).await.ok().flatten();
            return Ok((waited, stopped.unwrap_or(execution)));
        }
        if waited != Waited::Running || begun.elapsed() >= at_most {
            return Ok((waited, execution));
        }
    }
}

/// Waits as [`wait`] does until the query has ended: the execution, or the reason why it has no result.
pub(crate) async fn wait_to_the_end(
    athena: &Athena,
    query: Started<'_>,
) -> Result<Result<Execution, String>, AwsError> {
    loop {
        match wait(athena, query, Duration::MAX).await? {
            (Waited::Running, _) => {}
            (Waited::Succeeded, execution) => return Ok(Ok(execution)),
            (Waited::Retryable(reason) | Waited::Cancelled(reason) | Waited::Failed(reason), _) => {
                return Ok(Err(reason.text().to_owned()));
            }
        }
    }
}

/// Stops a query. A refusal is only logged: the query may have ended. Other errors are worth a retry, since a running query
/// costs money.
pub(crate) async fn stop(athena: &Athena, id: &str) -> Result<(), AwsError> {
    match athena.stop(id).await {
        Err(error) if error.kind == AwsErrorKind::Refused => {
            tracing::warn!(
                query.id = id,
                error = error.logged(),
                "the query could not be stopped"
            );
        }
        stopped => stopped?,
    }
    Ok(())
}

/// A query that was stopped, with what it has cost, as it is when it has ended or a moment later.
pub(crate) async fn stopped(athena: &Athena, id: &str) -> Result<Option<Execution>, AwsError> {
    let begun = Instant::now();
    loop {
        match athena.look(id).await {
            Ok(execution)
                if execution.state != ExecutionState::Working || begun.elapsed() > STOP_TIMEOUT =>
            {
                return Ok(Some(execution));
            }
            Ok(_) => sleep(poll_interval(begun.elapsed())).await,
            Err(error) if error.kind.is_answer() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// How a query ended that is no longer waited for.
pub(crate) fn end(execution: &Execution) -> QueryEnd {
    match execution.state {
        ExecutionState::Succeeded => QueryEnd::Succeeded,
        ExecutionState::Failed(_) => QueryEnd::Failed,
        ExecutionState::Cancelled(_) | ExecutionState::Working => QueryEnd::Stopped,
    }
}

impl<'a> Started<'a> {
    /// The first attempt, started just now.
    pub(crate) fn now(id: &'a str, source: &'a Source) -> Self {
        Self {
            id,
            source,
            attempt: 1,
            since: Timestamp::now(),
        }
    }

    /// The time since the start of this attempt.
    pub(crate) fn age(&self) -> Duration {
        Duration::try_from(Timestamp::now().duration_since(self.since)).unwrap_or_default()
    }
}

/// What follows from the state of a query. One that is still working has failed when it passed a limit.
fn judge(execution: &Execution, source: &Source, age: Duration, attempt: u32) -> Waited {
    match &execution.state {
        // Before it has done what it does: Athena knows what it is from its start on.
        ExecutionState::Working | ExecutionState::Succeeded if !execution.is_query => {
            Waited::Failed(
                "the statement is not a query: only the results of SELECT, WITH, VALUES and TABLE can be loaded; Athena may have executed it"
                    .to_owned()
                    .into(),
            )
        }
        ExecutionState::Working => {
            let over_limit = over_limit(execution, source, age);
            over_limit.map_or(Waited::Running, |reason| Waited::Failed(reason.into()))
        }
        ExecutionState::Succeeded => Waited::Succeeded,
        ExecutionState::Failed(failure)
            if execution.is_query && failure.is_retryable && attempt < MAX_ATTEMPTS =>
        {
            Waited::Retryable(describe(failure))
        }
        ExecutionState::Failed(failure) => {
            let attempts = match attempt {
                1 => String::new(),
                _ => format!(" at attempt {attempt}"),
            };
            Waited::Failed(describe(failure).after(&format!("the query failed{attempts}: ")))
        }
        // An extractor that stopped it at the limit may have died before it said so.
        ExecutionState::Cancelled(_) if over_limit(execution, source, age).is_some() => {
            let reason = over_limit(execution, source, age).unwrap_or_default();
            Waited::Failed(reason.into())
        }
        ExecutionState::Cancelled(reason) => {
            let cancelled = "the query was cancelled in Athena";
            let hint = hint(denial::of_message(reason));
            let text = format!("{cancelled}: {reason}{hint}");
            Waited::Cancelled(Reason::quoting(text, cancelled))
        }
    }
}

/// What to allow, behind the reason of a refusal.
fn hint(denial: Option<Denial>) -> String {
    denial.map_or_else(String::new, |denial| format!("; {}", denial.remedy))
}

fn over_limit(execution: &Execution, source: &Source, age: Duration) -> Option<String> {
    let scanned = execution.bytes_scanned;
    if let Some(most) = source.max_scanned.filter(|most| scanned > *most) {
        return Some(format!(
            "the query was stopped: it scanned {scanned} bytes, more than max_scanned = {most} of the job; narrow the query, or raise the limit"
        ));
    }
    (age > source.timeout).then(|| {
        let timeout = humantime::format_duration(source.timeout);
        format!(
            "the query was stopped: it did not end within timeout = {timeout} of the job; narrow the query, or raise the limit"
        )
    })
}

/// Athena's reason, which may quote a value, with its classification of the error, which does not.
fn describe(failure: &QueryFailure) -> Reason {
    let category = match failure.category {
        Some(1) => "system",
        Some(2) => "user",
        _ => "other",
    };
    let class = match failure.error_type {
        Some(error_type) => format!("Athena error type {error_type}, {category}"),
        None => format!("Athena error of category {category}"),
    };
    let denial = denial::of_query(&failure.reason, failure.error_type);
    let refused = denial
        .as_ref()
        .map_or_else(String::new, |denial| format!(", refused by {}", denial.by));
    let text = match failure.error_type {
        Some(_) => format!("{} ({class}){}", failure.reason, hint(denial)),
        None => format!("{}{}", failure.reason, hint(denial)),
    };
    Reason::quoting(text, class + &refused)
}

/// The pause before the next poll: short for a new query, since most end quickly, and up to five
/// seconds for an old one. Jitter spreads the polls of the replicas.
fn poll_interval(age: Duration) -> Duration {
    let interval = age
        .mul_f64(0.3)
        .clamp(Duration::from_millis(100), Duration::from_secs(5));
    interval.mul_f64(rand::random_range(0.75..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::job::Results;

    const GB: u64 = 1_000_000_000;

    fn source(max_scanned: Option<u64>) -> Source {
        Source {
            database: "d".into(),
            workgroup: None,
            catalog: None,
            output_location: None,
            results: Results::Auto,
            max_scanned,
            timeout: Duration::from_mins(30),
            ..Source::default()
        }
    }

    fn judged(state: ExecutionState, scanned: u64, minutes: u64, attempt: u32) -> Waited {
        let execution = Execution {
            state,
            bytes_scanned: scanned,
            output_location: None,
            is_query: true,
            reused: false,
            is_client_encrypted: false,
        };
        let age = Duration::from_mins(minutes);
        judge(&execution, &source(Some(10 * GB)), age, attempt)
    }

    fn failed(is_retryable: bool) -> ExecutionState {
        let reason = "line 1:8: Column 'x' cannot be resolved".to_owned();
        ExecutionState::Failed(QueryFailure {
            reason,
            category: Some(2),
            error_type: Some(1006),
            is_retryable,
        })
    }

    #[test]
    fn query_beyond_a_limit_is_stopped() {
        assert_eq!(
            judged(ExecutionState::Working, 10 * GB, 30, 1),
            Waited::Running
        );
        let Waited::Failed(why) = judged(ExecutionState::Working, 10 * GB + 1, 0, 1) else {
            panic!()
        };
        assert!(why.text().contains("max_scanned = 10000000000"), "{why:?}");
        let Waited::Failed(why) = judged(ExecutionState::Working, 0, 31, 1) else {
            panic!()
        };
        assert!(why.text().contains("timeout = 30m"), "{why:?}");
        // Stopped at the limit by an extractor that could not say so.
        let stopped = ExecutionState::Cancelled("by user".into());
        let Waited::Failed(why) = judged(stopped, 10 * GB + 1, 0, 1) else {
            panic!()
        };
        assert!(why.text().contains("max_scanned"), "{why:?}");
        // A query that has ended has cost what it cost, and is not stopped.
        assert!(matches!(
            judged(ExecutionState::Succeeded, 11 * GB, 31, 1),
            Waited::Succeeded
        ));
    }

    #[test]
    fn only_retryable_failures_are_retried_up_to_the_last_attempt() {
        let ended = |state, attempt| judged(state, 0, 0, attempt);
        assert!(matches!(ended(failed(true), 1), Waited::Retryable(_)));
        let Waited::Failed(why) = ended(failed(true), 3) else {
            panic!()
        };
        assert!(why.text().contains("at attempt 3"), "{why:?}");
        let Waited::Failed(why) = ended(failed(false), 1) else {
            panic!()
        };
        assert!(
            why.text().contains("'x' cannot be resolved") && why.text().contains("1006, user"),
            "{why:?}"
        );
        assert_eq!(
            why.logged(),
            "the query failed: Athena error type 1006, user"
        );
        let Waited::Cancelled(why) = ended(ExecutionState::Cancelled("by Eve".into()), 1) else {
            panic!()
        };
        assert!(
            why.text().contains("by Eve") && !why.logged().contains("Eve"),
            "{why:?}"
        );
    }

    #[test]
    fn poll_interval_grows_from_a_tenth_of_a_second_to_five() {
        for (age, least, most) in [(0, 75, 100), (1_000, 225, 300), (60_000, 3_750, 5_000)] {
            let pause = poll_interval(Duration::from_millis(age)).as_millis();
            assert!((least..=most).contains(&pause), "{age}: {pause}");
        }
    }
}
