//! Pauses between attempts, and between the lines that report them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The pause before attempt number `attempt`, from 0: doubled each time up to `max`, with jitter, so
/// that replicas do not return all at once.
pub fn backoff(attempt: u32, first: Duration, max: Duration) -> Duration {
    let full = first.saturating_mul(1 << attempt.min(16)).min(max);
    full.mul_f64(rand::random_range(0.5..1.0))
}

/// The pause before a failure that goes on is logged once more; it doubles up to [`MAX_SILENCE`].
const FIRST_SILENCE: Duration = Duration::from_mins(1);
const MAX_SILENCE: Duration = Duration::from_hours(1);

/// Different failures that are remembered. What alternates between a few is one state.
const MAX_KNOWN: usize = 20;

/// Which failures of attempts that are repeated get a line in the log: each once, and then at growing pauses, however often it
/// is tried.
#[derive(Debug, Default)]
pub struct Repetition(HashMap<String, (Instant, Duration)>);

impl Repetition {
    /// Whether this failure is to be logged now.
    pub fn is_due(&mut self, failure: &str) -> bool {
        self.is_due_at(failure, Instant::now())
    }

    fn is_due_at(&mut self, failure: &str, now: Instant) -> bool {
        let pause = match self.0.get(failure) {
            Some((due, _)) if now < *due => return false,
            Some((_, pause)) => (*pause * 2).min(MAX_SILENCE),
            None => FIRST_SILENCE,
        };
        if self.0.len() >= MAX_KNOWN {
            self.0.clear();
        }
        self.0.insert(failure.to_owned(), (now + pause, pause));
        true
    }

    /// It works: the next failure is news.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failure_is_logged_once_and_then_at_growing_pauses() {
        let (mut repetition, start) = (Repetition::default(), Instant::now());
        let mut logged = |minutes: u64, failure: &str| {
            repetition.is_due_at(failure, start + Duration::from_mins(minutes))
        };
        let due: Vec<_> = (0..200).filter(|minute| logged(*minute, "away")).collect();
        assert_eq!(due, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        // Another failure is news; its alternation with the first is not.
        assert!(logged(200, "full"));
        assert!(!logged(200, "away") && !logged(200, "full"));
        repetition.clear();
        assert!(repetition.is_due_at("away", start + Duration::from_mins(201)));
    }

    #[test]
    fn pauses_grow_to_their_bound() {
        for attempt in [0, 1, 5, 40, u32::MAX] {
            let pause = backoff(attempt, Duration::from_millis(100), Duration::from_secs(5));
            assert!(
                pause >= Duration::from_millis(50) && pause <= Duration::from_secs(5),
                "{attempt}: {pause:?}"
            );
        }
    }
}
