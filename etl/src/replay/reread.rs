//! `--from-athena`: when the archive no longer has a run, the extractor reads the same query
//! execution's result again. No query is started, and nothing is scanned.

use anyhow::{Context, anyhow};
use common::failpoint;
use common::message::{ExtractTask, TaskState};
use common::queue::Outgoing;

use super::{Ready, checks, job_now, user};
use crate::Failure;
use crate::books::{Books, Claims, NewReplay, Subject};
use crate::broker::Broker;
use crate::cli::ReplayArguments;
use crate::report::{self, Sent};
use crate::seqs::Seqs;

/// Asks for the results of these runs once more, after all were checked.
pub(super) async fn run(
    books: &Books,
    names: &[String],
    arguments: &ReplayArguments,
) -> Result<(), Failure> {
    // Until all of them are sent.
    let mut claims = books.claims().await?;
    let mut replays = Vec::with_capacity(names.len());
    for name in names {
        replays.push(ready(books, &mut claims, name, arguments.force).await?);
    }
    let broker = Broker::open().await?;
    for (replay, source) in replays {
        let name = replay.subject.id().to_owned();
        let generation = put_through(books, &broker, replay, source).await?;
        report::replayed_run(&name, Sent::Reread(generation), arguments.json)?;
    }
    broker.close().await;
    Ok(())
}

async fn ready(
    books: &Books,
    claims: &mut Claims,
    name: &str,
    force: bool,
) -> Result<(Ready, common::job::Source), Failure> {
    claims.take(name).await?;
    let subject = books.subject(name).await?;
    checks::state(&subject, force)?;
    result(&subject)?;
    let (job, spec) = job_now(&subject)?;
    checks::job(&subject, &spec)?;
    let seqs = Seqs::first(
        subject
            .batches()
            .unwrap_or(common::message::BatchId::MAX_SEQ),
    );
    let resumes = checks::resumes(&subject, "athena", &seqs, &job.hash())?;
    let ready = Ready {
        subject,
        seqs,
        partial: false,
        resumes,
        job_hash: job.hash(),
        spec,
    };
    Ok((ready, job.source))
}

/// The query's execution and the version of its result that the run was loaded from.
fn result(subject: &Subject) -> Result<(String, String), Failure> {
    let known = subject.run.result_id.as_ref().and_then(|result| {
        let (execution, _) = result.split_once(':')?;
        Some((execution.to_owned(), result.clone()))
    });
    known.ok_or_else(|| {
        anyhow!(
            "the books do not know which result the run {} was loaded from; nothing was changed: ask for a new run",
            subject.id()
        )
        .into()
    })
}

async fn put_through(
    books: &Books,
    broker: &Broker,
    replay: Ready,
    source: common::job::Source,
) -> Result<u32, Failure> {
    let subject = &replay.subject;
    let (query_execution_id, result_id) = result(subject)?;
    let generation = if replay.resumes {
        subject.generation()
    } else {
        let new = NewReplay {
            source: "athena",
            seqs: &replay.seqs,
            partial: false,
            job_hash: &replay.job_hash,
            spec: &replay.spec,
            publish: checks::publish(&replay.spec),
            by: &user(),
        };
        books.begin_replay(subject, &new).await?
    };
    failpoint::reach("replay_recorded").await;
    let task = ExtractTask {
        run: subject
            .id()
            .parse()
            .context("a run in the books has a name that is none")?,
        generation,
        sql: subject.sql.clone(),
        source,
        job: std::sync::Arc::clone(&replay.spec),
        limits: subject.limits,
        state: TaskState::Reread {
            query_execution_id,
            result_id,
        },
    };
    let message = Outgoing::of(&task).context("the result cannot be asked for")?;
    broker.send(&[message]).await.with_context(|| {
        format!(
            "the replay of {} is in the books, but it is not known whether its task was sent; ask for it again",
            subject.id()
        )
    })?;
    books.replay_sent(subject.id(), generation).await?;
    Ok(generation)
}
