//! The loader's process: the service, or `loader migrate`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use common::queue::QueueName;
use common::reason::paragraph;
use common::service::{Service, install_tls, run};
use common::{settings, telemetry};
use ledger::Address;
use loader::service::{LOCAL_DATABASE, LoaderService, LoaderSettings};

/// Loads batches into PostgreSQL and keeps the ledger. Without a command: the service.
///
/// `ETL_DATABASE_URL` and `ETL_AMQP_URL` say where; `ETL_SCHEMAS` which schemas targets may be in
/// (public); `ETL_MIGRATE=false` leaves the schema etl to `loader migrate`.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Creates the schema etl or brings it up to date, and exits.
    Migrate,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (settings, address) = match load() {
        Ok(loaded) => loaded,
        Err(error) => return failed(&error),
    };
    if let Some(Command::Migrate) = arguments.command {
        return migrate(&address).await;
    }
    let service = LoaderService::new(settings, address);
    run(
        Service {
            name: "loader",
            http_port: 9103,
            publishes: false,
            consumes: &[
                QueueName::Valid,
                QueueName::Events,
                QueueName::Dead,
                QueueName::Parked,
            ],
        },
        async |session| service.session(session).await,
    )
    .await
}

fn load() -> anyhow::Result<(LoaderSettings, Address)> {
    let address = Address::load(Some(LOCAL_DATABASE))?;
    Ok((settings::load()?, address.context("there is no database")?))
}

async fn migrate(address: &Address) -> ExitCode {
    let migrated = match telemetry::start("loader") {
        Ok(_) => {
            install_tls();
            address.warn_of_encryption();
            ledger::migrate::run(address).await
        }
        Err(error) => Err(error),
    };
    match migrated {
        Ok(()) => {
            tracing::info!(database = %address, "schema etl is up to date");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(error = paragraph(&error), "loader migrate failed");
            ExitCode::FAILURE
        }
    }
}

/// Reports why the process cannot start. The log is not set up yet.
fn failed(error: &anyhow::Error) -> ExitCode {
    drop(telemetry::start("loader"));
    tracing::error!(error = paragraph(error), "the loader cannot start");
    ExitCode::FAILURE
}
