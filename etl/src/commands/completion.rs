//! `etl completion`: the completions of a shell.

use clap_complete::Shell;

use super::Command;
use crate::Failure;
use crate::output::print;

/// Print the completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl completion bash > /etc/bash_completion.d/etl")]
pub struct Arguments {
    /// The shell.
    pub shell: Shell,
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::definition(), "etl", &mut script);
        print(String::from_utf8_lossy(&script).trim_end())?;
        Ok(true)
    }
}
