//! Logs and metrics of a process.
//!
//! Logs go to standard error: for people on a terminal, as JSON elsewhere. `ETL_LOG` filters them
//! as `RUST_LOG` does elsewhere (default `info`). Values of rows and secrets never get there.

use std::io::{IsTerminal, stderr};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::queue::QueueName;
use crate::settings::variable;

mod catalogue;
pub mod trace;

pub use catalogue::{Kind, METRICS, Metric, retried, stage_label};

/// Starts logging. A reader of the log that has gone away costs the log and nothing else. Of lapin and the AWS SDK only errors
/// are heard: what they warn of, the services say in words of their own.
pub fn start_logging() {
    let filter = variable("ETL_LOG").unwrap_or_else(|| {
        "info,lapin=error,aws_config=error,aws_smithy_runtime=error,sqlx=warn".to_owned()
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .log_internal_errors(false)
        .with_writer(stderr);
    if stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .init();
    }
}

/// Warns about variables that look like settings and are none.
pub fn warn_of_unknown_settings() {
    for sentence in crate::settings::unknown_variables() {
        tracing::warn!("{sentence}");
    }
}

/// Logging of a command that talks to its user by itself: warnings only, and only when asked for.
pub fn start_logging_of_a_command() {
    let filter = variable("ETL_LOG").unwrap_or_else(|| "off".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .log_internal_errors(false)
        .with_writer(stderr)
        .with_target(false)
        .init();
}

/// Starts collecting metrics; the handle renders them as Prometheus reads them.
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
