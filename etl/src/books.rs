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

pub use decisions::{GivenUp, Rows};
pub use given_up::ReplayGivenUp;
pub use health::Server;
pub use letters::{DeadLetter, Dropped, DroppedBatch, Letter, LetterFilter};
pub use missing::shown;
pub use prune::{Prune, Pruned};
pub use rejects::{Generation, RejectCount, RejectFilter, RejectedRow};
pub use replays::{Claims, NewReplay, Subject};
pub use request::{Requested, Rival};
pub use runs::{DroppedRows, Filter, Proven, Run};
pub use target::TargetPlan;
pub use trace::{Origin, TracedRow};

use crate::Failure;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Settings {
    database_url: Option<SecretUrl>,
}

/// The books, open.
pub struct Books {
    pool: PgPool,
}

impl Books {
    /// Connects to the database that `ETL_DATABASE_URL` names, and makes sure that it has books.
    pub async fn open() -> Result<Self, Failure> {
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
    pub async fn connect() -> Result<Self, Failure> {
        let url = database_url()?;
        let options = PgConnectOptions::from_str(url.expose().as_str())
            .with_context(|| format!("ETL_DATABASE_URL ({url}) is not the URL of a database"))
            .map_err(Failure::Usage)?
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
    let settings: Settings = settings::load().map_err(Failure::usage)?;
    settings.database_url.ok_or_else(|| {
        Failure::usage(anyhow!(
            "ETL_DATABASE_URL is not set; set it to postgres://user:password@host:5432/database"
        ))
    })
}
