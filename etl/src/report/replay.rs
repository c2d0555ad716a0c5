//! `etl replay`.

use indicatif::HumanCount;
use serde_json::json;

use super::{note, print};
use crate::Failure;

/// A replay from the archive that was sent.
pub(crate) fn replayed_run(
    run: &str,
    batches: u64,
    generation: u32,
    json: bool,
) -> Result<(), Failure> {
    if json {
        let report = json!({ "run_id": run, "batches": batches, "generation": generation });
        return print(&report.to_string());
    }
    print(&format!(
        "{} of {run} sent again, as generation {generation}",
        counted(batches)
    ))
}

/// A result that the extractor was asked to read again.
pub(crate) fn reread(run: &str, generation: u32, json: bool) -> Result<(), Failure> {
    if json {
        let report = json!({ "run_id": run, "batches": null, "generation": generation });
        return print(&report.to_string());
    }
    print(&format!(
        "the result of {run} is read again, as generation {generation}"
    ))
}

/// `--rejected-only`, where there is nothing to do.
pub(crate) fn nothing_rejected(run: &str) {
    note(&format!("no batch of {run} has a rejected row"));
}

/// `--job`, where no run is meant.
pub(crate) fn nothing_to_replay(json: bool) -> Result<(), Failure> {
    if json {
        return Ok(());
    }
    print("no run of this job was asked for in that time")
}

/// `--missing`, where there is nothing to do.
pub(crate) fn nothing_missing(run: &str, json: bool) -> Result<(), Failure> {
    if json {
        return print(&json!({ "run_id": run, "batches": 0 }).to_string());
    }
    print(&format!("no batch of {run} is missing"))
}

/// `--missing`.
pub(crate) fn restored(run: &str, batches: u64, json: bool) -> Result<(), Failure> {
    if json {
        return print(&json!({ "run_id": run, "batches": batches }).to_string());
    }
    print(&format!("{} of {run} sent again", counted(batches)))
}

fn counted(batches: u64) -> String {
    match batches {
        1 => "1 batch".to_owned(),
        _ => format!("{} batches", HumanCount(batches)),
    }
}
