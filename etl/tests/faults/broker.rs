//! The broker fails, raises an alarm, fills up, stops answering or is reconfigured during a run. Each test ends with
//! the same checks: the run is complete, the ledger balances, every row is in the target once, and there is no dead
//! letter.
//!
//! Tests that need only a virtual host also run against a broker of another version (`testkit::servers` documents how).
//! Tests that kill, stop or reconfigure a broker have a private one.

mod away;
mod blocked;
mod commands;
mod fair;
mod full;
mod lacking;
mod operator;
mod silent;
mod stopping;

use std::time::Duration;

use common::message::QueueName;
use serde_json::{Value, json};
use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::http::Method;
use testkit::pipeline::Pipeline;
use testkit::process::{Process, Signal};
use testkit::wait_until;
use tokio::time::timeout;

const JOB: &str = "[target]\ntable = \"clicks\"\n";

/// Enough rows for a run to be in progress when the fault occurs.
const MANY: u64 = 600_000;

/// The queues with a consumer.
fn queues() -> [&'static str; 7] {
    QueueName::WORK.map(QueueName::name)
}

/// In the order of a pipeline's services.
const SERVICES: [&str; 3] = ["loader", "transformer", "extractor"];

/// A run of the job `clicks`, followed by `etl run --follow` in a separate process.
struct Run {
    id: &'static str,
    rows: u64,
    follow: Process,
}

impl Run {
    /// Requests a run with this number of rows.
    fn start(pipeline: &Pipeline, id: &'static str, rows: u64) -> Self {
        pipeline.job("clicks", JOB, sample::clicks(rows));
        let command = pipeline.service("etl").arg("run").arg("clicks");
        let command = command.arg("--run-id").arg(id).arg("--again");
        let follow = command.arg("--follow").spawn();
        Self { id, rows, follow }
    }

    /// Waits until this number of batches is in the ledger, and checks that the run is still in progress: the fault
    /// that follows must affect it.
    async fn until_loaded(&self, pipeline: &Pipeline, batches: i64) {
        let id = self.id;
        let loaded = format!("SELECT count(*) FROM etl.batches WHERE run_id = '{id}'");
        let what = format!("{batches} batches of {id} in the ledger");
        wait_until(&what, TIMEOUT, async || {
            pipeline.number(&loaded).await >= batches
        })
        .await;
        self.assert_open(pipeline).await;
    }

    async fn assert_open(&self, pipeline: &Pipeline) {
        assert_eq!(
            state(pipeline, self.id).await,
            "running",
            "the run {} must still be in progress: give it more rows",
            self.id
        );
    }

    /// The checks at the end of every test.
    async fn assert_complete(mut self, pipeline: &Pipeline) {
        let status = self.follow.wait(TIMEOUT).await;
        assert_eq!(status.code(), Some(0), "{}", self.follow.log());
        pipeline.assert_reconciled(self.id).await;
        assert_every_row_once(pipeline, self.id, self.rows).await;
        assert_nothing_dead(pipeline).await;
        for queue in queues() {
            wait_until(&format!("{queue} to be empty"), TIMEOUT, async || {
                pipeline.vhost.ready(queue).await == 0
            })
            .await;
        }
    }
}

/// Limits a queue to this number of messages, and waits until the limit is effective.
async fn bound(pipeline: &Pipeline, queue: &str, messages: u32) {
    let (broker, vhost) = (&pipeline.vhost.broker, &pipeline.vhost.name);
    let policy = json!({ "pattern": format!("^{queue}$"), "apply-to": "queues", "definition": { "max-length": messages } });
    let path = format!("policies/{vhost}/{queue}");
    let (status, answer) = broker.call(Method::PUT, &path, policy).await;
    assert!(status.is_success(), "{answer}");
    let path = format!("queues/{vhost}/{queue}");
    wait_until("the bound to be in force", TIMEOUT, async || {
        let (_, found) = broker.call(Method::GET, &path, Value::Null).await;
        found["policy"] == queue
    })
    .await;
}

async fn state(pipeline: &Pipeline, run: &str) -> String {
    let of_run = format!("etl.runs WHERE run_id = '{run}'");
    let state = pipeline
        .table("state", &of_run)
        .await
        .pop()
        .unwrap_or_default();
    state.trim_matches(['(', ')']).to_owned()
}

/// Every row of the sample has its ordinal in its URL.
async fn assert_every_row_once(pipeline: &Pipeline, run: &str, rows: u64) {
    let of_run = format!(
        "FROM clicks WHERE etl.run_no(_batch) = (SELECT run_no FROM etl.runs WHERE run_id = '{run}')"
    );
    let all = pipeline.number(&format!("SELECT count(*) {of_run}")).await;
    let ordinal = "substring(url FROM 'row=([0-9]+)')";
    let distinct = format!("SELECT count(DISTINCT {ordinal}) {of_run}");
    let rows = i64::try_from(rows).unwrap();
    assert_eq!((all, pipeline.number(&distinct).await), (rows, rows));
}

async fn assert_nothing_dead(pipeline: &Pipeline) {
    assert_eq!(pipeline.vhost.ready("etl.dead").await, 0);
    let dead_letters = pipeline.table("stage, message_id, reason", "etl.dead_letters");
    assert_eq!(dead_letters.await, Vec::<String>::new());
}

/// Waits until a service is not ready and reports `why`.
async fn await_not_ready(service: &mut Process, why: &str) {
    await_not_ready_for_any(service, &[why]).await;
}

/// Like [`await_not_ready`], for several possible reasons: the moment decides which one is reported.
async fn await_not_ready_for_any(service: &mut Process, reasons: &[&str]) {
    let what = format!("{service:?} to be not ready: {reasons:?}");
    wait_until(&what, TIMEOUT, async || {
        assert!(service.is_running(), "ended: {}", service.log());
        let assert_output = |said: &str| reasons.iter().any(|why| said.contains(why));
        matches!(service.readiness().await, Some((false, said)) if assert_output(&said))
    })
    .await;
}

fn service<'a>(pipeline: &'a mut Pipeline, name: &str) -> &'a mut Process {
    let index = SERVICES.iter().position(|known| *known == name);
    &mut pipeline.services[index.unwrap()]
}

/// Lets a loader work for a tenth of the time during `act`, so that the earlier stages neither reach the end of a run
/// nor the timeout for a full queue.
async fn slowly<T>(loader: &Process, act: impl Future<Output = T>) -> T {
    tokio::pin!(act);
    let done = loop {
        loader.signal(Signal::STOP);
        if let Ok(done) = timeout(Duration::from_millis(1_800), &mut act).await {
            break done;
        }
        loader.signal(Signal::CONT);
        if let Ok(done) = timeout(Duration::from_millis(200), &mut act).await {
            break done;
        }
    };
    loader.signal(Signal::CONT);
    done
}

async fn await_all_ready(pipeline: &mut Pipeline) {
    for service in &mut pipeline.services {
        service.await_ready().await;
    }
}
