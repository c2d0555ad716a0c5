//! `etl replay`: batches of a run again, without a query.
//!
//! Every check comes first: the run's state, the job, and whether the archive has every batch. Then the ledger gets the new
//! generation, and only then is anything sent. The same command resumes a replay whose process died.

mod archive;
mod checks;
mod missing;
mod pace;
mod reread;

use std::sync::Arc;

use anyhow::{Context, anyhow};
use common::failpoint;
use common::job::{Job, JobSpec, Source};
use common::message::BatchId;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;

pub use missing::act as act_missing;

use super::Command;
use crate::Failure;
use crate::broker::Broker;
use crate::jobs::Jobs;
use crate::output::run::follow;
use crate::output::{self, counted, note, print};
use crate::query_columns::QueryColumns;
use crate::select::{Selection, shown};
use crate::store;
use crate::target;
use ledger::RowRanges;
use ledger::{Meant, NewReplay, Run, RunFilter, RunState, SessionLock, Store, Subject};

/// Replay batches of runs with the job as it is now, without a query.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  etl replay daily-2018-04-09 --follow        all of it, with the job as it is now
  etl replay daily-2018-04-09 --rejected-only only the batches that have a rejected row (append)
  etl replay --job clicks --since 2018-04-01 --until 2018-05-01 --yes
  etl replay --job clicks --state held
  etl replay daily-2018-04-09 --missing       what a purged queue or a restored database lost
  etl replay daily-2018-04-09 --from-athena   when the archive no longer has it
Where there is no archive (ETL_ARCHIVE=off, or a broker without streams), each replay is one with --from-athena.")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Arguments {
    #[command(flatten)]
    pub selection: Selection,
    /// Only runs that were requested at this time or later: a date or a time in UTC, such as 2018-04-02 or 2018-04-02T10:00:00Z.
    #[arg(long, value_name = "TIME", conflicts_with = "runs", value_parser = parse_time)]
    pub since: Option<Timestamp>,
    /// Only runs that were requested before this time.
    #[arg(long, value_name = "TIME", conflicts_with = "runs", value_parser = parse_time)]
    pub until: Option<Timestamp>,
    /// Only the batches that have these rows of the result, the last one included; each of them whole. Where batches depend on
    /// each other (every mode but append, and every run that is committed as a whole) the whole run is replayed, with a note.
    #[arg(long, value_name = "A..B", conflicts_with_all = ["job", "state", "rejected_only", "missing", "from_athena"])]
    pub rows: Option<RowRanges>,
    /// Only the batches that have a rejected row, each of them whole.
    #[arg(long, conflicts_with_all = ["missing", "from_athena"])]
    pub rejected_only: bool,
    /// Send the batches that the ledger lacks again, in the same generation and unchanged: lost with a queue, or with a
    /// database that was restored to an earlier time.
    #[arg(long, conflicts_with = "from_athena")]
    pub missing: bool,
    /// Read the query's result again, through the extractor, for a run that the archive no longer has. The whole run; no
    /// query is started.
    #[arg(long)]
    pub from_athena: bool,
    /// Also replay a run that is not over, where no service works on it any more. What still comes of its older
    /// generation changes nothing.
    #[arg(long, conflicts_with_all = ["missing", "job", "state"])]
    pub force: bool,
    /// Wait until the run is over, and exit with 0 only if it is complete.
    #[arg(long)]
    pub follow: bool,
    /// Print JSON, one line a run.
    #[arg(long)]
    pub json: bool,
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    // Not `parse`, which takes the date out of a time without a zone and drops the rest.
    let midnight = Date::strptime("%Y-%m-%d", text).and_then(|date| date.to_zoned(TimeZone::UTC));
    midnight.map(|zoned| zoned.timestamp()).map_err(|_| {
        "write a date, 2018-04-02, or a time with its zone, 2018-04-02T10:00:00Z".to_owned()
    })
}

/// The replays of some runs, checked. No other process replays these runs until it is dropped.
pub struct Plan {
    pub replays: Vec<Replay>,
    /// Runs without a rejected row, with `--rejected-only`: there is nothing to send.
    pub nothing: Vec<String>,
    pub notes: Vec<String>,
    claims: SessionLock,
}

/// A replay that passed every check. Nothing has changed yet.
pub struct Replay {
    pub subject: Subject,
    pub new: NewReplay,
    /// Whether an unfinished replay continues, in its own generation.
    pub resumes: bool,
    /// Where Athena's result is read again; none for the archive.
    athena: Option<Source>,
}

/// What was sent of a run.
#[derive(Debug, Serialize)]
pub struct Sent {
    pub run_id: String,
    /// None where the extractor reads the result again, and the number is not known yet.
    pub batches: Option<u64>,
    /// The new generation; none where the batches belong to the live one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

/// The runs that the arguments name.
#[derive(Debug, Default)]
pub struct Chosen {
    pub named: Vec<Meant>,
    /// Those that were not named.
    pub runs: Vec<Run>,
    /// On those that are left out: a run that never got a result has nothing to replay.
    pub notes: Vec<String>,
    /// Whether a failed run is among those: then a run that the arguments name is not replayed.
    pub has_failed: bool,
}

/// The runs that the arguments name.
pub async fn runs(store: &Store, arguments: &Arguments) -> Result<Chosen, Failure> {
    let which = &arguments.selection.which;
    let mut chosen = Chosen {
        named: which.runs.iter().map(Meant::from).collect(),
        ..Chosen::default()
    };
    if !chosen.named.is_empty() {
        return Ok(chosen);
    }
    let (since, until) = (arguments.since, arguments.until);
    if since
        .zip(until)
        .is_some_and(|(since, until)| until <= since)
    {
        return Err(Failure::usage(anyhow!(
            "--until has to be later than --since"
        )));
    }
    let among = RunFilter {
        since,
        until,
        limit: u32::MAX,
        ..RunFilter::default()
    };
    for run in which.chosen(store, among).await? {
        let has_nothing = match run.state {
            RunState::Cancelled | RunState::Superseded => true,
            RunState::Failed => run.rows_expected.is_none() && !arguments.from_athena,
            RunState::Requested | RunState::Running | RunState::Held | RunState::Completed => false,
        };
        if has_nothing {
            let (name, state) = (&run.run_id, run.state);
            chosen.has_failed |= state == RunState::Failed;
            chosen
                .notes
                .push(format!("{name} is {state} and is left out"));
        } else {
            chosen.runs.push(run);
        }
    }
    Ok(chosen)
}

/// Checks the replays of all of these runs, before the first is changed.
pub async fn plan(
    store: &Store,
    broker: &Broker,
    meant: &[Meant],
    arguments: &Arguments,
) -> Result<Plan, Failure> {
    let mut plan = Plan {
        replays: Vec::with_capacity(meant.len()),
        nothing: Vec::new(),
        notes: Vec::new(),
        claims: store.session_lock().await?,
    };
    for one in meant {
        let name = one.run.as_str();
        plan.claims.take_replay(name).await?;
        let subject = store.subject(name).await?;
        one.check(subject.run.run_no, subject.run.generation)?;
        subject.check_state(arguments.force)?;
        if subject.run.dead_letters > 0 {
            plan.notes.push(format!(
                "{name} has {}, which a replay does not close, and which block it: `etl dead list --run {name}`",
                counted(subject.run.dead_letters, "dead letter")
            ));
        }
        let replay = match broker.no_archive() {
            None if !arguments.from_athena => {
                from_archive(store, subject, arguments, &mut plan.notes).await?
            }
            no_archive => {
                without_archive(store, subject, arguments, no_archive, &mut plan.notes).await?
            }
        };
        match replay {
            Some(replay) => {
                plan.notes.extend(check_target(store, &replay).await?);
                if replay.athena.is_none() {
                    archive::prove(broker, &replay).await?;
                }
                plan.replays.push(replay);
            }
            None => plan.nothing.push(name.to_owned()),
        }
    }
    Ok(plan)
}

/// Refuses a replay whose rows the target would not take: each of its batches would be a dead letter. Returns what else a person
/// has to know.
async fn check_target(store: &Store, replay: &Replay) -> Result<Vec<String>, Failure> {
    let (subject, spec) = (&replay.subject, &replay.new.spec);
    if replay.resumes || subject.result_columns.is_empty() {
        return Ok(Vec::new());
    }
    let cannot = || format!("cannot replay {} with the job as it is now", subject.id());
    let columns = QueryColumns::of(subject.result_columns.clone(), spec);
    let columns = columns.map_err(|failure| failure.context(cannot()))?;
    let run = subject.id().parse().ok();
    let schemas = Jobs::load()?.schemas;
    target::check(store, spec, Some(&columns.target), run.as_ref(), &schemas)
        .await
        .map_err(|failure| failure.context(cannot()))
}

/// The result in S3 instead of the archive. None when `--rejected-only` finds no batch.
async fn without_archive(
    store: &Store,
    subject: Subject,
    arguments: &Arguments,
    no_archive: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Option<Replay>, Failure> {
    if arguments.rejected_only
        && subject.unfinished().is_none()
        && store.batches_with_rejects(&subject.run).await?.is_empty()
    {
        return Ok(None);
    }
    if let Some(why) = no_archive
        && !arguments.from_athena
    {
        let whole = if arguments.rejected_only || arguments.rows.is_some() {
            ", all of it"
        } else {
            ""
        };
        notes.push(format!(
            "no batch is archived ({why}), so the extractor reads the result of {} in S3 again{whole}; no query is started",
            subject.id()
        ));
    }
    from_athena(subject).map(Some)
}

fn from_athena(subject: Subject) -> Result<Replay, Failure> {
    reread::result(&subject)?;
    let (job, spec) = job_now(&subject)?;
    let new = NewReplay {
        source: "athena",
        rows: RowRanges::first(subject.rows().unwrap_or(BatchId::MAX_ROWS)),
        partial: false,
        job_hash: job.hash(),
        spec,
    };
    Ok(Replay {
        resumes: checks::resumes(&subject, &new)?,
        new,
        athena: Some(job.source),
        subject,
    })
}

/// None when `--rejected-only` finds no batch.
async fn from_archive(
    store: &Store,
    subject: Subject,
    arguments: &Arguments,
    notes: &mut Vec<String>,
) -> Result<Option<Replay>, Failure> {
    let all = checks::extracted(&subject)?;
    let (job, spec) = job_now(&subject)?;
    let whole = RowRanges::first(all);
    let wanted = match &arguments.rows {
        Some(rows) => {
            checks::within(&subject, rows, all)?;
            let batches = store.batches_with(&subject.run, rows).await?;
            rows.clone().with(batches)
        }
        // The rejected rows of an unfinished replay are in the generation before.
        None if arguments.rejected_only => store
            .batches_with_rejects(&subject.run)
            .await?
            .with(subject.unfinished_rows().unwrap_or_default()),
        None => whole.clone(),
    };
    if wanted.is_empty() && subject.unfinished().is_none() {
        return Ok(None);
    }
    let may_be_partial = checks::supersedes_by_batch(&subject, &spec);
    let rows = if may_be_partial && subject.unfinished().is_some() {
        wanted
    } else if may_be_partial {
        // What the ledger lacks was sent in a generation that ends now.
        wanted.with(RowRanges::from_ledger(store.missing(&subject.run).await?))
    } else {
        whole.clone()
    };
    if !may_be_partial && (arguments.rows.is_some() || arguments.rejected_only) {
        let as_a_whole = if spec.target.is_staged(0) {
            ", committed as a whole,"
        } else {
            ""
        };
        notes.push(format!(
            "the whole run is replayed: rows of a run in mode {}{as_a_whole} depend on its other batches",
            spec.target.mode,
        ));
    }
    let new = NewReplay {
        source: "archive",
        partial: rows != whole,
        rows,
        job_hash: job.hash(),
        spec,
    };
    Ok(Some(Replay {
        resumes: checks::resumes(&subject, &new)?,
        new,
        athena: None,
        subject,
    }))
}

/// The job as its file is now, with the parameters and the time of the run's request. Refused when its rows cannot replace
/// those of the run.
fn job_now(subject: &Subject) -> Result<(Job, Arc<JobSpec>), Failure> {
    let job = Jobs::load()?.read(&subject.run.job)?;
    let spec = || -> anyhow::Result<JobSpec> {
        let request = job.request(&subject.run.parameters)?;
        let mut spec = request.spec.with_requested_at(subject.requested_at);
        spec.watermark.clone_from(&subject.first_spec.watermark);
        transformer::check_job(&spec)?;
        Ok(spec)
    };
    let spec = spec()
        .with_context(|| format!("cannot replay {} with the job as it is now", subject.id()))
        .map_err(Failure::Usage)?;
    checks::job(subject, &spec)?;
    Ok((job, Arc::new(spec)))
}

/// Writes a replay into the ledger, unless it resumes, and sends it.
pub async fn act(store: &Store, broker: &Broker, replay: &Replay) -> Result<Sent, Failure> {
    let subject = &replay.subject;
    let generation = if replay.resumes {
        subject.generation()
    } else {
        store.begin_replay(subject, &replay.new).await?
    };
    failpoint::reach("replay_recorded").await;
    let sent = match &replay.athena {
        Some(source) => reread::send(store, broker, replay, source.clone(), generation)
            .await
            .map(|()| None),
        None => archive::send(store, broker, replay, generation)
            .await
            .map(Some),
    };
    let batches = sent.with_context(|| {
        format!(
            "the replay of {} is in the ledger and not wholly sent; the same command resumes it",
            subject.id()
        )
    })?;
    failpoint::reach("replay_sent").await;
    store.replay_sent(subject.id(), generation).await?;
    Ok(Sent {
        run_id: subject.id().to_owned(),
        batches,
        generation: Some(generation),
    })
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        let Chosen {
            named,
            runs,
            notes,
            has_failed,
        } = runs(&store, &self).await?;
        output::notes(&notes);
        let meant = if runs.is_empty() {
            named
        } else {
            shown(&runs)?
        };
        if meant.is_empty() {
            self.print_nothing(&notes)?;
            return Ok(!has_failed);
        }
        if !runs.is_empty() {
            self.selection.agree("replay", &runs)?;
        }
        let broker = Broker::open(note)
            .await
            .map_err(|failure| failure.context("no run is replayed"))?;
        if self.missing {
            for one in &meant {
                self.print(&act_missing(&store, &broker, one).await?)?;
            }
        } else {
            let plan = Box::pin(plan(&store, &broker, &meant, &self)).await?;
            output::notes(&plan.notes);
            for name in &plan.nothing {
                let (run_id, batches) = (name.clone(), Some(0));
                self.print(&Sent {
                    run_id,
                    batches,
                    generation: None,
                })?;
            }
            for replay in &plan.replays {
                self.print(&act(&store, &broker, replay).await?)?;
            }
        }
        broker.close().await;
        let mut are_complete = !has_failed;
        for one in meant.iter().filter(|_| self.follow) {
            let end = follow(&store, one.run.as_str(), None, self.json).await?;
            // The run may be complete although its replay was cancelled: it is as it was before.
            let is_replayed = self.missing || end.run.replay_abandoned.is_none();
            are_complete &= end.is_complete() && is_replayed;
        }
        Ok(are_complete)
    }
}

impl Arguments {
    /// That no run is replayed, where there are `notes` on those that are left out.
    fn print_nothing(&self, notes: &[String]) -> Result<(), Failure> {
        let nothing = if notes.is_empty() {
            "there is no such run"
        } else {
            "nothing to replay"
        };
        // JSON has a line a run, and this is none.
        if self.json {
            note(nothing);
            return Ok(());
        }
        print(nothing)
    }

    fn print(&self, sent: &Sent) -> Result<(), Failure> {
        if self.json {
            print(&serde_json::to_string(sent).context("cannot write JSON")?)
        } else {
            print(&sentence(sent, self.missing))
        }
    }
}

fn sentence(sent: &Sent, missing: bool) -> String {
    let run = &sent.run_id;
    let batches = |count: u64| counted(i64::try_from(count).unwrap_or(i64::MAX), "batch");
    match (sent.batches, sent.generation) {
        (Some(0), None) if missing => format!("no batch of {run} is missing"),
        (Some(0), None) => format!("no batch of {run} has a rejected row; nothing was sent"),
        (Some(count), Some(generation)) => {
            format!(
                "{} of {run} sent again, as generation {generation}",
                batches(count)
            )
        }
        (Some(count), None) => format!("{} of {run} sent again", batches(count)),
        (None, generation) => format!(
            "the result of {run} is read again, as generation {}",
            generation.unwrap_or_default()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_is_its_first_moment() {
        let midnight = parse_time("2018-04-02").unwrap();
        assert_eq!(midnight, parse_time("2018-04-02T02:00:00+02:00").unwrap());
        assert!(parse_time("yesterday").is_err() && parse_time("2018-04-02T10:00:00").is_err());
    }

    #[test]
    fn what_was_sent_is_a_sentence_and_a_line_of_json() {
        let mut said = Vec::new();
        for (batches, generation, missing) in [
            (Some(1), Some(2), false),
            (Some(1_670), Some(1), false),
            (None, Some(3), false),
            (Some(39), None, true),
            (Some(0), None, true),
            (Some(0), None, false),
        ] {
            let run_id = "daily-2018-04-02".to_owned();
            let sent = Sent {
                run_id,
                batches,
                generation,
            };
            said.push(sentence(&sent, missing));
            said.push(serde_json::to_string(&sent).unwrap());
        }
        insta::assert_snapshot!(said.join("\n"));
    }
}
