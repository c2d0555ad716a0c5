//! The extractor service.

use std::process::ExitCode;

use clap::Parser;
use common::queue::QueueName;
use common::service::{self, Service};
use extractor::command::{self, Command};

/// Runs queries in Athena and publishes their results to the queue. The settings are `ETL_AMQP_URL`, `ETL_HTTP_ADDR`,
/// `ETL_TASKS` and the AWS variables. Without a command it is the service.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

// Two threads on every machine: the memory of the allocator grows with its threads, and an extractor mostly waits. More
// work needs more replicas.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    if let Some(command) = Arguments::parse().command {
        return command::run(command).await;
    }
    service::run(
        Service {
            name: "extractor",
            http_port: 9101,
            publishes: true,
            consumes: &[QueueName::Extract, QueueName::ExtractBulk],
        },
        extractor::session::run,
    )
    .await
}
