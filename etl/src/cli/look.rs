//! What can be said when runs are looked at, decided about, or cleaned up after.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// A state to filter by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    Requested,
    Running,
    Held,
    Completed,
    Failed,
    Cancelled,
    Superseded,
    /// Requested, running or held.
    Open,
    /// Kept from going on by a dead letter.
    Stuck,
}

impl State {
    /// As the books have it; none for any.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Requested => &["requested"],
            Self::Running => &["running"],
            Self::Held => &["held"],
            Self::Completed => &["completed"],
            Self::Failed => &["failed"],
            Self::Cancelled => &["cancelled"],
            Self::Superseded => &["superseded"],
            Self::Open | Self::Stuck => &["requested", "running", "held"],
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunsArguments {
    /// Only runs of this job.
    #[arg(long, value_name = "JOB")]
    pub(crate) job: Option<String>,
    /// Only runs in this state.
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<State>,
    /// The most runs to list, the latest first.
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// The run, or the beginning of its name where only one run begins so; without one, the latest runs.
    pub(crate) run: Option<String>,
    /// Look again every second until the run is over.
    #[arg(long, requires = "run", conflicts_with = "json")]
    pub(crate) watch: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    /// The run's whole name.
    pub(crate) run: String,
    /// Also remove the rows of the run that are in its target already.
    #[arg(long)]
    pub(crate) undo: bool,
    /// Why, for whoever reads the books later.
    #[arg(long, value_name = "WHY")]
    pub(crate) why: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ApproveArguments {
    /// The run's whole name.
    pub(crate) run: String,
    /// Why, for whoever reads the books later.
    #[arg(long, value_name = "WHY")]
    pub(crate) why: Option<String>,
    /// Stay until a loader has published the run, and exit with 0 only if it is complete.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiscardArguments {
    /// The run's whole name.
    pub(crate) run: String,
    /// Why, for whoever reads the books later.
    #[arg(long, value_name = "WHY")]
    pub(crate) why: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArguments {
    /// What is older than this loses its values, such as 30d; a day at least.
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub(crate) older_than: Duration,
    /// Also the bodies of dead letters that nobody has dealt with, where their run is over or not in the books.
    #[arg(long)]
    pub(crate) unresolved: bool,
    /// Count what would go, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is younger than a day may be of a run that somebody is about to look at, and is never in the way.
fn parse_age(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_hours(24);
    let age = humantime::parse_duration(text)
        .map_err(|error| format!("an age is written such as 30d or 12w: {error}"))?;
    if age < LEAST {
        return Err("values are kept for a day at least; say 1d or more".to_owned());
    }
    Ok(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_for_a_day() {
        for text in ["0d", "0s", "23h 59m"] {
            assert!(
                parse_age(text).unwrap_err().contains("1d or more"),
                "{text}"
            );
        }
        assert!(parse_age("soon").unwrap_err().contains("30d"));
        assert_eq!(parse_age("1d"), Ok(Duration::from_hours(24)));
        assert_eq!(parse_age("24h"), parse_age("1d"));
    }
}
