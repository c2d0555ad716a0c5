//! `etl man`: writes the manual pages.

use std::fs::create_dir_all;
use std::path::PathBuf;

use anyhow::Context;

use super::{Command, definition};
use crate::Failure;
use crate::output::note;

/// Write the manual pages into a folder.
///
/// One is for `etl`, and one for each command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl man ~/.local/share/man/man1")]
pub struct Arguments {
    /// The folder; it is created where it is missing.
    pub folder: PathBuf,
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let folder = self.folder.display().to_string();
        create_dir_all(&self.folder).with_context(|| format!("cannot create {folder}"))?;
        clap_mangen::generate_to(definition(), &self.folder)
            .with_context(|| format!("cannot write into {folder}"))?;
        note(&format!("the pages are in {folder}"));
        Ok(true)
    }
}
