//! How a process stops, and what it reports over HTTP.
//!
//! `/healthz` answers while the process runs. `/readyz` is 200 while the service can work, and else 503
//! with the causes. `/metrics` is for Prometheus.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Whether a service can work now. Each cause is reported and cleared by itself; the service is ready
/// when none is left.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Health {
    /// Reports a cause why the service cannot work, with an explanation for a person.
    pub fn not_ready(&self, cause: &'static str, why: impl Into<String>) {
        self.causes().insert(cause, why.into());
    }

    /// Reports the only cause: every other one has ended.
    pub fn only(&self, cause: &'static str, why: impl Into<String>) {
        *self.causes() = BTreeMap::from([(cause, why.into())]);
    }

    /// Removes a cause.
    pub fn clear(&self, cause: &'static str) {
        self.causes().remove(cause);
    }

    /// The causes, one a line; empty when the service is ready.
    pub fn report(&self) -> String {
        self.causes()
            .iter()
            .fold(String::new(), |report, (cause, why)| {
                report + cause + ": " + why + "\n"
            })
    }

    fn causes(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a token that SIGTERM or SIGINT cancels. A second signal ends the process at once.
#[expect(
    clippy::disallowed_methods,
    reason = "it lives as long as the process and holds no work"
)]
pub fn shutdown_on_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            if cancelled.is_cancelled() {
                std::process::exit(130);
            }
            cancelled.cancel();
            tracing::info!("stopping: finishing what is in hand");
        }
    });
    Ok(token)
}

/// Serves `/healthz`, `/readyz` and `/metrics` until the process ends: at the address of the setting, where a port in use is
/// an error, or else at the service's default port on 127.0.0.1, or a free port when another replica uses it.
pub async fn serve_http(
    address: Option<SocketAddr>,
    default_port: u16,
    health: Health,
    metrics: PrometheusHandle,
) -> anyhow::Result<()> {
    let listener = bind(address, default_port).await?;
    tracing::info!(http.addr = %listener.local_addr()?, "serving /healthz, /readyz and /metrics");
    let is_ready = health.clone();
    let render = move || {
        let ready = u8::from(is_ready.report().is_empty());
        metrics::gauge!("etl_ready").set(f64::from(ready));
        std::future::ready(metrics.render())
    };
    let ready = move || {
        let report = health.report();
        std::future::ready(if report.is_empty() {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, report)
        })
    };
    let app = Router::new()
        .route("/healthz", get(|| std::future::ready("alive\n")))
        .route("/readyz", get(ready))
        .route("/metrics", get(render));
    axum::serve(listener, app)
        .await
        .context("the HTTP server for health and metrics stopped")
}

async fn bind(address: Option<SocketAddr>, default_port: u16) -> anyhow::Result<TcpListener> {
    if let Some(address) = address {
        return TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for health and metrics; set ETL_HTTP_ADDR to a free address"));
    }
    match TcpListener::bind(("127.0.0.1", default_port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("cannot listen on 127.0.0.1 for health and metrics"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_no_cause_is_left() {
        let health = Health::default();
        health.not_ready("broker", "connecting");
        health.not_ready("database", "read-only");
        health.clear("broker");
        assert_eq!(health.report(), "database: read-only\n");
        health.clear("database");
        assert_eq!(health.report(), "");
        health.not_ready("full", "etl.valid is full");
        health.only("broker", "away");
        assert_eq!(health.report(), "broker: away\n");
    }
}
