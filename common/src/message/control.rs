//! What a person wants of a run that is under way: for every extractor, through the stream
//! `etl.control`.

use serde::{Deserialize, Serialize};

use super::QueueName;
use super::{Message, RunId};

/// An order about a run. The books are what decides; this is for those who would work in vain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub run: RunId,
    /// It is about this generation of the run and the ones before it: a replay that is asked for
    /// later is another matter.
    pub generation: u32,
    pub job: String,
    pub order: Order,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Stop its query, and drop its task.
    Cancel,
}

impl Control {
    /// Cancels a run up to this generation.
    pub fn cancel(run: RunId, generation: u32, job: impl Into<String>) -> Self {
        Self {
            run,
            generation,
            job: job.into(),
            order: Order::Cancel,
        }
    }
}

impl Message for Control {
    const QUEUE: QueueName = QueueName::Control;
    const KIND: &'static str = "control.v1";

    fn id(&self) -> String {
        let order = match self.order {
            Order::Cancel => "cancel",
        };
        format!("{}/{}/{order}", self.run, self.generation)
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
