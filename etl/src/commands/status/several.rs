//! Several watched runs: a line each, with the phase and the rate of the last seconds. Pure.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::follow::is_complete;
use crate::output::phase::{Pace, Phase, accounted, left, whole};
use crate::output::run::state;
use crate::output::{Narrow, Terminal, brief, number, table_within};
use ledger::Run;

/// The runs as they were seen last, by number, and the pace of each.
#[derive(Default)]
pub(super) struct Several(BTreeMap<i64, Watched>);

struct Watched {
    run: Run,
    pace: Pace,
    rate: Option<f64>,
}

impl Several {
    /// Takes the runs as they are now. A run that was seen stays.
    pub(super) fn look(&mut self, runs: impl IntoIterator<Item = Run>, now: Instant) {
        for run in runs {
            let seen = self.0.remove(&run.run_no);
            let mut pace = seen.map(|seen| seen.pace).unwrap_or_default();
            let rate = pace.seen(now, accounted(&run));
            self.0.insert(run.run_no, Watched { run, pace, rate });
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let names = self.0.values().map(|one| one.run.run_id.clone());
        names.collect()
    }

    /// Whether no run is open or held.
    pub(super) fn are_over(&self) -> bool {
        self.0.values().all(|one| one.run.state.is_over())
    }

    pub(super) fn are_complete(&self) -> bool {
        self.0.values().all(|one| is_complete(&one.run))
    }

    /// The phases of all runs: when they change, there is something to say.
    pub(super) fn phases(&self) -> String {
        let phases = self.0.values().map(|one| Phase::of(&one.run).name());
        phases.collect::<Vec<_>>().join(" ")
    }

    /// A line a run, in the order of their requests.
    pub(super) fn text(&self, terminal: Terminal) -> String {
        if self.0.is_empty() {
            return "no run is open or held".to_owned();
        }
        let header = [
            "run", "job", "state", "phase", "rows", "rejected", "rows/s", "left", "time",
        ];
        let rows: Vec<_> = self.0.values().map(Watched::row).collect();
        let narrow = Narrow {
            // The job is most often the beginning of the run's name.
            cut: Some(1),
            spare: &[5, 6, 8, 1],
        };
        table_within(terminal, &header, 4..9, &rows, &narrow).to_string()
    }
}

impl Watched {
    fn row(&self) -> Vec<String> {
        let run = &self.run;
        let is_settled = matches!(Phase::of(run), Phase::Settled(_));
        let moves = |text: Option<String>| text.filter(|_| !is_settled).unwrap_or_default();
        vec![
            run.run_id.clone(),
            run.job.clone(),
            state(run),
            moves(Some(Phase::of(run).name().to_owned())),
            done(run),
            number(run.rows_rejected),
            moves(self.rate.map(whole)),
            moves(left(run, self.rate).map(brief)),
            brief(run.seconds),
        ]
    }
}

/// The rows that are done, of how many where that is known.
fn done(run: &Run) -> String {
    let done = number(accounted(run));
    match run.rows_expected {
        Some(all) => format!("{done} of {}", number(all)),
        None => done,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::output::samples;

    /// The runs of all states, of which the second loaded 500 rows in a second.
    fn watched() -> Several {
        let (start, mut several) = (Instant::now(), Several::default());
        let numbered = samples::runs().into_iter().zip(1..);
        let runs = numbered.map(|(run, run_no)| Run { run_no, ..run });
        let before: Vec<_> = runs.collect();
        let mut now = before.clone();
        now[1].rows_loaded += 500;
        now[2].rows_loaded += 100;
        several.look(before, start);
        several.look(now, start + Duration::from_secs(1));
        several
    }

    #[test]
    fn every_run_is_a_line_within_the_terminal() {
        for width in [120, 80] {
            let terminal = Terminal {
                width: Some(width),
                ..Terminal::default()
            };
            let shown = watched().text(terminal);
            assert!(
                shown
                    .lines()
                    .all(|line| line.chars().count() <= width.into()),
                "{shown}"
            );
            let lines = shown.lines().map(str::trim_end);
            let shown = lines.collect::<Vec<_>>().join("\n");
            insta::assert_snapshot!(format!("several_{width}"), shown);
        }
    }

    #[test]
    fn watch_ends_when_no_run_is_open_or_held() {
        let mut several = watched();
        assert!(!several.are_over());
        let over = several.names().into_iter().zip(1..);
        let over: Vec<_> = over
            .map(|(run_id, run_no)| Run {
                run_id,
                run_no,
                ..samples::completed()
            })
            .collect();
        several.look(over.clone(), Instant::now());
        assert!(several.are_over() && several.are_complete());
        let mut failed = over[0].clone();
        failed.state = ledger::RunState::Failed;
        several.look([failed], Instant::now());
        assert!(several.are_over() && !several.are_complete());
    }
}
