//! Progress: a bar on a terminal, lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::note;

/// The least time between two lines of the same state.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// What was shown last, on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// The state and the text of the last line.
    last: Option<(String, String)>,
    at: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {msg}");
            ProgressBar::new(0).with_style(style.expect("a constant template"))
        });
        let (last, at) = (None, Instant::now());
        Self { bar, last, at }
    }
}

impl Progress {
    /// Shows how much of the total is done, and a text. A new state is a line at once.
    pub fn show(&mut self, done: i64, total: i64, state: &str, text: String) {
        let count = |number| u64::try_from(number).unwrap_or(0);
        if let Some(bar) = &self.bar {
            bar.set_length(count(total));
            bar.set_position(count(done));
            return bar.set_message(text);
        }
        let is_due = match &self.last {
            Some((last, _)) if last != state => true,
            Some((_, last)) => *last != text && self.at.elapsed() > LINE_INTERVAL,
            None => true,
        };
        if is_due {
            note(&text);
            (self.last, self.at) = (Some((state.to_owned(), text)), Instant::now());
        }
    }

    /// Prints a note beside the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Leaves the bar as it is.
    pub fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
