//! An HTTP emulator of Athena and S3, faithful where others are not: the CSV exactly as Athena writes it, pages of 1,000
//! rows whose first is the header, idempotent tokens, workgroup settings, states that take time, and scripted failures.
//! Results come from a generator or a file, so ten million rows need no memory.
//!
//! It executes no SQL: a test sets the answer of a query. It checks no signatures.

mod answer;
mod athena;
mod csv;
mod fault;
mod pages;
mod result;
mod s3;
pub mod sample;
mod server;
mod state;
mod sts;

use std::net::SocketAddr;
use std::sync::Arc;

pub use self::answer::{Answer, AthenaError, QueryState};
pub use self::csv::Row;
pub use self::fault::{Fault, Op};
pub use self::result::{Column, ResultSet};
pub use self::state::{Request, Workgroup};

use self::server::Shared;
use self::state::{Object, Role};
use crate::listener::{ANY, Listener, http};

/// A running emulator. Dropping it closes all of its connections.
pub struct Cloud {
    listener: Listener,
    shared: Arc<Shared>,
}

impl Cloud {
    /// Starts one on a free port of 127.0.0.1, with the workgroup `primary` writing to `s3://results/prefix/`.
    pub async fn start() -> Self {
        Self::start_at(ANY).await
    }

    /// Starts one at the given address.
    pub async fn start_at(address: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let of_connections = Arc::clone(&shared);
        let handle = move |stream| {
            let shared = Arc::clone(&of_connections);
            http(stream, move |request| {
                server::handle(Arc::clone(&shared), request)
            })
        };
        let listener = Listener::start(address, handle).await;
        let cloud = Self { listener, shared };
        cloud.workgroup(Workgroup::named("primary"));
        cloud
    }

    /// `http://127.0.0.1:PORT`, for `AWS_ENDPOINT_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The environment that makes an AWS SDK use this emulator and nothing else.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", self.url().as_str()),
            ("AWS_ACCESS_KEY_ID", "AKIATESTKIT"),
            ("AWS_SECRET_ACCESS_KEY", "testkit"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
            ("NO_PROXY", "127.0.0.1,localhost"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Queries whose SQL contains `part` get this answer. A later call overrides an earlier one.
    pub fn answer(&self, part: &str, answer: Answer) {
        self.shared.lock().answers.push((part.to_owned(), answer));
    }

    /// The next execution whose SQL contains `part` gets this answer, once, before all other answers.
    pub fn answer_once(&self, part: &str, answer: Answer) {
        self.shared.lock().once.push_back((part.to_owned(), answer));
    }

    /// `handler` answers the SQL of each new execution; on `None` the answers by text apply.
    pub fn on_sql(&self, handler: impl FnMut(&str) -> Option<Answer> + Send + 'static) {
        self.shared.lock().handler = Some(Box::new(handler));
    }

    /// The answer to every other query.
    pub fn otherwise(&self, answer: Answer) {
        self.shared.lock().default = Some(answer);
    }

    /// Adds a workgroup, or replaces the one with its name.
    pub fn workgroup(&self, workgroup: Workgroup) {
        self.shared
            .lock()
            .workgroups
            .insert(workgroup.name.clone(), workgroup);
    }

    /// The next request of `op` without a scripted fault gets this one; calls queue up.
    pub fn fault(&self, op: Op, fault: Fault) {
        self.faults(op, fault, 1);
    }

    /// `fault`, for the given number of requests.
    pub fn faults(&self, op: Op, fault: Fault, times: usize) {
        self.shared
            .lock()
            .faults
            .entry(op)
            .or_default()
            .extend(std::iter::repeat_n(fault, times));
    }

    /// Every request of `op` gets this fault after the queued ones; `Fault::Pass` ends it.
    pub fn always(&self, op: Op, fault: Fault) {
        self.shared.lock().always.insert(op, fault);
    }

    /// Every request that is signed with this access key gets this fault, before all others; `Fault::Pass` ends it.
    pub fn on_key(&self, access_key_id: &str, fault: Fault) {
        let key = access_key_id.to_owned();
        self.shared.lock().keys.insert(key, fault);
    }

    /// A role that may be assumed with this external id. Its sessions have this access key.
    pub fn role(&self, arn: &str, external_id: Option<&str>, access_key_id: &str) {
        self.shared.lock().roles.push(Role {
            arn: arn.to_owned(),
            external_id: external_id.map(str::to_owned),
            key: access_key_id.to_owned(),
        });
    }

    /// Objects have the metadata of a client that encrypts before it uploads.
    pub fn client_encrypted_objects(&self, on: bool) {
        self.shared.lock().objects_client_encrypted = on;
    }

    /// Forgets every query execution, as Athena does after 45 days. The objects stay.
    pub fn forget(&self) {
        self.shared.lock().executions.clear();
    }

    /// Creates or replaces an object; `name` is `bucket/key`.
    pub fn put_object(&self, name: &str, bytes: &[u8]) {
        self.shared
            .lock()
            .objects
            .insert(name.to_owned(), Object::of_bytes(bytes));
    }

    /// Creates an object with a result's CSV, which the first request writes; `name` is `bucket/key`.
    pub fn put_result(&self, name: &str, result: ResultSet) {
        self.shared
            .lock()
            .objects
            .insert(name.to_owned(), Object::Result(result));
    }

    /// Replaces the object of a finished query, so that its `ETag` is another one.
    pub fn replace_result(&self, query_id: &str, result: ResultSet) {
        let name = self.object_of(query_id);
        self.shared
            .lock()
            .objects
            .insert(name, Object::Result(result));
    }

    /// Deletes the object of a finished query: `NoSuchKey` from now on.
    pub fn delete_result(&self, query_id: &str) {
        let name = self.object_of(query_id);
        self.shared.lock().objects.remove(&name);
    }

    /// `AccessDenied` for this `bucket/key` from now on.
    pub fn deny(&self, name: &str) {
        self.shared.lock().denied.insert(name.to_owned());
    }

    /// `bucket/key` of a query's result. Panics for managed results, which have none.
    pub fn object_of(&self, query_id: &str) -> String {
        let mut state = self.shared.lock();
        let execution = state
            .execution(query_id)
            .unwrap_or_else(|| panic!("query {query_id} was never started"));
        let output = execution
            .output
            .clone()
            .unwrap_or_else(|| panic!("query {query_id} has managed results"));
        output.trim_start_matches("s3://").to_owned()
    }

    /// The ids of the query executions, in order of their start. Repeated tokens start nothing.
    pub fn started(&self) -> Vec<String> {
        self.shared
            .lock()
            .executions
            .iter()
            .map(|e| e.id.clone())
            .collect()
    }

    /// The state of each query execution, in order of their start.
    pub fn states(&self) -> Vec<QueryState> {
        self.shared
            .lock()
            .executions
            .iter()
            .map(|e| e.state)
            .collect()
    }

    /// The request that started each query execution, without its token, in order of their start.
    pub fn start_requests(&self) -> Vec<serde_json::Value> {
        let shared = self.shared.lock();
        let requests = shared.executions.iter().map(|e| e.request.clone());
        requests.collect()
    }

    /// The SQL of each query execution, in order of their start.
    pub fn statements(&self) -> Vec<String> {
        let sql = |request: &serde_json::Value| {
            request["QueryString"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        self.shared
            .lock()
            .executions
            .iter()
            .map(|e| sql(&e.request))
            .collect()
    }

    /// The tokens of all StartQueryExecution requests, repetitions and refused ones included, in order.
    pub fn tokens(&self) -> Vec<String> {
        let of_start = |r: &Request| {
            (r.op == Op::StartQueryExecution).then(|| r.token.clone().unwrap_or_default())
        };
        self.shared.lock().log.iter().filter_map(of_start).collect()
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().log.clone()
    }

    /// The number of requests of an operation so far.
    pub fn count(&self, op: Op) -> usize {
        self.shared.lock().log.iter().filter(|r| r.op == op).count()
    }
}
