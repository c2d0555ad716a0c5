//! `etl reconcile`: the proof that every row is accounted for.

use comfy_table::Table;
use serde::Serialize;

use super::Command;
use crate::broker;
use crate::output::{Terminal, counted, note, number, print, print_json, size, table};
use crate::{Failure, loss, store};
use ledger::{Proven, RowRanges, Run, Store};

/// Prove that every row of a run, or of all, is accounted for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl reconcile daily-2018-04-09 && echo complete")]
pub struct Arguments {
    /// The run's whole name.
    pub run: Option<String>,
    /// Print JSON: an object of one run, else an array.
    #[arg(long)]
    pub json: bool,
}

/// Up to this many runs have a line each; of more, only those that are not complete.
const MAX_LINES: i64 = 100;

/// What the ledger proves of a run.
#[derive(Debug, Serialize)]
pub struct Verdict {
    #[serde(flatten)]
    pub run: Run,
    /// The ranges of rows that the ledger lacks.
    pub missing: Vec<(i64, i64)>,
    /// False for a contradiction; of a run that is proven alone, for every run that is not complete.
    #[serde(rename = "ok")]
    pub is_true: bool,
    #[serde(rename = "verdict")]
    pub text: String,
}

/// The proof of one run, or of all.
#[derive(Debug, Default)]
pub struct Proof {
    pub verdicts: Vec<Verdict>,
    /// So many more runs are complete and have no verdict of their own.
    pub complete_besides: i64,
    /// Why the broker cannot be asked whether it has messages of the open runs.
    pub broker: Option<String>,
}

/// Proves one run, or all. `few`: of more runs than this, only those that are not complete have a verdict.
pub async fn plan(store: &Store, run: Option<&str>, few: Option<i64>) -> Result<Proof, Failure> {
    let Proven {
        runs,
        complete_besides,
    } = match run {
        Some(name) => store.exactly(name).await?.into(),
        None => store.all(few).await?,
    };
    let mut verdicts = Vec::with_capacity(runs.len());
    let (mut queues, mut broker) = (None, None);
    if runs.iter().any(|run| run.state.takes_batches()) {
        match broker::depths().await {
            Ok(depths) => queues = Some(depths),
            Err(why) => broker = Some(why),
        }
    }
    for one in runs {
        // A balanced run has all of its batches.
        let missing = if one.balanced {
            Vec::new()
        } else {
            store.missing(&one).await?
        };
        let lost = match &queues {
            Some(queues) => loss::remedy(store, &one, queues).await?,
            None => None,
        };
        verdicts.push(Verdict::new(one, missing, lost, run.is_some()));
    }
    Ok(Proof {
        verdicts,
        complete_besides,
        broker,
    })
}

impl Verdict {
    /// The verdict on a run; of one that is proven `alone`, whether it is complete. `lost`: why nothing of it moves, and what
    /// repairs it.
    pub fn new(run: Run, missing: Vec<(i64, i64)>, lost: Option<String>, alone: bool) -> Self {
        let verdict = run.verdict(missing.clone());
        let lost = lost.map(|why| format!("; {why}")).unwrap_or_default();
        Self {
            is_true: verdict.holds(alone),
            text: sentence(&run, &verdict) + &lost,
            run,
            missing,
        }
    }
}

fn sentence(run: &Run, verdict: &ledger::Verdict) -> String {
    let loaded = number(run.rows_loaded);
    match verdict {
        ledger::Verdict::Complete if run.rows_dropped > 0 => {
            "extracted = loaded + rejected + dropped".to_owned()
        }
        ledger::Verdict::Complete => "extracted = loaded + rejected".to_owned(),
        ledger::Verdict::NotOver { missing } if missing.is_empty() => "not over yet".to_owned(),
        ledger::Verdict::NotOver { missing } => {
            format!("not over yet, the rows {} are pending", shown(missing))
        }
        ledger::Verdict::Held => {
            let why = run.held_because.as_deref();
            format!("held: {}", why.unwrap_or("no reason is recorded"))
        }
        ledger::Verdict::NothingLoaded => format!("{}, no row of it is in the target", run.state),
        ledger::Verdict::Superseded => {
            "superseded by a later run, no row of it is in the target".to_owned()
        }
        ledger::Verdict::RowsLeft => {
            format!("{}, and {loaded} rows of it are in the target", run.state)
        }
        ledger::Verdict::RowsLeaving => format!(
            "{}, and {loaded} rows of it are in the target until a loader removes them",
            run.state
        ),
        ledger::Verdict::RemovalFailed => format!(
            "{}, and {loaded} rows of it are in the target although they are to be removed: {}",
            run.state,
            run.removal_failure.as_deref().unwrap_or_default()
        ),
        ledger::Verdict::FailedWithRows => format!(
            "failed, and {loaded} rows of it are in the target; `etl cancel {} --undo` removes them",
            run.run_id
        ),
        ledger::Verdict::Contradiction { missing } => contradiction(run, missing),
    }
}

fn shown(ranges: &[(i64, i64)]) -> String {
    RowRanges::from_ledger(ranges.iter().copied()).to_string()
}

fn contradiction(run: &Run, missing: &[(i64, i64)]) -> String {
    let mut problems = Vec::new();
    if run.dead_letters > 0 {
        let dead = counted(run.dead_letters, "dead letter");
        problems.push(format!("{dead} (`etl dead list`)"));
    }
    if !missing.is_empty() {
        // The dead letters most likely have them, where there are any.
        let remedy = if run.dead_letters > 0 {
            String::new()
        } else {
            format!("; `etl replay {} --missing` sends them again", run.run_id)
        };
        problems.push(format!("missing rows {}{remedy}", shown(missing)));
    }
    if !run.balanced && missing.is_empty() {
        problems.push("the rows do not add up".to_owned());
    }
    format!("NOT BALANCED: {}", problems.join("; "))
}

impl Command for Arguments {
    /// True when every run that is over balances, or the named run is complete.
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        let proof = plan(
            &store,
            self.run.as_deref(),
            (!self.json).then_some(MAX_LINES),
        )
        .await?;
        let has_runs = !proof.verdicts.is_empty() || proof.complete_besides > 0;
        if !has_runs {
            note("the ledger has no runs, and nothing is proven; check ETL_DATABASE_URL");
        }
        if let Some(why) = &proof.broker {
            note(&format!(
                "whether messages of open runs were lost is unknown: {why}"
            ));
        }
        if self.json {
            match (&self.run, proof.verdicts.as_slice()) {
                (Some(_), [one]) => print_json(one)?,
                (_, all) => print_json(&all)?,
            }
        } else if has_runs {
            if !proof.verdicts.is_empty() {
                print(&shown_within(&proof.verdicts, Terminal::of_stdout()))?;
            }
            if self.run.is_none() {
                print(&summary(&proof))?;
            }
        }
        Ok(has_runs && proof.verdicts.iter().all(|one| one.is_true))
    }
}

fn summary(proof: &Proof) -> String {
    let count = |is: fn(&Verdict) -> bool| {
        let found: Vec<_> = proof.verdicts.iter().filter(|one| is(one)).collect();
        size(&found)
    };
    let complete = count(|one| one.run.is_complete()) + proof.complete_besides;
    let nothing = count(|one| one.is_true && one.run.state.is_over() && !one.run.is_complete());
    format!(
        "{}: {} complete, {} not over, {} over and not complete, {} WRONG",
        counted(size(&proof.verdicts) + proof.complete_besides, "run"),
        number(complete),
        number(count(|one| one.is_true && !one.run.state.is_over())),
        number(nothing),
        number(count(|one| !one.is_true))
    )
}

/// The least width of the sentences beside the counts.
const MIN_TEXT: usize = 40;

/// A table, or some lines for each run where the terminal is too narrow for one: a name that is cut cannot be copied.
fn shown_within(verdicts: &[Verdict], terminal: Terminal) -> String {
    let counts: Vec<_> = verdicts.iter().map(counts).collect();
    let widths = HEADER.iter().enumerate().map(|(column, header)| {
        let values = counts.iter().map(|row| row[column].chars().count());
        values.chain([header.len()]).max().unwrap_or_default() + 2
    });
    let needed = widths.sum::<usize>() + MIN_TEXT;
    if terminal
        .width
        .is_none_or(|width| usize::from(width) >= needed)
    {
        return list(verdicts).to_string();
    }
    let lines = counts.into_iter().zip(verdicts).map(|(counts, one)| {
        let [run, state, extracted, loaded, rejected, dropped, batches] = counts;
        format!(
            "{run} {state}\n  {extracted} extracted, {loaded} loaded, {rejected} rejected, {dropped} dropped; {batches} batches\n  {}",
            one.text
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The columns before the sentence.
const HEADER: [&str; 7] = [
    "run",
    "state",
    "extracted",
    "loaded",
    "rejected",
    "dropped",
    "batches",
];

fn counts(Verdict { run, .. }: &Verdict) -> [String; 7] {
    let expected = run.batches_expected.map(|expected| number(expected.into()));
    [
        run.run_id.clone(),
        run.state.to_string(),
        number(run.rows_expected.unwrap_or(run.rows_read)),
        number(run.rows_loaded),
        number(run.rows_rejected),
        number(run.rows_dropped),
        format!(
            "{} of {}",
            number(run.batches),
            expected.as_deref().unwrap_or("?")
        ),
    ]
}

fn list(verdicts: &[Verdict]) -> Table {
    let header: Vec<_> = HEADER.into_iter().chain(["verdict"]).collect();
    let rows = verdicts.iter().map(|one| {
        let cells = counts(one).into_iter();
        cells.chain([one.text.clone()]).collect::<Vec<_>>()
    });
    table(&header, 2..7, rows)
}

#[cfg(test)]
mod tests {
    use ledger::RunState;

    use super::*;
    use crate::output::{on_a_terminal, samples};

    #[test]
    fn every_state_has_its_verdict() {
        let gone = Run {
            run_id: "a-run-with-a-gap".into(),
            balanced: false,
            batches: 36,
            ..samples::completed()
        };
        let stays = Run {
            run_id: "a-failed-run-with-rows".into(),
            state: RunState::Failed,
            failure: Some("why".into()),
            balanced: false,
            ..samples::completed()
        };
        let verdicts = samples::runs().into_iter().chain([gone, stays]).map(|run| {
            let has_gap = run.rows_expected.is_some() && !run.balanced && run.state.is_over();
            let missing = if has_gap {
                vec![(6_588, 8_783), (79_056, 83_447)]
            } else {
                Vec::new()
            };
            Verdict::new(run, missing, None, false)
        });
        let proof = Proof {
            verdicts: verdicts.collect(),
            ..Proof::default()
        };
        let shown = on_a_terminal(list(&proof.verdicts), 150);
        let narrow = Terminal {
            width: Some(80),
            ..Terminal::default()
        };
        insta::assert_snapshot!("narrow", shown_within(&proof.verdicts, narrow));
        insta::assert_snapshot!(format!("{shown}\n{}", summary(&proof)));
        let untrue = proof.verdicts.iter().filter(|one| !one.is_true);
        let untrue: Vec<_> = untrue.map(|one| one.run.run_id.as_str()).collect();
        assert_eq!(
            untrue,
            [
                "a-blocked-run",
                "a-run-with-a-gap",
                "a-failed-run-with-rows"
            ]
        );
    }

    #[test]
    fn run_that_is_proven_alone_has_to_be_complete() {
        for run in samples::runs() {
            let verdict = Verdict::new(run, Vec::new(), None, true);
            let run = &verdict.run;
            assert_eq!(
                verdict.is_true,
                run.state == RunState::Completed,
                "{}",
                run.run_id
            );
        }
    }
}
