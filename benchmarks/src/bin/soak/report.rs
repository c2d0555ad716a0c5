//! The report, in markdown: what was done, the kills, and the result of each check.

use std::fmt::Write as _;
use std::time::Duration;

use common::message::QueueName;

use crate::Soak;
use crate::check::Check;
use crate::kills::Killed;
use crate::metrics::count;
use crate::runs::Run;

/// Writes the report into the soak's folder, and returns it.
pub(crate) async fn write(
    soak: &Soak,
    runs: &[Run],
    killed: &Killed,
    checks: &[Check],
    took: Duration,
) -> String {
    let mut text = String::new();
    let written = write_all(
        &mut text,
        soak,
        runs,
        killed,
        checks,
        took,
        &versions(soak).await,
    );
    written.expect("a String takes everything");
    let path = soak.settings.dir.join("report.md");
    std::fs::write(&path, &text).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    soak.say(&format!("report: {}", path.display()));
    text
}

async fn versions(soak: &Soak) -> String {
    let broker = soak.pipeline.vhost.broker.rabbitmqctl(&["version"]).await;
    let postgres: String = sqlx::query_scalar("SHOW server_version")
        .fetch_one(&soak.pipeline.database.pool)
        .await
        .unwrap_or_default();
    format!(
        "RabbitMQ {}, PostgreSQL {}",
        broker.trim(),
        postgres.split(' ').next().unwrap_or_default()
    )
}

fn write_all(
    text: &mut String,
    soak: &Soak,
    runs: &[Run],
    killed: &Killed,
    checks: &[Check],
    took: Duration,
    versions: &str,
) -> std::fmt::Result {
    let rows: i64 = runs
        .iter()
        .filter_map(|run| run.status["rows_loaded"].as_i64())
        .sum();
    let kills: u32 = killed.kills.values().sum();
    let counters = &killed.counters;
    writeln!(
        text,
        "{} runs of {} rows in {:.0} s, {} at a time; seed {}; two replicas of each service; {versions}.\n",
        runs.len(),
        soak.settings.rows,
        took.as_secs_f64(),
        soak.settings.lanes,
        soak.settings.seed
    )?;
    writeln!(text, "| | |\n|---|---|")?;
    writeln!(text, "| rows loaded | {rows} |")?;
    writeln!(text, "| kills survived (kill -9) | {kills} |")?;
    for (kind, count) in &killed.kills {
        writeln!(text, "| ... of them: {kind} | {count} |")?;
    }
    let redelivered = count(counters, "etl_redeliveries_total", "");
    writeln!(text, "| redeliveries | {redelivered} |")?;
    for queue in QueueName::WORK.map(QueueName::name) {
        let redelivered = count(counters, "etl_redeliveries_total", &format!("\"{queue}\""));
        writeln!(text, "| ... of them: `{queue}` | {redelivered} |")?;
    }
    for (result, what) in [
        ("loaded", "batches loaded"),
        ("duplicate", "duplicate batches refused"),
        ("ignored", "batches ignored after their run ended"),
    ] {
        let batches = count(counters, "etl_batches_total", &format!("\"{result}\""));
        writeln!(text, "| {what} | {batches} |")?;
    }
    writeln!(
        text,
        "\nCounts of the last half second before a kill are not included.\n"
    )?;
    write_runs(text, runs)?;
    for Check { sentence, problem } in checks {
        match problem {
            None => writeln!(text, "- {sentence}: yes")?,
            Some(problem) => writeln!(text, "- {sentence}: **NO**: {problem}")?,
        }
    }
    Ok(())
}

fn write_runs(text: &mut String, runs: &[Run]) -> std::fmt::Result {
    writeln!(
        text,
        "| run | source | rows | batches | seconds |\n|---|---|---|---|---|"
    )?;
    for run in runs {
        writeln!(
            text,
            "| {} | {} | {} | {} | {:.1} |",
            run.id,
            run.way,
            run.status["rows_loaded"],
            run.status["batches"],
            run.took.as_secs_f64()
        )?;
    }
    writeln!(text)
}
