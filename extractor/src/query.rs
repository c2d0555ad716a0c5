//! What to do about a query, given how it stands: pure decisions and their sentences.

use std::time::Duration;

use common::job::{Results, Source};

use crate::athena::{Execution, ExecutionState, QueryFailure};

/// Attempts at a query that fails for a reason that Athena itself calls passing.
const ATTEMPTS: u32 = 3;

/// What follows from how a query stands. The texts are for the run's books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Look again later.
    Wait,
    /// Stop it, and fail the run.
    Stop(String),
    /// Its result can be read.
    Read,
    /// Start another attempt.
    Again(String),
    /// Fail the run.
    Fail(String),
}

/// `waited`: since the start of this attempt, the first being 1.
pub(crate) fn judge(
    execution: &Execution,
    source: &Source,
    waited: Duration,
    attempt: u32,
) -> Verdict {
    match &execution.state {
        ExecutionState::Succeeded if execution.is_query => Verdict::Read,
        ExecutionState::Succeeded => Verdict::Fail(
            "the statement is no query: only the results of SELECT and WITH can be loaded".into(),
        ),
        ExecutionState::Failed(failure) if failure.is_retryable && attempt < ATTEMPTS => {
            Verdict::Again(describe(failure))
        }
        ExecutionState::Failed(failure) => {
            let attempts = if attempt > 1 {
                format!(", at attempt {attempt}")
            } else {
                String::new()
            };
            Verdict::Fail(format!(
                "Athena failed the query{attempts}: {}",
                describe(failure)
            ))
        }
        ExecutionState::Cancelled(reason) => {
            Verdict::Fail(format!("the query was cancelled in Athena: {reason}"))
        }
        ExecutionState::Working => {
            over_limit(execution, source, waited).map_or(Verdict::Wait, Verdict::Stop)
        }
    }
}

fn over_limit(execution: &Execution, source: &Source, waited: Duration) -> Option<String> {
    let scanned = execution.bytes_scanned;
    if let Some(most) = source.max_scanned.filter(|most| scanned > *most) {
        return Some(format!(
            "the query was stopped: it had scanned {scanned} bytes, more than max_scanned = {most} of the job; narrow the query, or raise the limit"
        ));
    }
    (waited > source.timeout).then(|| {
        let timeout = humantime::format_duration(source.timeout);
        format!(
            "the query was stopped: it had not ended after timeout = {timeout} of the job; narrow the query, or raise the limit"
        )
    })
}

/// Athena's own reason, and what kind of error it says it is.
fn describe(failure: &QueryFailure) -> String {
    let category = match failure.category {
        Some(1) => "system",
        Some(2) => "user",
        _ => "other",
    };
    match failure.error_type {
        Some(error_type) => format!(
            "{} (Athena error type {error_type}, {category})",
            failure.reason
        ),
        None => failure.reason.clone(),
    }
}

/// The pause before looking again: short for a query that has just begun, since most are quick, and
/// five seconds for one that takes long. With jitter, so that replicas do not ask all at once.
pub(crate) fn pause(waited: Duration) -> Duration {
    let pause = waited
        .mul_f64(0.3)
        .clamp(Duration::from_millis(100), Duration::from_secs(5));
    pause.mul_f64(rand::random_range(0.75..1.0))
}

/// The location in S3 to read the result from, or none to read its pages.
pub(crate) fn choose(
    results: Results,
    location: Option<String>,
) -> Result<Option<String>, &'static str> {
    match (results, location) {
        (Results::Api, _) | (Results::Auto, None) => Ok(None),
        (Results::Auto | Results::S3, Some(location)) => Ok(Some(location)),
        (Results::S3, None) => Err(
            "the job says results = \"s3\", and the workgroup keeps results itself (managed query results); say \"auto\" or \"api\"",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        }
    }

    fn judged(state: ExecutionState, scanned: u64, minutes: u64, attempt: u32) -> Verdict {
        let execution = Execution {
            state,
            bytes_scanned: scanned,
            output_location: None,
            is_query: true,
        };
        judge(
            &execution,
            &source(Some(10 * GB)),
            Duration::from_mins(minutes),
            attempt,
        )
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
    fn a_query_is_stopped_beyond_its_limits_and_not_before() {
        assert_eq!(
            judged(ExecutionState::Working, 10 * GB, 30, 1),
            Verdict::Wait
        );
        let Verdict::Stop(why) = judged(ExecutionState::Working, 10 * GB + 1, 0, 1) else {
            panic!()
        };
        assert!(why.contains("max_scanned = 10000000000"), "{why}");
        let Verdict::Stop(why) = judged(ExecutionState::Working, 0, 31, 1) else {
            panic!()
        };
        assert!(why.contains("timeout = 30m"), "{why}");
        // What it cost is spent when it has ended.
        assert_eq!(
            judged(ExecutionState::Succeeded, 11 * GB, 31, 1),
            Verdict::Read
        );
    }

    #[test]
    fn only_what_athena_calls_retryable_is_asked_again_and_not_for_ever() {
        assert!(matches!(judged(failed(true), 0, 0, 1), Verdict::Again(_)));
        assert!(matches!(judged(failed(true), 0, 0, 3), Verdict::Fail(_)));
        let Verdict::Fail(why) = judged(failed(false), 0, 0, 1) else {
            panic!()
        };
        assert!(
            why.contains("'x' cannot be resolved") && why.contains("1006, user"),
            "{why}"
        );
        let cancelled = ExecutionState::Cancelled("by Eve".into());
        let Verdict::Fail(why) = judged(cancelled, 0, 0, 1) else {
            panic!()
        };
        assert!(why.contains("by Eve"), "{why}");
    }

    #[test]
    fn a_result_is_read_from_s3_where_it_is_there() {
        let location = || Some("s3://b/k".to_owned());
        assert_eq!(choose(Results::Auto, location()), Ok(location()));
        assert_eq!(choose(Results::S3, location()), Ok(location()));
        assert_eq!(choose(Results::Api, location()), Ok(None));
        assert_eq!(choose(Results::Auto, None), Ok(None));
        assert!(choose(Results::S3, None).is_err());
    }

    #[test]
    fn pauses_grow_from_a_tenth_of_a_second_to_five() {
        for (waited, least, most) in [(0, 75, 100), (1_000, 225, 300), (60_000, 3_750, 5_000)] {
            let pause = pause(Duration::from_millis(waited)).as_millis();
            assert!((least..=most).contains(&pause), "{waited}: {pause}");
        }
    }
}
