//! `make bench`: how long it takes to bring a finished result into Postgres, and what it costs.
//!
//! In one run and in turns: the one line that a user would write without this project (`curl | psql \copy`), `\copy` of a
//! local file, two binary COPYs side by side, and this pipeline from `etl run` to the last commit, all of the same
//! deterministic click-stream on the same servers. Times of one machine say little to another; what is reported first are
//! the medians of the ratios within a round. Then: a small run, each stage alone, two replicas, rules, and how the cost
//! grows with the rows.
//!
//! `BENCH_PARTS` (contest small replicas stages rules growth), `BENCH_ROWS` (1000000 5000000), `BENCH_REPEATS` (5),
//! `BENCH_STAGE_ROWS` (1000000), `BENCH_GROWTH` (100000 300000 1000000 3000000 10000000) and `BENCH_DIR` (`.local/bench`,
//! for `result.json`, `report.md` and `plot.svg`) are its settings. Runs below `deploy/local/with-servers`, with servers
//! that write to disk before they say that they did.

mod contest;
mod growth;
mod meter;
mod plot;
mod report;
mod settings;
mod stages;
mod world;

use serde_json::json;

use settings::Settings;
use world::World;

#[tokio::main]
async fn main() {
    let settings = Settings::read();
    let mut world = World::start().await;
    let mut result = json!({ "machine": world.machine().await, "settings": settings.shown() });
    for part in &settings.parts {
        say(&format!("{part} ..."));
        result[part.as_str()] = match part.as_str() {
            "contest" => contest::run(&mut world, &settings).await,
            "small" => growth::small(&mut world, &settings).await,
            "replicas" => growth::replicas(&mut world, &settings).await,
            "rules" => growth::rules(&mut world, &settings).await,
            "stages" => stages::run(&mut world, &settings).await,
            "growth" => growth::run(&mut world, &settings).await,
            other => panic!("BENCH_PARTS: there is no part {other:?}"),
        };
        // After each part, so that an interrupted benchmark has not been for nothing.
        report::write(&settings.dir, &result);
    }
    show(&report::text(&result));
    world.end().await;
}

/// A line on standard error for who looks on.
#[expect(
    clippy::print_stderr,
    reason = "a program of many minutes tells what it does"
)]
pub(crate) fn say(text: &str) {
    eprintln!("bench: {text}");
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is asked for"
)]
fn show(report: &str) {
    println!("{report}");
}
