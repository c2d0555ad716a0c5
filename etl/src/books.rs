//! The books in Postgres, as `etl` reads and writes them: SQL is in the files below, and nowhere else.

mod decisions;
mod former;
mod given_up;
mod health;
mod letters;
mod lock;
mod missing;
mod prune;
mod rejects;
mod replays;
mod request;
mod runs;
mod target;
mod trace;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use common::settings::{self, SecretUrl};
use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::timeout;

pub(crate) use decisions::{GivenUp, Rows};
pub(crate) use given_up::ReplayGivenUp;
pub(crate) use health::Server;
pub(crate) use letters::{DeadLetter, Dropped, DroppedBatch, Letter};
pub(crate) use missing::shown;
pub(crate) use prune::{Prune, Pruned};
pub(crate) use rejects::{Generation, RejectCount, RejectFilter, RejectedRow};
pub(crate) use replays::{Claims, NewReplay, Subject};
pub(crate) use request::{Requested, Rival};
pub(crate) use runs::{DroppedRows, Filter, Proven, Run};
pub(crate) use target::TargetPlan;
pub(crate) use trace::{Origin, TracedRow};

use crate::Failure;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Settings {
    database_url: Option<SecretUrl>,
}

/// The books, open.
pub(crate) struct Books {
    pool: PgPool,
}

impl Books {
    /// Connects to the database that `ETL_DATABASE_URL` names, and makes sure that it has books.
    pub(crate) async fn open() -> Result<Self, Failure> {
        let books = Self::connect().await?;
        let (migrated,): (bool,) =
            sqlx::query_as("SELECT to_regclass('etl.run_books') IS NOT NULL")
                .fetch_one(&books.pool)
                .await
                .context("cannot look for the books")?;
        if !migrated {
            let url = database_url()?;
            return Err(anyhow!(
                "the database {url} has no books yet; run `loader migrate`, or start a loader"
            )
            .into());
        }
        Ok(books)
    }

    /// Connects to the database that `ETL_DATABASE_URL` names.
    pub(crate) async fn connect() -> Result<Self, Failure> {
        let url = database_url()?;
        let options = PgConnectOptions::from_str(url.expose().as_str())
            .with_context(|| format!("ETL_DATABASE_URL ({url}) is not the URL of a database"))
            .map_err(Failure::Misuse)?
            .application_name("etl");
        // By hand first: a pool would try again for as long as it may, and say only that it did.
        let remedy = || {
            format!(
                "cannot connect to the database {url}; check that it runs and that ETL_DATABASE_URL is right"
            )
        };
        timeout(CONNECT, PgConnection::connect_with(&options))
            .await
            .with_context(remedy)?
            .with_context(remedy)?;
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(CONNECT)
            .connect_lazy_with(options);
        Ok(Self { pool })
    }
}

fn database_url() -> Result<SecretUrl, Failure> {
    let settings: Settings = settings::load().map_err(Failure::misuse)?;
    settings.database_url.ok_or_else(|| {
        Failure::misuse(anyhow!(
            "ETL_DATABASE_URL is not set; set it to postgres://user:password@host:5432/database"
        ))
    })
}
