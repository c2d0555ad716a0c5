//! The state of the emulator: scripted answers and faults, query executions with their tokens, objects, and the log of
//! requests. Plain data behind one lock; nothing here waits.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::answer::{Answer, End, QueryState};
use super::fault::{Fault, Op};
use super::result::{ResultSet, Spool};

/// A workgroup, as `GetWorkGroup` describes it and StartQueryExecution applies it.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of AWS's own"
)]
pub struct Workgroup {
    pub name: String,
    /// `s3://bucket/prefix/` for queries without a location; for all queries when `enforced`.
    pub output_location: Option<String>,
    /// `EnforceWorkGroupConfiguration`: the client's own location is ignored without an error.
    pub enforced: bool,
    /// Managed query results: no S3 location at all, the result is read by GetQueryResults.
    pub managed_results: bool,
    /// `false`: DISABLED, queries are refused.
    pub enabled: bool,
    /// `CSE_KMS`: the object of a result is a ciphertext.
    pub client_encrypted: bool,
}

/// A role that may be assumed, with its external id, and the access key of its sessions.
#[derive(Clone, Debug)]
pub(crate) struct Role {
    pub(crate) arn: String,
    pub(crate) external_id: Option<String>,
    pub(crate) key: String,
}

impl Workgroup {
    /// An enabled workgroup that writes to `s3://results/prefix/` unless the client names another location.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            output_location: Some("s3://results/prefix/".to_owned()),
            enforced: false,
            managed_results: false,
            enabled: true,
            client_encrypted: false,
        }
    }
}

/// One request that the emulator received, faulted or not.
#[derive(Clone, Debug)]
pub struct Request {
    pub op: Op,
    pub at: Instant,
    /// `ClientRequestToken` of a StartQueryExecution.
    pub token: Option<String>,
    /// `QueryExecutionId` of an Athena request.
    pub query_id: Option<String>,
    /// `bucket/key` of an S3 request.
    pub object: Option<String>,
    /// The Range header of an S3 request.
    pub range: Option<String>,
    /// The If-Match header of an S3 request.
    pub if_match: Option<String>,
    /// The access key, and the region, that it is signed for.
    pub key: String,
    pub region: String,
    /// `x-amz-expected-bucket-owner` and `x-amz-request-payer` of an S3 request.
    pub expected_owner: Option<String>,
    pub payer: Option<String>,
    /// Its fault.
    pub fault: Option<Fault>,
}

/// A query execution.
pub(crate) struct Execution {
    pub(crate) id: String,
    pub(crate) token: Option<String>,
    /// All parameters of the request but the token, to tell a repetition from a conflict.
    pub(crate) request: serde_json::Value,
    pub(crate) workgroup: Workgroup,
    /// `None` with managed results.
    pub(crate) output: Option<String>,
    pub(crate) reused: bool,
    pub(crate) answer: Answer,
    pub(crate) polls: VecDeque<QueryState>,
    pub(crate) state: QueryState,
    pub(crate) reason: Option<String>,
    pub(crate) was_running: bool,
    pub(crate) started: Instant,
    pub(crate) submitted: SystemTime,
    pub(crate) completed: Option<SystemTime>,
}

/// An object of S3.
#[derive(Clone)]
pub(crate) enum Object {
    Result(ResultSet),
    Bytes(Arc<Spool>),
}

type Handler = Box<dyn FnMut(&str) -> Option<Answer> + Send>;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) once: VecDeque<(String, Answer)>,
    pub(crate) answers: Vec<(String, Answer)>,
    pub(crate) handler: Option<Handler>,
    pub(crate) default: Option<Answer>,
    pub(crate) workgroups: HashMap<String, Workgroup>,
    pub(crate) executions: Vec<Execution>,
    pub(crate) objects: HashMap<String, Object>,
    pub(crate) denied: HashSet<String>,
    pub(crate) roles: Vec<Role>,
    /// Objects say of themselves that they are encrypted by their writer.
    pub(crate) objects_client_encrypted: bool,
    pub(crate) faults: HashMap<Op, VecDeque<Fault>>,
    pub(crate) always: HashMap<Op, Fault>,
    /// By access key.
    pub(crate) keys: HashMap<String, Fault>,
    pub(crate) log: Vec<Request>,
}

impl State {
    /// The answer to a new execution of `sql`: one set for once, then the handler's, then the newest whose text the SQL
    /// contains, then the default.
    pub(crate) fn answer_to(&mut self, sql: &str) -> Option<Answer> {
        if let Some(index) = self
            .once
            .iter()
            .position(|(part, _)| sql.contains(part.as_str()))
        {
            return self.once.remove(index).map(|(_, answer)| answer);
        }
        if let Some(answer) = self.handler.as_mut().and_then(|handler| handler(sql)) {
            return Some(answer);
        }
        let by_text = self
            .answers
            .iter()
            .rev()
            .find(|(part, _)| sql.contains(part.as_str()));
        by_text
            .map(|(_, answer)| answer.clone())
            .or_else(|| self.default.clone())
    }

    /// The fault of the next request of `op` with this `Authorization`.
    pub(crate) fn take_fault(&mut self, op: Op, authorization: &str) -> Fault {
        let of_key = self.keys.iter().find(|(key, fault)| {
            **fault != Fault::Pass && authorization.contains(&format!("Credential={key}/"))
        });
        if let Some((_, fault)) = of_key {
            return fault.clone();
        }
        let scripted = self.faults.get_mut(&op).and_then(VecDeque::pop_front);
        scripted
            .or_else(|| self.always.get(&op).cloned())
            .unwrap_or(Fault::Pass)
    }

    pub(crate) fn execution(&mut self, id: &str) -> Option<&mut Execution> {
        self.executions.iter_mut().find(|e| e.id == id)
    }

    /// One poll of an execution: advances its state, and creates its object when it succeeds.
    pub(crate) fn poll(&mut self, id: &str) -> Option<&Execution> {
        let execution = self.executions.iter_mut().find(|e| e.id == id)?;
        if execution.advance()
            && let Some(key) = execution
                .output
                .as_deref()
                .and_then(|o| o.strip_prefix("s3://"))
        {
            self.objects.insert(
                key.to_owned(),
                Object::Result(execution.answer.result.clone()),
            );
        }
        Some(execution)
    }
}

impl Execution {
    /// Shows the next state; true when this poll is the one that finds it succeeded.
    fn advance(&mut self) -> bool {
        if self.state.is_final() {
            return false;
        }
        if let Some(next) = self.polls.pop_front() {
            self.enter(next);
        } else if self.started.elapsed() < self.answer.at_least || self.is_writing() {
            self.enter(QueryState::Running);
        } else {
            match self.answer.end.clone() {
                End::Succeeded => self.enter(QueryState::Succeeded),
                End::Failed(error) => {
                    self.reason = Some(error.message);
                    self.enter(QueryState::Failed);
                }
                End::Cancelled(reason) => self.cancel(reason),
                End::Never(state) => self.enter(state),
                End::Refused(_) => unreachable!("a refused query has no execution"),
            }
        }
        self.state == QueryState::Succeeded
    }

    /// Ends it CANCELLED, unless it has ended.
    pub(crate) fn cancel(&mut self, reason: String) {
        if !self.state.is_final() {
            self.reason = Some(reason);
            self.enter(QueryState::Cancelled);
        }
    }

    fn enter(&mut self, state: QueryState) {
        self.state = state;
        self.was_running |= state == QueryState::Running;
        if state.is_final() {
            self.completed = Some(SystemTime::now());
        }
    }

    /// The bytes scanned so far.
    pub(crate) fn scanned(&self) -> u64 {
        let Answer {
            scanned,
            grows,
            at_least,
            ..
        } = self.answer;
        match self.state {
            _ if self.state.is_final() => scanned,
            _ if !self.was_running => 0,
            _ if grows => {
                let part = self.started.elapsed().as_millis() * 1_000 / at_least.as_millis().max(1);
                scanned / 1_000 * u64::try_from(part.min(999)).expect("fits")
            }
            _ => scanned,
        }
    }

    /// A large result's object is written while the query runs, and the query runs until it is written.
    fn is_writing(&self) -> bool {
        self.output.is_some() && self.writes_ahead() && !self.answer.result.is_spooled()
    }

    /// Larger results are spooled from the start of the query, so that no GET waits for one.
    pub(crate) fn writes_ahead(&self) -> bool {
        matches!(self.answer.end, End::Succeeded) && self.answer.result.rows() > 20_000
    }
}
