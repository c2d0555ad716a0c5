//! The runtime of the three services: settings, logs, health, and the supervisor, which opens the
//! connections, declares the queues and runs sessions, again and again while the environment fails.

mod unreceivable;
mod watch;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::{Repetition, backoff};
use crate::lifecycle::{Health, serve_http, shutdown_on_signal};
use crate::message::{Message, QueueName};
use crate::queue::{
    self, Archive, Archived, Connection, Declare, Handler, Intake, Prefetch, Publisher, QueueError,
    Stage, Topology, Workers,
};
use crate::reason::paragraph;
use crate::secret::SecretUrl;
use crate::settings;
use crate::stack;
use crate::telemetry;
use unreceivable::expel;
use watch::{measure, watch};

/// The name of a service, and its defaults.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    pub name: &'static str,
    pub http_port: u16,
    /// Whether publishing is its work, so that its sessions start only when the broker accepts messages.
    /// A service that only consumes works during a memory or disk alarm: that relieves the broker.
    pub publishes: bool,
    /// The queues that it consumes, and whose depth it reports.
    pub consumes: &'static [QueueName],
}

/// The settings that every service has.
#[derive(Debug, Clone, Deserialize)]
pub struct ServiceSettings {
    /// The broker (`ETL_AMQP_URL`).
    #[serde(default = "local_broker")]
    pub amqp_url: SecretUrl,
    /// Whether raw batches are kept for replays.
    #[serde(default)]
    pub archive: Archive,
    /// Who declares the queues.
    #[serde(default)]
    pub declare: Declare,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub http_addr: Option<SocketAddr>,
    /// How long a service may take to finish the deliveries in hand after the signal to stop.
    #[serde(default = "default_deadline", with = "humantime_serde")]
    pub shutdown_deadline: Duration,
}

impl ServiceSettings {
    pub fn topology(&self) -> Topology {
        Topology {
            archive: self.archive,
            declare: self.declare,
        }
    }
}

fn local_broker() -> SecretUrl {
    "amqp://guest:guest@127.0.0.1:5672/%2f"
        .parse()
        .expect("a constant")
}

fn default_deadline() -> Duration {
    Duration::from_secs(20)
}

/// What ended a session before the signal to stop.
#[derive(Debug)]
pub enum Fault {
    /// Broker, database, AWS or the network failed: the supervisor retries until they work. Nothing is
    /// dead-lettered meanwhile.
    World(anyhow::Error),
    /// A person must change a setting: the process ends with a sentence.
    Configuration(anyhow::Error),
}

impl From<QueueError> for Fault {
    fn from(error: QueueError) -> Self {
        if error.is_configuration() {
            Self::Configuration(error.into())
        } else {
            Self::World(error.into())
        }
    }
}

/// The connections and the state of a session. Consuming and publishing have a connection each, since
/// the broker blocks a publishing connection during an alarm, acks included.
pub struct Session {
    /// The service's name.
    pub name: &'static str,
    pub consuming: Connection,
    pub publishing: Connection,
    /// Whether raw batches are archived.
    pub archived: Archived,
    /// Whether the user may look at queues. One that declares none may be refused, which ends the session.
    pub may_look: bool,
    pub health: Health,
    /// Those who wait for room in a full queue.
    waiting: AtomicU32,
    /// Cancelled when the process must stop or a connection is lost: take no new delivery, settle those
    /// in hand, return.
    pub stop: CancellationToken,
}

impl Session {
    /// Marks the service as ready, unless its health reports another cause. A session calls it once it
    /// can work.
    pub fn begins(&self) {
        if !self.stop.is_cancelled() {
            self.health.clear("broker");
        }
    }

    /// Consumes queues of messages `M` until the session ends, and [begins](Self::begins) with the first worker.
    pub async fn consume<M: Message, H: Handler<M, Fault = Fault>>(
        &self,
        prefetch: Prefetch,
        queues: impl IntoIterator<Item = Workers<H>>,
    ) -> Result<(), Fault> {
        let stage = Stage {
            name: self.name,
            consuming: &self.consuming,
            publishing: &self.publishing,
            stop: &self.stop,
        };
        queue::consume(&stage, prefetch, queues, || self.begins()).await
    }

    /// After a publish that failed. Where the queue is full, the worker waits for room with no delivery in hand, and the others
    /// go on; else it is the error.
    pub async fn wait_for_room<M: Message>(
        &self,
        intake: &mut Intake<'_, M>,
        failed: QueueError,
    ) -> Result<(), Fault> {
        match failed {
            QueueError::Full { queue, messages } => {
                intake.release().await;
                self.until_room(queue, messages).await
            }
            error => Err(error.into()),
        }
    }
}

/// Runs a service until the signal to stop: the body of every service's `main`.
///
/// `session` does the service's work. It returns `Ok` only after [`Session::stop`], and is called again
/// with new connections after a [`Fault::World`].
pub async fn run(
    service: Service,
    session: impl AsyncFn(&Session) -> Result<(), Fault>,
) -> ExitCode {
    run_beside(service, session, |_| std::future::ready(())).await
}

/// [`run`], with work that goes on between the sessions, while the broker is away. It has a task of its own, from when logs and
/// metrics are set up until the token is cancelled.
pub async fn run_beside<B: Future<Output = ()> + Send + 'static>(
    service: Service,
    session: impl AsyncFn(&Session) -> Result<(), Fault>,
    beside: impl FnOnce(CancellationToken) -> B,
) -> ExitCode {
    stack::deepen();
    let started = telemetry::start(service.name);
    let ended = match started {
        Ok(traces) => {
            let ended = run_until_stopped(service, session, beside).await;
            traces.finish().await;
            ended
        }
        Err(error) => Err(error),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = paragraph(&error), "{} stopped", service.name);
            ExitCode::FAILURE
        }
    }
}

/// How much longer than the sessions the work beside them may take to stop.
const BESIDE_GRACE: Duration = Duration::from_secs(5);

async fn run_until_stopped<B: Future<Output = ()> + Send + 'static>(
    service: Service,
    session: impl AsyncFn(&Session) -> Result<(), Fault>,
    beside: impl FnOnce(CancellationToken) -> B,
) -> anyhow::Result<()> {
    let settings: ServiceSettings = settings::load()?;
    let metrics = telemetry::start_metrics(service.name, service.consumes)?;
    install_tls();
    let health = Health::default();
    health.not_ready("broker", "connecting");
    let stop = shutdown_on_signal()?;
    let (address, port) = (settings.http_addr, service.http_port);
    let tracker = TaskTracker::new();
    // Until the process ends, so that health and metrics show how the service stops.
    let http = tracker.spawn(serve_http(address, port, health.clone(), metrics));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), broker = %settings.amqp_url, "{} starts", service.name);
    let mut beside = tracker.spawn(beside(stop.clone()));
    let crashed = "the work beside the sessions crashed";
    let ended = tokio::select! {
        ended = supervise(service, &settings, &health, &stop, session) => ended,
        served = http => served.context("the HTTP server crashed").and_then(|served| served),
        Err(error) = &mut beside => return Err(error).context(crashed),
    };
    stop.cancel();
    if beside.is_finished() {
        return ended;
    }
    // It began to stop with the sessions.
    if let Ok(stopped) = timeout(BESIDE_GRACE, beside).await {
        stopped.context(crashed)?;
    } else {
        // A statement to a server that does not answer, which changes nothing that is not committed.
        tracing::warn!("the work beside the sessions did not stop in time");
    }
    ended
}

/// Installs ring as the TLS provider of the process, since lapin's connector would choose one itself.
pub fn install_tls() {
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider was already installed");
    }
}

async fn supervise(
    service: Service,
    settings: &ServiceSettings,
    health: &Health,
    stop: &CancellationToken,
    session: impl AsyncFn(&Session) -> Result<(), Fault>,
) -> anyhow::Result<()> {
    let (mut failures, mut repetition) = (0, Repetition::default());
    loop {
        let started = Instant::now();
        let ended = Box::pin(attempt(service, settings, health, stop, &session)).await;
        if stop.is_cancelled() {
            return match ended {
                Ok(()) => Ok(()),
                Err(Fault::World(error) | Fault::Configuration(error)) => Err(error),
            };
        }
        match ended {
            Ok(()) => health.only("broker", "connecting"),
            Err(Fault::Configuration(error)) => return Err(error),
            Err(Fault::World(error)) => {
                let why = paragraph(&error);
                if repetition.is_due(&why) {
                    tracing::warn!(error = why, "the session failed; trying again");
                }
                telemetry::retried("broker", 1);
                health.only("broker", why);
            }
        }
        failures = if started.elapsed() > Duration::from_mins(1) {
            repetition.clear();
            0
        } else {
            failures + 1
        };
        let pause = backoff(
            failures,
            Duration::from_millis(250),
            Duration::from_secs(10),
        );
        if timeout(pause, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}

/// One session: connect, prepare, work, close. `Ok` after the signal to stop, and when a full queue has
/// room again.
async fn attempt(
    service: Service,
    settings: &ServiceSettings,
    health: &Health,
    stop: &CancellationToken,
    session: impl AsyncFn(&Session) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let connect = async {
        let name = |what| format!("{} {what}", service.name);
        let consuming = Connection::open(&settings.amqp_url, &name("consuming")).await?;
        let publishing =
            Connection::open_to_publish(&settings.amqp_url, &name("publishing")).await?;
        let declared = queue::declare(&publishing, settings.topology()).await;
        Ok::<_, QueueError>((consuming, publishing, declared?))
    };
    let (consuming, publishing, archived) = tokio::select! {
        connected = connect => connected?,
        () = stop.cancelled() => return Ok(()),
    };
    let state = Session {
        name: service.name,
        consuming,
        publishing,
        archived,
        may_look: settings.declare == Declare::Create,
        health: health.clone(),
        waiting: AtomicU32::default(),
        stop: stop.child_token(),
    };
    let measured = if state.may_look {
        service.consumes
    } else {
        &[]
    };
    let mut outcome = {
        let work = async {
            // `watched` reports a lost connection, unless a call that fails with it says more.
            tokio::select! {
                prepared = prepare(service, &state, settings.topology()) => prepared?,
                () = stop.cancelled() => return Ok(()),
            }
            tokio::select! {
                ended = session(&state) => ended,
                never = measure(&state, measured) => match never {},
            }
        };
        watched(work, &state, stop, settings.shutdown_deadline).await
    };
    if let Err(Fault::World(error)) = &outcome
        && let Some(QueueError::Full { queue, messages }) = error.downcast_ref()
    {
        state.consuming.close().await;
        outcome = state.until_room(queue, *messages).await;
    }
    futures::join!(state.consuming.close(), state.publishing.close());
    if let Err(Fault::World(error)) = &outcome
        && let Some(QueueError::Unreceivable { .. }) = error.downcast_ref()
    {
        expel(&settings.amqp_url, service, health, stop).await?;
    }
    outcome
}

/// Says what the broker has. For a service that publishes, also waits until the broker accepts messages: during
/// an alarm it connects and declares as always, and a session would take deliveries that it cannot
/// pass on.
async fn prepare(
    service: Service,
    session: &Session,
    topology: Topology,
) -> Result<(), QueueError> {
    if topology.declare == Declare::Create
        && let Some(pretended) = queue::pretended(&session.publishing).await?
    {
        tracing::warn!("{pretended}");
    }
    if service.publishes {
        let mut publisher = Publisher::open(&session.publishing).await?;
        publisher.probe().await?;
        publisher.close().await;
    }
    let archive = match &session.archived {
        Archived::Yes => "raw batches are kept in the stream etl.archive",
        Archived::No(why) => &format!(
            "raw batches are not kept, since {why}; `etl replay` reads the query's result in S3 again"
        ),
    };
    tracing::info!(archive, "connected to the broker");
    let health = &session.health;
    health.not_ready("broker", "connected, and the session starts");
    Ok(())
}

/// Runs the work of a session while it watches the connections and the deadline after the signal to stop.
async fn watched(
    work: impl Future<Output = Result<(), Fault>>,
    session: &Session,
    stop: &CancellationToken,
    deadline: Duration,
) -> Result<(), Fault> {
    let mut lost = None;
    let watch = watch(session);
    let expired = async {
        stop.cancelled().await;
        session
            .health
            .not_ready("stop", "finishing what is in hand");
        sleep(deadline).await;
    };
    tokio::pin!(work, watch, expired);
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            why = &mut watch, if lost.is_none() => {
                lost = Some(why);
                session.stop.cancel();
            }
            () = &mut expired => break Err(Fault::World(anyhow::anyhow!(
                "the deliveries in hand were not finished within {deadline:?}; they will be redelivered"
            ))),
        }
    };
    match (outcome, lost) {
        // Other calls on the connection fail with less.
        (_, Some(lost @ QueueError::Unreceivable { .. })) | (Ok(()), Some(lost))
            if !stop.is_cancelled() =>
        {
            Err(lost.into())
        }
        (outcome, _) => outcome,
    }
}
