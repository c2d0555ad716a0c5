//! HTTP and HTTPS as a client, with the TLS stack that the other connections use.

use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Bytes;
use axum::http::Request;
use axum::http::header::AUTHORIZATION;
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
    let credentials = credentials(&url);
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    if cleared.is_err() {
        bail!("{} has no host", base.origin());
    }
    let request = Request::get(url.as_str())
        .header(AUTHORIZATION, credentials)
        .body(Full::default())
        .context("the URL cannot be sent as a request")?;
    let client = client(url.scheme())?;
    let answered = async {
        let answer = client.request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        anyhow::Ok((status, body))
    };
    let what = || format!("no answer of {} to GET {}", base.origin(), path.join("/"));
    let answered = timeout(ANSWER_TIMEOUT, answered).await;
    let (status, body) = answered.with_context(what)?.with_context(what)?;
    if !status.is_success() {
        bail!(
            "{} answered {status} to GET {}",
            base.origin(),
            path.join("/")
        );
    }
    serde_json::from_slice(&body)
        .with_context(|| format!("{} answered something else than expected", base.origin()))
}

/// The user and the password of a URL, as HTTP's basic authentication has them.
fn credentials(url: &Url) -> String {
    let decoded = |text: &str| percent_decode_str(text).collect::<Vec<_>>();
    let mut pair = decoded(url.username());
    pair.push(b':');
    pair.extend(decoded(url.password().unwrap_or_default()));
    format!("Basic {}", STANDARD.encode(pair))
}
