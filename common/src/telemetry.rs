//! Logs, metrics and traces of a process.
//!
//! Logs go to standard error: as text on a terminal, as JSON elsewhere. `ETL_LOG` filters them with
//! the syntax of `RUST_LOG` (default `info`). They contain no values of rows and no secrets.

use std::io::{IsTerminal, stderr};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, registry};

use crate::message::QueueName;
use crate::settings::variable;

mod catalogue;
mod collector;
pub mod trace;

pub use catalogue::{Kind, METRICS, Metric, retried, stage_label};

/// The default filter of a service. Of lapin and the AWS SDK only errors are logged: the services log what
/// follows from their warnings themselves. `lapin::channels` and `lapin::io_loop` log errors while the
/// service closes a connection in order ("Connection error", "we wrote 0"); a connection that is lost is
/// an error of its caller too, and the services log that.
const SERVICE_LOG: &str = "info,lapin=error,lapin::channels=off,lapin::io_loop=off,aws_config=error,\
     aws_smithy_runtime=error,sqlx=warn";

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
        .with(log.with_filter(EnvFilter::new(filter)))
        .with(exporter.as_ref().ok().and_then(trace::Exporter::layer))
        .init();
    exporter
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
