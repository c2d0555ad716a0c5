//! The service: what a session consumes and how each delivery ends. Promises: a delivery is settled
//! once, after its effects are durable; while Postgres is at fault nothing is consumed, so that
//! nothing is dead-lettered and no delivery is held; a delivery that came back is handled alone.

mod deliveries;
mod persist;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::lifecycle::Health;
use common::service::{Fault, Session, backoff};
use common::settings::SecretUrl;
use ledger::{Class, Store, cause, classify, database, migrate};
use serde::Deserialize;
use sqlx::Connection as _;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::errors::{LoadError, Verdict};
use crate::load::Loader;
use crate::{completion, removal, target};
use common::queue::Publisher;

/// How often open runs are looked at, whether or not a message came: an approved run waits for it.
const SWEEP: Duration = Duration::from_secs(2);

/// The loader's settings, beside those of every service.
#[derive(Debug, Clone, Deserialize)]
pub struct LoaderSettings {
    #[serde(default = "local_database")]
    pub database_url: SecretUrl,
    /// The schemas that targets may be in, comma separated.
    #[serde(default = "default_schemas")]
    pub schemas: String,
    /// Whether to migrate schema `etl` at start.
    #[serde(default = "default_migrate")]
    pub migrate: bool,
}

fn local_database() -> SecretUrl {
    url::Url::parse("postgres://postgres@127.0.0.1:5432/postgres")
        .expect("a constant")
        .into()
}

fn default_schemas() -> String {
    "public".to_owned()
}

fn default_migrate() -> bool {
    true
}

impl LoaderSettings {
    /// The names in `schemas`.
    pub fn allowed_schemas(&self) -> Vec<String> {
        self.schemas
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

/// A loader as a service: its database, and whether that has answered, and has been waited for, in this
/// process.
pub struct LoaderService {
    settings: LoaderSettings,
    loader: Loader,
    has_worked: AtomicBool,
    has_waited: AtomicBool,
}

impl LoaderService {
    pub fn new(settings: LoaderSettings) -> anyhow::Result<Self> {
        let url = &settings.database_url;
        let loader = Loader::new(url, settings.allowed_schemas()).map_err(|error| {
            anyhow::anyhow!(
                "cannot use the database URL {url}: {}; ETL_DATABASE_URL looks like postgres://user:password@host:5432/database",
                cause(&error)
            )
        })?;
        Ok(Self {
            settings,
            loader,
            has_worked: false.into(),
            has_waited: false.into(),
        })
    }

    /// A session's work: batches, events and dead letters side by side, until it is told to stop.
    pub async fn session(&self, session: &Session) -> Result<(), Fault> {
        session.health.not_ready("database", "connecting");
        session.begins();
        self.prepare(&session.health, &session.stop).await?;
        if session.stop.is_cancelled() {
            return Ok(());
        }
        let publisher = Mutex::new(Publisher::open(&session.publishing).await?);
        let deliveries = deliveries::Deliveries {
            session,
            loader: &self.loader,
            publisher: &publisher,
            has_waited: &self.has_waited,
        };
        let done = tokio::try_join!(
            Box::pin(deliveries.batches()),
            Box::pin(deliveries.events()),
            Box::pin(deliveries.dead_letters()),
            Box::pin(sweep(&self.loader.store, &session.health, &session.stop)),
        );
        done.map(drop)
    }

    /// Waits until Postgres can be worked with and schema `etl` is there. At the process' start what
    /// waiting cannot mend ends it; later the same may be somebody at work on the database.
    async fn prepare(&self, health: &Health, stop: &CancellationToken) -> Result<(), Fault> {
        for attempt in 0.. {
            let error = match self.prepare_once().await {
                Ok(()) => {
                    self.has_worked.store(true, Ordering::Relaxed);
                    break;
                }
                Err(Fault::Configuration(error)) if !self.has_worked.load(Ordering::Relaxed) => {
                    return Err(Fault::Configuration(error));
                }
                Err(Fault::World(error) | Fault::Configuration(error)) => error,
            };
            let why = format!("{error:#}");
            tracing::warn!(error = why, "cannot work with the database; trying again");
            health.not_ready("database", why);
            if timeout(
                backoff(attempt, Duration::from_millis(250), Duration::from_secs(10)),
                stop.cancelled(),
            )
            .await
            .is_ok()
            {
                break;
            }
        }
        health.clear("database");
        Ok(())
    }

    async fn prepare_once(&self) -> Result<(), Fault> {
        let url = &self.settings.database_url;
        let failed = |error: sqlx::Error| connecting(url, &error);
        // Not through the pool, which keeps to itself why it has no connection.
        let mut connection = database::connect(url, "etl loader start")
            .await
            .map_err(failed)?;
        let is_current = migrate::is_current(&mut connection).await.map_err(failed)?;
        connection.close().await.ok();
        if is_current {
            return Ok(());
        }
        if !self.settings.migrate {
            return Err(Fault::Configuration(anyhow::anyhow!(
                "the schema etl of {url} is not there or older than this loader, and ETL_MIGRATE is off; run: loader migrate"
            )));
        }
        migrate::run(url).await.map_err(|error| {
            match error.downcast_ref::<sqlx::migrate::MigrateError>() {
                Some(sqlx::migrate::MigrateError::VersionMismatch(_)) => {
                    Fault::Configuration(error)
                }
                _ => Fault::World(error),
            }
        })?;
        tracing::info!("schema etl is up to date");
        Ok(())
    }
}

/// A failure to reach the database, with what to change where that is known.
fn connecting(url: &SecretUrl, error: &sqlx::Error) -> Fault {
    let why = format!("cannot use the database {url}: {}", cause(error));
    match classify(error) {
        Class::Configuration => Fault::Configuration(anyhow::anyhow!(
            "{why}; check user, password and database in ETL_DATABASE_URL"
        )),
        Class::Conflict | Class::World | Class::Row | Class::Message => {
            Fault::World(anyhow::anyhow!(why))
        }
    }
}

/// Completes runs whose last commit was not followed by the question whether they are done, publishes
/// those that were approved, and drops what nothing can come of. Also how a loader that has nothing
/// to load notices that Postgres is away.
async fn sweep(store: &Store, health: &Health, stop: &CancellationToken) -> Result<(), Fault> {
    while timeout(SWEEP, stop.cancelled()).await.is_err() {
        match sweep_once(store).await {
            Ok(()) => health.clear("database"),
            Err(error) => {
                let why = error.sentence();
                tracing::debug!(error = why, "cannot look for finished runs now");
                health.not_ready("database", why);
            }
        }
    }
    Ok(())
}

/// What keeps one run from its end keeps no other; the first such cause is told at the end.
async fn sweep_once(store: &Store) -> Result<(), LoadError> {
    let mut outcome = Ok(());
    for run in ledger::completion::candidates(store).await? {
        let asked = completion::ask(store, &run).await;
        outcome = outcome.and(asked.map(drop));
    }
    let removed = removal::execute_all(store).await;
    let cleaned = target::clean_up(store).await;
    outcome
        .and(removed)
        .and(cleaned.map(drop))
        .or_else(|error| match error.verdict() {
            Verdict::Pause => Err(error),
            Verdict::Retry | Verdict::RetryThenDead | Verdict::Dead => {
                tracing::warn!(error = error.sentence(), "this has to be tried again");
                Ok(())
            }
        })
}
