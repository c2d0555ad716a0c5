//! `etl runs`: the latest runs, a line each.

use comfy_table::Table;
use jiff::Timestamp;

use super::Command;
use crate::Failure;
use crate::output::run::state;
use crate::output::{Narrow, Terminal, brief, number, show, table_within};
use crate::select::State;
use crate::store;
use ledger::{Run, RunFilter, Store};

/// List the latest runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl runs --job clicks --state failed --limit 50")]
pub struct Arguments {
    /// Only runs of this job.
    #[arg(long, value_name = "JOB")]
    pub job: Option<String>,
    /// Only runs in this state.
    #[arg(long, value_name = "STATE")]
    pub state: Option<State>,
    /// The most runs to list, the latest first.
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The latest runs that the arguments choose.
pub async fn plan(store: &Store, arguments: &Arguments) -> Result<Vec<Run>, Failure> {
    let filter = RunFilter {
        job: arguments.job.as_deref(),
        states: arguments.state.map(State::in_ledger).unwrap_or_default(),
        only_blocked: arguments.state == Some(State::Blocked),
        limit: arguments.limit,
        ..RunFilter::default()
    };
    Ok(store.latest(&filter).await?)
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let runs = plan(&store::open().await?, &self).await?;
        let is_filtered = self.job.is_some() || self.state.is_some();
        show(self.json, &runs, |runs| {
            match (runs.is_empty(), is_filtered) {
                (true, true) => "no such runs; `etl jobs` lists the jobs".to_owned(),
                (true, false) => "no runs yet; `etl run JOB` requests one".to_owned(),
                (false, _) => list(runs, Timestamp::now(), Terminal::of_stdout()).to_string(),
            }
        })?;
        Ok(true)
    }
}

fn list(runs: &[Run], now: Timestamp, terminal: Terminal) -> Table {
    let header = ["run", "job", "state", "rows", "rejected", "took", "age"];
    let rows = runs.iter().map(|run| {
        let requested: Option<Timestamp> = run.requested_at.parse().ok();
        let age = requested.map(|requested| now.duration_since(requested).as_secs_f64());
        vec![
            run.run_id.clone(),
            run.job.clone(),
            state(run),
            number(run.rows_read),
            number(run.rows_rejected),
            brief(run.seconds),
            age.map(brief).unwrap_or_default(),
        ]
    });
    let narrow = Narrow {
        // The job is most often the beginning of the run's name.
        cut: Some(1),
        spare: &[5, 4],
    };
    table_within(terminal, &header, 3..7, &rows.collect::<Vec<_>>(), &narrow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{on_a_terminal, samples};

    #[test]
    fn names_of_runs_are_whole_on_a_terminal_of_any_width() {
        let mut runs = samples::runs();
        runs.push(Run {
            run_id: "most_visited_url-20261130t031500-0a1b2c3d".into(),
            job: "most_visited_url".into(),
            balanced: false,
            rows_read: 123_456_789,
            ..samples::completed()
        });
        let now = "2018-04-09T14:00:00Z".parse().unwrap();
        for width in [120, 80] {
            let terminal = Terminal {
                width: Some(width),
                ..Terminal::default()
            };
            let listed = list(&runs, now, terminal);
            let shown = on_a_terminal(listed, width);
            insta::assert_snapshot!(format!("runs_{width}"), shown);
        }
    }

    #[test]
    fn names_that_a_run_gets_by_itself_leave_room_for_every_column_at_80() {
        let run = Run {
            run_id: "clicks-20261130t031500-0a1b2c3d".into(),
            ..samples::completed()
        };
        let terminal = Terminal {
            width: Some(80),
            ..Terminal::default()
        };
        let now = "2018-04-09T14:00:00Z".parse().unwrap();
        let shown = on_a_terminal(list(&[run], now, terminal), 80);
        let lines = shown.lines().map(|line| line.chars().count());
        assert!(lines.max() <= Some(80), "{shown}");
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn states_are_coloured_and_keep_the_columns_in_line() {
        let now = "2018-04-09T14:00:00Z".parse().unwrap();
        let mut terminal = Terminal::default();
        let plain = list(&samples::runs(), now, terminal).to_string();
        terminal.has_colours = true;
        let coloured = list(&samples::runs(), now, terminal).to_string();
        assert!(coloured.contains("\x1b["), "{coloured}");
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
    }
}
