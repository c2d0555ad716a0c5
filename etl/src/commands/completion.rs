//! `etl completion`: registers the completions with a shell.

use anyhow::Context;
use clap_complete::Shell;
use clap_complete::env::Shells;

use super::Command;
use crate::Failure;
use crate::output::print;

/// Print the script that registers the completions with a shell.
///
/// Completes commands, options, and the names of jobs, parameters and runs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etl completion bash > /etc/bash_completion.d/etl\n  source <(etl completion zsh)"
)]
pub struct Arguments {
    /// The shell.
    pub shell: Shell,
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let mut script = Vec::new();
        let shells = Shells::builtins();
        let shell = shells.completer(&self.shell.to_string());
        let shell = shell.context("this shell has no completions")?;
        shell
            .write_registration("COMPLETE", "etl", "etl", "etl", &mut script)
            .context("cannot write the completions")?;
        print(String::from_utf8_lossy(&script).trim_end())?;
        Ok(true)
    }
}
