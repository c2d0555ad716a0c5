//! How a process stops, and what it reports over HTTP.
//!
//! `/healthz` answers while the process runs. `/readyz` is 200 while the service can work, and else 503
//! with the causes. Their explanations go to requests from the same host only. `/metrics` is for Prometheus.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, StatusCode};
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

    /// The causes with their explanations, one a line; empty when the service is ready. An explanation names hosts, users and
    /// what a server answered.
    pub fn report(&self) -> String {
        self.causes()
            .iter()
            .fold(String::new(), |report, (cause, why)| {
                report + cause + ": " + why + "\n"
            })
    }

    /// The causes alone, one a line: for anybody who can reach the port.
    fn names(&self) -> String {
        self.causes()
            .keys()
            .fold(String::new(), |names, cause| names + cause + "\n")
    }

    /// Whether the service can work.
    pub fn is_ready(&self) -> bool {
        self.causes().is_empty()
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
    serve(listener, health, metrics)
        .await
        .context("the HTTP server for health and metrics stopped")
}

async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: PrometheusHandle,
) -> std::io::Result<()> {
    let is_ready = health.clone();
    let render = move || {
        let ready = u8::from(is_ready.is_ready());
        metrics::gauge!("etl_ready").set(f64::from(ready));
        std::future::ready(metrics.render())
    };
    let ready = move |ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: HeaderMap| {
        std::future::ready(match is_local(peer, &headers) {
            _ if health.is_ready() => (StatusCode::OK, "ready\n".to_owned()),
            true => (StatusCode::SERVICE_UNAVAILABLE, health.report()),
            false => (StatusCode::SERVICE_UNAVAILABLE, health.names()),
        })
    };
    let app = Router::new()
        .route("/healthz", get(|| std::future::ready("alive\n")))
        .route("/readyz", get(ready))
        .route("/metrics", get(render));
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).await
}

/// Whether a request comes from this host: from a loopback address, as those of `kubectl port-forward` and of a container's
/// health check do, and without the headers of a proxy that runs beside the service. A proxy that adds none is not recognised.
fn is_local(peer: SocketAddr, headers: &HeaderMap) -> bool {
    const OF_PROXIES: [&str; 6] = [
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
    ];
    peer.ip().to_canonical().is_loopback()
        && !OF_PROXIES.iter().any(|name| headers.contains_key(*name))
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn only_the_same_host_learns_why_a_service_is_not_ready() {
        let none = HeaderMap::new();
        for (peer, is_local_peer) in [
            ("127.0.0.1:9", true),
            ("[::1]:9", true),
            ("[::ffff:127.0.0.1]:9", true),
            ("10.244.0.7:9", false),
            ("[::ffff:10.244.0.7]:9", false),
            ("[fe80::1]:9", false),
        ] {
            let peer = peer.parse().unwrap();
            assert_eq!(is_local(peer, &none), is_local_peer, "{peer}");
            for proxy in ["Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"] {
                let header = proxy.parse::<axum::http::HeaderName>().unwrap();
                let headers = HeaderMap::from_iter([(header, "1".parse().unwrap())]);
                assert!(!is_local(peer, &headers), "{peer} {proxy}");
            }
        }
    }

    #[tokio::test]
    async fn request_of_a_proxy_is_answered_without_the_explanation() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let health = Health::default();
        health.not_ready("broker", "amqp://etl@broker.internal: refused");
        health.not_ready("database", "role etl of db.internal");
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let serving = serve(listener, health.clone(), metrics.handle());
        let ask = async |header: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET /readyz HTTP/1.0\r\nHost: x\r\n{header}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head[9..12].to_owned(), body.to_owned())
        };
        let asking = async {
            let whole =
                "broker: amqp://etl@broker.internal: refused\ndatabase: role etl of db.internal\n";
            assert_eq!(ask("").await, ("503".to_owned(), whole.to_owned()));
            let names = ("503".to_owned(), "broker\ndatabase\n".to_owned());
            assert_eq!(ask("X-Forwarded-For: 10.0.0.9\r\n").await, names);
            health.clear("broker");
            health.clear("database");
            let ready = ("200".to_owned(), "ready\n".to_owned());
            assert_eq!(ask("").await, ready);
            assert_eq!(ask("Via: 1.1 proxy\r\n").await, ready);
        };
        tokio::select! {
            ended = serving => panic!("{ended:?}"),
            () = asking => {}
        }
    }

    #[test]
    fn ready_when_no_cause_is_left() {
        let health = Health::default();
        health.not_ready("broker", "connecting");
        health.not_ready("database", "read-only");
        health.clear("broker");
        assert_eq!(health.report(), "database: read-only\n");
        health.clear("database");
        assert!(health.is_ready());
        health.not_ready("full", "etl.valid is full");
        health.only("broker", "away");
        assert_eq!(health.report(), "broker: away\n");
    }
}
