//! Sending finished spans to a collector: OTLP over HTTP, in its JSON form (OpenTelemetry Protocol
//! Specification, "OTLP/HTTP" and "JSON Protobuf Encoding").

use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use url::Url;

use super::SINK;
use crate::settings::variable;

/// Spans that wait. More are dropped: a collector that is away must not fill the memory.
const WAITING: usize = 8_192;
/// Spans of one request, and how long the first of them waits for others.
const BATCH: usize = 512;
const PAUSE: Duration = Duration::from_secs(1);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// More of an answer is not read.
const ANSWER: usize = 64 << 10;

/// The way of finished spans to the exporter.
#[derive(Debug)]
pub(super) struct Sink(mpsc::Sender<Value>);

/// The end of a process waits for what was finished before.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

/// Where spans go to, and as whose.
struct Collector {
    service: &'static str,
    address: String,
    url: Url,
    headers: Vec<(String, String)>,
}

impl Sink {
    pub(super) fn take(&self, span: Value) {
        if self.0.try_send(span).is_err() {
            tracing::debug!("span dropped: the collector of traces is away or too slow");
        }
    }
}

/// Starts exporting when `OTEL_EXPORTER_OTLP_ENDPOINT` (or `.._TRACES_ENDPOINT`) is set. Nothing
/// begins otherwise.
///
/// # Errors
/// An endpoint that cannot be used.
#[expect(
    clippy::disallowed_methods,
    reason = "it lives as long as the process and holds no work"
)]
pub fn start(service: &'static str) -> anyhow::Result<Option<Exporter>> {
    let Some(collector) = Collector::configured(service)? else {
        return Ok(None);
    };
    let (sender, spans) = mpsc::channel(WAITING);
    ensure!(
        SINK.set(Sink(sender)).is_ok(),
        "traces are exported already"
    );
    let (stop, stopped) = oneshot::channel();
    let done = tokio::spawn(export(collector, spans, stopped));
    Ok(Some(Exporter { stop, done }))
}

impl Exporter {
    /// Sends what is left, if the collector takes it soon.
    pub async fn finish(self) {
        if self.stop.send(()).is_ok() && timeout(PATIENCE, self.done).await.is_err() {
            tracing::debug!("the last spans were not exported in time");
        }
    }
}

async fn export(
    collector: Collector,
    mut spans: mpsc::Receiver<Value>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut is_away = false;
    let mut ends = false;
    while !ends {
        let mut batch = Vec::new();
        tokio::select! {
            _ = &mut stopped => ends = true,
            span = spans.recv() => batch.extend(span),
        }
        if !ends {
            tokio::select! {
                _ = &mut stopped => ends = true,
                () = sleep(PAUSE) => {}
            }
        }
        while let Ok(span) = spans.try_recv() {
            batch.push(span);
        }
        for part in batch.chunks(BATCH) {
            match timeout(PATIENCE, collector.send(part)).await {
                Ok(Ok(())) => is_away = false,
                failed => {
                    let why = match failed {
                        Ok(Err(error)) => format!("{error:#}"),
                        _ => format!("no answer within {PATIENCE:?}"),
                    };
                    // Once: it may be away for long, and nothing depends on it.
                    if !std::mem::replace(&mut is_away, true) {
                        tracing::warn!(
                            error = why,
                            url = collector.url.as_str(),
                            "traces are not exported now; spans are lost until the collector answers"
                        );
                    }
                    break;
                }
            }
        }
    }
}

impl Collector {
    fn configured(service: &'static str) -> anyhow::Result<Option<Self>> {
        let traces = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let endpoint = match (traces, variable("OTEL_EXPORTER_OTLP_ENDPOINT")) {
            (Some(url), _) => url,
            (None, Some(url)) => format!("{}/v1/traces", url.trim_end_matches('/')),
            (None, None) => return Ok(None),
        };
        let headers = variable("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
        Self::of(service, &endpoint, &headers).map(Some)
    }

    fn of(service: &'static str, endpoint: &str, headers: &str) -> anyhow::Result<Self> {
        let cannot = || {
            format!(
                "cannot export traces to {endpoint:?}; OTEL_EXPORTER_OTLP_ENDPOINT looks like http://collector:4318"
            )
        };
        let url: Url = endpoint.parse().with_context(cannot)?;
        ensure!(
            url.scheme() == "http",
            "{}: only http:// is spoken here; put a collector beside this process that speaks TLS to the outside",
            cannot()
        );
        let host = url.host_str().with_context(cannot)?;
        let address = format!("{host}:{}", url.port_or_known_default().unwrap_or(80));
        let headers = headers
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect();
        Ok(Self {
            service,
            address,
            url,
            headers,
        })
    }

    async fn send(&self, spans: &[Value]) -> anyhow::Result<()> {
        let text =
            |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
        let version = env!("CARGO_PKG_VERSION");
        let body = json!({ "resourceSpans": [{
            "resource": { "attributes": [
                text("service.name", self.service),
                text("service.namespace", "etl"),
                text("service.version", version),
            ] },
            "scopeSpans": [{ "scope": { "name": "etl", "version": version }, "spans": spans }],
        }] });
        let mut request = Request::post(self.url.path())
            .header(header::HOST, &self.address)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body.to_string()))?;
        let stream = TcpStream::connect(&self.address)
            .await
            .with_context(|| format!("cannot connect to {}", self.address))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let answered = async {
            let answer = sender.send_request(request).await?;
            let (parts, body) = answer.into_parts();
            let text = to_bytes(Body::new(body), ANSWER).await.unwrap_or_default();
            if parts.status.is_success() {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&text);
            Err(anyhow!("the collector answered {}: {text}", parts.status))
        };
        // The connection does the work, for as long as it is polled.
        let (answer, _) = tokio::join!(answered, connection);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_checked_at_start() {
        let of = |endpoint: &str| Collector::of("loader", endpoint, "a=b, c = d");
        let collector = of("http://collector:4318/v1/traces").unwrap();
        assert_eq!(collector.address, "collector:4318");
        assert_eq!(collector.headers[1], ("c".to_owned(), "d".to_owned()));
        for bad in ["collector", "https://collector:4318/v1/traces", "http://"] {
            let Err(error) = of(bad) else { panic!("{bad}") };
            assert!(format!("{error:#}").contains("http://"), "{error:#}");
        }
    }
}
