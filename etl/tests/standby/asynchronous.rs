//! An asynchronous standby: table and ledger go back together. What the broker was told is found missing, and completed by the
//! commands that `etl` names.

use std::time::Instant;

use testkit::cloud::{Answer, sample};
use testkit::process::{Finished, Signal};
use testkit::{TIMEOUT, wait_for, wait_until};

use crate::pair::{Pair, took};

const LOADER: usize = 0;
const TRANSFORMER: usize = 1;
const EXTRACTOR: usize = 2;

/// The rows of each job, which is loaded into the table of its name by one run of its name.
const JOBS: [(&str, u64); 6] = [
    ("before", 20_000),
    ("cancelled", 0),
    ("half", 300_000),
    ("requested", 50_000),
    ("unknown", 50_000),
    ("flying", 50_000),
];

async fn state(pair: &Pair, run: &str) -> String {
    let table = format!("etl.runs WHERE run_id = '{run}'");
    let state = pair.pipeline.table("state", &table).await;
    state.concat().replace(['(', ')'], "")
}

async fn said(pair: &Pair, arguments: &[&str], code: i32, words: &[&str]) -> Finished {
    let done = pair.pipeline.etl(arguments).await;
    let text = format!("{}\n{}", done.stdout, done.stderr);
    assert_eq!(done.code, Some(code), "{arguments:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{arguments:?} lacks {word:?}: {text}");
    }
    done
}

/// Waits until `etl status RUN` names this command, and executes it.
async fn follow_advice(pair: &Pair, run: &str, command: &str) {
    let what = format!("`etl status {run}` to say {command}");
    wait_until(&what, TIMEOUT, async || {
        let status = pair.pipeline.etl(&["status", run]).await;
        status.stdout.contains(&format!("`{command}`"))
    })
    .await;
    said(
        pair,
        &["doctor"],
        0,
        &[&format!("{run}: nothing of it is in any queue")],
    )
    .await;
    let arguments: Vec<_> = command.split(' ').skip(1).collect();
    said(pair, &arguments, 0, &[]).await;
}

/// Runs of which the standby has nothing, a part, or everything, when it is cut off from the primary. All of them but the last
/// are complete there when it is killed. Returns the number of that one's batches, which are all under way.
async fn lose_the_primary(pair: &mut Pair) -> i64 {
    let signal = |pair: &Pair, services: &[usize], signal| {
        for service in services {
            pair.pipeline.services[*service].signal(signal);
        }
    };
    pair.pipeline.run("before", "before").await;
    let (cloud, query) = (&pair.pipeline.cloud, "FROM cancelled");
    cloud.answer_once(query, Answer::queued_for_ever());
    pair.request("cancelled", "cancelled").await;
    wait_until("the query to be noted", TIMEOUT, async || {
        state(pair, "cancelled").await == "running"
    })
    .await;
    // The standby has the beginning of one run, and nothing but the request of another.
    pair.request("half", "half").await;
    pair.until_loaded("half", 5).await;
    signal(pair, &[LOADER, EXTRACTOR], Signal::STOP);
    pair.request("requested", "requested").await;
    pair.standby.await_caught_up(&pair.primary).await;
    let _cut = pair.standby.cut().await;
    signal(pair, &[LOADER, EXTRACTOR], Signal::CONT);
    for run in ["half", "requested"] {
        pair.assert_complete(run).await;
    }
    pair.pipeline.run("unknown", "unknown").await;
    said(pair, &["cancel", "cancelled"], 0, &[]).await;
    // One more, of which batches are under way when the primary is lost.
    signal(pair, &[TRANSFORMER], Signal::STOP);
    pair.request("flying", "flying").await;
    let batches = wait_for("the result to be extracted", TIMEOUT, async || {
        let batches =
            "SELECT coalesce(max(batches_expected), 0)::bigint FROM etl.runs WHERE run_id = 'flying'";
        Some(pair.pipeline.number(batches).await).filter(|batches| *batches > 0)
    })
    .await;
    pair.primary.kill9().await;
    pair.promote().await;
    signal(pair, &[TRANSFORMER], Signal::CONT);
    batches
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_asynchronous_standby_lacks_is_found_and_completed() {
    let mut pair = Pair::start().await;
    // What is lost comes from there, whatever the setting of the suite.
    pair.pipeline.archive = Some("stream");
    for name in ["loader", "transformer", "extractor"] {
        pair.service(name).await;
    }
    for (job, rows) in JOBS {
        let toml = format!("[target]\ntable = \"{job}\"\n");
        pair.pipeline.job(job, &toml, sample::clicks(rows));
    }
    let batches = lose_the_primary(&mut pair).await;
    let promoted = Instant::now();

    // What was complete before is.
    pair.pipeline.assert_reconciled("before").await;
    // A decision of a person is made again.
    assert_eq!(state(&pair, "cancelled").await, "running");
    said(&pair, &["cancel", "cancelled"], 0, &[]).await;
    // Runs that the ledger does not know are requested again, under the same names.
    said(&pair, &["status", "unknown"], 2, &["unknown"]).await;
    wait_until("dead letters of the last run", TIMEOUT, async || {
        let dead = "SELECT count(*) FROM etl.dead_letters WHERE run_id = 'flying'";
        pair.pipeline.number(dead).await >= batches
    })
    .await;
    let words = ["etl dead replay --run flying"];
    said(&pair, &["dead", "list"], 0, &words).await;
    for run in ["unknown", "flying"] {
        pair.request(run, run).await;
    }
    said(&pair, &["dead", "replay", "--run", "flying"], 0, &[]).await;
    // A run whose task is gone, and one whose batches are.
    follow_advice(&pair, "half", "etl replay half --missing").await;
    follow_advice(&pair, "requested", "etl run requested --run-id requested").await;
    took("advice followed", promoted);
    for (run, rows) in JOBS.into_iter().filter(|(run, _)| *run != "cancelled") {
        pair.assert_complete(run).await;
        pair.assert_rows(run, rows).await;
    }
    let open = "SELECT count(*) FROM etl.dead_letters WHERE resolved_at IS NULL";
    assert_eq!(pair.pipeline.number(open).await, 0);
    said(&pair, &["reconcile"], 0, &[]).await;
    took("everything is complete", promoted);
}
