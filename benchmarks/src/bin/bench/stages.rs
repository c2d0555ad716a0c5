//! Each stage alone, with 1, 2 and 4 replicas: the others do not run, and its output waits in the next queue.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::environment::Environment;
use crate::meter::rounded;
use crate::say;
use crate::settings::Settings;

/// The rows are spread over this many runs: an extractor reads two at a time, and no two extractors read the same one.
const RUNS: u64 = 8;

/// A stage, and the counter of its rows.
const STAGES: [(&str, &str); 3] = [
    ("extractor", "etl_rows_extracted_total"),
    ("transformer", "etl_rows_transformed_total"),
    ("loader", "etl_rows_loaded_total"),
];

pub(crate) async fn run(environment: &mut Environment, settings: &Settings) -> Value {
    let rows = settings.stage_rows / RUNS * RUNS;
    let result = environment.job("staged", rows / RUNS, "");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    environment
        .write_csv(
            &result,
            "results/staged.csv",
            &file.path().display().to_string(),
        )
        .await;
    for run in 0..RUNS {
        // One job cannot run eight times at the same time.
        environment.job_of(&format!("staged_{run}"), &result, "table = \"staged\"\n");
    }
    // Creates the table and the queues before the measurement.
    environment.replicas(1).await;
    environment.run("staged").await;
    environment.stop().await;
    let mut measured = Vec::new();
    for replicas in [1, 2, 4] {
        environment.afresh("staged").await;
        for run in 0..RUNS {
            environment.request(&format!("staged_{run}")).await;
        }
        for (stage, counter) in STAGES {
            let rate = alone(environment, stage, counter, replicas, rows).await;
            say(&format!("{replicas} x {stage}: {rate:.0} rows/s"));
            measured.push(
                json!({ "stage": stage, "replicas": replicas, "rows_per_second": rate.round() }),
            );
        }
        environment.holds("staged", rows).await;
    }
    json!({ "rows": rows, "measured": measured })
}

/// Rows per second from the first counted row to the last.
async fn alone(
    environment: &mut Environment,
    stage: &'static str,
    counter: &str,
    replicas: usize,
    rows: u64,
) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let wanted = rows as f64;
    environment.start_service(stage, replicas).await;
    let (mut first, begun) = (None, Instant::now());
    let rate = loop {
        let done = environment.counted(stage, counter).await;
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
    // Unacknowledged deliveries would be counted again in the next round, and a job cannot be requested while a run of it is
    // open.
    match stage {
        "extractor" => {
            environment.queue_is_settled("etl.extract").await;
            environment.queue_is_settled("etl.extract.bulk").await;
        }
        "loader" => environment.all_runs_are_over().await,
        _ => {}
    }
    environment.stop().await;
    rounded(rate)
}
