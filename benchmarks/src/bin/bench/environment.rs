//! The environment of the benchmark: a virtual host, a database, the emulator of AWS in this process, and services on demand.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use testkit::cloud::{Answer, Cloud, ResultSet, sample};
use testkit::http::Method;
use testkit::pipeline::Pipeline;
use testkit::process::{Process, Service};
use testkit::servers::{shared_broker, shared_postgres};
use testkit::{TIMEOUT, wait_until};
use tokio::time::sleep;

use crate::meter::{self, Cpu, rounded};

/// The services, in the order in which they are started.
const SERVICES: [&str; 3] = ["loader", "transformer", "extractor"];

pub(crate) struct Environment {
    pub(crate) pipeline: Pipeline,
    /// The running services by name.
    services: Vec<(&'static str, Process)>,
    broker: u32,
    postgres: u32,
    runs: u32,
}

/// A run that has ended.
pub(crate) struct Ran {
    /// Seconds from the start of `etl run` to the transaction that completed the run.
    pub(crate) committed: f64,
    /// Seconds to the end of `etl run --follow`.
    pub(crate) followed: f64,
}

impl Environment {
    pub(crate) async fn start() -> Self {
        let (broker, postgres) = (shared_broker(), shared_postgres());
        let (cloud, vhost, database) =
            tokio::join!(Cloud::start(), broker.vhost(), postgres.database());
        Self {
            pipeline: Pipeline {
                cloud,
                vhost,
                database,
                jobs: tempfile::tempdir().expect("a temporary folder for jobs"),
                services: Vec::new(),
                archive: None,
            },
            services: Vec::new(),
            broker: broker.pid(),
            postgres: postgres.pid(),
            runs: 0,
        }
    }

    /// The machine and the servers' versions.
    pub(crate) async fn machine(&self) -> Value {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let broker = self.pipeline.vhost.broker.rabbitmqctl(&["version"]).await;
        let postgres = self.text("SHOW server_version").await;
        json!({
            "cpus": cpus, "cpu": model.map_or("", |(_, name)| name), "rabbitmq": broker.trim(), "postgres": postgres,
            "synchronous_commit": self.text("SHOW synchronous_commit").await, "fsync": self.text("SHOW fsync").await,
        })
    }

    /// A job of this name that loads a click-stream into the table of this name; `more` is the rest of the job.
    pub(crate) fn job(&self, name: &str, rows: u64, more: &str) -> ResultSet {
        self.job_into(name, rows, &format!("table = \"{name}\"\n{more}"))
    }

    /// A job of this name that loads a click-stream; `target` is the job from its target on.
    pub(crate) fn job_into(&self, name: &str, rows: u64, target: &str) -> ResultSet {
        let result = sample::clicks(rows);
        self.job_of(name, &result, target);
        result
    }

    /// As `job_into`, with a result that other jobs may share.
    pub(crate) fn job_of(&self, name: &str, result: &ResultSet, target: &str) {
        self.pipeline
            .write_job(name, &format!("[target]\n{target}"));
        // The quotes prevent a match within a longer name.
        let from = format!("FROM \"{name}\"");
        std::fs::write(
            self.pipeline.jobs.path().join(format!("{name}.sql")),
            format!("SELECT * {from}"),
        )
        .expect("the SQL of a job can be written");
        let answer = Answer::rows(result.clone()).at_once();
        self.pipeline.cloud.answer(&from, answer);
    }

    /// The given number of new replicas of each service, ready.
    pub(crate) async fn replicas(&mut self, count: usize) {
        self.stop().await;
        for name in SERVICES {
            self.start_service(name, count).await;
        }
    }

    pub(crate) async fn start_service(&mut self, name: &'static str, count: usize) {
        for _ in 0..count {
            // A benchmark should not wait for the log of each batch.
            let service = self.pipeline.service(name);
            let service = service.env("ETL_LOG", "warn,common::lifecycle=info");
            self.services.push((name, service.start().await));
        }
    }

    /// Stops all services cleanly.
    pub(crate) async fn stop(&mut self) {
        for (name, mut process) in self.services.drain(..).rev() {
            let code = process.terminate(Duration::from_secs(30)).await;
            assert_eq!(code, Some(0), "{name} did not end well: {}", process.log());
        }
    }

    pub(crate) async fn end(mut self) {
        self.stop().await;
    }

    /// CPU seconds so far of all processes.
    pub(crate) fn cpu(&self) -> Cpu {
        let (this, commands) = meter::this();
        let mut cpu = Cpu::from([
            ("emulator of AWS".to_owned(), this),
            ("commands".to_owned(), commands),
            ("broker".to_owned(), meter::own(self.broker)),
            ("postgres".to_owned(), meter::family(self.postgres)),
        ]);
        for (name, process) in &self.services {
            *cpu.entry((*name).to_owned()).or_default() += meter::own(process.pid());
        }
        cpu
    }

    /// Peaks of resident memory in MiB so far; of several replicas the largest.
    pub(crate) fn peaks(&self) -> Cpu {
        let mut peaks = Cpu::from([
            ("broker".to_owned(), meter::peak(&self.broker.to_string())),
            (
                "postgres (largest process)".to_owned(),
                meter::largest_child(self.postgres),
            ),
        ]);
        for (name, process) in &self.services {
            let peak = peaks.entry((*name).to_owned()).or_default();
            *peak = peak.max(meter::peak(&process.pid().to_string()));
        }
        for peak in peaks.values_mut() {
            *peak = rounded(*peak);
        }
        peaks
    }

    /// The sum of a counter over the replicas of a service.
    pub(crate) async fn counted(&self, service: &str, name: &str) -> f64 {
        let mut sum = 0.0;
        for (_, process) in self.services.iter().filter(|(other, _)| *other == service) {
            sum += process.metric(name).await.unwrap_or(0.0);
        }
        sum
    }

    /// Bytes that the virtual host has received and sent so far. The broker updates the sum at most five seconds later, does
    /// not say up to when it counts, and does not update it for an idle connection: there is no condition to await.
    pub(crate) async fn broker_bytes(&self) -> f64 {
        sleep(Duration::from_millis(6_500)).await;
        let path = format!("vhosts/{}", self.pipeline.vhost.name);
        let (_, found) = self
            .pipeline
            .vhost
            .broker
            .call(Method::GET, &path, Value::Null)
            .await;
        let octets = |name: &str| found[name].as_f64().unwrap_or(0.0);
        octets("recv_oct") + octets("send_oct")
    }

    /// A name for the next run of a job.
    pub(crate) fn next_run(&mut self, job: &str) -> String {
        self.runs += 1;
        format!("{job}-{}", self.runs)
    }

    /// `etl run JOB --follow`, which must succeed.
    pub(crate) async fn run(&mut self, job: &str) -> Ran {
        let run = self.next_run(job);
        let command = as_by_default(self.pipeline.service("etl"));
        let command = [
            "run", job, "--run-id", &run, "--again", "--follow", "--json",
        ]
        .into_iter()
        .fold(command, Service::arg);
        let (begun, clock) = (Instant::now(), SystemTime::now());
        let done = command.run().await;
        let followed = begun.elapsed().as_secs_f64();
        assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
        let finished: f64 = sqlx::query_scalar(
            "SELECT extract(epoch FROM finished_at)::float8 FROM etl.runs WHERE run_id = $1",
        )
        .bind(&run)
        .fetch_one(&self.pipeline.database.pool)
        .await
        .expect("the run is in the ledger");
        let begun = clock
            .duration_since(UNIX_EPOCH)
            .expect("the clock is past 1970");
        Ran {
            committed: rounded(finished - begun.as_secs_f64()),
            followed: rounded(followed),
        }
    }

    /// `etl run JOB`, without waiting for its end.
    pub(crate) async fn request(&mut self, job: &str) {
        let run = self.next_run(job);
        let command = as_by_default(self.pipeline.service("etl"));
        let command = ["run", job, "--run-id", &run, "--again"]
            .into_iter()
            .fold(command, Service::arg);
        let done = command.run().await;
        assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
    }

    /// Seconds of a shell command, which must succeed.
    pub(crate) async fn shell(&self, line: &str) -> f64 {
        let begun = Instant::now();
        let done = tokio::process::Command::new("bash")
            .args(["-c", &format!("set -eo pipefail; {line}")])
            .output()
            .await
            .expect("bash can be started");
        let seconds = rounded(begun.elapsed().as_secs_f64());
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{line}: {errors}");
        seconds
    }

    /// A `psql` command line up to the statement.
    pub(crate) fn psql(&self) -> String {
        format!(
            "psql -X -q -v ON_ERROR_STOP=1 '{}' -c",
            self.pipeline.database.url
        )
    }

    pub(crate) async fn execute(&self, sql: &str) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
            .execute(&self.pipeline.database.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn text(&self, sql: &str) -> String {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.pipeline.database.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Empties a table and makes a checkpoint, so that a measurement does not pay for the previous one.
    pub(crate) async fn afresh(&self, table: &str) {
        self.execute(&format!("TRUNCATE {table}")).await;
        self.execute("CHECKPOINT").await;
    }

    /// Asserts the number of rows of a table.
    pub(crate) async fn holds(&self, table: &str, rows: u64) {
        let found = self
            .pipeline
            .number(&format!("SELECT count(*) FROM {table}"))
            .await;
        assert_eq!(found.unsigned_abs(), rows, "rows in {table}");
    }

    /// Waits until a queue has no message, ready or unacknowledged.
    pub(crate) async fn queue_is_settled(&self, queue: &str) {
        // The broker's number of unacknowledged messages may be a second old.
        let mut empty_since = None;
        wait_until(&format!("{queue} to be settled"), TIMEOUT, async || {
            let depth = self.pipeline.vhost.depth(queue).await;
            if depth.ready + depth.unacked > 0 {
                empty_since = None;
                return false;
            }
            empty_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(2)
        })
        .await;
    }

    /// Waits until no run is open: a run may end after its last row is loaded.
    pub(crate) async fn all_runs_are_over(&self) {
        let open = "SELECT count(*) FROM etl.runs WHERE state IN ('requested', 'running')";
        wait_until("the loaded runs to end", TIMEOUT, async || {
            self.pipeline.number(open).await == 0
        })
        .await;
    }

    /// Writes a result's CSV object to a file and returns its size. From then on the emulator serves the object from a
    /// file of its own.
    pub(crate) async fn write_csv(&self, result: &ResultSet, object: &str, path: &str) -> u64 {
        self.pipeline.cloud.put_result(object, result.clone());
        let url = format!("{}/{object}", self.pipeline.cloud.url());
        self.shell(&format!("curl -sf -o '{path}' '{url}'")).await;
        std::fs::metadata(path).map_or(0, |file| file.len())
    }
}

/// With the default size of batches.
fn as_by_default(etl: Service) -> Service {
    etl.without("ETL_BATCH_ROWS").without("ETL_BATCH_BYTES")
}
