//! The `etl` command; everything is in the library.

use std::process::ExitCode;

use clap_complete::CompleteEnv;

fn main() -> ExitCode {
    // A shell asks for completions: before there is a runtime, since names of runs need one of their own.
    CompleteEnv::with_factory(etl::commands::definition).complete();
    run()
}

#[tokio::main(flavor = "current_thread")]
async fn run() -> ExitCode {
    common::stack::deepen();
    common::command::run("etl", etl::commands::parse()).await
}
