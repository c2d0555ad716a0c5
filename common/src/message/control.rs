//! Commands about a run that is in progress, to every extractor, through the exchange `etl.control`: a person
//! cancels it, or the loader pauses its extraction.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ExtractTask, Message, QueueName, RunId};

/// A command about a run. The ledger decides; this message only spares extractors needless work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub run: RunId,
    pub run_no: i64,
    /// The command is about this generation of the run and the earlier ones, and not about a later
    /// replay.
    pub generation: u32,
    /// By the ledger's clock. A ledger that was restored to an earlier time may give the same name and
    /// number to a later request: the command is not about that.
    pub at: Timestamp,
    pub job: String,
    pub command: Command,
}

/// What an extractor must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Stop the query, and drop the task.
    Cancel,
    /// Stop reading the result, and move the task to `etl.parked`: too much waits for the run's target.
    Pause,
}

impl Control {
    /// Whether the command is about this task.
    pub fn applies_to(&self, task: &ExtractTask) -> bool {
        self.run == task.run
            && self.run_no == task.run_no
            && self.generation >= task.generation
            && !self.is_older_than(task)
    }

    /// Whether it was given before the task was requested, or resumed after a pause.
    pub fn is_older_than(&self, task: &ExtractTask) -> bool {
        let since = match self.command {
            Command::Cancel => None,
            Command::Pause => task.resumed_at,
        };
        self.at < since.unwrap_or(task.requested_at)
    }
}

impl Message for Control {
    const QUEUE: QueueName = QueueName::Control;
    const KIND: &'static str = "control.v1";

    fn id(&self) -> String {
        let command = match self.command {
            Command::Cancel => "cancel",
            Command::Pause => "pause",
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
