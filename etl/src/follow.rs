//! Looks on while a run goes: bars on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};

use crate::Failure;
use crate::books::{Books, Run};
use crate::report::note;

/// How often the books are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How long a run may wait for an extractor before the user is told what may be wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why following ended.
pub(crate) enum End {
    /// The run is over, or waits for a person: it is held, or one of its messages was given up.
    There(Run),
    /// So long was waited, and the run goes on.
    TooLong(Run, Duration),
}

impl End {
    /// Whether the replay that was followed was given up. The run may be complete all the same, as it was before.
    pub(crate) fn is_given_up(&self) -> bool {
        let (Self::There(run) | Self::TooLong(run, _)) = self;
        run.replay_given_up.is_some()
    }
}

/// Follows a run until it is over or waits for a person, or for as long as `patience` says.
pub(crate) async fn to_the_end(
    books: &Books,
    run: &str,
    patience: Option<Duration>,
) -> Result<End, Failure> {
    let mut view = if stderr().is_terminal() {
        View::bars()
    } else {
        View::lines()
    };
    let started = Instant::now();
    let mut warned = false;
    loop {
        let state = books.exactly(run).await?;
        view.show(&state);
        if state.is_over() || state.waits_for_a_person() {
            view.close();
            return Ok(End::There(state));
        }
        if let Some(patience) = patience.filter(|patience| started.elapsed() >= *patience) {
            view.close();
            return Ok(End::TooLong(state, patience));
        }
        if state.state == "requested" && !warned && started.elapsed() > PATIENCE {
            view.say("nothing has happened yet; are an extractor and a loader running, on the same broker and database?");
            warned = true;
        }
        sleep(LOOK).await;
    }
}

enum View {
    Bars {
        all: MultiProgress,
        extracted: ProgressBar,
        loaded: ProgressBar,
        rejected: ProgressBar,
    },
    Lines {
        last: Option<(String, i64, i64, i64)>,
        at: Instant,
    },
}

impl View {
    fn bars() -> Self {
        let all = MultiProgress::new();
        let bar = |name: &'static str| {
            let template = "{prefix:>10} {wide_bar} {human_pos:>12} of {human_len} rows";
            let style = ProgressStyle::with_template(template).expect("a constant template");
            all.add(ProgressBar::new(0))
                .with_style(style)
                .with_prefix(name)
        };
        let (extracted, loaded, rejected) = (bar("extracted"), bar("loaded"), bar("rejected"));
        Self::Bars {
            all,
            extracted,
            loaded,
            rejected,
        }
    }

    fn lines() -> Self {
        Self::Lines {
            last: None,
            at: Instant::now(),
        }
    }

    fn show(&mut self, run: &Run) {
        match self {
            Self::Bars {
                extracted,
                loaded,
                rejected,
                ..
            } => {
                let total = run.rows_expected.unwrap_or(run.rows_read);
                for (bar, rows) in [
                    (extracted, run.rows_read),
                    (loaded, run.rows_loaded),
                    (rejected, run.rows_rejected),
                ] {
                    bar.set_length(count(total));
                    bar.set_position(count(rows));
                }
            }
            Self::Lines { last, at } => {
                let now = (
                    run.state.clone(),
                    run.rows_read,
                    run.rows_loaded,
                    run.rows_rejected,
                );
                let same_state = last.as_ref().is_some_and(|(state, ..)| *state == run.state);
                if last.as_ref() != Some(&now)
                    && (!same_state || at.elapsed() > Duration::from_secs(2))
                {
                    let number = |rows| HumanCount(count(rows));
                    note(&format!(
                        "{}: extracted {}, loaded {}, rejected {}",
                        run.state,
                        number(now.1),
                        number(now.2),
                        number(now.3)
                    ));
                    (*last, *at) = (Some(now), Instant::now());
                }
            }
        }
    }

    fn say(&self, text: &str) {
        match self {
            Self::Bars { all, .. } => all.suspend(|| note(text)),
            Self::Lines { .. } => note(text),
        }
    }

    fn close(&self) {
        if let Self::Bars {
            extracted,
            loaded,
            rejected,
            ..
        } = self
        {
            for bar in [extracted, loaded, rejected] {
                bar.abandon();
            }
        }
    }
}

fn count(rows: i64) -> u64 {
    u64::try_from(rows).unwrap_or(0)
}
