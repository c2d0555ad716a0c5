//! The loader's process: the service, `loader migrate` or `loader grants`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use common::queue::QueueName;
use common::reason::paragraph;
use common::service::{Service, install_tls, run_beside};
use common::{settings, telemetry};
use ledger::{Address, Part};
use loader::background;
use loader::channel::{self, Channel};
use loader::lineage::Server;
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
    /// Creates the schema etl or brings it up to date, gives roles their privileges on it, and exits.
    Migrate(Roles),
    /// Prints the statements that give roles their privileges on the schema etl, for an administrator.
    Grants(Roles),
}

/// Which roles work with the ledger, apart from its owner. Their privileges on targets are yours to give.
#[derive(Args)]
struct Roles {
    /// The role of the loaders.
    #[arg(long = "loader-role", value_name = "ROLE")]
    loader: Vec<String>,
    /// The role of etl.
    #[arg(long = "command-role", value_name = "ROLE")]
    command: Vec<String>,
    /// A role that only reads, for a console or for reports.
    #[arg(long = "console-role", value_name = "ROLE")]
    console: Vec<String>,
}

impl Roles {
    fn parts(self) -> Vec<(Part, String)> {
        let named = [
            (Part::Loader, self.loader),
            (Part::Command, self.command),
            (Part::Console, self.console),
        ];
        let each =
            |(part, roles): (Part, Vec<String>)| roles.into_iter().map(move |role| (part, role));
        named.into_iter().flat_map(each).collect()
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Arguments::parse().command;
    if let Some(Command::Grants(roles)) = command {
        return print_grants(roles);
    }
    let (settings, address) = match load() {
        Ok(loaded) => loaded,
        Err(error) => return failed(&error),
    };
    if let Some(Command::Migrate(roles)) = command {
        return migrate(&address, roles).await;
    }
    let channels = match channels(&address) {
        Ok(channels) => channels,
        Err(error) => return failed(&error),
    };
    let service = LoaderService::new(settings, address.clone(), &channels);
    run_beside(
        Service {
            name: "loader",
            http_port: 9103,
            publishes: false,
            consumes: &[
                QueueName::Valid,
                QueueName::ValidBulk,
                QueueName::Events,
                QueueName::Dead,
                QueueName::Parked,
            ],
        },
        async |session| service.session(session).await,
        |stop| background::work(address, channels, stop),
    )
    .await
}

fn channels(address: &Address) -> anyhow::Result<Vec<Channel>> {
    let mut channels = channel::load()?;
    channels.extend(Server::load(address)?.map(Channel::of_lineage));
    Ok(channels)
}

fn load() -> anyhow::Result<(LoaderSettings, Address)> {
    let address = Address::load(Some(LOCAL_DATABASE))?;
    Ok((settings::load()?, address.context("there is no database")?))
}

async fn migrate(address: &Address, roles: Roles) -> ExitCode {
    let migrating = async {
        telemetry::start("loader")?;
        install_tls();
        address.warn_of_encryption();
        ledger::migrate::run(address).await?;
        ledger::grant(address, &roles.parts()).await
    };
    match migrating.await {
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

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn print_grants(roles: Roles) -> ExitCode {
    for (part, role) in roles.parts() {
        for statement in part.grants(&role) {
            println!("{statement};");
        }
    }
    ExitCode::SUCCESS
}

/// Reports why the process cannot start. The log is not set up yet.
fn failed(error: &anyhow::Error) -> ExitCode {
    drop(telemetry::start("loader"));
    tracing::error!(error = paragraph(error), "the loader cannot start");
    ExitCode::FAILURE
}
