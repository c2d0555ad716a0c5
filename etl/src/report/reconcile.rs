//! `etl reconcile`: the proof that every row is accounted for.

use comfy_table::Table;
use serde::Serialize;

use super::{align_numbers, counted, note, number, print, print_json, table};
use crate::Failure;
use crate::books::{Books, Proven, Run, shown};

/// Up to this many runs each has its line; of more, only those that are not simply complete.
pub(crate) const FEW: i64 = 100;

/// What a run's books prove.
#[derive(Serialize)]
struct Verdict<'a> {
    run: &'a Run,
    missing: Vec<(i32, i32)>,
    #[serde(rename = "balanced")]
    is_true: bool,
    #[serde(rename = "verdict")]
    text: String,
}

/// `etl reconcile`: true when every run that is over balances, and the one that was `named` is complete.
pub(crate) async fn reconcile(
    books: &Books,
    proven: &Proven,
    named: bool,
    json: bool,
) -> Result<bool, Failure> {
    let runs = &proven.runs;
    if runs.is_empty() && proven.complete_besides == 0 {
        note(
            "there are no runs in these books, and so nothing is proven; is ETL_DATABASE_URL right?",
        );
        if json {
            print_json(&[(); 0])?;
        }
        return Ok(false);
    }
    let mut verdicts = Vec::with_capacity(runs.len());
    for run in runs {
        // One that balances has all of its batches.
        let missing = if run.balanced {
            Vec::new()
        } else {
            books.missing(run).await?
        };
        let (is_true, text) = verdict(run, &missing, named);
        verdicts.push(Verdict {
            run,
            missing,
            is_true,
            text,
        });
    }
    if json {
        print_json(&verdicts)?;
    } else {
        if !verdicts.is_empty() {
            print(&list(&verdicts).to_string())?;
        }
        if !named {
            print(&summary(&verdicts, proven.complete_besides))?;
        }
    }
    Ok(verdicts.iter().all(|one| one.is_true))
}

fn summary(verdicts: &[Verdict<'_>], complete_besides: i64) -> String {
    let count = |is: fn(&Verdict<'_>) -> bool| {
        let found = verdicts.iter().filter(|one| is(one)).count();
        i64::try_from(found).unwrap_or(i64::MAX)
    };
    format!(
        "{}: {} complete, {} not over, {} over without a row to prove, {} WRONG",
        counted(count(|_| true) + complete_besides, "run"),
        number(count(|one| one.run.is_complete()) + complete_besides),
        number(count(|one| one.is_true && !one.run.is_over())),
        number(count(|one| one.is_true
            && one.run.is_over()
            && !one.run.is_complete())),
        number(count(|one| !one.is_true))
    )
}

fn list(verdicts: &[Verdict<'_>]) -> Table {
    let mut table = table(&[
        "run",
        "state",
        "extracted",
        "loaded",
        "rejected",
        "dropped",
        "batches",
        "verdict",
    ]);
    for Verdict { run, text, .. } in verdicts {
        let expected = run
            .batches_expected
            .map_or_else(|| "?".to_owned(), |expected| number(expected.into()));
        table.add_row([
            run.run_id.clone(),
            run.state.clone(),
            number(run.rows_expected.unwrap_or(run.rows_read)),
            number(run.rows_loaded),
            number(run.rows_rejected),
            number(run.rows_dropped),
            format!("{} of {expected}", number(run.batches)),
            text.clone(),
        ]);
    }
    align_numbers(&mut table, 2..7);
    table
}

/// Whether a run's books balance, and what to say of it. What is not over, or is over without a row
/// in the target, is no contradiction; but whoever asks about it alone asks whether it is complete.
fn verdict(run: &Run, missing: &[(i32, i32)], alone: bool) -> (bool, String) {
    let loaded = number(run.rows_loaded);
    match run.state.as_str() {
        "completed" if run.is_complete() => (true, balance(run)),
        "failed" | "cancelled" if run.rows_loaded == 0 => (
            !alone,
            format!("{}, no row of it is in the target", run.state),
        ),
        "failed" => (
            false,
            format!(
                "failed, and {loaded} rows of it are in the target; `etl cancel {} --undo` removes them",
                run.run_id
            ),
        ),
        // Somebody was told of these rows, and has left them there.
        "cancelled" => (
            !alone,
            format!("cancelled, and {loaded} rows of it are in the target"),
        ),
        "superseded" if run.dead_letters == 0 => (
            !alone,
            "superseded by a later run, no row of it is in the target".to_owned(),
        ),
        "held" if run.dead_letters == 0 => (
            !alone,
            format!(
                "held: {}",
                run.held_because.as_deref().unwrap_or("no reason was given")
            ),
        ),
        "requested" | "running" if run.dead_letters == 0 => (
            !alone,
            match shown(missing) {
                seqs if !seqs.is_empty() => {
                    format!("not over yet, batches {seqs} are still to come")
                }
                _ => "not over yet".to_owned(),
            },
        ),
        _ => (false, contradiction(run, missing)),
    }
}

fn balance(run: &Run) -> String {
    if run.rows_dropped > 0 {
        "extracted = loaded + rejected + dropped".to_owned()
    } else {
        "extracted = loaded + rejected".to_owned()
    }
}

fn contradiction(run: &Run, missing: &[(i32, i32)]) -> String {
    let mut problems = Vec::new();
    if run.dead_letters > 0 {
        let letters = counted(run.dead_letters, "dead letter");
        problems.push(format!("{letters} (`etl dead list`)"));
    }
    if !missing.is_empty() && run.dead_letters > 0 {
        // Most likely they are in the letters.
        problems.push(format!("missing batches {}", shown(missing)));
    } else if !missing.is_empty() {
        problems.push(format!(
            "missing batches {}; `etl replay {} --missing` sends them again",
            shown(missing),
            run.run_id
        ));
    }
    if !run.balanced && missing.is_empty() {
        problems.push("the rows do not add up".to_owned());
    }
    format!("NOT BALANCED: {}", problems.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{on_a_terminal, samples};

    #[test]
    fn every_state_has_its_verdict() {
        let runs = samples::runs();
        let gone = Run {
            run_id: "a-run-with-a-gap".into(),
            balanced: false,
            batches: 36,
            ..samples::completed()
        };
        let stays = Run {
            run_id: "a-failed-run-with-rows".into(),
            state: "failed".into(),
            failure: Some("why".into()),
            balanced: false,
            ..samples::completed()
        };
        let all: Vec<_> = runs.iter().chain([&gone, &stays]).collect();
        let verdicts: Vec<_> = all
            .iter()
            .map(|run| {
                let missing = if run.batches_expected.is_some() && !run.balanced && run.is_over() {
                    vec![(3, 3), (36, 37)]
                } else {
                    Vec::new()
                };
                let (is_true, text) = verdict(run, &missing, false);
                Verdict {
                    run,
                    missing,
                    is_true,
                    text,
                }
            })
            .collect();
        let shown = on_a_terminal(list(&verdicts), 150);
        insta::assert_snapshot!(format!("{shown}\n{}", summary(&verdicts, 0)));
        let truths: Vec<_> = verdicts
            .iter()
            .map(|one| (one.run.run_id.as_str(), one.is_true))
            .collect();
        let untrue: Vec<_> = truths
            .iter()
            .filter(|(_, is)| !is)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(
            untrue,
            ["a-stuck-run", "a-run-with-a-gap", "a-failed-run-with-rows"]
        );
    }

    #[test]
    fn a_run_that_is_asked_about_alone_has_to_be_complete() {
        for run in samples::runs() {
            let (is_true, _) = verdict(&run, &[], true);
            assert_eq!(is_true, run.state == "completed", "{}", run.run_id);
        }
    }
}
