//! The whole pipeline for a test: an emulator of AWS, a virtual host, a database, the three services, and a folder of jobs.

use std::fs;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::TIMEOUT;
use crate::cloud::{Answer, Cloud, ResultSet};
use crate::process::{Finished, Process, Service, path_of};
use crate::servers::{Database, Vhost, database, vhost};
use futures::future::join_all;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;

/// The pipeline of one test. Dropping it ends the services and deletes the virtual host and the database.
pub struct Pipeline {
    pub cloud: Cloud,
    pub vhost: Vhost,
    pub database: Database,
    pub jobs: TempDir,
    pub services: Vec<Process>,
    /// `ETL_ARCHIVE` of every program, if not that of the whole suite.
    pub archive: Option<&'static str>,
}

impl Pipeline {
    /// One replica of each service, ready.
    pub async fn start() -> Self {
        Self::with_replicas(1).await
    }

    /// The same with an archive, whatever the setting of the suite: for a test that is about what the archive has.
    pub async fn archiving() -> Self {
        let mut pipeline = Self::without_services().await;
        pipeline.archive = Some("stream");
        pipeline.started(1).await
    }

    /// The given number of replicas of each service, ready.
    pub async fn with_replicas(replicas: usize) -> Self {
        Self::without_services().await.started(replicas).await
    }

    /// The same pipeline with so many more replicas of each service, ready.
    pub async fn started(mut self, replicas: usize) -> Self {
        let pipeline = &mut self;
        for name in ["loader", "transformer", "extractor"] {
            for _ in 0..replicas {
                let service = pipeline.service(name).start().await;
                pipeline.services.push(service);
            }
        }
        self
    }

    /// Everything but the services.
    pub async fn without_services() -> Self {
        Self::on(vhost().await).await
    }

    /// Everything but the services, with a virtual host of the test's private broker.
    pub async fn on(vhost: Vhost) -> Self {
        let database = database().await;
        Self::with(vhost, database).await
    }

    /// Everything but the services, with a database of the test's private server.
    pub async fn on_database(database: Database) -> Self {
        Self::with(vhost().await, database).await
    }

    async fn with(vhost: Vhost, database: Database) -> Self {
        let cloud = Cloud::start().await;
        let jobs = tempfile::tempdir().expect("a temporary folder for jobs");
        Self {
            cloud,
            vhost,
            database,
            jobs,
            services: Vec::new(),
            archive: None,
        }
    }

    /// A program of the workspace, in the environment of this pipeline.
    pub fn service(&self, name: &str) -> Service {
        Service::new(name)
            .env("ETL_AMQP_URL", &self.vhost.amqp_url)
            .env("ETL_DATABASE_URL", &self.database.url)
            // So that a few thousand rows are several batches.
            .env("ETL_BATCH_ROWS", "5000")
            .env("ETL_BATCH_BYTES", "262144")
            .env("ETL_EXTRACTOR", &path_of("extractor"))
            .env(
                "ETL_JOBS",
                self.jobs
                    .path()
                    .to_str()
                    .expect("the folder's path is UTF-8"),
            )
            .envs(self.cloud.env())
            .envs(
                self.archive
                    .map(|archive| ("ETL_ARCHIVE".to_owned(), archive.to_owned())),
            )
    }

    /// Writes a job whose SQL is `SELECT * FROM NAME`, with every parameter that it declares, which the emulator answers with
    /// `result`.
    pub fn job(&self, name: &str, toml: &str, result: ResultSet) {
        self.write_job(name, toml);
        self.cloud
            .answer(&format!("FROM {name}"), Answer::rows(result));
    }

    pub fn write_job(&self, name: &str, toml: &str) {
        let source = "[source]\ndatabase = \"d\"\nsql = \"NAME.sql\"\n".replace("NAME", name);
        let toml = if toml.contains("[source]") {
            toml.to_owned()
        } else {
            source + toml
        };
        fs::write(self.jobs.path().join(format!("{name}.toml")), &toml)
            .expect("a job can be written");
        fs::write(
            self.jobs.path().join(format!("{name}.sql")),
            format!("SELECT * FROM {name}{}", conditions(&toml)),
        )
        .expect("the SQL of a job can be written");
    }

    /// Runs `etl` and waits for its end.
    pub async fn etl(&self, arguments: &[&str]) -> Finished {
        let command = arguments
            .iter()
            .fold(self.service("etl"), |command, argument| {
                command.arg(argument)
            });
        command.run().await
    }

    /// `etl run JOB --run-id RUN --again --follow --json`, which must succeed; returns the run's status.
    pub async fn run(&self, job: &str, run: &str) -> Value {
        let done = self
            .etl(&["run", job, "--run-id", run, "--again", "--follow", "--json"])
            .await;
        assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
        serde_json::from_str(&done.stdout).expect("`etl run --json` prints JSON")
    }

    /// A run JOB-ROUND of each job, at the same time; each must load so many rows. Returns how long they took together.
    pub async fn run_all(&self, jobs: &[&str], round: &str, rows: u64) -> Duration {
        let started = Instant::now();
        let run = async |job: &&str| {
            let run = self.run(job, &format!("{job}-{round}")).await;
            assert_eq!(run["rows_loaded"], rows, "{run}");
        };
        let all = timeout(TIMEOUT, join_all(jobs.iter().map(run))).await;
        all.unwrap_or_else(|_| panic!("the runs {jobs:?} wait: {round}"));
        started.elapsed()
    }

    /// `etl reconcile RUN`, which must exit with 0.
    pub async fn assert_reconciled(&self, run: &str) {
        let done = self.etl(&["reconcile", run]).await;
        assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
    }

    /// One number from the database.
    pub async fn number(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned()));
        query
            .fetch_one(&self.database.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// A table as text, one line per row, ordered.
    pub async fn table(&self, columns: &str, table: &str) -> Vec<String> {
        let sql = format!("SELECT row({columns})::text FROM {table} ORDER BY 1");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_all(&self.database.pool)
            .await
            .expect("the table can be read")
    }

    /// The rows of the batches at these places in a run, as `etl replay --rows` takes them.
    pub async fn rows_of_batches(&self, run: &str, places: RangeInclusive<usize>) -> String {
        let sql = format!(
            "SELECT min(first_row) || '..' || max(first_row + rows_extracted) - 1 FROM (
                 SELECT DISTINCT first_row, rows_extracted, dense_rank() OVER (ORDER BY first_row) - 1 AS place
                 FROM etl.batches WHERE run_id = '{run}') b
             WHERE place BETWEEN {} AND {}",
            places.start(),
            places.end()
        );
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
        let rows: Option<String> = query
            .fetch_one(&self.database.pool)
            .await
            .expect("the ledger can be read");
        rows.expect("the run has these batches")
    }

    /// The ledger, without values that depend on the time of day.
    pub async fn ledger(&self) -> Vec<String> {
        let batches = "run_id, generation, first_row, content_hash, rows_extracted, rows_loaded, rows_deduplicated, rows_rejected, loaded_at";
        let mut ledger = self
            .table(
                "run_id, state, generation, rows_expected, finished_at",
                "etl.runs",
            )
            .await;
        ledger.extend(self.table(batches, "etl.batches").await);
        ledger.extend(
            self.table(
                "run_id, row_number, rule, reason, raw::text",
                "etl.rejected_rows",
            )
            .await,
        );
        ledger
    }

    /// The sum of a service's counters that have this label.
    pub async fn counted(&self, service: &Process, label: &str) -> f64 {
        let metrics = service.get("/metrics").await;
        let (_, text) = metrics.expect("the service serves its metrics");
        let values = text.lines().filter(|line| line.contains(label));
        values
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// ` WHERE :from IS NOT NULL`, and so on, for the parameters of a job: `etl` refuses those that no SQL uses.
fn conditions(job: &str) -> String {
    let lines = job
        .lines()
        .skip_while(|line| *line != "[parameters]")
        .skip(1);
    let declared = lines.take_while(|line| !line.starts_with('['));
    let names = declared.filter_map(|line| line.split_once(" = "));
    let conditions: Vec<_> = names
        .map(|(name, _)| format!(":{name} IS NOT NULL"))
        .collect();
    if conditions.is_empty() {
        return String::new();
    }
    format!(" WHERE {}", conditions.join(" AND "))
}
