//! What a run is doing, in a line: its phase, the time, the rows, and the time that is left. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use indicatif::HumanBytes;
use tokio::time::Instant;

use super::{brief, number};
use ledger::{Run, RunState};

/// What a run is doing, as far as the ledger knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No extractor has begun.
    Queued,
    /// Athena executes the query.
    Querying,
    /// The result is read, and its end is not known yet.
    Extracting,
    /// The number of rows is known, and some are not in the ledger yet.
    Loading,
    /// Every row is in the ledger.
    Committing,
    /// It is over, or waits for a person.
    Settled(RunState),
}

impl Phase {
    pub fn of(run: &Run) -> Self {
        match (run.state, run.rows_expected) {
            (RunState::Requested, _) => Self::Queued,
            (RunState::Running, None) if run.rows_read == 0 => Self::Querying,
            (RunState::Running, None) => Self::Extracting,
            (RunState::Running, Some(all)) if accounted(run) < all => Self::Loading,
            (RunState::Running, Some(_)) => Self::Committing,
            (state, _) => Self::Settled(state),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Querying => "Athena running",
            Self::Extracting => "extracting",
            Self::Loading => "loading",
            Self::Committing => "committing",
            Self::Settled(state) => state.name(),
        }
    }
}

/// Rows of the run that are loaded, rejected or dropped.
pub fn accounted(run: &Run) -> i64 {
    run.rows_loaded + run.rows_rejected + run.rows_dropped
}

/// The phase with its time, rows and rate. There is no time that is left before the number of rows is known.
pub fn line(run: &Run, rate: Option<f64>) -> String {
    let phase = Phase::of(run);
    let name = phase.name();
    let (elapsed, since_start) = (brief(run.seconds), run.working_seconds.map(brief));
    let rates = rate.map(|rate| format!(", {} rows/s", whole(rate)));
    let rates = rates.unwrap_or_default();
    let [read, loaded, rejected] = [run.rows_read, run.rows_loaded, run.rows_rejected].map(number);
    let rows = format!("extracted {read}, loaded {loaded}, rejected {rejected}");
    match phase {
        Phase::Queued => format!("{name} for {elapsed}"),
        Phase::Querying => {
            let time = since_start.unwrap_or(elapsed);
            let bytes = run.bytes_scanned.filter(|bytes| *bytes > 0);
            let bytes =
                bytes.map(|bytes| format!(", {} scanned", HumanBytes(bytes.unsigned_abs())));
            format!("{name} for {time}{}", bytes.unwrap_or_default())
        }
        Phase::Extracting => format!("{name}: {rows}{rates}, {elapsed} so far"),
        Phase::Loading => {
            let (done, left) = (number(accounted(run)), left(run, rate));
            let left = left.map(|left| format!(", about {} left", brief(left)));
            let left = left.unwrap_or_default();
            let all = number(run.rows_expected.unwrap_or(run.rows_read));
            // What a narrow terminal cuts off comes last.
            format!(
                "{name}: {done} of {all} rows{left}{rates}, {rejected} rejected, {elapsed} so far"
            )
        }
        Phase::Committing => format!("{name}: {loaded} rows, {elapsed} so far"),
        Phase::Settled(_) => format!("{name}: {rows}"),
    }
}

/// The seconds until the rows that are left are loaded, at this rate.
pub fn left(run: &Run, rate: Option<f64>) -> Option<f64> {
    let left = run.rows_expected? - accounted(run);
    let rate = rate.filter(|rate| *rate > 0.0)?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    Some(left.max(0) as f64 / rate)
}

/// `12,345`, without a fraction.
pub fn whole(rate: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a rate is far below the limit"
    )]
    number(rate.round() as i64)
}

/// The rate of the last seconds, from what was seen in them.
#[derive(Debug, Default)]
pub struct Pace(VecDeque<(Instant, i64)>);

impl Pace {
    /// The time that a rate is the average of.
    const WINDOW: Duration = Duration::from_secs(10);

    /// The least time that says something about a rate.
    const MIN: Duration = Duration::from_millis(500);

    /// Adds what is seen now. The rate, once there is one.
    pub fn seen(&mut self, now: Instant, rows: i64) -> Option<f64> {
        // Of a replay, the count begins again.
        if self.0.back().is_some_and(|(_, before)| *before > rows) {
            self.0.clear();
        }
        self.0.push_back((now, rows));
        let is_old = |(at, _): &(Instant, i64)| now.duration_since(*at) > Self::WINDOW;
        while self.0.len() > 2 && self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
        let (at, before) = *self.0.front()?;
        let time = now.duration_since(at);
        #[expect(clippy::cast_precision_loss, reason = "a rate, rounded when shown")]
        (time >= Self::MIN).then(|| (rows - before) as f64 / time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn every_phase_is_a_line_and_only_a_known_total_has_a_time_left() {
        let running = samples::runs().swap_remove(1);
        let querying = Run {
            rows_read: 0,
            ..running.clone()
        };
        let loading = Run {
            batches_expected: Some(39),
            rows_expected: Some(83_760),
            ..running.clone()
        };
        let committing = Run {
            batches: 39,
            rows_loaded: 83_760 - loading.rows_rejected - loading.rows_dropped,
            ..loading.clone()
        };
        let runs = [querying, running, loading, committing];
        let mut lines = vec![line(&samples::runs()[0], None)];
        lines.extend(runs.iter().map(|run| line(run, Some(2_048.4))));
        lines.push(line(&samples::runs()[3], Some(1.0)));
        lines.push(line(&samples::completed(), Some(1.0)));
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn rows_that_do_not_move_have_no_time_left() {
        let blocked = &samples::runs()[2];
        assert!(!line(blocked, Some(0.0)).contains("left"));
        assert!(!line(blocked, None).contains("left"));
        assert!(line(blocked, Some(100.0)).contains("about 20.7 s left"));
    }

    #[test]
    fn pace_is_that_of_the_last_seconds() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut seen = |millis, rows| pace.seen(start + Duration::from_millis(millis), rows);
        assert_eq!(seen(0, 0), None);
        assert_eq!(seen(200, 100), None, "too short to say");
        assert_eq!(seen(1_000, 1_000), Some(1_000.0));
        // What is older than the window does not count.
        assert_eq!(seen(21_000, 1_000), Some(0.0));
        // A replay counts from the beginning.
        assert_eq!(seen(22_000, 10), None);
        assert_eq!(seen(23_000, 20), Some(10.0));
    }
}
