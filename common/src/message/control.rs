//! A person's commands about a run that is in progress, to every extractor, through the stream
//! `etl.control`.

use serde::{Deserialize, Serialize};

use super::{Message, QueueName, RunId};

/// A command about a run. The ledger decides; this message only spares extractors needless work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub run: RunId,
    /// The command is about this generation of the run and the earlier ones, and not about a later
    /// replay.
    pub generation: u32,
    pub job: String,
    pub command: Command,
}

/// What an extractor must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Stop the query, and drop the task.
    Cancel,
}

impl Control {
    /// Cancels a run up to this generation.
    pub fn cancel(run: RunId, generation: u32, job: impl Into<String>) -> Self {
        Self {
            run,
            generation,
            job: job.into(),
            command: Command::Cancel,
        }
    }
}

impl Message for Control {
    const QUEUE: QueueName = QueueName::Control;
    const KIND: &'static str = "control.v1";

    fn id(&self) -> String {
        let command = match self.command {
            Command::Cancel => "cancel",
        };
        format!("{}/{}/{command}", self.run, self.generation)
    }

    fn run(&self) -> &RunId {
        &self.run
    }

    fn job(&self) -> &str {
        &self.job
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
