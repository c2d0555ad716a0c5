//! The extractor service.

use std::process::ExitCode;

use clap::Parser;
use common::service::{self, Service};

/// Asks Athena, reads its results and puts them on the queue. Configured by `ETL_AMQP_URL`,
/// `ETL_HTTP_ADDR`, `ETL_TASKS` and the AWS variables.
#[derive(Parser)]
#[command(version)]
struct Arguments {}

// Two threads whatever the machine: an allocator's memory grows with its threads, and an extractor
// waits most of the time. More work is for more replicas.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    Arguments::parse();
    service::run(
        Service {
            name: "extractor",
            http_port: 9101,
            publishes: true,
        },
        extractor::session::run,
    )
    .await
}
