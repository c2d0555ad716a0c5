//! The loader's process: the service, or `loader migrate`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use common::queue::QueueName;
use common::reason::paragraph;
use common::service::{Service, install_tls, run};
use common::{settings, telemetry};
use loader::service::{LoaderService, LoaderSettings};

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
    let settings: Result<LoaderSettings, _> = settings::load();
    match (arguments.command, settings) {
        (None, Ok(settings)) => match LoaderService::new(settings) {
            Ok(service) => {
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
            Err(error) => failed(&error),
        },
        (Some(Command::Migrate), Ok(settings)) => migrate(&settings).await,
        (_, Err(error)) => failed(&error.into()),
    }
}

async fn migrate(settings: &LoaderSettings) -> ExitCode {
    let migrated = match telemetry::start("loader") {
        Ok(_) => {
            install_tls();
            ledger::migrate::run(&settings.database_url).await
        }
        Err(error) => Err(error),
    };
    match migrated {
        Ok(()) => {
            tracing::info!(database = %settings.database_url, "schema etl is up to date");
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
