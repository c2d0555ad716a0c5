//! The queues that messages travel through, by name.

/// The queues of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueName {
    /// Tasks for extractors.
    Extract,
    /// Batches as Athena gave them, for transformers.
    Raw,
    /// Batches for loaders.
    Valid,
    /// Batches whose target cannot take them now, for loaders.
    Parked,
    /// Events of runs, for loaders.
    Events,
    /// A stream that keeps every raw batch for replays.
    Archive,
    /// A small stream of control messages about runs, which every extractor follows.
    Control,
    /// Messages that could not be processed, with the reason.
    Dead,
}

impl QueueName {
    /// In the order of their declaration. The queue of dead letters is the first: the broker deletes a
    /// message that it dead-letters to a queue that does not exist.
    pub const ALL: [Self; 8] = [
        Self::Dead,
        Self::Archive,
        Self::Control,
        Self::Extract,
        Self::Raw,
        Self::Valid,
        Self::Parked,
        Self::Events,
    ];

    /// The name in RabbitMQ.
    pub fn name(self) -> &'static str {
        match self {
            Self::Extract => "etl.extract",
            Self::Raw => "etl.raw",
            Self::Valid => "etl.valid",
            Self::Parked => "etl.parked",
            Self::Events => "etl.events",
            Self::Archive => "etl.archive",
            Self::Control => "etl.control",
            Self::Dead => "etl.dead",
        }
    }
}
