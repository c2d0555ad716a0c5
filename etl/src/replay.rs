//! `etl replay`: batches of a run once more, without asking Athena.
//!
//! Everything that can be wrong is found first: the run's state, the job, and whether the archive holds
//! all that is asked for. Then the new generation is written into the books, and only then is anything
//! sent. A replay that dies in between is resumed by asking again.

mod archive;
mod checks;
mod missing;
mod reread;
mod send;

use std::sync::Arc;

use anyhow::{Context, anyhow};
use common::failpoint;
use common::job::{Job, JobSpec};
use common::settings::variable;

use crate::Failure;
use crate::books::{Books, Claims, NewReplay, Subject};
use crate::broker::Broker;
use crate::cli::ReplayArguments;
use crate::jobs::Jobs;
use crate::report::Sent;
use crate::seqs::Seqs;
use crate::{follow, report};

/// Which batches of a run are put through again.
#[derive(Debug, Clone)]
enum Part {
    Whole,
    These(Seqs),
    WithRejects,
}

/// A replay that passed every check, and nothing has been changed for.
struct Ready {
    subject: Subject,
    seqs: Seqs,
    partial: bool,
    /// Whether an unfinished replay goes on, in its own generation.
    resumes: bool,
    job_hash: String,
    spec: Arc<JobSpec>,
}

/// Runs `etl replay`.
pub(crate) async fn run(arguments: &ReplayArguments) -> Result<bool, Failure> {
    let books = Books::open().await?;
    let names = match (&arguments.run, &arguments.job) {
        (Some(run), _) => vec![run.clone()],
        (None, Some(job)) => several(&books, arguments, job).await?,
        (None, None) => Vec::new(),
    };
    if names.is_empty() {
        return report::nothing_to_replay(arguments.json).map(|()| true);
    }
    if arguments.missing {
        return missing::run(&books, &names, arguments).await;
    }
    if arguments.from_athena {
        reread::run(&books, &names, arguments).await?;
    } else {
        archived(&books, &names, arguments).await?;
    }
    if !arguments.follow {
        return Ok(true);
    }
    let mut all_true = true;
    for name in &names {
        let end = follow::to_the_end(&books, name, None).await?;
        all_true &= report::outcome(&books, &end, arguments.json).await? && !end.is_given_up();
    }
    Ok(all_true)
}

/// The runs that `--job` and the times mean. Those that never got a result have nothing to replay.
async fn several(
    books: &Books,
    arguments: &ReplayArguments,
    job: &str,
) -> Result<Vec<String>, Failure> {
    let (Some(since), until) = (arguments.since, arguments.until) else {
        return Ok(Vec::new());
    };
    if until.is_some_and(|until| until <= since) {
        return Err(Failure::misuse(anyhow!(
            "--until has to be later than --since; it is the first moment that is not meant any more"
        )));
    }
    let mut names = Vec::new();
    for name in books.runs_between(job, since, until).await? {
        let run = books.exactly(&name).await?;
        let has_nothing = match run.state.as_str() {
            "cancelled" | "superseded" => true,
            "failed" => run.batches_expected.is_none() && !arguments.from_athena,
            _ => false,
        };
        if has_nothing {
            report::note(&format!("{name} is {} and is left out", run.state));
        } else {
            names.push(name);
        }
    }
    Ok(names)
}

/// Replays from the archive: all runs are checked before the first is changed.
async fn archived(
    books: &Books,
    names: &[String],
    arguments: &ReplayArguments,
) -> Result<(), Failure> {
    let part = match (&arguments.seq, arguments.rejected_only) {
        (Some(seqs), _) => Part::These(seqs.clone()),
        (None, true) => Part::WithRejects,
        (None, false) => Part::Whole,
    };
    let broker = Broker::open().await?;
    // Until all of them are sent.
    let mut claims = books.claims().await?;
    let mut replays = Vec::with_capacity(names.len());
    for name in names {
        match ready(books, &mut claims, name, &part, arguments.force).await? {
            Some(replay) => {
                archive::prove(&broker, &replay).await?;
                replays.push(replay);
            }
            None => report::replayed_run(name, Sent::NothingRejected, arguments.json)?,
        }
    }
    for replay in replays {
        let (name, batches) = (replay.subject.id().to_owned(), replay.seqs.count());
        let generation = put_through(books, &broker, replay).await?;
        report::replayed_run(&name, Sent::Again(batches, generation), arguments.json)?;
    }
    broker.close().await;
    Ok(())
}

/// All checks but that of the archive. None when `--rejected-only` finds nothing to do.
async fn ready(
    books: &Books,
    claims: &mut Claims,
    name: &str,
    part: &Part,
    force: bool,
) -> Result<Option<Ready>, Failure> {
    claims.take(name).await?;
    let subject = books.subject(name).await?;
    checks::state(&subject, force)?;
    let batches = checks::extracted(&subject)?;
    let (job, spec) = job_now(&subject)?;
    checks::job(&subject, &spec)?;
    let asked = match part {
        Part::Whole => Seqs::first(batches),
        Part::These(seqs) => {
            checks::within(&subject, seqs, batches)?;
            seqs.clone()
        }
        Part::WithRejects => books.batches_with_rejects(&subject.run).await?,
    };
    if asked.is_empty() && subject.unfinished().is_none() {
        return Ok(None);
    }
    let whole = Seqs::first(batches);
    let may_be_partial = checks::supersedes_by_batch(&subject, &spec);
    let seqs = if may_be_partial { asked } else { whole.clone() };
    if !may_be_partial && !matches!(part, Part::Whole) {
        report::note(&format!(
            "the whole run is replayed: rows of a run in mode {}{} are not independent of its other batches",
            spec.target.mode,
            checks::published_as_a_whole(&spec),
        ));
    }
    let resumes = checks::resumes(&subject, "archive", &seqs, &job.hash())?;
    Ok(Some(Ready {
        partial: seqs != whole,
        seqs,
        resumes,
        job_hash: job.hash(),
        spec,
        subject,
    }))
}

/// The job as its file is now, with the parameters and the time of the run's request.
fn job_now(subject: &Subject) -> Result<(Job, Arc<JobSpec>), Failure> {
    let job = Jobs::load()?.read(&subject.run.job)?;
    let doing = || format!("cannot replay {} with the job as it is now", subject.id());
    let request = job
        .request(&subject.run.parameters)
        .with_context(doing)
        .map_err(Failure::Misuse)?;
    let spec = request.spec.asked_at(subject.requested_at);
    transformer::check_job(&spec)
        .with_context(doing)
        .map_err(Failure::Misuse)?;
    let spec = Arc::new(spec);
    Ok((job, spec))
}

/// Writes the replay down, unless one goes on, and sends it.
async fn put_through(books: &Books, broker: &Broker, replay: Ready) -> Result<u32, Failure> {
    let subject = &replay.subject;
    let generation = if replay.resumes {
        subject.generation()
    } else {
        let by = user();
        let new = NewReplay {
            source: "archive",
            seqs: &replay.seqs,
            partial: replay.partial,
            job_hash: &replay.job_hash,
            spec: &replay.spec,
            publish: checks::publish(&replay.spec),
            by: &by,
        };
        books.begin_replay(subject, &new).await?
    };
    failpoint::reach("replay_recorded").await;
    let new = send::Batches {
        subject,
        seqs: &replay.seqs,
        generation,
        spec: &replay.spec,
    };
    send::from_archive(broker, &new).await.with_context(|| {
        format!(
            "the replay of {} is unfinished: ask for it again, and it goes on",
            subject.id()
        )
    })?;
    failpoint::reach("replay_sent").await;
    books.replay_sent(subject.id(), generation).await?;
    Ok(generation)
}

/// Who asks, for the books.
fn user() -> String {
    variable("USER").unwrap_or_else(|| "somebody".to_owned())
}
