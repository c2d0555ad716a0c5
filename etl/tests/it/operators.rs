//! Random sequences of operators' commands against the whole pipeline, with replicas that are killed meanwhile: at the end the
//! tables have what the ledger says. The loader's tests have many more sequences without processes.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::FromRow;
use testkit::TIMEOUT;
use testkit::cloud::{Answer, ResultSet};
use testkit::pipeline::Pipeline;
use testkit::process::Finished;
use testkit::wait_until;
use tokio::time::timeout;

/// The jobs: name, table, the rest of the target.
const JOBS: [(&str, &str, &str); 4] = [
    ("adding", "events", "mode = \"append\""),
    ("putting", "latest", "mode = \"upsert\"\nkey = [\"k\"]"),
    ("keeping", "latest", "mode = \"insert_only\"\nkey = [\"k\"]"),
    ("swapping", "report", "mode = \"replace\""),
];

const DAYS: [&str; 3] = ["2018-04-01", "2018-04-02", "2018-04-03"];

/// Three batches.
const ROWS: usize = 12;
const BATCH_ROWS: usize = 4;

const SEQUENCES: u64 = 5;
const STEPS: usize = 25;

/// Longer than a command takes that waits for nobody. One that takes longer is killed.
const PATIENCE: Duration = Duration::from_secs(15);

const SERVICES: [&str; 4] = ["loader", "loader", "transformer", "extractor"];

/// The keys of the result of a job for a day. Days share keys, and a result has some twice.
fn keys(job: usize, day: usize) -> Vec<i64> {
    let key = |n: usize| (n * 5 + day * 3 + job) % 10;
    (0..ROWS).map(|n| i64::try_from(key(n)).unwrap()).collect()
}

fn result(job: usize, day: usize) -> ResultSet {
    let rows = keys(job, day).into_iter().enumerate();
    let rows = rows.map(|(n, key)| vec![Some(key.to_string()), Some(format!("{}/{n}", DAYS[day]))]);
    let columns = [("k", "bigint"), ("v", "varchar")];
    let columns = columns.map(|(name, of)| testkit::cloud::Column::new(name, of));
    ResultSet::new(columns.into(), rows.collect())
}

struct World {
    pipeline: Pipeline,
    random: StdRng,
    /// Requests so far.
    requests: usize,
}

impl World {
    async fn start(seed: u64) -> Self {
        let mut pipeline = Pipeline::without_services().await;
        for service in SERVICES {
            let service = pipeline.service(service).start().await;
            pipeline.services.push(service);
        }
        let mut executions = 0;
        pipeline.cloud.on_sql(move |sql| {
            executions += 1;
            let job = JOBS.iter().position(|(job, ..)| sql.contains(job))?;
            let day = DAYS.iter().position(|day| sql.contains(day))?;
            Some(if executions % 6 == 0 {
                Answer::failed_by_user("the view is broken")
            } else {
                Answer::rows(result(job, day))
            })
        });
        let world = Self {
            pipeline,
            random: StdRng::seed_from_u64(seed),
            requests: 0,
        };
        for job in 0..JOBS.len() {
            world.write(job, 99);
        }
        world
    }

    /// Writes a job whose rule rejects the rows with this key.
    fn write(&self, job: usize, bad: i64) {
        let (name, table, target) = JOBS[job];
        let toml = format!(
            "[source]\ndatabase = \"d\"\nsql = \"{name}.sql\"\n[parameters]\nfrom = {{ type = \"date\" }}\nto = {{ type = \"date\" }}\n
             [target]\ntable = \"{table}\"\n{target}\n[[columns]]\nsource = \"k\"\nrules = [{{ none_of = [\"{bad}\"] }}]\n[[columns]]\nsource = \"v\"\n"
        );
        let folder = self.pipeline.jobs.path();
        let sql = format!("SELECT * FROM {name} WHERE dt BETWEEN :from AND :to");
        for (file, text) in [(format!("{name}.sql"), sql), (format!("{name}.toml"), toml)] {
            // Another command may be reading it.
            let new = folder.join(format!("{file}.new"));
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, folder.join(file)).unwrap();
        }
    }

    async fn runs(&self) -> Vec<String> {
        let select = "SELECT run_id FROM etl.runs ORDER BY run_no";
        let runs = sqlx::query_scalar(select).fetch_all(&self.pipeline.database.pool);
        runs.await.unwrap()
    }

    /// What an operator does next.
    async fn command(&mut self) -> Vec<String> {
        let runs = self.runs().await;
        let random = &mut self.random;
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let job = random.random_range(0..JOBS.len());
        let name = JOBS[job].0;
        let day = DAYS[random.random_range(0..DAYS.len())];
        let dice = random.random_range(0..14);
        if dice < 4 || runs.is_empty() {
            self.requests += 1;
            let run = format!("r{}", self.requests);
            return words(&format!(
                "run {name} --set from={day} --set to={day} --run-id {run}"
            ));
        }
        let run = &runs[random.random_range(0..runs.len())];
        let text = match dice {
            4 => format!("backfill {name} --from 2018-04-01 --to 2018-04-04 --every 1d --retry"),
            5 => format!("cancel {run}"),
            6 | 7 => format!("cancel {run} --undo"),
            8 => format!("approve {run}"),
            9 => format!("discard {run} --why because"),
            10 | 11 => {
                let bad = random.random_range(0..10);
                let how = ["", " --force", " --rows 0..1", " --rejected-only"];
                let how = how[random.random_range(0..how.len())];
                self.write(job, bad);
                format!("replay {run}{how}")
            }
            12 => "dead replay --all".to_owned(),
            _ => "dead drop --all --why because".to_owned(),
        };
        words(&text)
    }

    async fn etl(&self, arguments: &[String]) -> Option<Finished> {
        let command = self
            .pipeline
            .service("etl")
            .env("ETL_BATCH_ROWS", &BATCH_ROWS.to_string());
        let command = arguments
            .iter()
            .fold(command, |command, one| command.arg(one));
        timeout(PATIENCE, command.run()).await.ok()
    }

    /// Two operators at the same time, while a replica is killed or a stranger's batch arrives.
    async fn step(&mut self) {
        let (one, other) = (self.command().await, self.command().await);
        let dice = self.random.random_range(0..4);
        let victim = self.random.random_range(0..SERVICES.len());
        if dice == 0 {
            self.pipeline.services[victim].kill9().await;
        }
        if dice == 1
            && let Some(run) = self.runs().await.last()
        {
            self.disturb(run).await;
        }
        tokio::join!(self.etl(&one), self.etl(&other));
        if dice == 0 {
            let again = self.pipeline.service(SERVICES[victim]).start().await;
            self.pipeline.services[victim] = again;
        }
    }

    /// Publishes a batch of a run that no transformer can read: a dead letter that holds the run.
    async fn disturb(&self, run: &str) {
        let mut headers = FieldTable::default();
        headers.insert("run".into(), AMQPValue::LongString(run.into()));
        let properties = BasicProperties::default()
            .with_type("raw-batch.v3".into())
            .with_message_id(format!("{run}/0/0").into())
            .with_headers(headers);
        let vhost = &self.pipeline.vhost;
        vhost.publish_with("etl.raw", b"torn", properties).await;
    }

    /// Decides what waits for a person until nothing does.
    async fn settle(&self) {
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let pool = &self.pipeline.database.pool;
        let mut round = 0;
        wait_until("every run to end", TIMEOUT, async || {
            round += 1;
            let open: Vec<(String, String, Option<String>)> = sqlx::query_as(
                "SELECT run_id, state, held_because FROM etl.runs WHERE state IN ('requested', 'running', 'held')",
            )
            .fetch_all(pool)
            .await
            .unwrap();
            let dead_letters = "SELECT count(*) FROM etl.dead_letters WHERE resolved_at IS NULL";
            let dead_letters = self.pipeline.number(dead_letters).await;
            let removals = "SELECT count(*) FROM etl.removals WHERE finished_at IS NULL";
            if open.is_empty() && dead_letters == 0 && self.pipeline.number(removals).await == 0 {
                return true;
            }
            if dead_letters > 0 {
                let how = if round % 2 == 0 { "replay --all" } else { "drop --all --why because" };
                self.etl(&words(format!("dead {how}"))).await;
            }
            for (run, state, why) in open {
                match (state.as_str(), round % 4) {
                    ("held", 1) => drop(self.etl(&words(format!("approve {run}"))).await),
                    ("held", 2) => {
                        self.etl(&words(format!("discard {run} --why because"))).await;
                    }
                    ("held", 3) => {
                        let advice = why.unwrap_or_default();
                        for named in advice.split("`etl replay ").skip(1) {
                            let run = named.split('`').next().unwrap_or_default();
                            self.etl(&words(format!("replay {run}"))).await;
                        }
                    }
                    // A replay whose command was killed, a request whose task was not sent.
                    ("requested" | "running", _) if round > 20 && round % 10 == 0 => {
                        self.etl(&words(format!("cancel {run}"))).await;
                    }
                    _ => {}
                }
            }
            false
        })
        .await;
    }

    /// The tables are what the ledger says, and the ledger's rows are those of the results.
    async fn check(&self) {
        let pool = &self.pipeline.database.pool;
        let entries: Vec<Entry> = sqlx::query_as(ENTRIES).fetch_all(pool).await.unwrap();
        let entries = entries.iter().filter(|entry| entry.is_there());
        let all: Vec<_> = entries.map(|entry| (entry, entry.rows())).collect();
        let of = |table: &str| {
            let found = all.iter().filter(|(entry, _)| JOBS[entry.job()].1 == table);
            found.collect::<Vec<_>>()
        };
        let sorted = |entries: &[&(&Entry, Vec<Row>)]| {
            let mut rows: Vec<_> = entries.iter().flat_map(|(_, rows)| rows.clone()).collect();
            rows.sort();
            rows
        };
        // Appended: every accepted row once, and each request at most once.
        assert_eq!(self.rows("events").await, sorted(&of("events")), "events");
        let requests = of("events").into_iter();
        let requests: BTreeSet<_> = requests
            .map(|(entry, _)| (&entry.day, entry.run_no))
            .collect();
        let days: BTreeSet<_> = requests.iter().map(|(day, _)| day).collect();
        assert_eq!(days.len(), requests.len(), "twice: {requests:?}");
        // With a key: each key once, every key of a completed run, and no row of another origin.
        let latest = self.rows("latest").await;
        let there: BTreeSet<i64> = latest.iter().map(|(key, ..)| *key).collect();
        assert_eq!(there.len(), latest.len(), "twice: {latest:?}");
        let known = sorted(&of("latest"));
        assert!(
            latest.iter().all(|row| known.contains(row)),
            "{latest:?}\n{known:?}"
        );
        for (entry, rows) in of("latest") {
            let is_lost = |row: &&Row| entry.state == "completed" && !there.contains(&row.0);
            let lost: Vec<_> = rows.iter().filter(is_lost).collect();
            assert!(lost.is_empty(), "lost of {entry:?}: {lost:?}");
        }
        // Replaced: the latest run that was committed.
        let mut completed = of("report");
        completed.retain(|(entry, _)| entry.state == "completed");
        let newest = completed.iter().map(|(entry, _)| entry.run_no).max();
        completed.retain(|(entry, _)| Some(entry.run_no) == newest);
        assert_eq!(self.rows("report").await, sorted(&completed), "report");
        let reconciled = self.etl(&["reconcile".to_owned()]).await.unwrap();
        let (said, why) = (reconciled.stdout, reconciled.stderr);
        assert_eq!(reconciled.code, Some(0), "{said}\n{why}");
    }

    async fn rows(&self, table: &str) -> Vec<Row> {
        let exists = format!("SELECT count(to_regclass('public.{table}'))");
        if self.pipeline.number(&exists).await == 0 {
            return Vec::new();
        }
        let select = format!("SELECT k, v, _batch FROM public.{table} ORDER BY 1, 2, 3");
        let rows = sqlx::query_as(sqlx::AssertSqlSafe(select));
        rows.fetch_all(&self.pipeline.database.pool).await.unwrap()
    }
}

/// A batch of the ledger, in the live generation of its run.
#[derive(Debug, FromRow)]
struct Entry {
    job: String,
    day: String,
    run_no: i64,
    state: String,
    commit: String,
    generation: i32,
    first_row: i64,
    batch_no: i64,
    rows_loaded: i64,
    rejected: Vec<i64>,
}

/// A row of a target: its key, its value, its batch.
type Row = (i64, String, i64);

impl Entry {
    fn job(&self) -> usize {
        let job = JOBS.iter().position(|(name, ..)| *name == self.job);
        job.unwrap()
    }

    /// The rows of the result that were not rejected.
    fn rows(&self) -> Vec<Row> {
        let day = DAYS.iter().position(|day| *day == self.day).unwrap();
        let result = keys(self.job(), day).into_iter().enumerate();
        let batch = result
            .skip(usize::try_from(self.first_row).unwrap())
            .take(BATCH_ROWS);
        let accepted = batch.filter(|(n, _)| !self.rejected.contains(&i64::try_from(*n).unwrap()));
        let rows: Vec<_> = accepted
            .map(|(n, key)| (key, format!("{}/{n}", self.day), self.batch_no))
            .collect();
        assert_eq!(
            i64::try_from(rows.len()).unwrap(),
            self.rows_loaded,
            "{self:?}"
        );
        rows
    }

    /// Whether its rows went into the target.
    fn is_there(&self) -> bool {
        let was_only_staged =
            self.commit == "run" && self.generation == 0 && self.state == "failed";
        self.rows_loaded > 0 && !was_only_staged && self.state != "superseded"
    }
}

const ENTRIES: &str = "
    SELECT r.job, r.parameters ->> 'from' AS day, r.run_no, r.state, r.commit, r.generation, b.first_row,
           r.run_no << 36 | b.first_row AS batch_no, b.rows_loaded,
           ARRAY(SELECT row_number FROM etl.rejected_rows j WHERE (j.run_id, j.generation, j.first_row) = (r.run_id, r.generation, b.first_row)) AS rejected
    FROM etl.runs r JOIN etl.batches b USING (run_id, generation) ORDER BY r.run_no, b.first_row";

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_what_the_ledger_says_whatever_operators_and_crashes_do() {
    #[expect(clippy::disallowed_methods, reason = "a setting of this test")]
    let wanted = std::env::var("ETL_OPERATORS_SEED").ok();
    let seeds = match wanted {
        Some(seed) => vec![seed.parse().unwrap()],
        None => (0..SEQUENCES)
            .map(|_| u64::from(rand::random::<u32>()))
            .collect(),
    };
    for seed in seeds {
        println!("ETL_OPERATORS_SEED={seed}");
        let mut world = Box::pin(World::start(seed)).await;
        for _ in 0..STEPS {
            Box::pin(world.step()).await;
        }
        Box::pin(world.settle()).await;
        Box::pin(world.check()).await;
    }
}
