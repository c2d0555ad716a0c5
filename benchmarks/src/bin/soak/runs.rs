//! Requests run after run until the time is over, as an operator would: a command that fails while the broker or the database
//! is away is repeated.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use testkit::process::Finished;
use tokio::time::sleep;

use crate::Soak;
use crate::source::{self, JOBS, Mode, Sum};

/// A run whose status does not change for this long has failed.
const TIMEOUT: Duration = Duration::from_mins(4);

/// One run, as it ended.
pub(crate) struct Run {
    pub(crate) version: u64,
    pub(crate) id: String,
    pub(crate) mode: Mode,
    pub(crate) way: &'static str,
    pub(crate) took: Duration,
    /// What the source holds.
    pub(crate) source: Sum,
    /// The output of `etl status --json`.
    pub(crate) status: Value,
    pub(crate) problem: Option<String>,
}

/// Runs the jobs in turn, in parallel lanes. Ends early at the first run that fails, since later runs would hide the cause.
pub(crate) async fn run(soak: &Soak) -> Vec<Run> {
    let next = AtomicU64::new(0);
    let lanes = (0..soak.settings.lanes).map(|_| lane(soak, &next));
    let mut runs: Vec<Run> = join_all(lanes).await.into_iter().flatten().collect();
    runs.sort_by_key(|run| run.version);
    soak.over.store(true, Ordering::Relaxed);
    runs
}

async fn lane(soak: &Soak, next: &AtomicU64) -> Vec<Run> {
    let mut runs = Vec::new();
    while Instant::now() < soak.until && !soak.failed.load(Ordering::Relaxed) {
        let version = next.fetch_add(1, Ordering::Relaxed) + 1;
        let run = one(soak, version).await;
        soak.say(&match &run.problem {
            None => format!(
                "{} is complete after {:.1} s",
                run.id,
                run.took.as_secs_f64()
            ),
            Some(problem) => format!("{}: {problem}", run.id),
        });
        if run.problem.is_some() {
            soak.failed.store(true, Ordering::Relaxed);
        }
        runs.push(run);
    }
    runs
}

async fn one(soak: &Soak, version: u64) -> Run {
    let place = usize::try_from(version - 1).expect("a soak has few runs");
    let (job, mode, way) = JOBS[place % JOBS.len()];
    let rows = soak.settings.rows;
    source::answer(&soak.pipeline, version, rows);
    let id = format!("{job}-{version}");
    let begun = Instant::now();
    let set = format!("version={version}");
    let command = ["run", job, "--run-id", &id, "--set", &set, "--json"];
    let (requested, source) = tokio::join!(
        repeat_while_away(soak, &command),
        source::expected(rows, version)
    );
    let (status, problem) = match requested {
        Ok(_) => follow(soak, &id).await,
        Err(problem) => (Value::Null, Some(problem)),
    };
    Run {
        version,
        id,
        mode,
        way,
        took: begun.elapsed(),
        source,
        status,
        problem,
    }
}

/// Polls the run until it has ended; returns its status, and the problem if there is one.
async fn follow(soak: &Soak, id: &str) -> (Value, Option<String>) {
    let mut last = (Value::Null, Instant::now());
    loop {
        let status = match repeat_while_away(soak, &["status", id, "--json"]).await {
            Ok(done) => serde_json::from_str(&done.stdout).unwrap_or(Value::Null),
            Err(problem) => return (last.0, Some(problem)),
        };
        if status["dead_letters"].as_i64() != Some(0) {
            return (status, Some("it has dead letters".to_owned()));
        }
        match status["state"].as_str().unwrap_or_default() {
            "requested" | "running" => {}
            "completed" if status["balanced"] == true => return (status, None),
            state => {
                let problem = format!("it is {state}: {}", status["failure"]);
                return (status, Some(problem));
            }
        }
        if status != last.0 {
            last = (status, Instant::now());
        } else if last.1.elapsed() > TIMEOUT {
            let problem = format!("nothing changed for {TIMEOUT:?}: {}", last.0);
            diagnose(soak).await;
            return (last.0, Some(problem));
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Repeats `etl` while it exits with 1, as it does when the broker or the database is away.
async fn repeat_while_away(soak: &Soak, arguments: &[&str]) -> Result<Finished, String> {
    let begun = Instant::now();
    loop {
        let done = soak.pipeline.etl(arguments).await;
        match done.code {
            Some(0) => return Ok(done),
            Some(1) if begun.elapsed() < TIMEOUT => {}
            _ => {
                return Err(format!(
                    "etl {arguments:?}: {:?}, {}",
                    done.code, done.stderr
                ));
            }
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Prints the queues, as the broker reports them.
async fn diagnose(soak: &Soak) {
    let vhost = &soak.pipeline.vhost;
    let arguments = [
        "list_queues",
        "-p",
        &vhost.name,
        "name",
        "messages_ready",
        "messages_unacknowledged",
        "consumers",
        "leader",
        "state",
    ];
    soak.say(&vhost.broker.rabbitmqctl(&arguments).await);
}
