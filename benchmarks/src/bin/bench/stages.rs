//! Each stage alone, at 1, 2 and 4 replicas: the others are not running, and what it makes waits in the queue behind it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::meter::rounded;
use crate::say;
use crate::settings::Settings;
use crate::world::World;

/// Runs that the rows are spread over: an extractor reads two at a time, and no two read one.
const RUNS: u64 = 8;

/// A stage, and the counter of rows that it has done.
const STAGES: [(&str, &str); 3] = [
    ("extractor", "etl_rows_extracted_total"),
    ("transformer", "etl_rows_transformed_total"),
    ("loader", "etl_rows_loaded_total"),
];

pub(crate) async fn run(world: &mut World, settings: &Settings) -> Value {
    let rows = settings.stage_rows / RUNS * RUNS;
    let result = world.job("staged", rows / RUNS, "");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    world
        .write_csv(
            &result,
            "results/staged.csv",
            &file.path().display().to_string(),
        )
        .await;
    for run in 0..RUNS {
        // One job would not be run eight times at once.
        world.job_of(&format!("staged_{run}"), &result, "table = \"staged\"\n");
    }
    // The table is made, and the queues are, before the clock runs.
    world.replicas(1).await;
    world.run("staged").await;
    world.stop().await;
    let mut measured = Vec::new();
    for replicas in [1, 2, 4] {
        world.afresh("staged").await;
        for run in 0..RUNS {
            world.request(&format!("staged_{run}")).await;
        }
        for (stage, counter) in STAGES {
            let rate = alone(world, stage, counter, replicas, rows).await;
            say(&format!("{replicas} x {stage}: {rate:.0} rows/s"));
            measured.push(
                json!({ "stage": stage, "replicas": replicas, "rows_per_second": rate.round() }),
            );
        }
        world.holds("staged", rows).await;
    }
    json!({ "rows": rows, "measured": measured })
}

/// Rows a second from the first that is counted to the last.
async fn alone(
    world: &mut World,
    stage: &'static str,
    counter: &str,
    replicas: usize,
    rows: u64,
) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let wanted = rows as f64;
    world.start_service(stage, replicas).await;
    let (mut first, begun) = (None, Instant::now());
    let rate = loop {
        let done = world.counted(stage, counter).await;
        let now = Instant::now();
        if done >= wanted {
            let (at, before) = first.unwrap_or((begun, 0.0));
            break (done - before) / (now - at).as_secs_f64();
        }
        if done > 0.0 && first.is_none() {
            first = Some((now, done));
        }
        assert!(
            begun.elapsed() < Duration::from_mins(5),
            "{stage} did {done} of {wanted} rows"
        );
        sleep(Duration::from_millis(5)).await;
    };
    // What is still in hand would be counted again in the next round, and a job is not asked for again while a run of
    // it is open.
    match stage {
        "extractor" => world.queue_is_settled("etl.extract").await,
        "loader" => world.all_runs_are_over().await,
        _ => {}
    }
    world.stop().await;
    rounded(rate)
}
