//! The books in Postgres, as `etl` reads and writes them: SQL is in the files below, and nowhere else.

mod letters;
mod missing;
mod rejects;
mod request;
mod runs;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use common::settings::{self, SecretUrl};
use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::timeout;

pub(crate) use letters::{DeadLetter, Letter};
pub(crate) use missing::{ranges, shown};
pub(crate) use rejects::RejectedRow;
pub(crate) use request::Requested;
pub(crate) use runs::Run;

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
    /// Connects to the database that `ETL_DATABASE_URL` names.
    pub(crate) async fn open() -> Result<Self, Failure> {
        let settings: Settings = settings::load().map_err(Failure::misuse)?;
        let url = settings.database_url.ok_or_else(|| {
            Failure::misuse(anyhow!(
                "ETL_DATABASE_URL is not set; set it to postgres://user:password@host:5432/database"
            ))
        })?;
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
        let (migrated,): (bool,) =
            sqlx::query_as("SELECT to_regclass('etl.run_books') IS NOT NULL")
                .fetch_one(&pool)
                .await
                .context("cannot look for the books")?;
        if !migrated {
            return Err(anyhow!(
                "the database {url} has no books yet; run `loader migrate`, or start a loader"
            )
            .into());
        }
        Ok(Self { pool })
    }
}
