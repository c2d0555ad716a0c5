//! This replica's access to AWS. What is wrong with it alone (its credentials, its clock) decides about no run: the
//! replica takes no task until AWS accepts it again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::backoff::backoff;
use common::job::{Account, Source};
use common::lifecycle::Health;
use common::message::{ExtractTask, TaskState};
use common::telemetry::retried;
use tokio::time::sleep;

use crate::aws::{AwsError, AwsErrorKind};
use crate::clients::{Access, Clients};
use crate::error_policy::StepError;
use crate::s3::S3Error;
use crate::settings::Settings;

/// The cause in `/readyz`.
const CAUSE: &str = "replica";

/// The id of no query: AWS answers that it is not found once it accepts the caller.
const NO_QUERY: &str = "00000000-0000-0000-0000-000000000000";

/// The replica, shared by its workers.
pub(crate) struct Replica<'a> {
    settings: &'a Settings,
    health: &'a Health,
    state: Mutex<State>,
    /// Held by the worker that probes.
    probing: tokio::sync::Mutex<()>,
}

struct State {
    access: Access,
    /// How often the access was read again.
    reads: u64,
    /// Those that were needed so far.
    clients: HashMap<Account, Clients>,
    /// While AWS does not accept the replica: the query to probe with, and its source, of the task at which it showed.
    fault: Option<(Source, String)>,
    /// Faults since the last success.
    faults: u32,
}

impl<'a> Replica<'a> {
    pub(crate) fn new(settings: &'a Settings, health: &'a Health, access: Access) -> Self {
        Self {
            settings,
            health,
            state: Mutex::new(State {
                access,
                reads: 0,
                clients: HashMap::new(),
                fault: None,
                faults: 0,
            }),
            probing: tokio::sync::Mutex::default(),
        }
    }

    /// The clients for a job, of its account and region.
    pub(crate) async fn clients(&self, source: &Source) -> Clients {
        let (access, reads, known) = {
            let state = self.state();
            let known = state.clients.get(&source.account).cloned();
            (state.access.clone(), state.reads, known)
        };
        let clients = if let Some(clients) = known {
            clients
        } else {
            let new = access.clients(&source.account).await;
            let mut state = self.state();
            // Another worker may have been faster, and a role is assumed once; or has read the access again meanwhile.
            if state.reads == reads {
                (state.clients.entry(source.account.clone()).or_insert(new)).clone()
            } else {
                new
            }
        };
        clients.of(source)
    }

    /// The process and the principal, for people.
    pub(crate) fn name(&self, account: &Account) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let (host, process) = (host.trim(), std::process::id());
        let state = self.state();
        let principal = match state.clients.get(account) {
            Some(clients) => clients.principal.known().to_owned(),
            None => state.access.credentials.clone(),
        };
        format!("the extractor {host}/{process} ({principal})")
    }

    /// Reads the credentials again: they may have been renewed. Returns whether they can be read.
    pub(crate) async fn reload(&self) -> bool {
        match Access::read(self.settings, self.health).await {
            Ok(access) => {
                let mut state = self.state();
                state.access = access;
                state.reads += 1;
                state.clients.clear();
                true
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "the AWS configuration cannot be read again"
                );
                false
            }
        }
    }

    /// Whose fault it is that AWS does not accept the credentials of a task: those of a job's own account or region are no fault of
    /// a replica that AWS accepts without them.
    pub(crate) async fn judge(&self, task: &ExtractTask, error: AwsError) -> StepError {
        let own = Source::default();
        if task.source.account == own.account || self.probe(&own, NO_QUERY).await.is_err() {
            return StepError::Replica(error);
        }
        if !error.is_refusal_of_credentials() {
            return StepError::Retry(error);
        }
        let message = format!(
            "{}; check region, role_arn and external_id in the job's [source], and the role's trust policy",
            error.message
        );
        StepError::Denied(AwsError { message, ..error })
    }

    /// A step of a task succeeded.
    pub(crate) fn works(&self) {
        self.state().faults = 0;
    }

    pub(crate) fn is_at_fault(&self) -> bool {
        self.state().fault.is_some()
    }

    /// Records that AWS does not accept this replica, which showed at this task.
    pub(crate) fn fault(&self, task: &ExtractTask, error: &AwsError) {
        let why = error.logged();
        tracing::warn!(
            error = why,
            "AWS does not accept this extractor; giving the task back, and taking no other until it does"
        );
        self.report(&task.source, error);
        let query = match &task.state {
            TaskState::Start { .. } => NO_QUERY,
            TaskState::Waiting {
                query_execution_id, ..
            }
            | TaskState::Reread {
                query_execution_id, ..
            }
            | TaskState::Reading {
                query_execution_id, ..
            } => query_execution_id,
        };
        // What a job's own account answers says nothing about the replica.
        let own = Source::default();
        let probe = if task.source.account == own.account {
            (task.source.clone(), query.to_owned())
        } else {
            (own, NO_QUERY.to_owned())
        };
        let mut state = self.state();
        state.faults += 1;
        state.fault = Some(probe);
    }

    /// Waits until AWS accepts this replica.
    pub(crate) async fn recovers(&self) {
        let _one_worker = self.probing.lock().await;
        loop {
            let (faults, source, query) = {
                let state = self.state();
                let Some((source, query)) = state.fault.clone() else {
                    return;
                };
                (state.faults, source, query)
            };
            let (first, most) = (Duration::from_secs(1), Duration::from_secs(30));
            sleep(backoff(faults.saturating_sub(1), first, most)).await;
            self.reload().await;
            match self.probe(&source, &query).await {
                Ok(()) => {
                    tracing::info!("AWS accepts this extractor again");
                    self.state().fault = None;
                    self.health.clear(CAUSE);
                    self.health.clear("aws");
                }
                Err(error) => {
                    retried(error.kind.cause(), 1);
                    self.report(&source, &error);
                    self.state().faults += 1;
                }
            }
        }
    }

    /// Asks for what the task needed, without changing anything.
    async fn probe(&self, source: &Source, query: &str) -> Result<(), AwsError> {
        let Clients { athena, s3, .. } = self.clients(source).await;
        let result = match athena.look(query).await {
            Ok(execution) => execution.output_location,
            Err(error) if error.kind.is_answer() => None,
            Err(error) => return Err(error),
        };
        let Some(location) = result else {
            return Ok(());
        };
        match s3.probe(&location).await {
            Err(S3Error::Aws(error)) if !error.kind.is_answer() => Err(error),
            _ => Ok(()),
        }
    }

    fn report(&self, source: &Source, error: &AwsError) {
        let name = self.name(&source.account);
        let why = match error.kind {
            AwsErrorKind::ClockSkew => "the clock of this machine is wrong; set it",
            AwsErrorKind::Credentials => {
                "AWS does not accept the credentials of this extractor; renew or correct them"
            }
            AwsErrorKind::Throttled
            | AwsErrorKind::Unavailable
            | AwsErrorKind::Denied
            | AwsErrorKind::Refused => {
                "AWS cannot be asked whether it accepts this extractor again"
            }
        };
        self.health
            .not_ready(CAUSE, format!("{why}: {error}; {name}"));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
