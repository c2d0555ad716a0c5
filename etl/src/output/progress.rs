//! The progress of a run that is followed: bars on a terminal, lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{note, number};
use ledger::{Run, RunState};

/// How long a run may stay requested before a note says what may be wrong.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The least time between two lines of the same state.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// What is shown of a run.
pub struct Progress {
    bars: Option<Bars>,
    started: Instant,
    is_warned: bool,
    last: Option<(RunState, [i64; 3])>,
    last_at: Instant,
}

struct Bars {
    all: MultiProgress,
    /// Of the extracted, the loaded and the rejected rows.
    each: [ProgressBar; 3],
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let each = ["extracted", "loaded", "rejected"].map(|name| {
            let template = "{prefix:>10} {wide_bar} {human_pos:>12} of {human_len} rows";
            let style = ProgressStyle::with_template(template).expect("a constant template");
            all.add(ProgressBar::new(0).with_style(style).with_prefix(name))
        });
        Self { all, each }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            bars: stderr().is_terminal().then(Bars::new),
            started: Instant::now(),
            is_warned: false,
            last: None,
            last_at: Instant::now(),
        }
    }
}

impl Progress {
    /// Shows how far the run is.
    pub fn show(&mut self, run: &Run) {
        let rows = [run.rows_read, run.rows_loaded, run.rows_rejected];
        if let Some(bars) = &self.bars {
            let count = |rows| u64::try_from(rows).unwrap_or(0);
            for (bar, rows) in bars.each.iter().zip(rows) {
                bar.set_length(count(run.rows_expected.unwrap_or(run.rows_read)));
                bar.set_position(count(rows));
            }
        } else {
            self.line(run.state, rows);
        }
        if run.state == RunState::Requested
            && !self.is_warned
            && self.started.elapsed() > START_TIMEOUT
        {
            let text = "the run has not started yet; check that an extractor and a loader run, on the same broker and database";
            match &self.bars {
                Some(bars) => bars.all.suspend(|| note(text)),
                None => note(text),
            }
            self.is_warned = true;
        }
    }

    fn line(&mut self, state: RunState, rows: [i64; 3]) {
        let is_due = match &self.last {
            None => true,
            Some((last, _)) if *last != state => true,
            Some((_, last)) => *last != rows && self.last_at.elapsed() > LINE_INTERVAL,
        };
        if is_due {
            let [extracted, loaded, rejected] = rows.map(number);
            note(&format!(
                "{state}: extracted {extracted}, loaded {loaded}, rejected {rejected}"
            ));
            (self.last, self.last_at) = (Some((state, rows)), Instant::now());
        }
    }

    /// Leaves the bars as they are.
    pub fn close(&self) {
        for bar in self.bars.iter().flat_map(|bars| &bars.each) {
            bar.abandon();
        }
    }
}
