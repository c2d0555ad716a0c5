//! The connection to the ledger. Its statements are the crate `ledger`'s.

use anyhow::{Context, anyhow};
use common::settings::{self, SecretUrl};
use ledger::{Role, Store};
use serde::Deserialize;

use crate::Failure;
use crate::output::note;

/// Connections at most: a command does few things at a time.
const CONNECTIONS: u32 = 2;

#[derive(Deserialize)]
struct Settings {
    database_url: Option<SecretUrl>,
}

/// Connects to the database that `ETL_DATABASE_URL` names, and makes sure that it has a ledger.
pub async fn open() -> Result<Store, Failure> {
    let store = connect().await?;
    if store.exists().await? {
        return Ok(store);
    }
    let url = database_url()?;
    Err(anyhow!(
        "the database {url} has no schema etl yet; run `loader migrate`, or start a loader"
    )
    .into())
}

/// Connects to the database that `ETL_DATABASE_URL` names.
pub async fn connect() -> Result<Store, Failure> {
    let url = database_url()?;
    let store = Store::or_standby(&url, "etl", CONNECTIONS)
        .with_context(|| format!("ETL_DATABASE_URL ({url}) is not the URL of a database"))
        .map_err(Failure::Usage)?;
    let role = store.connect().await.with_context(|| {
        format!(
            "cannot connect to the database {url}; check that it runs and that ETL_DATABASE_URL is right"
        )
    })?;
    if role == Role::Standby {
        note(
            "no server of ETL_DATABASE_URL takes writes; this is what a standby has, which may be behind",
        );
    }
    Ok(store)
}

fn database_url() -> Result<SecretUrl, Failure> {
    let settings: Settings = settings::load().map_err(Failure::usage)?;
    settings.database_url.ok_or_else(|| {
        Failure::usage(anyhow!(
            "ETL_DATABASE_URL is not set; set it to postgres://user:password@host:5432/database"
        ))
    })
}
