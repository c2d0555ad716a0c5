//! The loader's session. It settles a delivery once, after its effects are durable. While Postgres is at fault it
//! consumes nothing, so that no message is dead-lettered and no delivery is held.

mod batches;
mod deliveries;
mod events;
mod parked;
mod paused;
mod persist;
mod sweep;

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::backoff::{Repetition, backoff};
use common::lifecycle::Health;
use common::reason::paragraph;
use common::service::{Fault, Session};
use common::settings;
use ledger::{Address, Class, cause, classify, database, is_denied, migrate};
use serde::Deserialize;
use sqlx::Connection as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::channel::Channel;
use crate::load::Loader;
use crate::{removal, target};

/// The interval of the sweep over open runs, and of the look for removals: an approved run waits for it.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

/// The interval of the look for targets that need new statistics.
const ANALYZE_INTERVAL: Duration = Duration::from_secs(10);

/// The settings that only the loader has.
#[derive(Debug, Clone, Deserialize)]
pub struct LoaderSettings {
    /// The schemas that targets may be in, comma separated.
    #[serde(default = "default_schemas")]
    pub schemas: String,
    /// Whether to migrate schema `etl` at start.
    #[serde(default = "default_migrate")]
    pub migrate: bool,
    /// Bytes of batches that wait for a target before the extraction of its runs is paused.
    #[serde(default = "ledger::default_parked_bytes")]
    pub parked_bytes: u64,
}

/// The database of the targets and of schema `etl`, where no setting says another.
pub const LOCAL_DATABASE: &str = "postgres://postgres@127.0.0.1:5432/postgres";

fn default_schemas() -> String {
    "public".to_owned()
}

fn default_migrate() -> bool {
    true
}

/// The loader as a service: its database, and whether this process has worked with the database and has waited for it.
pub struct LoaderService {
    settings: LoaderSettings,
    address: Address,
    loader: Loader,
    warning: Once,
    has_worked: AtomicBool,
    has_waited: AtomicBool,
}

impl LoaderService {
    pub fn new(settings: LoaderSettings, address: Address, channels: &[Channel]) -> Self {
        let mut loader = Loader::new(&address, settings::names(&settings.schemas));
        loader.channels = channels.iter().map(|one| one.name.clone()).collect();
        Self {
            settings,
            address,
            loader,
            warning: Once::new(),
            has_worked: false.into(),
            has_waited: false.into(),
        }
    }

    /// The work of a session: batches, events and dead letters side by side, until the session ends.
    pub async fn session(&self, session: &Session) -> Result<(), Fault> {
        session.health.not_ready("database", "connecting");
        session.begins();
        self.warning.call_once(|| self.address.warn_of_encryption());
        self.prepare(&session.health, &session.stop).await?;
        if session.stop.is_cancelled() {
            return Ok(());
        }
        let deliveries = deliveries::Deliveries {
            session,
            loader: &self.loader,
            has_waited: &self.has_waited,
            recovered: tokio::sync::Notify::new(),
            parked_bytes: self.settings.parked_bytes,
        };
        let done = tokio::try_join!(
            Box::pin(deliveries.batches()),
            Box::pin(deliveries.events()),
            Box::pin(deliveries.dead_letters()),
            Box::pin(parked::drain(&deliveries)),
            Box::pin(parked::probe(&deliveries)),
            Box::pin(sweep::sweep(&self.loader, &session.health, &session.stop)),
            Box::pin(remove(&self.loader, &session.stop)),
            Box::pin(analyze(&self.loader, &session.stop)),
        );
        done.map(drop)
    }

    /// Waits until Postgres works and schema `etl` exists, which with `ETL_MIGRATE=false` another role migrates. A
    /// configuration error ends the process at its start. Later it may be maintenance of the database, and the loader waits.
    async fn prepare(&self, health: &Health, stop: &CancellationToken) -> Result<(), Fault> {
        let mut repetition = Repetition::default();
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
            let why = paragraph(&error);
            if repetition.is_due(&why) {
                tracing::warn!(error = why, "cannot work with the database; trying again");
            }
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
        let address = &self.address;
        let failed = |error: sqlx::Error| connecting(address, &error);
        // Not through the pool, which hides the reason of a failed connection.
        let mut connection = database::connect(address, "etl loader start")
            .await
            .map_err(failed)?;
        let is_current = migrate::is_current(&mut connection)
            .await
            .map_err(|error| {
                if !is_denied(&error) {
                    return failed(error);
                }
                Fault::World(anyhow::anyhow!(
                    "the role of this loader may not read the schema etl of {address} ({}); run, as the owner of the schema: loader migrate --loader-role ROLE",
                    cause(&error)
                ))
            })?;
        connection.close().await.ok();
        if is_current {
            return Ok(());
        }
        if !self.settings.migrate {
            return Err(Fault::World(anyhow::anyhow!(
                "the schema etl of {address} is not there or of another version than this loader, and ETL_MIGRATE is off; run, as its owner: loader migrate"
            )));
        }
        migrate::run(address).await.map_err(|error| {
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

/// A failure to connect to the database, with the remedy where it is known.
fn connecting(address: &Address, error: &sqlx::Error) -> Fault {
    let why = anyhow::anyhow!(address.failed(error));
    match classify(error) {
        Class::Configuration => Fault::Configuration(why),
        Class::Conflict | Class::World | Class::Row | Class::Message => Fault::World(why),
    }
}

/// Collects statistics of targets, apart from everything else.
async fn analyze(loader: &Loader, stop: &CancellationToken) -> Result<(), Fault> {
    while timeout(ANALYZE_INTERVAL, stop.cancelled()).await.is_err() {
        tokio::select! {
            () = stop.cancelled() => break,
            done = target::analyze(&loader.store) => {
                if let Err(error) = done {
                    tracing::info!(error = error.sentence(), "a target is left to autovacuum");
                }
            }
        }
    }
    Ok(())
}

/// Executes removals, apart from the sweep: a large one takes long.
async fn remove(loader: &Loader, stop: &CancellationToken) -> Result<(), Fault> {
    while timeout(SWEEP_INTERVAL, stop.cancelled()).await.is_err() {
        tokio::select! {
            () = stop.cancelled() => break,
            done = removal::execute_all(loader) => {
                if let Err(error) = done {
                    tracing::debug!(error = error.sentence(), "cannot look for rows to remove now");
                }
            }
        }
    }
    Ok(())
}
