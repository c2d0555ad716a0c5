//! A replay that is given up takes nothing along: the run is what it was, its rows are where they were, and the books say
//! so; whichever way it is given up, and however far it came.

use std::time::Duration;

use testkit::cloud::sample;
use testkit::line::Line;
use testkit::process::Signal;
use testkit::wait_until;

const JOB: &str = "[target]\ntable = \"clicks\"\n";
const ROWS: &str = "dt, country, url, visits, seconds, seen_at, _batch";
const PATIENCE: Duration = Duration::from_mins(1);

/// A line with the completed run `daily`.
async fn completed(job: &str, rows: u64) -> Line {
    let line = Line::start().await;
    line.job("clicks", job, sample::clicks(rows));
    line.run("clicks", "daily").await;
    line
}

/// `etl` with these arguments, which has to end with this code and say this.
async fn says(line: &Line, arguments: &[&str], code: i32, said: &str) {
    let done = line.etl(arguments).await;
    let all = format!("{}{}", done.stdout, done.stderr);
    assert_eq!(done.code, Some(code), "{arguments:?}: {all}");
    assert!(
        all.contains(said),
        "{arguments:?} does not say {said:?}: {all}"
    );
}

async fn state(line: &Line) -> String {
    line.table("state, generation", "etl.runs").await.join(" ")
}

/// Waits until nothing is on its way any more, and the loader has had its say about the run.
async fn quiet(line: &Line) {
    wait_until("the queues to be drained", PATIENCE, async || {
        let mut left = 0;
        for queue in ["etl.raw", "etl.valid", "etl.events"] {
            let depth = line.vhost.depth(queue).await;
            left += depth.ready + depth.unacked;
        }
        left == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_replay_leaves_the_run_complete_however_far_it_came() {
    let line = completed(JOB, 60_000).await;
    let rows = line.table(ROWS, "clicks").await;
    for (generation, some) in [(1, false), (2, true)] {
        line.services[1].signal(Signal::STOP);
        says(&line, &["replay", "daily"], 0, "sent again").await;
        if some {
            line.services[1].signal(Signal::CONT);
            let live = format!("SELECT count(*) FROM etl.batches WHERE generation = {generation}");
            wait_until("a batch to be replaced", PATIENCE, async || {
                line.number(&live).await > 0
            })
            .await;
        }
        let cancelled = line.etl(&["cancel", "daily"]).await;
        if cancelled.code == Some(0) {
            let said = "the replay of the run daily is cancelled; the run is complete, as it was before: the 60,000 rows that it has loaded are in public.clicks";
            assert_eq!(cancelled.stdout.trim(), said);
        } else {
            // It was faster.
            assert!(
                some && cancelled.stderr.contains("is completed"),
                "{}",
                cancelled.stderr
            );
        }
        line.services[1].signal(Signal::CONT);
        quiet(&line).await;
        assert_eq!(state(&line).await, format!("(completed,{generation})"));
        line.assert_reconciled("daily").await;
        assert!(line.table(ROWS, "clicks").await == rows, "{generation}");
    }
    // The same is not loaded twice because of it.
    says(&line, &["run", "clicks"], 1, "--again").await;

    line.services[1].signal(Signal::STOP);
    says(&line, &["replay", "daily"], 0, "sent again").await;
    says(
        &line,
        &["cancel", "daily", "--undo"],
        0,
        "60,000 rows of it were removed from public.clicks",
    )
    .await;
    line.services[1].signal(Signal::CONT);
    quiet(&line).await;
    assert_eq!(line.number("SELECT count(*) FROM clicks").await, 0);
    let ledger = "SELECT sum(rows_dropped)::bigint FROM etl.batches WHERE generation = 3 AND rows_loaded = 0";
    assert_eq!(line.number(ledger).await, 60_000);
    assert_eq!(state(&line).await, "(cancelled,3)");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cancelled_replay_had_staged_was_never_in_the_target() {
    let upsert = format!("{JOB}mode = \"upsert\"\nkey = [\"url\"]\n");
    let line = completed(&upsert, 20_000).await;
    let rows = line.table(ROWS, "clicks").await;
    let books = "rows_extracted, rows_loaded, rows_collapsed";
    let ledger = line.table(books, "etl.batches").await;
    line.services[1].signal(Signal::STOP);
    says(&line, &["replay", "daily"], 0, "sent again").await;
    says(&line, &["cancel", "daily"], 0, "complete, as it was before").await;
    line.services[1].signal(Signal::CONT);
    quiet(&line).await;
    assert_eq!(state(&line).await, "(completed,1)");
    line.assert_reconciled("daily").await;
    assert!(line.table(ROWS, "clicks").await == rows);
    assert_eq!(line.table(books, "etl.batches").await, ledger);
}

/// The job was one whose batches are loaded one by one, and has become one that is published as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_replay_that_is_discarded_leaves_what_was_loaded_before() {
    let line = completed(JOB, 5_000).await;
    let rows = line.table(ROWS, "clicks").await;
    let strict = format!(
        "{JOB}max_rejected = 1\n[[columns]]\nsource = \"country\"\nrules = [{{ required = true }}]\n"
    );
    line.write_job("clicks", &strict);
    says(&line, &["replay", "daily", "--follow"], 1, "held").await;
    says(
        &line,
        &["discard", "daily", "--why", "too strict"],
        0,
        "as it was before: the 5,000 rows that it has loaded are in public.clicks",
    )
    .await;
    assert_eq!(state(&line).await, "(completed,1)");
    line.assert_reconciled("daily").await;
    assert!(line.table(ROWS, "clicks").await == rows);
    let rejected = "SELECT count(*) FROM etl.rejected_rows";
    assert_eq!(
        line.number(rejected).await,
        0,
        "nothing was rejected of what is there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replays_that_come_to_nothing_the_run_is_complete_as_before() {
    let line = completed(JOB, 5_000).await;
    let query = line.table("query_execution_id", "etl.runs").await[0].clone();
    line.cloud.delete_result(query.trim_matches(['(', ')']));
    let letters = "SELECT count(*) FROM etl.dead_letters";
    for (number, force) in [(1, &[][..]), (2, &["--force"])] {
        let replay = [&["replay", "daily", "--from-athena"], force].concat();
        says(&line, &replay, 0, "read again").await;
        wait_until("its task to be given up", PATIENCE, async || {
            line.number(letters).await == number
        })
        .await;
    }
    for (number, said) in [("1", "as they were"), ("2", "complete, as it was before")] {
        says(
            &line,
            &["dead", "drop", number, "--why", "the result is gone"],
            0,
            said,
        )
        .await;
    }
    assert_eq!(state(&line).await, "(completed,2)");
    line.assert_reconciled("daily").await;
    assert_eq!(line.number("SELECT count(*) FROM clicks").await, 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_which_every_batch_is_dropped_is_held_and_not_complete() {
    let upsert = format!("{JOB}mode = \"upsert\"\nkey = [\"url\"]\n");
    let line = completed(&upsert, 1_000).await;
    let rows = line.table(ROWS, "clicks").await;
    let other = format!("{upsert}[[columns]]\nsource = \"visits\"\ntype = \"text\"\n");
    line.write_job("clicks", &other);
    says(&line, &["replay", "daily"], 0, "sent again").await;
    let letters = "SELECT count(*) FROM etl.dead_letters";
    wait_until("its batch to be given up", PATIENCE, async || {
        line.number(letters).await == 1
    })
    .await;
    says(
        &line,
        &["dead", "drop", "1", "--why", "a mistake"],
        0,
        "batch 0 of daily",
    )
    .await;
    wait_until("the run to be held", PATIENCE, async || {
        state(&line).await == "(held,1)"
    })
    .await;
    says(
        &line,
        &["reconcile", "daily"],
        1,
        "every batch of the replay was given up",
    )
    .await;
    says(
        &line,
        &["discard", "daily", "--why", "a mistake"],
        0,
        "as it was before",
    )
    .await;
    line.assert_reconciled("daily").await;
    assert!(line.table(ROWS, "clicks").await == rows);
}
