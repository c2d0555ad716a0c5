//! The reasons to refuse a replay. Pure.

use anyhow::anyhow;
use common::job::{Commit, JobSpec, Window};

use crate::Failure;
use ledger::{NewReplay, RowRanges, Subject};

/// How many rows the run has; refuses one whose result was not read to its end.
pub(super) fn extracted(subject: &Subject) -> Result<u64, Failure> {
    subject.rows().ok_or_else(|| {
        let id = subject.id();
        anyhow!(
            "the result of the run {id} was not read to its end, and the batches of a replay are unknown; nothing was changed. `etl replay {id} --from-athena` reads the result again if the ledger knows it; otherwise request a new run"
        )
        .into()
    })
}

/// Refuses rows that the run does not have.
pub(super) fn within(subject: &Subject, rows: &RowRanges, all: u64) -> Result<(), Failure> {
    match rows.last() {
        Some(last) if last >= all.max(1) => Err(Failure::usage(anyhow!(
            "the run {} has the rows {}, and --rows has {rows}; nothing was changed",
            subject.id(),
            RowRanges::first(all)
        ))),
        _ => Ok(()),
    }
}

/// Refuses a job whose rows cannot replace those of the run.
pub(super) fn job(subject: &Subject, now: &JobSpec) -> Result<(), Failure> {
    let (run, then, now) = (&subject.run, &subject.first_spec.target, &now.target);
    let (schema, table) = now.schema_and_table();
    let table = format!("{schema}.{table}");
    let mode = now.mode.name().to_owned();
    let window = |window: &Option<Window>| {
        let whole = || "none, for the whole table".to_owned();
        window.as_ref().map_or_else(whole, ToString::to_string)
    };
    let (old, new) = (&then.replace_where, &now.replace_where);
    let settings = [
        (
            "table",
            run.target_table != table,
            run.target_table.clone(),
            table,
        ),
        ("mode", run.mode != mode, run.mode.clone(), mode),
        (
            "key",
            then.key != now.key,
            then.key.join(", "),
            now.key.join(", "),
        ),
        ("replace_where", old != new, window(old), window(new)),
    ];
    match settings.into_iter().find(|(_, differs, ..)| *differs) {
        None => Ok(()),
        Some((setting, _, then, now)) => Err(anyhow!(
            "the run {} has loaded its rows with {setting} = {then}, and the job {} has {setting} = {now} now; a replay cannot replace these rows. Restore the job's {setting}, or request a new run; nothing was changed",
            run.run_id,
            run.job
        )
        .into()),
    }
}

/// Whether each batch replaces its former self alone, then and now, so that some can be replayed without the others.
pub(super) fn supersedes_by_batch(subject: &Subject, now: &JobSpec) -> bool {
    subject.run.commit == Commit::Batch.name() && !now.target.is_staged(subject.generation() + 1)
}

/// Whether the replay resumes an unfinished one. Refuses a replay that leaves batches of an unfinished one out.
pub(super) fn resumes(subject: &Subject, new: &NewReplay) -> Result<bool, Failure> {
    let Some(unfinished) = subject.unfinished() else {
        return Ok(false);
    };
    let is_it = unfinished.source == new.source && unfinished.job_hash == new.job_hash;
    if is_it && unfinished.rows == new.rows {
        return Ok(true);
    }
    let left = subject.unfinished_rows().unwrap_or_default();
    if new.rows.covers(&left) {
        return Ok(false);
    }
    let id = subject.id();
    let remedy = match left.as_argument() {
        Some(range) => format!("`etl replay {id} --rows {range}` or `etl replay {id}`"),
        None => format!("`etl replay {id}`"),
    };
    Err(anyhow!(
        "a replay of the rows {} of {id} by {} is unfinished, and this replay leaves some of them out; nothing was changed: run {remedy} first",
        left,
        unfinished.requested_by
    )
    .into())
}
