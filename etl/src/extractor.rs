//! The extractor's program. It alone knows AWS, so that a command that needs Athena runs it, with the same environment.

use std::env::split_paths;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, anyhow};
use common::settings::{self, variable};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::Failure;
use crate::output::note;

/// The program, where it was found.
pub struct Extractor(PathBuf);

impl Extractor {
    /// Finds the program: `ETL_EXTRACTOR`, else `extractor` in `PATH`.
    pub fn find() -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Settings {
            extractor: Option<PathBuf>,
        }
        let settings: Settings = settings::load().map_err(Failure::usage)?;
        if let Some(program) = settings.extractor {
            return if program.is_file() {
                Ok(Self(program))
            } else {
                let program = program.display();
                Err(Failure::usage(anyhow!(
                    "ETL_EXTRACTOR is {program}, which is no file; set it to the program extractor"
                )))
            };
        }
        let path = variable("PATH").unwrap_or_default();
        let mut places = split_paths(&path).map(|folder| folder.join("extractor"));
        places.find(|place| place.is_file()).map(Self).ok_or_else(|| {
            anyhow!(
                "this needs Athena, and the program extractor, which connects to it, is not in PATH; install it here, set ETL_EXTRACTOR to it, or run this command where it is"
            )
            .into()
        })
    }

    /// Runs one of its commands on the jobs of a folder, and reads the JSON that it prints. An answer is also read where the
    /// exit code is 1: it says what is wrong.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        jobs: &Path,
        arguments: &[&str],
    ) -> Result<T, Failure> {
        let program = self.0.display();
        let output = Command::new(&self.0)
            .args(arguments)
            .arg("--json")
            .env("ETL_JOBS", jobs)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot run {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if let Ok(answer) = serde_json::from_slice(&output.stdout) {
            said.lines().for_each(note);
            return Ok(answer);
        }
        let said = said.trim().replace("extractor: ", "").replace('\n', "; ");
        let error = if said.is_empty() {
            anyhow!("{program} ended without an answer ({})", output.status)
        } else {
            anyhow!(said)
        };
        Err(match output.status.code() {
            Some(2) => Failure::Usage(error),
            _ => Failure::Failed(error),
        })
    }
}
