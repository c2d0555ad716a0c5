//! `etl watermark`: from where the next run of a job reads on, and how it came to that.

use anyhow::anyhow;
use common::job::{Job, Point};
use jiff::Timestamp;
use serde::Serialize;

use super::Command;
use crate::jobs::Jobs;
use crate::output::{Sheet, note, show};
use crate::{Failure, store};
use ledger::{Store, WatermarkChange};

/// Show from where the next run of a job reads on, or set it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etl watermark clicks\n  etl watermark clicks --set '2018-04-02 00:00:00' --why 'loaded up to there by a backfill'\n  etl watermark clicks --reset --why 'the table was emptied'"
)]
pub struct Arguments {
    /// The job.
    pub job: String,
    /// The value to read on from: in mode append, rows from it on are not in the target yet. A date or a timestamp may be
    /// relative.
    #[arg(
        long,
        value_name = "VALUE",
        allow_hyphen_values = true,
        requires = "why"
    )]
    pub set: Option<String>,
    /// Read on from the job's initial value.
    #[arg(long, conflicts_with = "set", requires = "why")]
    pub reset: bool,
    /// The reason, for the ledger.
    #[arg(long, value_name = "WHY")]
    pub why: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The most changes that are shown.
const CHANGES: u32 = 10;

/// The watermark of a job.
#[derive(Debug, Serialize)]
pub struct State {
    pub job: String,
    /// The parameter that takes it, and the column of the result.
    pub parameter: String,
    pub column: String,
    pub watermark: String,
    /// Whether it is the job's initial value.
    pub is_initial: bool,
    /// The latest first.
    pub changes: Vec<WatermarkChange>,
}

/// The watermark of a job that has one.
pub async fn plan(store: &Store, job: &Job) -> Result<State, Failure> {
    let usage = |why: String| Failure::usage(anyhow!(why));
    let one = job.its_watermark().map_err(usage)?;
    let name = &job.spec.name;
    let current = store.watermark(name).await?;
    let is_initial = current.is_none();
    Ok(State {
        job: name.clone(),
        parameter: one.parameter.to_owned(),
        column: one.column.to_owned(),
        watermark: current.map_or_else(|| one.initial().map_err(usage), Ok)?,
        is_initial,
        changes: store.watermark_changes(name, CHANGES).await?,
    })
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let job = Jobs::load()?.read(&self.job)?;
        let usage = |why: String| Failure::usage(anyhow!(why));
        let one = job.its_watermark().map_err(usage)?;
        let value = match &self.set {
            Some(text) => Some(job.watermark_value(text, Timestamp::now()).map_err(usage)?),
            None if self.reset => Some(one.initial().map_err(usage)?),
            None => None,
        };
        let store = store::open().await?;
        let before = plan(&store, &job).await?;
        if let (Some(value), Some(why)) = (&value, &self.why) {
            store.set_watermark(&job, value, why).await?;
            note(&format!(
                "the watermark of the job {} was {} and is {value}{}",
                before.job,
                before.watermark,
                beware(&job, &before.watermark, value)
            ));
        }
        show(self.json, &plan(&store, &job).await?, lines)?;
        Ok(true)
    }
}

/// What becomes of the rows between two watermarks. In mode append nothing tells rows apart that were loaded before.
fn beware(job: &Job, before: &str, now: &str) -> String {
    let kind = job.watermark().map(|one| one.spec.parameter_type);
    let point = |text| kind.and_then(|kind| Point::read(kind, text));
    if point(before) < point(now) {
        return "; what is between the two is read by no run, unless it is set back".to_owned();
    }
    if job.spec.target.mode.adds() && point(now) < point(before) {
        return "; rows from there on that runs have loaded are in the way of the next run, which adds them again only with --again".to_owned();
    }
    String::new()
}

fn lines(state: &State) -> String {
    let mut sheet = Sheet::new(10);
    let initial = if state.is_initial { " (initial)" } else { "" };
    sheet.add("job", state.job.clone());
    sheet.add("watermark", format!("{}{initial}", state.watermark));
    sheet.add(
        "column",
        format!("{}, as :{}", state.column, state.parameter),
    );
    for change in &state.changes {
        sheet.add("change", sentence(change));
    }
    sheet.text()
}

fn sentence(change: &WatermarkChange) -> String {
    let value = &change.value;
    let by = change.run_id.as_ref().or(change.set_by.as_ref());
    let by = by.map_or("", String::as_str);
    format!("{} to {value} by {by}: {}", change.set_at, change.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_is_shown_with_its_changes() {
        let change = |value: &str, run: Option<&str>, by: Option<&str>| WatermarkChange {
            value: value.to_owned(),
            run_id: run.map(str::to_owned),
            set_by: by.map(str::to_owned),
            reason: "because".to_owned(),
            set_at: "2026-11-30T03:15:00.000Z".to_owned(),
        };
        let state = State {
            job: "clicks".to_owned(),
            parameter: "since".to_owned(),
            column: "seen_at".to_owned(),
            watermark: "2018-04-02 00:00:00".to_owned(),
            is_initial: false,
            changes: vec![
                change("2018-04-02 00:00:00", Some("clicks-1"), None),
                change("2018-04-01 00:00:00", None, Some("ann")),
            ],
        };
        insta::assert_snapshot!(lines(&state));
    }
}
