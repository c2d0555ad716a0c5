//! A minimal HTTP client for tests: one connection per request, no TLS, no redirects.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use url::Url;

pub use hyper::{Method, StatusCode};

/// Bounds a whole exchange. A server of a test that is alive answers sooner.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Sends one request to an `http://` URL and reads the whole answer. A user and password in the URL become basic
/// authentication.
///
/// # Errors
/// When no server listens, the connection breaks, or the answer takes more than a minute.
pub async fn send(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> std::io::Result<Response<Bytes>> {
    let body = body.into();
    let sent = tokio::time::timeout(TIMEOUT, send_unbounded(method, url, headers, body)).await;
    sent.unwrap_or_else(|_| {
        Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer from {url}"),
        ))
    })
}

/// Sends a GET request and returns the status and the body as text.
///
/// # Errors
/// As [`send`].
pub async fn get(url: &str) -> std::io::Result<(StatusCode, String)> {
    let answer = send(Method::GET, url, &[], Bytes::new()).await?;
    Ok((
        answer.status(),
        String::from_utf8_lossy(answer.body()).into_owned(),
    ))
}

async fn send_unbounded(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> std::io::Result<Response<Bytes>> {
    let url = Url::parse(url).map_err(std::io::Error::other)?;
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    let stream = TcpStream::connect((host, port)).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(std::io::Error::other)?;
    let target = url.query().map_or_else(
        || url.path().to_owned(),
        |query| format!("{}?{query}", url.path()),
    );
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, format!("{host}:{port}"));
    if !url.username().is_empty() {
        request = request.header(
            header::AUTHORIZATION,
            basic(url.username(), url.password().unwrap_or_default()),
        );
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::new(body))
        .map_err(std::io::Error::other)?;
    // The connection makes progress only while it is polled, and ends when the sender is dropped.
    let exchange = async move {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(
            parts,
            body.collect().await?.to_bytes(),
        ))
    };
    let (answer, _) = tokio::join!(exchange, connection);
    answer.map_err(|e: hyper::Error| std::io::Error::other(e))
}

/// The value of an `Authorization` header for basic authentication.
fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_in_base_64() {
        assert_eq!(basic("guest", "guest"), "Basic Z3Vlc3Q6Z3Vlc3Q=");
        assert_eq!(basic("a", "b"), "Basic YTpi");
        assert_eq!(basic("a", "bc"), "Basic YTpiYw==");
    }
}
