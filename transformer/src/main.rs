//! The transformer service.

use std::process::ExitCode;

use clap::Parser;
use common::queue::QueueName;
use common::service::{self, Service};

/// Converts the rows of every batch to the target's types and checks the job's rules on them.
/// Configured by `ETL_AMQP_URL` and `ETL_HTTP_ADDR`.
#[derive(Parser)]
#[command(version)]
struct Arguments {}

#[tokio::main]
async fn main() -> ExitCode {
    Arguments::parse();
    let service = Service {
        name: "transformer",
        http_port: 9102,
        publishes: true,
        consumes: &[QueueName::Raw, QueueName::RawBulk],
    };
    service::run(service, transformer::session::run).await
}
