//! The services' counters across their lives: what a process had counted when it was looked at last is kept when it dies.

use std::collections::BTreeMap;

use testkit::process::Process;

/// The counters that the report names.
const KEPT: [&str; 3] = [
    "etl_redeliveries_total",
    "etl_batches_total",
    "etl_publishes_refused_total",
];

/// Counters by name and labels, as Prometheus writes them.
pub(crate) type Counters = BTreeMap<String, u64>;

/// What a process has counted so far; nothing when it does not answer.
pub(crate) async fn of(process: &Process) -> Option<Counters> {
    let (_, text) = process.get("/metrics").await?;
    let lines = text
        .lines()
        .filter(|line| KEPT.iter().any(|name| line.starts_with(name)));
    let counters = lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Some(counters.collect())
}

/// Adds what one process counted to what all did.
pub(crate) fn add(sum: &mut Counters, counted: &Counters) {
    for (name, value) in counted {
        *sum.entry(name.clone()).or_default() += value;
    }
}

/// The sum of all counters whose name and labels contain both texts.
pub(crate) fn count(counters: &Counters, name: &str, label: &str) -> u64 {
    let matching = counters
        .iter()
        .filter(|(key, _)| key.starts_with(name) && key.contains(label));
    matching.map(|(_, value)| value).sum()
}
