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
    /// What happened to runs, for loaders.
    Events,
    /// A stream that keeps every raw batch: what a replay reads.
    Archive,
    /// A small stream of orders about runs, which every extractor reads and follows.
    Control,
    /// What could not be processed, with the reason.
    Dead,
}

impl QueueName {
    /// In the order in which they are declared: what others dead-letter to comes first, since a
    /// message that is dead-lettered to a queue that is not there is gone.
    pub const ALL: [Self; 7] = [
        Self::Dead,
        Self::Archive,
        Self::Control,
        Self::Extract,
        Self::Raw,
        Self::Valid,
        Self::Events,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Extract => "etl.extract",
            Self::Raw => "etl.raw",
            Self::Valid => "etl.valid",
            Self::Events => "etl.events",
            Self::Archive => "etl.archive",
            Self::Control => "etl.control",
            Self::Dead => "etl.dead",
        }
    }
}
