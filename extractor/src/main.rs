//! The extractor service.

use std::process::ExitCode;

use clap::Parser;
use common::queue::QueueName;
use common::service::{self, Service};
use extractor::command::{self, Command};

/// Asks Athena, reads its results and puts them on the queue. Configured by `ETL_AMQP_URL`,
/// `ETL_HTTP_ADDR`, `ETL_TASKS` and the AWS variables. Without a command it is the service.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

// Two threads whatever the machine: an allocator's memory grows with its threads, and an extractor
// waits most of the time. More work is for more replicas.
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
            consumes: &[QueueName::Extract],
        },
        extractor::session::run,
    )
    .await
}
