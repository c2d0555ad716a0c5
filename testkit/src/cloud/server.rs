//! The HTTP server of the emulator: parses a request, applies the scripted fault, and serves it. It uses hyper directly, since
//! a router cannot express the fault that no answer comes.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Method, Response, header};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::fault::{ErrorAnswer, Fault, Op, athena_error};
use super::state::{Object, Request, State};
use super::{athena, s3, sts};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The bytes of an object that are read and sent at once.
const CHUNK: u64 = 256 * 1024;

#[derive(Default)]
pub(crate) struct Shared(Mutex<State>);

impl Shared {
    /// The state, also after a test panicked while it held it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection is closed without an answer.
#[derive(Debug)]
pub(super) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed without an answer, as scripted")
    }
}

impl std::error::Error for Closed {}

pub(super) async fn handle(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, Closed> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let Some(op) = operation(&parts.method, &parts.headers, &body) else {
        return Ok(error(
            athena_error(
                400,
                "UnknownOperationException",
                "the emulator has no such operation",
            ),
            Op::GetWorkGroup,
        ));
    };
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = parts.uri.path().trim_start_matches('/');
    // S3 keys arrive percent-encoded.
    let name = percent_decode_str(path).decode_utf8_lossy();
    let fault = note(&shared, op, &parts.headers, &json, &name);
    match &fault {
        Fault::NoAnswer => std::future::pending().await,
        Fault::Delay(time) => tokio::time::sleep(*time).await,
        _ => {}
    }
    if let Some(answer) = fault.answer(op) {
        return Ok(error(answer, op));
    }
    let answer = if op == Op::PutObject {
        let etag = s3::put(&mut shared.lock(), &name, &body);
        reply(200, &[("etag", &etag)], 0, stream::empty(), &fault)
    } else if op.is_s3() {
        get_object(&shared, op, &name, &parts.headers, &fault).await
    } else {
        let served = if op.is_sts() {
            let key = signed_for(&parts.headers).0;
            sts::serve(&shared.lock(), op, &key, &body).map(|xml| ("text/xml", xml))
        } else {
            let answer = athena::serve(&mut shared.lock(), op, &json);
            answer.map(|value| ("application/x-amz-json-1.1", value.to_string()))
        };
        match served {
            Ok((kind, text)) => {
                let length = text.len() as u64;
                let fields = [("content-type", kind)];
                reply(200, &fields, length, one(text.into()), &fault)
            }
            Err(answer) => error(answer, op),
        }
    };
    if fault == Fault::LoseAnswer {
        Err(Closed)
    } else {
        Ok(answer)
    }
}

fn operation(method: &Method, headers: &HeaderMap, body: &[u8]) -> Option<Op> {
    if let Some(target) = text(headers, "x-amz-target") {
        return Op::of_target(target);
    }
    match *method {
        Method::GET => Some(Op::GetObject),
        Method::HEAD => Some(Op::HeadObject),
        Method::PUT => Some(Op::PutObject),
        Method::POST => Op::of_form(body),
        _ => None,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The access key and the region of a signature: `Credential=KEY/DATE/REGION/SERVICE/aws4_request`.
fn signed_for(headers: &HeaderMap) -> (String, String) {
    let scope = text(headers, "authorization").and_then(|text| text.split_once("Credential="));
    let mut parts = scope.map_or("", |(_, scope)| scope).split('/');
    let key = parts.next().unwrap_or_default().to_owned();
    (key, parts.nth(1).unwrap_or_default().to_owned())
}

/// Logs the request with its fault, and returns the fault.
fn note(shared: &Shared, op: Op, headers: &HeaderMap, json: &Value, name: &str) -> Fault {
    let field = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
    let (key, region) = signed_for(headers);
    let mut state = shared.lock();
    let fault = state.take_fault(op, text(headers, "authorization").unwrap_or_default());
    state.log.push(Request {
        op,
        at: Instant::now(),
        token: field("ClientRequestToken"),
        query_id: field("QueryExecutionId"),
        object: op.is_s3().then(|| name.to_owned()),
        range: text(headers, "range").map(str::to_owned),
        if_match: text(headers, "if-match").map(str::to_owned),
        key,
        region,
        expected_owner: text(headers, "x-amz-expected-bucket-owner").map(str::to_owned),
        payer: text(headers, "x-amz-request-payer").map(str::to_owned),
        fault: (fault != Fault::Pass).then(|| fault.clone()),
    });
    fault
}

async fn get_object(
    shared: &Shared,
    op: Op,
    name: &str,
    headers: &HeaderMap,
    fault: &Fault,
) -> Response<Body> {
    let found = s3::find(&shared.lock(), name);
    let object = match found {
        Ok(object) => object,
        Err(answer) => return error(answer, op),
    };
    let (if_match, range) = (
        text(headers, "if-match").map(str::to_owned),
        text(headers, "range").map(str::to_owned),
    );
    // The first request for a result writes it.
    let selected = tokio::task::spawn_blocking(move || {
        s3::select(object, if_match.as_deref(), range.as_deref())
    })
    .await;
    let found = match selected.expect("selecting bytes of an object does not panic") {
        Ok(found) => found,
        Err(answer) => return error(answer, op),
    };
    let (size, etag) = found.object.with(|spool| (spool.size, spool.etag.clone()));
    let (status, mut range) = found.range.map_or((200, 0..size), |range| (206, range));
    if let Fault::Short(most) = fault {
        range.end = range.end.min(range.start + most);
    }
    let content_range = format!(
        "bytes {}-{}/{size}",
        range.start,
        range.end.saturating_sub(1)
    );
    let mut fields = vec![
        ("etag", etag.as_str()),
        ("accept-ranges", "bytes"),
        ("content-type", "binary/octet-stream"),
        ("last-modified", "Mon, 02 Apr 2018 00:00:00 GMT"),
    ];
    if status == 206 {
        fields.push(("content-range", &content_range));
    }
    if shared.lock().objects_client_encrypted {
        fields.push(("x-amz-meta-x-amz-key-v2", "key"));
        fields.push(("x-amz-meta-x-amz-cek-alg", "AES/GCM/NoPadding"));
    }
    let length = range.end - range.start;
    let read = if op == Op::HeadObject { 0..0 } else { range };
    reply(status, &fields, length, chunks(found.object, read), fault)
}

/// The bytes of a range in chunks, read when the connection accepts them.
fn chunks(
    object: Object,
    range: Range<u64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold((object, range), |(object, range)| async move {
        if range.is_empty() {
            return None;
        }
        let length = (range.end - range.start).min(CHUNK);
        let read = object
            .with(|spool| spool.read(range.start, usize::try_from(length).expect("a chunk fits")));
        Some((
            read.map(Bytes::from),
            (object, range.start + length..range.end),
        ))
    })
}

fn one(body: Bytes) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::once(std::future::ready(Ok(body)))
}

fn error(answer: ErrorAnswer, op: Op) -> Response<Body> {
    let (kind, body) = match op {
        Op::HeadObject => ("application/xml", Bytes::new()),
        op if op.is_s3() || op.is_sts() => ("application/xml", answer.body),
        _ => ("application/x-amz-json-1.1", answer.body),
    };
    let length = body.len() as u64;
    reply(
        answer.status,
        &[("content-type", kind)],
        length,
        one(body),
        &Fault::Pass,
    )
}

/// An answer of `length` bytes, of which a fault may withhold some.
fn reply(
    status: u16,
    fields: &[(&str, &str)],
    length: u64,
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    fault: &Fault,
) -> Response<Body> {
    let body = match fault {
        Fault::Truncate(bytes) => {
            let broken = stream::once(async {
                // hyper sends what it holds when the next part is not there yet, and drops it on an error.
                tokio::task::yield_now().await;
                Err(io::Error::other("broken off, as scripted"))
            });
            body(first(chunks, *bytes).chain(broken))
        }
        Fault::Stall(bytes) => body(first(chunks, *bytes).chain(stream::pending())),
        _ => body(chunks),
    };
    let mut response = Response::builder()
        .status(status)
        .header(header::CONTENT_LENGTH, length);
    response = response
        .header("x-amz-request-id", "TESTKIT")
        .header("x-amzn-requestid", "TESTKIT");
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(body).expect("the header fields are valid")
}

fn body(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    BodyExt::boxed_unsync(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))))
}

/// The first `most` bytes of a stream.
fn first(
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    most: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    chunks.scan(most, |left, chunk| {
        let cut = chunk.map(|bytes| {
            let take = usize::try_from(*left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            *left -= take as u64;
            bytes.slice(..take)
        });
        std::future::ready(if matches!(&cut, Ok(bytes) if bytes.is_empty()) {
            None
        } else {
            Some(cut)
        })
    })
}
