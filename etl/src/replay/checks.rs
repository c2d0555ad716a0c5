//! What speaks against a replay. Pure: the books and the job are read by others.

use anyhow::anyhow;
use common::job::{JobSpec, Publish, Window};

use crate::Failure;
use crate::books::Subject;
use crate::seqs::Seqs;

/// Refuses a run in a state that cannot be replayed now.
pub(super) fn state(subject: &Subject, force: bool) -> Result<(), Failure> {
    let id = subject.id();
    let reason = match subject.run.state.as_str() {
        "completed" | "held" | "failed" => return Ok(()),
        "requested" | "running" if subject.unfinished().is_some() || force => return Ok(()),
        state @ ("requested" | "running") => format!(
            "the run {id} is {state}: `etl status {id}` tells what it waits for. If nothing works on it any more, because the database was restored or a queue was lost, `etl replay {id} --missing` sends what the books lack, and --force replays it all the same"
        ),
        "superseded" => {
            format!("a later run has replaced what the run {id} would bring; ask for a new run")
        }
        state => format!("the run {id} is {state}, and its rows were given up; ask for a new run"),
    };
    Err(anyhow!("{reason}; nothing was changed").into())
}

/// How many batches the run has; refuses one whose result was not read to its end.
pub(super) fn extracted(subject: &Subject) -> Result<u32, Failure> {
    subject.batches().ok_or_else(|| {
        let id = subject.id();
        anyhow!(
            "the result of the run {id} was not read to its end, so that it is not known what a replay has to send; nothing was changed. `etl replay {id} --from-athena` reads it again if the books know it, or ask for a new run"
        )
        .into()
    })
}

/// Refuses batches that the run does not have.
pub(super) fn within(subject: &Subject, seqs: &Seqs, batches: u32) -> Result<(), Failure> {
    match seqs.last() {
        Some(last) if last >= batches => Err(Failure::misuse(anyhow!(
            "the run {} has the batches 0..{}, and --seq asks for {seqs}; nothing was changed",
            subject.id(),
            batches - 1
        ))),
        _ => Ok(()),
    }
}

/// Refuses a job whose rows could not take the place of the run's.
pub(super) fn job(subject: &Subject, now: &JobSpec) -> Result<(), Failure> {
    let run = &subject.run;
    let (schema, table) = now.target.schema_and_table();
    let table = format!("{schema}.{table}");
    let differs = |what: &str, then: &str, now: &str| {
        Err(Failure::from(anyhow!(
            "the rows of the run {} went {then} and the job {} now says {now}: they cannot be replaced there. Put the job's {what} back, or ask for a new run; nothing was changed",
            run.run_id,
            run.job
        )))
    };
    if table != run.target_table {
        return differs("table", &format!("to {}", run.target_table), &table);
    }
    let mode = now.target.mode.name();
    if mode != run.mode {
        return differs("mode", &format!("there in mode {}", run.mode), mode);
    }
    if now.target.key != subject.first_spec.target.key {
        let named = |key: &[String]| format!("the key ({})", key.join(", "));
        return differs(
            "key",
            &format!("there by {}", named(&subject.first_spec.target.key)),
            &named(&now.target.key),
        );
    }
    let then = &subject.first_spec.target.replace_where;
    if now.target.replace_where != *then {
        let named = |window: &Option<Window>| match window {
            None => "the whole table".to_owned(),
            Some(window) => format!("the window {window}"),
        };
        let (then, now) = (named(then), named(&now.target.replace_where));
        return differs("replace_where", &format!("there for {then}"), &now);
    }
    Ok(())
}

/// Whether each batch takes the place of its former self, so that some can be replayed without the
/// others: then and now.
pub(super) fn supersedes_by_batch(subject: &Subject, now: &JobSpec) -> bool {
    subject.publish == Publish::Batch.name() && !now.target.is_staged(subject.generation() + 1)
}

/// When rows reach the target, as the books have it.
pub(super) fn publish(spec: &JobSpec) -> &'static str {
    if spec.target.is_staged(0) {
        Publish::Run.name()
    } else {
        Publish::Batch.name()
    }
}

/// For a sentence about the mode.
pub(super) fn published_as_a_whole(spec: &JobSpec) -> &'static str {
    if spec.target.is_staged(0) {
        ", published as a whole,"
    } else {
        ""
    }
}

/// Whether this is an unfinished replay that goes on; refuses a part that would leave batches of an
/// unfinished one behind.
pub(super) fn resumes(
    subject: &Subject,
    source: &str,
    seqs: &Seqs,
    job_hash: &str,
) -> Result<bool, Failure> {
    let Some(unfinished) = subject.unfinished() else {
        return Ok(false);
    };
    if unfinished.source == source && unfinished.seqs == *seqs && unfinished.job_hash == job_hash {
        return Ok(true);
    }
    if seqs.covers(&unfinished.seqs) {
        return Ok(false);
    }
    let id = subject.id();
    let remedy = match unfinished.seqs.as_argument() {
        Some(range) => format!("`etl replay {id} --seq {range}` or `etl replay {id}`"),
        None => format!("`etl replay {id}`"),
    };
    Err(anyhow!(
        "a replay of the batches {} of {id} by {} is unfinished, and this one would leave some of them behind; nothing was changed: ask for {remedy} first",
        unfinished.seqs,
        unfinished.requested_by
    )
    .into())
}
