//! `etl replay`.

use indicatif::HumanCount;
use serde_json::{Value, json};

use super::print;
use crate::Failure;

/// What was done about a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sent {
    /// So many of its batches, from the archive, as this generation.
    Again(u64, u32),
    /// The extractor was asked to read its result again, as this generation.
    Reread(u32),
    /// So many batches that the books lacked.
    Missing(u64),
    /// `--missing`, and none is.
    NothingMissing,
    /// `--rejected-only`, and none has a rejected row.
    NothingRejected,
}

/// `etl replay` of a run.
pub(crate) fn replayed_run(run: &str, sent: Sent, json: bool) -> Result<(), Failure> {
    if json {
        print(&line(run, sent).to_string())
    } else {
        print(&sentence(run, sent))
    }
}

fn sentence(run: &str, sent: Sent) -> String {
    match sent {
        Sent::Again(batches, generation) => format!(
            "{} of {run} sent again, as generation {generation}",
            counted(batches)
        ),
        Sent::Reread(generation) => {
            format!("the result of {run} is read again, as generation {generation}")
        }
        Sent::Missing(batches) => format!("{} of {run} sent again", counted(batches)),
        Sent::NothingMissing => format!("no batch of {run} is missing"),
        Sent::NothingRejected => {
            format!("no batch of {run} has a rejected row, so that nothing was sent")
        }
    }
}

/// `batches` is null where nobody knows yet.
fn line(run: &str, sent: Sent) -> Value {
    match sent {
        Sent::Again(batches, generation) => {
            json!({ "run_id": run, "batches": batches, "generation": generation })
        }
        Sent::Reread(generation) => {
            json!({ "run_id": run, "batches": null, "generation": generation })
        }
        Sent::Missing(batches) => json!({ "run_id": run, "batches": batches }),
        Sent::NothingMissing | Sent::NothingRejected => json!({ "run_id": run, "batches": 0 }),
    }
}

/// `--job`, where no run is meant.
pub(crate) fn nothing_to_replay(json: bool) -> Result<(), Failure> {
    if json {
        return Ok(());
    }
    print("no run of this job was asked for in that time")
}

fn counted(batches: u64) -> String {
    match batches {
        1 => "1 batch".to_owned(),
        _ => format!("{} batches", HumanCount(batches)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_send_again_has_its_sentence_and_its_line() {
        let mut said = Vec::new();
        for sent in [
            Sent::Again(1, 2),
            Sent::Again(1_670, 1),
            Sent::Reread(3),
            Sent::Missing(39),
            Sent::NothingMissing,
            Sent::NothingRejected,
        ] {
            said.push(sentence("daily-2018-04-02", sent));
            said.push(line("daily-2018-04-02", sent).to_string());
        }
        insta::assert_snapshot!(said.join("\n"));
    }
}
