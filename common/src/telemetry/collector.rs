//! The way to the collector of traces: HTTP and HTTPS with the TLS stack that the other connections
//! use. The exporter's own thread has no runtime, so that a request runs on the service's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::secret::SecretUrl;

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read at most.
const MAX_ANSWER: usize = 64 << 10;

type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client of the collector, which logs once that the collector is away.
#[derive(Debug)]
pub(super) struct Collector {
    url: SecretUrl,
    client: HttpsClient,
    runtime: Handle,
    is_away: AtomicBool,
}

impl Collector {
    /// The roots of trust are the system's, and `SSL_CERT_FILE` replaces them.
    pub(super) fn new(url: &SecretUrl) -> anyhow::Result<Self> {
        let builder = HttpsConnectorBuilder::new();
        let builder = if url.expose().scheme() == "https" {
            builder.with_provider_and_native_roots(ring::default_provider())?
        } else {
            // A machine without certificates can export over http.
            let config = ClientConfig::builder_with_provider(ring::default_provider().into())
                .with_safe_default_protocol_versions()?
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(config)
        };
        let connector = builder.https_or_http().enable_http1().build();
        Ok(Self {
            url: url.clone(),
            client: Client::builder(TokioExecutor::new()).build(connector),
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
