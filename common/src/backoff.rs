//! Pauses between attempts.

use std::time::Duration;

/// The pause before attempt number `attempt`, from 0: doubled each time up to `max`, with jitter, so
/// that replicas do not return all at once.
pub fn backoff(attempt: u32, first: Duration, max: Duration) -> Duration {
    let full = first.saturating_mul(1 << attempt.min(16)).min(max);
    full.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

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
