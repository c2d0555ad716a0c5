//! An HTTP endpoint whose answers a test scripts, and that remembers what it was asked: the services that give AWS clients
//! their credentials (SSO, STS, sign-in, the metadata of an instance, the agent of a pod).

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};

use crate::listener::{ANY, Listener, http};

/// A request that the endpoint received.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Asked {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status, headers and a body.
    Full(u16, Vec<(&'static str, String)>, String),
    /// The connection stays open, and no answer comes.
    Silence,
}

impl Reply {
    pub fn json(value: &serde_json::Value) -> Self {
        let kind = ("content-type", "application/json".to_owned());
        Self::Full(200, vec![kind], value.to_string())
    }

    pub fn text(status: u16, body: &str) -> Self {
        Self::Full(status, Vec::new(), body.to_owned())
    }
}

type Script = Box<dyn Fn(&Asked) -> Reply + Send + Sync>;

struct Shared {
    script: Script,
    asked: Mutex<Vec<Asked>>,
}

/// A running endpoint. Dropping it closes all of its connections.
pub struct Endpoint {
    listener: Listener,
    shared: Arc<Shared>,
}

impl Endpoint {
    /// Starts one on a free port of 127.0.0.1 that answers as `script` says.
    pub async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            script: Box::new(script),
            asked: Mutex::default(),
        });
        let of_connections = Arc::clone(&shared);
        let handle = move |stream| {
            let shared = Arc::clone(&of_connections);
            http(stream, move |request| answer(Arc::clone(&shared), request))
        };
        let listener = Listener::start(ANY, handle).await;
        Self { listener, shared }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.listener.address())
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.shared.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let headers = parts.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    });
    let asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        headers: headers.collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let reply = (shared.script)(&asked);
    shared
        .asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(asked);
    let Reply::Full(status, headers, body) = reply else {
        return std::future::pending().await;
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    let response = response.body(Full::new(Bytes::from(body)));
    Ok(response.expect("a script has valid headers"))
}
