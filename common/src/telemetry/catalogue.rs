//! Every metric of the system, with its labels and its buckets. `docs/metrics.md` lists the same metrics,
//! and tests compare the two with what the services export.
//!
//! Every label has few values: jobs, rules, queues, causes. A run is not a label.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

use crate::message::QueueName;

/// The type of a metric in Prometheus.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    /// The services that export it.
    pub services: &'static [&'static str],
    pub help: &'static str,
}

const EXTRACTOR: &[&str] = &["extractor"];
const TRANSFORMER: &[&str] = &["transformer"];
const LOADER: &[&str] = &["loader"];
const ALL: &[&str] = &["extractor", "transformer", "loader"];

/// From a small commit to a merge that waits for a lock.
const LOAD_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];
/// From a fast disk to a broker that is short of memory.
const CONFIRM_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 20.0];

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    services: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels,
        services,
        help,
    }
}

const fn gauge(
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    services: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        kind: Kind::Gauge,
        unit,
        ..counter(name, labels, services, help)
    }
}

const fn seconds(
    name: &'static str,
    bounds: &'static [f64],
    labels: &'static [&'static str],
    services: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        kind: Kind::Histogram(bounds),
        unit: Unit::Seconds,
        ..counter(name, labels, services, help)
    }
}

/// All metrics, in the order of a row's path.
pub const METRICS: &[Metric] = &[
    counter(
        "etl_rows_extracted_total",
        &["job"],
        EXTRACTOR,
        "Rows of Athena's results that were published in batches and confirmed.",
    ),
    counter(
        "etl_batches_extracted_total",
        &["job"],
        EXTRACTOR,
        "Batches that were published and confirmed.",
    ),
    Metric {
        unit: Unit::Bytes,
        ..counter(
            "etl_bytes_extracted_total",
            &["job"],
            EXTRACTOR,
            "Bytes of the values in these batches.",
        )
    },
    counter(
        "etl_aws_errors_total",
        &["kind"],
        EXTRACTOR,
        "Calls to AWS that failed after the SDK's own retries, by what follows from it.",
    ),
    counter(
        "etl_rows_transformed_total",
        &["job", "result"],
        TRANSFORMER,
        "Rows that were transformed, by result: valid or rejected.",
    ),
    counter(
        "etl_rows_rejected_total",
        &["job", "rule"],
        &["transformer", "loader"],
        "Rejected rows by rule. The transformer counts each rejection, also of a redelivered batch. The loader counts the rows that it wrote into quarantine, with the rule postgres for rows that the database refused.",
    ),
    counter(
        "etl_batches_total",
        &["job", "result"],
        &["transformer", "loader"],
        "Batches by result. In the loader: loaded, parked while their target cannot take them, or duplicate, stale, ignored and the like for batches that changed nothing.",
    ),
    counter(
        "etl_rows_loaded_total",
        &["job"],
        LOADER,
        "Rows that were committed.",
    ),
    seconds(
        "etl_load_seconds",
        LOAD_SECONDS,
        &[],
        LOADER,
        "Time from the delivery of a batch to its commit.",
    ),
    gauge(
        "etl_last_commit_timestamp_seconds",
        Unit::Seconds,
        &[],
        LOADER,
        "Time of the last commit of a batch, in seconds since 1970; 0 before the first.",
    ),
    counter(
        "etl_events_total",
        &["result"],
        LOADER,
        "Events about runs by result.",
    ),
    counter(
        "etl_runs_total",
        &["job", "state"],
        LOADER,
        "Runs and replays by the state that a loader gave them; decisions of a person are not counted.",
    ),
    gauge(
        "etl_job_late_seconds",
        Unit::Seconds,
        &["job"],
        LOADER,
        "Time since a job with expected_every should have completed, by the ledger: each loader says the same. 0 while it is in time.",
    ),
    counter(
        "etl_outbox_attempts_total",
        &["channel", "result"],
        LOADER,
        "Attempts to send a message to a channel, by result: sent or failed.",
    ),
    gauge(
        "etl_outbox_waiting",
        Unit::Count,
        &["channel"],
        LOADER,
        "Messages that wait for a channel, by the ledger: each loader says the same.",
    ),
    counter(
        "etl_dead_letters_total",
        &["stage"],
        LOADER,
        "Dead letters by the stage that dead-lettered them, counted when they reach etl.dead_letters.",
    ),
    gauge(
        "etl_queue_messages",
        Unit::Count,
        &["queue"],
        ALL,
        "Ready messages in a queue, read every ten seconds by the service that consumes it.",
    ),
    counter(
        "etl_redeliveries_total",
        &["queue"],
        ALL,
        "Deliveries of messages that had been delivered before, to a consumer that died or lost its connection.",
    ),
    counter(
        "etl_publishes_refused_total",
        &["queue"],
        ALL,
        "Publishes that the broker refused because the queue is full; they are retried.",
    ),
    seconds(
        "etl_confirm_seconds",
        CONFIRM_SECONDS,
        &["queue"],
        ALL,
        "Time from publishing a message to the broker's confirm.",
    ),
    counter("etl_retries_total", &["cause"], ALL, "Retries by cause."),
    gauge(
        "etl_ready",
        Unit::Count,
        &[],
        ALL,
        "1 while /readyz says 200, else 0.",
    ),
    gauge(
        "etl_build_info",
        Unit::Count,
        &["version"],
        ALL,
        "1, with the version as a label.",
    ),
];

/// Sets up the buckets of every histogram.
pub(super) fn with_buckets(
    mut builder: PrometheusBuilder,
) -> Result<PrometheusBuilder, BuildError> {
    for metric in METRICS {
        if let Kind::Histogram(bounds) = metric.kind {
            let matcher = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(matcher, bounds)?;
        }
    }
    Ok(builder)
}

/// Describes the metrics of this service. Starts counters at zero, since Prometheus sees no increase in
/// a counter that appears with its first count.
pub(super) fn describe(service: &str, consumes: &[QueueName]) {
    for metric in METRICS {
        if !metric.services.contains(&service) {
            continue;
        }
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram(_) => describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
    for queue in consumes {
        metrics::counter!("etl_redeliveries_total", "queue" => queue.name()).increment(0);
        let fills = match queue {
            QueueName::Extract => QueueName::Raw,
            QueueName::Raw => QueueName::Valid,
            _ => QueueName::Dead,
        };
        metrics::counter!("etl_publishes_refused_total", "queue" => fills.name()).increment(0);
    }
    retried("broker", 0);
    if service == "loader" {
        metrics::gauge!("etl_last_commit_timestamp_seconds").set(0.0);
        for stage in STAGES {
            metrics::counter!("etl_dead_letters_total", "stage" => stage).increment(0);
        }
    }
    if service == "extractor" {
        metrics::counter!("etl_aws_errors_total", "kind" => "unavailable").increment(0);
    }
}

/// The stages that dead-letter messages. Any other text in a foreign message is `other`.
const STAGES: [&str; 5] = ["extractor", "transformer", "loader", "broker", "other"];

/// A stage as a label. A dead letter may name any text.
pub fn stage_label(stage: &str) -> &'static str {
    STAGES
        .into_iter()
        .find(|known| *known == stage)
        .unwrap_or("other")
}

/// Counts retries for a cause.
pub fn retried(cause: &'static str, times: u64) {
    metrics::counter!("etl_retries_total", "cause" => cause).increment(times);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of the document: `| `name` | type | labels | where | meaning |`.
    fn documented() -> Vec<(String, String, String, String)> {
        let rows = include_str!("../../../docs/metrics.md").lines();
        let rows = rows.filter(|line| line.starts_with("| `etl_"));
        rows.map(|line| {
            let cell = |at| {
                let cell = line.split('|').nth(at).unwrap_or_default();
                cell.trim().replace('`', "")
            };
            (cell(1), cell(2), cell(3), cell(4))
        })
        .collect()
    }

    #[test]
    fn document_lists_exactly_the_metrics() {
        let known = METRICS.iter().map(|metric| {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            let services = if metric.services == ALL {
                "all".to_owned()
            } else {
                metric.services.join(", ")
            };
            (
                metric.name.to_owned(),
                kind.to_owned(),
                metric.labels.join(", "),
                services,
            )
        });
        assert_eq!(documented(), known.collect::<Vec<_>>());
    }

    #[test]
    fn unknown_stage_is_labelled_other() {
        assert_eq!(stage_label("loader"), "loader");
        assert_eq!(stage_label("17.3"), "other");
    }
}
