//! The comparison: the same rows by each of the methods, in turns.

use serde_json::{Value, json};

use crate::environment::Environment;
use crate::meter::{Cpu, between, median, rounded};
use crate::say;
use crate::settings::Settings;

/// The methods, in the order of a round.
const WAYS: [&str; 4] = [
    "curl | psql \\copy",
    "psql \\copy of a local file",
    "two binary COPYs",
    "this pipeline",
];

/// The place of the pipeline among them.
const PIPELINE: usize = 3;

const CSV: &str = "WITH (FORMAT csv, HEADER)";

/// One result, prepared for every method.
struct Course<'a> {
    environment: &'a mut Environment,
    /// Name of job, table of the pipeline, and object.
    name: String,
    /// The other methods' table.
    table: String,
    rows: u64,
    dir: tempfile::TempDir,
}

/// The cost of one method.
struct Took {
    wall: f64,
    cpu: Cpu,
    /// Through the broker.
    bytes: f64,
}

pub(crate) async fn run(environment: &mut Environment, settings: &Settings) -> Value {
    let mut contests = Vec::new();
    for rows in &settings.rows {
        environment.replicas(1).await;
        let mut course = Course::prepare(environment, *rows).await;
        let bytes = course.size();
        let mut rounds = Vec::new();
        for round in 0..settings.repeats {
            let mut took = Vec::new();
            for way in 0..WAYS.len() {
                took.push(course.go(way).await);
            }
            let ratio = took[3].wall / took[0].wall;
            say(&format!(
                "{rows} rows, round {}: one line {:.2} s, pipeline {:.2} s, ratio {ratio:.2}",
                round + 1,
                took[0].wall,
                took[3].wall
            ));
            rounds.push(took);
        }
        let peaks = course.environment.peaks();
        course.clear().await;
        contests.push(summary(*rows, bytes, &rounds, &peaks));
    }
    contests.into()
}

impl<'a> Course<'a> {
    async fn prepare(environment: &'a mut Environment, rows: u64) -> Self {
        let (name, table) = (format!("clicks_{rows}"), format!("copied_{rows}"));
        let result = environment.job(&name, rows, "");
        let dir = tempfile::tempdir().expect("a temporary folder for files");
        let mut course = Self {
            environment,
            name,
            table,
            rows,
            dir,
        };
        let csv = course.file("csv");
        let object = format!("results/{}.csv", course.name);
        course.environment.write_csv(&result, &object, &csv).await;
        course.make_binary_files().await;
        // A run of a few rows opens the services' connections and creates the pipeline's table.
        let first = format!("first_{rows}");
        let into = format!("table = \"{}\"\n", course.name);
        course.environment.job_into(&first, 100, &into);
        course.environment.run(&first).await;
        course
    }

    fn file(&self, ending: &str) -> String {
        self.dir
            .path()
            .join(format!("clicks.{ending}"))
            .display()
            .to_string()
    }

    fn size(&self) -> u64 {
        std::fs::metadata(self.file("csv")).map_or(0, |file| file.len())
    }

    async fn make_binary_files(&mut self) {
        let table = self.table.clone();
        self.environment
            .execute(&format!(
                "CREATE TABLE {table} (dt date, country text, url text, visits bigint, seconds double precision, seen_at timestamp)"
            ))
            .await;
        let psql = self.environment.psql();
        let csv = self.file("csv");
        self.environment
            .shell(&format!("{psql} \"\\copy {table} FROM '{csv}' {CSV}\""))
            .await;
        for half in 0..2 {
            let file = self.file(&half.to_string());
            let select = format!("SELECT * FROM {table} WHERE visits % 2 = {half}");
            self.environment
                .shell(&format!(
                    "{psql} \"\\copy ({select}) TO '{file}' WITH (FORMAT binary)\""
                ))
                .await;
        }
    }

    async fn go(&mut self, way: usize) -> Took {
        let table = if way == PIPELINE {
            &self.name
        } else {
            &self.table
        };
        self.environment.afresh(table).await;
        let before = self.broker_bytes(way).await;
        let cpu = self.environment.cpu();
        let psql = self.environment.psql();
        let (table, url) = (
            self.table.clone(),
            format!(
                "{}/results/{}.csv",
                self.environment.pipeline.cloud.url(),
                self.name
            ),
        );
        let wall = match way {
            0 => {
                let line =
                    format!("curl -sf '{url}' | {psql} \"\\copy {table} FROM PSTDIN {CSV}\"");
                self.environment.shell(&line).await
            }
            1 => {
                let csv = self.file("csv");
                let line = format!("{psql} \"\\copy {table} FROM '{csv}' {CSV}\"");
                self.environment.shell(&line).await
            }
            2 => {
                let copy = |half: usize| {
                    let file = self.file(&half.to_string());
                    format!("{psql} \"\\copy {table} FROM '{file}' WITH (FORMAT binary)\"")
                };
                let line = format!("{} & {} && wait $!", copy(0), copy(1));
                self.environment.shell(&line).await
            }
            _ => self.environment.run(&self.name).await.committed,
        };
        let cpu = between(&cpu, &self.environment.cpu());
        let bytes = self.broker_bytes(way).await - before;
        let table = if way == PIPELINE {
            &self.name
        } else {
            &self.table
        };
        self.environment.holds(table, self.rows).await;
        Took { wall, cpu, bytes }
    }

    /// Only the pipeline uses the broker.
    async fn broker_bytes(&self, way: usize) -> f64 {
        if way == PIPELINE {
            self.environment.broker_bytes().await
        } else {
            0.0
        }
    }

    async fn clear(self) {
        let tables = format!("DROP TABLE {}, {}", self.name, self.table);
        self.environment.execute(&tables).await;
    }
}

fn summary(rows: u64, bytes: u64, rounds: &[Vec<Took>], peaks: &Cpu) -> Value {
    let ways = WAYS.iter().enumerate().map(|(way, name)| {
        let walls: Vec<f64> = rounds.iter().map(|round| round[way].wall).collect();
        let ratios: Vec<f64> = rounds
            .iter()
            .map(|round| rounded(round[way].wall / round[0].wall))
            .collect();
        let through: Vec<f64> = rounds.iter().map(|round| round[way].bytes).collect();
        let names = rounds[0][way].cpu.keys();
        let cpu: Cpu = names
            .map(|name| {
                let seconds: Vec<f64> = rounds.iter().map(|round| round[way].cpu[name]).collect();
                (name.clone(), median(&seconds))
            })
            .collect();
        json!({
            "way": name, "seconds": walls, "median": median(&walls), "ratios": ratios, "ratio": median(&ratios),
            "cpu_seconds": cpu, "cpu_total": rounded(cpu.values().sum()), "broker_bytes": median(&through),
        })
    });
    json!({ "rows": rows, "bytes": bytes, "ways": ways.collect::<Vec<_>>(), "peak_mib": peaks })
}
