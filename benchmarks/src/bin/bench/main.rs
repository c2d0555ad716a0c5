//! `make bench`: how long it takes to bring a finished result into Postgres, and what it costs.
//!
//! It compares, in turns within one run: the line that a user would write without this project (`curl | psql \copy`), `\copy`
//! of a local file, two binary COPYs in parallel, and this pipeline from `etl run` to the last commit. All load the same
//! deterministic click-stream on the same servers. Times of two machines cannot be compared, so the report begins with the
//! medians of the ratios within a round. Then follow a small run, each stage alone, two replicas, rules, and how the cost
//! grows with the rows.
//!
//! `BENCH_PARTS` (contest small replicas stages rules growth), `BENCH_ROWS` (1000000 5000000), `BENCH_REPEATS` (5),
//! `BENCH_STAGE_ROWS` (1000000), `BENCH_GROWTH` (100000 300000 1000000 3000000 10000000) and `BENCH_DIR` (`.local/bench`,
//! for `result.json`, `report.md` and `plot.svg`) are its settings. Runs below `deploy/local/with-servers`, with servers
//! that write to disk before they say that they did.

mod contest;
mod environment;
mod growth;
mod meter;
mod plot;
mod report;
mod settings;
mod stages;

use std::path::Path;

use serde_json::{Value, json};

use environment::Environment;
use settings::Settings;

#[tokio::main]
async fn main() {
    let settings = Settings::read();
    let mut environment = Environment::start().await;
    let mut result =
        json!({ "machine": environment.machine().await, "settings": settings.shown() });
    for part in &settings.parts {
        say(&format!("{part} ..."));
        result[part.as_str()] = match part.as_str() {
            "contest" => contest::run(&mut environment, &settings).await,
            "small" => growth::small(&mut environment, &settings).await,
            "replicas" => growth::replicas(&mut environment, &settings).await,
            "rules" => growth::rules(&mut environment, &settings).await,
            "stages" => stages::run(&mut environment, &settings).await,
            "growth" => growth::run(&mut environment, &settings).await,
            other => panic!("BENCH_PARTS: there is no part {other:?}"),
        };
        // After each part, so that an interrupted benchmark keeps the parts it has done.
        write(&settings.dir, &result);
    }
    show(&report::text(&result));
    environment.end().await;
}

/// Writes what there is so far: `result.json`, `report.md` and `plot.svg`.
fn write(dir: &Path, result: &Value) {
    let json = serde_json::to_string_pretty(result).expect("a JSON value can be written");
    for (name, content) in [
        ("result.json", json),
        ("report.md", report::text(result)),
        ("plot.svg", plot::draw(result)),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, content)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }
    say(&format!("written: {}", dir.display()));
}

/// Prints a line of progress on standard error.
#[expect(
    clippy::print_stderr,
    reason = "a program of many minutes reports its progress"
)]
pub(crate) fn say(text: &str) {
    eprintln!("bench: {text}");
}

#[expect(
    clippy::print_stdout,
    reason = "the report is the output of this program"
)]
fn show(report: &str) {
    println!("{report}");
}
