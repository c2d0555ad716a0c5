//! Runs of every mode, requested one after another for as long as something else takes.

use std::cell::Cell;

use common::message::QueueName;
use futures::future::join_all;
use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

/// Rows of each run: some thirty batches.
const ROWS: u64 = 60_000;

/// Jobs by the mode of their target.
pub(crate) const JOBS: [(&str, &str); 3] = [
    ("appended", ""),
    ("upserted", "mode = \"upsert\"\nkey = [\"url\"]"),
    ("replaced", "mode = \"replace\""),
];

/// Has runs of each job in progress during `fault`, and until they have completed afterwards. Then every row is where it
/// belongs.
pub(crate) async fn during(pipeline: &Pipeline, fault: impl Future<Output = ()>) {
    write_jobs(pipeline);
    let over = Cell::new(false);
    let fault = async {
        await_progress(pipeline).await;
        fault.await;
        over.set(true);
    };
    let load = join_all(JOBS.map(|(job, _)| request_until(pipeline, job, &over)));
    let ((), runs) = futures::join!(fault, load);
    for (job, _) in JOBS {
        assert_complete(pipeline, job).await;
    }
    for run in runs.iter().flatten() {
        pipeline.assert_reconciled(run).await;
        assert_run(pipeline, run).await;
    }
    assert_nothing_dead(pipeline).await;
    assert_archived(pipeline, runs[0].last().unwrap()).await;
}

/// The archive has every batch of a run, or its replay would be refused.
pub(crate) async fn assert_archived(pipeline: &Pipeline, run: &str) {
    let done = pipeline.etl(&["replay", run, "--follow"]).await;
    assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
    pipeline.assert_reconciled(run).await;
    assert_complete(pipeline, "appended").await;
    assert_nothing_dead(pipeline).await;
}

pub(crate) fn write_jobs(pipeline: &Pipeline) {
    for (job, target) in JOBS {
        let toml = format!("[target]\ntable = \"{job}\"\n{target}\n");
        pipeline.job(job, &toml, sample::clicks(ROWS));
    }
}

/// Requests runs until the end, each when the one before is complete. A request that the broker could not confirm is made
/// again.
async fn request_until(pipeline: &Pipeline, job: &str, over: &Cell<bool>) -> Vec<String> {
    let mut runs = Vec::new();
    while !over.get() {
        let run = format!("{job}-{}", runs.len());
        let arguments = ["run", job, "--run-id", &run, "--again", "--follow"];
        wait_until(&format!("{run} to be requested"), TIMEOUT, async || {
            let done = pipeline.etl(&arguments).await;
            if done.code == Some(0) {
                return true;
            }
            let said = |word: &str| done.stderr.contains(word);
            let is_unsent = said("broker") || said("queue");
            assert!(done.code == Some(1) && is_unsent, "{}", done.stderr);
            false
        })
        .await;
        runs.push(run);
    }
    runs
}

/// Waits until more batches of each job are in the ledger.
pub(crate) async fn await_progress(pipeline: &Pipeline) {
    join_all(JOBS.map(|(job, _)| await_batches(pipeline, job))).await;
}

async fn await_batches(pipeline: &Pipeline, job: &str) {
    let loaded = format!("SELECT count(*) FROM etl.batches WHERE run_id LIKE '{job}-%'");
    let before = pipeline.number(&loaded).await;
    let what = format!("more batches of {job} in the ledger");
    wait_until(&what, TIMEOUT, async || {
        pipeline.number(&loaded).await >= before + 5
    })
    .await;
}

/// Checks every row of a job's table against the source: of an append, as often as there were runs.
async fn assert_complete(pipeline: &Pipeline, job: &str) {
    let ordinal = "substring(url FROM 'row=([0-9]+)')::bigint";
    let sql = format!(
        "SELECT dt::text, country, url, visits::text FROM {job} ORDER BY etl.run_no(_batch), {ordinal}"
    );
    let found: Vec<(String, Option<String>, String, String)> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .fetch_all(&pipeline.database.pool)
            .await
            .unwrap();
    let runs = format!("SELECT count(*) FROM etl.runs WHERE job = '{job}'");
    let runs = match job {
        "appended" => pipeline.number(&runs).await,
        _ => 1,
    };
    let runs = u64::try_from(runs).unwrap();
    assert_eq!(found.len() as u64, runs * ROWS, "{job}");
    let source = sample::clicks(ROWS);
    for (n, (dt, country, url, visits)) in (0..).zip(found) {
        let row = [Some(dt), country, Some(url), Some(visits)];
        assert_eq!(source.row(n % ROWS)[..4], row, "{job}");
    }
}

async fn assert_run(pipeline: &Pipeline, run: &str) {
    let sql = format!(
        "SELECT coalesce(sum(rows_loaded), 0)::bigint FROM etl.batches WHERE run_id = '{run}'"
    );
    assert_eq!(pipeline.number(&sql).await.unsigned_abs(), ROWS, "{run}");
}

/// No dead letter, and no message that nobody has handled.
async fn assert_nothing_dead(pipeline: &Pipeline) {
    let dead = [QueueName::Dead, QueueName::Unreadable];
    let all = QueueName::WORK.into_iter().chain(dead);
    for queue in all.map(QueueName::name) {
        wait_until(&format!("{queue} to be empty"), TIMEOUT, async || {
            pipeline.vhost.ready(queue).await == 0
        })
        .await;
    }
    let dead_letters = pipeline.table("stage, message_id, reason", "etl.dead_letters");
    assert_eq!(dead_letters.await, Vec::<String>::new());
}
