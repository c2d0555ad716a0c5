//! Logs, metrics and traces of a process.
//!
//! Logs go to standard error: as text on a terminal, as JSON elsewhere. `ETL_LOG` filters them with
//! the syntax of `RUST_LOG` (default `info`). They contain no values of rows and no secrets.

use std::io::{IsTerminal, stderr};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets};
use tracing_subscriber::layer::{Filter, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, registry};

use crate::message::QueueName;
use crate::settings::variable;

mod catalogue;
mod collector;
pub mod trace;

pub use catalogue::{Kind, METRICS, Metric, retried, stage_label};

/// The default filter of a service. lapin logs two to four errors for each connection that is lost or closed in order, and the
/// services log each failure themselves, once. Of the AWS SDK only errors are logged, for the same reason.
const SERVICE_LOG: &str = "info,lapin=off,aws_config=error,sqlx=warn";

/// The most that other crates may log, whatever `ETL_LOG` says: below, their lines have secrets or values of rows.
const LIMITS: [(&str, LevelFilter); 8] = [
    // Frames: the password, and bodies.
    ("lapin", LevelFilter::INFO),
    // A returned message with its body.
    ("lapin::returned_messages", LevelFilter::OFF),
    // What a trigger raises.
    ("sqlx::postgres::notice", LevelFilter::OFF),
    // Lines of a password file, and parameters of a URL.
    ("sqlx_postgres::options", LevelFilter::OFF),
    // Requests and responses, errors of queries, and lines of the shared configuration file.
    ("aws_", LevelFilter::ERROR),
    ("aws_config", LevelFilter::DEBUG),
    ("hyper", LevelFilter::INFO),
    ("opentelemetry", LevelFilter::INFO),
];

/// Starts the log of a service, and its traces where a collector is set. Warns about variables that
/// look like settings and are none.
///
/// # Errors
/// An endpoint for traces that cannot be used. The log has started all the same.
pub fn start(service: &'static str) -> anyhow::Result<trace::Exporter> {
    let log = fmt::layer().log_internal_errors(false).with_writer(stderr);
    let log = if stderr().is_terminal() {
        log.with_target(false).boxed()
    } else {
        let log = log.json().flatten_event(true);
        log.with_current_span(true).with_span_list(false).boxed()
    };
    let exporter = start_with(log, SERVICE_LOG, service);
    for sentence in crate::settings::unknown_variables() {
        tracing::warn!("{sentence}");
    }
    exporter
}

/// Starts the log of a command, which is silent unless `ETL_LOG` is set, and its traces where a
/// collector is set.
///
/// # Errors
/// As [`start`].
pub fn start_command(name: &'static str) -> anyhow::Result<trace::Exporter> {
    let log = fmt::layer().log_internal_errors(false).with_writer(stderr);
    start_with(log.with_target(false).boxed(), "off", name)
}

fn start_with(
    log: Box<dyn Layer<Registry> + Send + Sync>,
    default_filter: &str,
    name: &'static str,
) -> anyhow::Result<trace::Exporter> {
    let exporter = trace::Exporter::from_env(name);
    let filter = variable("ETL_LOG").unwrap_or_else(|| default_filter.to_owned());
    registry()
        .with(log.with_filter(log_filter(&filter)))
        .with(exporter.as_ref().ok().and_then(trace::Exporter::layer))
        .init();
    exporter
}

fn log_filter(filter: &str) -> impl Filter<Registry> + use<> {
    // Nothing here logs traces.
    let limits = Targets::new().with_default(LevelFilter::DEBUG);
    EnvFilter::new(filter).and(limits.with_targets(LIMITS))
}

/// Starts collecting metrics; the handle renders them in the text format of Prometheus.
pub fn start_metrics(
    service: &'static str,
    consumes: &[QueueName],
) -> anyhow::Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new().add_global_label("service", service);
    let handle = catalogue::with_buckets(builder)?.install_recorder()?;
    catalogue::describe(service, consumes);
    metrics::gauge!("etl_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged with a filter.
    fn logged(filter: &str, work: impl FnOnce()) -> String {
        let log = Log::default();
        let writer = log.clone();
        let layer = fmt::layer().with_writer(move || writer.clone());
        let subscriber = registry().with(layer.with_filter(log_filter(filter)));
        tracing::subscriber::with_default(subscriber, work);
        let bytes = log.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn no_filter_lets_secrets_and_values_of_other_crates_through() {
        let log = || {
            tracing::warn!(target: "sqlx::postgres::notice", "secret");
            tracing::warn!(target: "sqlx_postgres::options::pgpass", "secret");
            tracing::warn!(target: "lapin::returned_messages", "secret");
            tracing::trace!(target: "lapin::io_loop", "secret");
            tracing::warn!(target: "aws_runtime::env_config::normalize", "secret");
            tracing::debug!(target: "aws_smithy_runtime::client::orchestrator", "secret");
            tracing::trace!(target: "hyper::proto", "secret");
            tracing::info!(target: "loader", "loaded");
            tracing::error!(target: "lapin::io_loop", "lost");
        };
        for filter in ["trace", "trace,sqlx=trace,lapin=trace", SERVICE_LOG] {
            let logged = logged(filter, log);
            assert!(
                logged.contains("loaded") && !logged.contains("secret"),
                "{filter}: {logged}"
            );
            assert_eq!(logged.contains("lost"), filter != SERVICE_LOG, "{logged}");
        }
    }
}
