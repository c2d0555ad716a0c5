//! The report of what was measured, in markdown, and how its values are read.

use std::fmt::Write as _;

use serde_json::Value;

/// The report so far.
pub(crate) fn text(result: &Value) -> String {
    let mut text = String::new();
    write_all(&mut text, result).expect("a String takes everything");
    text
}

fn write_all(text: &mut String, result: &Value) -> std::fmt::Result {
    let machine = &result["machine"];
    writeln!(
        text,
        "{} CPUs ({}), PostgreSQL {} (fsync {}, synchronous_commit {}), RabbitMQ {}.\n",
        machine["cpus"],
        plain(&machine["cpu"]),
        plain(&machine["postgres"]),
        plain(&machine["fsync"]),
        plain(&machine["synchronous_commit"]),
        plain(&machine["rabbitmq"])
    )?;
    for contest in list(&result["contest"]) {
        write_contest(text, contest)?;
    }
    if let Some(small) = result["small"].as_object() {
        writeln!(
            text,
            "A run of {} rows: committed {} s after the start of `etl run`, and `etl run --follow` ended after {} s.\n",
            small["rows"], small["committed"], small["done"]
        )?;
    }
    for (part, what) in [
        ("replicas", "the job as it is"),
        ("rules", "a job with rules on every column"),
    ] {
        let part = &result[part];
        if part.is_object() {
            writeln!(
                text,
                "Two replicas of each service against one, {what}, {} rows: {} s and {} s; the speed of two is {} of that of one.\n",
                part["rows"], part["two"], part["one"], part["speed_of_two"]
            )?;
        }
    }
    write_stages(text, &result["stages"])?;
    write_growth(text, &result["growth"])
}

fn write_contest(text: &mut String, contest: &Value) -> std::fmt::Result {
    let million = 1e6;
    writeln!(
        text,
        "{} rows, {:.1} MB of CSV:\n",
        contest["rows"],
        number(&contest["bytes"]) / million
    )?;
    writeln!(
        text,
        "| method | seconds (median) | ratio (median) | ratios | CPU seconds | MB in and out of the broker |\n|---|---|---|---|---|---|"
    )?;
    for way in list(&contest["ways"]) {
        let ratios: Vec<String> = list(&way["ratios"]).iter().map(Value::to_string).collect();
        writeln!(
            text,
            "| {} | {} | **{:.2}** | {} | {:.1} | {:.0} |",
            plain(&way["way"]),
            way["median"],
            number(&way["ratio"]),
            ratios.join(" "),
            number(&way["cpu_total"]),
            number(&way["broker_bytes"]) / million
        )?;
    }
    writeln!(
        text,
        "\n| CPU seconds (median) | {} |",
        heads(contest, "way")
    )?;
    writeln!(text, "|---|{}", "---|".repeat(list(&contest["ways"]).len()))?;
    let first = contest["ways"][0]["cpu_seconds"].as_object();
    for name in first.into_iter().flat_map(|cpu| cpu.keys()) {
        write!(text, "| {name} |")?;
        for way in list(&contest["ways"]) {
            write!(text, " {:.2} |", number(&way["cpu_seconds"][name]))?;
        }
        writeln!(text)?;
    }
    writeln!(text, "\n| | peak resident memory, MiB |\n|---|---|")?;
    for (name, peak) in contest["peak_mib"].as_object().into_iter().flatten() {
        writeln!(text, "| {name} | {:.1} |", number(peak))?;
    }
    writeln!(text)
}

fn write_stages(text: &mut String, stages: &Value) -> std::fmt::Result {
    if !stages.is_object() {
        return Ok(());
    }
    writeln!(
        text,
        "Each stage alone, {} rows:\n\n| stage | replicas | rows a second |\n|---|---|---|",
        stages["rows"]
    )?;
    for one in list(&stages["measured"]) {
        writeln!(
            text,
            "| {} | {} | {} |",
            plain(&one["stage"]),
            one["replicas"],
            one["rows_per_second"]
        )?;
    }
    writeln!(text)
}

fn write_growth(text: &mut String, growth: &Value) -> std::fmt::Result {
    if !growth.is_object() {
        return Ok(());
    }
    writeln!(
        text,
        "A run of 100 rows takes {} s; beyond that:\n\n| rows | seconds | microseconds a row |\n|---|---|---|",
        growth["base"]
    )?;
    for one in list(&growth["measured"]) {
        writeln!(
            text,
            "| {} | {} | {} |",
            one["rows"], one["seconds"], one["micros_a_row"]
        )?;
    }
    writeln!(text)
}

fn heads(contest: &Value, name: &str) -> String {
    let ways = list(&contest["ways"]).iter();
    ways.map(|way| plain(&way[name]))
        .collect::<Vec<_>>()
        .join(" | ")
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

pub(crate) fn plain(value: &Value) -> String {
    // A bar within a cell would end it.
    value.as_str().unwrap_or_default().replace('|', "\\|")
}
