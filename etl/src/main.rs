//! The `etl` command; everything is in the library.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    common::stack::deepen();
    let command = etl::commands::parse();
    common::command::run("etl", command).await
}
