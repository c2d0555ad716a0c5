//! HTTP and HTTPS as a client, with the TLS stack that the other connections use.

use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Bytes;
pub use axum::http::header::AUTHORIZATION;
use axum::http::header::CONTENT_TYPE;
pub use axum::http::{HeaderName, HeaderValue};
use axum::http::{Method, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use percent_encoding::percent_decode_str;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use url::Url;

use crate::secret::SecretUrl;

/// How long an answer may take, and its bytes at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 16 << 20;

/// A client of any host.
pub type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client for URLs of a scheme. The roots of trust are the system's, and `SSL_CERT_FILE` replaces them.
pub fn client(scheme: &str) -> anyhow::Result<HttpsClient> {
    let builder = HttpsConnectorBuilder::new();
    let builder = if scheme == "https" {
        builder.with_provider_and_native_roots(ring::default_provider())?
    } else {
        // A machine without certificates can use http.
        let config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        builder.with_tls_config(config)
    };
    let connector = builder.https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// What is at a path below a URL, whose user and password are sent. Its errors have neither.
pub async fn get_json<T: DeserializeOwned>(base: &SecretUrl, path: &[&str]) -> anyhow::Result<T> {
    let mut url = base.expose().clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    let what = || format!("to GET {}", path.join("/"));
    let request = request(Method::GET, url, &[], Bytes::new());
    let body = answer(base, request, ANSWER_TIMEOUT)
        .await
        .with_context(what)?;
    serde_json::from_slice(&body)
        .with_context(|| format!("{} answered something else than expected", base.origin()))
}

/// Posts JSON to a URL, with its user and password and with these headers, and returns when the receiver has taken it. Its errors
/// have nothing of the URL but the origin, and nothing of the answer but the status: a receiver may quote the path, which may be
/// a secret.
pub async fn post_json(
    url: &SecretUrl,
    headers: &[(HeaderName, HeaderValue)],
    body: &serde_json::Value,
    limit: Duration,
) -> anyhow::Result<()> {
    let json = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let headers = [&[json], headers].concat();
    let body = Bytes::from(body.to_string());
    let request = request(Method::POST, url.expose().clone(), &headers, body);
    answer(url, request, limit).await.map(drop)
}

/// A request to a URL, whose user and password become a header.
fn request(
    method: Method,
    mut url: Url,
    headers: &[(HeaderName, HeaderValue)],
    body: Bytes,
) -> anyhow::Result<Request<Full<Bytes>>> {
    let mut request = Request::builder().method(method);
    if !url.username().is_empty() || url.password().is_some() {
        request = request.header(AUTHORIZATION, credentials(&url));
    }
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    if cleared.is_err() {
        bail!("the URL has no host");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request
        .uri(url.as_str())
        .body(Full::new(body))
        .context("the URL cannot be sent as a request")
}

/// The body of the answer, if it is a success.
async fn answer(
    base: &SecretUrl,
    request: anyhow::Result<Request<Full<Bytes>>>,
    limit: Duration,
) -> anyhow::Result<Bytes> {
    let origin = base.origin();
    let request = request.with_context(|| format!("{origin} cannot be asked"))?;
    let client = client(base.expose().scheme())?;
    let answered = async {
        let answer = client.request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        anyhow::Ok((status, body))
    };
    let Ok(answered) = timeout(limit, answered).await else {
        bail!("no answer of {origin} within {} s", limit.as_secs_f32());
    };
    let (status, body) = answered.with_context(|| format!("no answer of {origin}"))?;
    if !status.is_success() {
        bail!("{origin} answered {status}");
    }
    Ok(body)
}

/// The user and the password of a URL, as HTTP's basic authentication has them.
fn credentials(url: &Url) -> String {
    let decoded = |text: &str| percent_decode_str(text).collect::<Vec<_>>();
    let mut pair = decoded(url.username());
    pair.push(b':');
    pair.extend(decoded(url.password().unwrap_or_default()));
    format!("Basic {}", STANDARD.encode(pair))
}
