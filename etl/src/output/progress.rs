//! Progress: a bar on a terminal, and few lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::note;

/// What was shown last, on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    lines: Lines,
}

impl Default for Progress {
    fn default() -> Self {
        let bar = || ProgressBar::no_length().with_style(style(None));
        let bar = stderr().is_terminal().then(bar);
        let lines = Lines::default();
        Self { bar, lines }
    }
}

impl Progress {
    /// Shows how much is done, of how much where that is known, and a text. A new phase is a line at once.
    pub fn show(&mut self, done: i64, total: Option<i64>, phase: &str, text: &str) {
        let Some(bar) = &self.bar else {
            if self.lines.is_due(phase, text, Instant::now()) {
                note(text);
            }
            return;
        };
        let count = |number| u64::try_from(number).unwrap_or(0);
        // The text first: each of these calls draws, and no bar stands beside the text of a phase without a total.
        bar.set_message(text.to_owned());
        match total {
            Some(total) => bar.set_length(count(total)),
            None => bar.unset_length(),
        }
        bar.set_style(style(total));
        bar.set_position(count(done));
        bar.tick();
    }

    /// Prints a note beside the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Leaves the bar as it is.
    pub fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn style(total: Option<i64>) -> ProgressStyle {
    ProgressStyle::with_template(template(total)).expect("a constant template")
}

/// Without a total there is no bar: what share of it is done is unknown.
fn template(total: Option<i64>) -> &'static str {
    match total {
        Some(_) => "{bar:16} {wide_msg}",
        None => "{spinner} {wide_msg}",
    }
}

/// When the next text is printed where there is no terminal: a new phase at once, and of a phase that lasts less and less.
#[derive(Debug, Default)]
pub struct Lines {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    phase: String,
    text: String,
    at: Instant,
    pause: Duration,
}

impl Lines {
    const FIRST_PAUSE: Duration = Duration::from_secs(2);
    const LONGEST_PAUSE: Duration = Duration::from_mins(1);

    /// Whether this text is to be printed now.
    pub fn is_due(&mut self, phase: &str, text: &str, now: Instant) -> bool {
        let pause = match &self.last {
            Some(last) if last.phase == phase => {
                if last.text == text || now.duration_since(last.at) < last.pause {
                    return false;
                }
                (last.pause * 2).min(Self::LONGEST_PAUSE)
            }
            _ => Self::FIRST_PAUSE,
        };
        let (phase, text, at) = (phase.to_owned(), text.to_owned(), now);
        self.last = Some(Last {
            phase,
            text,
            at,
            pause,
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_bar_before_there_is_a_total() {
        assert!(!template(None).contains("bar"));
        assert!(template(Some(1)).contains("bar"));
    }

    #[test]
    fn phase_that_lasts_is_printed_less_and_less() {
        let (start, mut lines) = (Instant::now(), Lines::default());
        let mut printed = Vec::new();
        for second in 0..400 {
            let now = start + Duration::from_secs(second);
            if lines.is_due("loading", &second.to_string(), now) {
                printed.push(second);
            }
        }
        assert_eq!(printed, [0, 2, 6, 14, 30, 62, 122, 182, 242, 302, 362]);
        let now = start + Duration::from_secs(400);
        assert!(lines.is_due("committing", "399", now), "a new phase");
        let now = start + Duration::from_secs(500);
        assert!(!lines.is_due("committing", "399", now), "the same text");
    }
}
