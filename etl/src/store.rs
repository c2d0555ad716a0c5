//! The connection to the ledger. Its statements are the crate `ledger`'s.

use anyhow::anyhow;
use ledger::{Address, Role, Store};

use crate::Failure;
use crate::output::note;

/// Connections at most: a command does few things at a time.
const CONNECTIONS: u32 = 2;

/// Connects to the database that `ETL_DATABASE_URL` names, and makes sure that it has a ledger.
pub async fn open() -> Result<Store, Failure> {
    let address = address()?;
    let store = connect(&address).await?;
    if store.exists().await? {
        return Ok(store);
    }
    Err(anyhow!(
        "the database {address} has no schema etl yet; run `loader migrate`, or start a loader"
    )
    .into())
}

/// Connects to a database.
pub async fn connect(address: &Address) -> Result<Store, Failure> {
    let store = Store::or_standby(address, "etl", CONNECTIONS);
    let role = store.connect().await;
    let role = role.map_err(|error| anyhow!(address.failed(&error)))?;
    if role == Role::Standby {
        note(
            "no server of ETL_DATABASE_URL takes writes; this is what a standby has, which may be behind",
        );
    }
    Ok(store)
}

/// The address that `ETL_DATABASE_URL` and the settings about its password have.
pub fn address() -> Result<Address, Failure> {
    let address = Address::load(None).map_err(Failure::Usage)?;
    address.ok_or_else(|| {
        Failure::usage(anyhow!(
            "ETL_DATABASE_URL is not set; set it to postgres://user:password@host:5432/database?sslmode=verify-full"
        ))
    })
}
