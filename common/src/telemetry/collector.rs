//! The way to the collector of traces, by HTTP or HTTPS. The exporter's own thread has no runtime, so that a request runs on the service's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::http::{HttpsClient, client};
use crate::secret::SecretUrl;

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read at most.
const MAX_ANSWER: usize = 64 << 10;

/// A client of the collector, which logs once that the collector is away.
#[derive(Debug)]
pub(super) struct Collector {
    url: SecretUrl,
    client: HttpsClient,
    runtime: Handle,
    is_away: AtomicBool,
}

impl Collector {
    pub(super) fn new(url: &SecretUrl) -> anyhow::Result<Self> {
        Ok(Self {
            url: url.clone(),
            client: client(url.expose().scheme())?,
            runtime: Handle::try_current()?,
            is_away: AtomicBool::new(false),
        })
    }

    /// One warning until the collector answers again: it may be away for long.
    fn note(&self, outcome: &Result<Response<Bytes>, HttpError>) {
        let error = match outcome {
            Ok(answer) if answer.status().is_success() => {
                self.is_away.store(false, Ordering::Relaxed);
                return;
            }
            Ok(answer) => format!("the collector answered {}", answer.status()),
            Err(error) => format!("{:#}", anyhow::anyhow!(error.to_string())),
        };
        if !self.is_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error,
                url = self.url.origin(),
                "traces are not exported now; spans are lost until the collector answers"
            );
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        // The timer, too, needs the runtime.
        let sending = async move { timeout(REQUEST_TIMEOUT, send(client, request)).await };
        let outcome = match self.runtime.spawn(sending).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(format!("no answer within {REQUEST_TIMEOUT:?}").into()),
            Err(ended) => Err(ended.into()),
        };
        self.note(&outcome);
        outcome
    }
}

async fn send(client: HttpsClient, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let answer = client.request(request.map(Full::new)).await?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span, Tracer, TracerProvider};
    use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn exporter_thread_sends_through_the_runtime() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(&url.parse().unwrap()).unwrap())
            .with_endpoint(&url)
            .build()
            .unwrap();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
        let provider = provider.build();
        provider.tracer("x").start("span").end();
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown());
        let accepted = timeout(REQUEST_TIMEOUT, listener.accept()).await;
        let (mut stream, _) = accepted.unwrap().unwrap();
        let mut bytes = vec![0; MAX_ANSWER];
        let read = stream.read(&mut bytes).await.unwrap();
        let request = String::from_utf8_lossy(&bytes[..read]).into_owned();
        assert!(request.starts_with("POST /v1/traces HTTP/1.1"), "{request}");
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        flushed.await.unwrap().unwrap();
    }
}
