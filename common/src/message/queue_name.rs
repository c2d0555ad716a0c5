//! The queues that messages travel through, by name.

/// The queues of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueName {
    /// Tasks for extractors: queries, and the beginnings of results.
    Extract,
    /// Tasks that read a long result on.
    ExtractBulk,
    /// Batches as Athena gave them, for transformers: the first ones of each run.
    Raw,
    /// The later batches of long results.
    RawBulk,
    /// Batches for loaders: the first ones of each run.
    Valid,
    /// The later batches of long results.
    ValidBulk,
    /// Batches whose target cannot take them now, for loaders.
    Parked,
    /// Events of runs, for loaders.
    Events,
    /// A stream that keeps every raw batch for replays.
    Archive,
    /// Control messages about runs, kept for the extractors that start later. Nobody takes one.
    Control,
    /// Messages that could not be processed, with the reason.
    Dead,
    /// Messages of the queues above that no client can receive. The broker moves them there; nothing consumes them.
    Unreadable,
}

impl QueueName {
    /// In the order of their declaration. A queue follows the one that it dead-letters to: the broker deletes a
    /// message that it dead-letters to a queue that does not exist.
    pub const ALL: [Self; 12] = [
        Self::Unreadable,
        Self::Dead,
        Self::Archive,
        Self::Control,
        Self::Extract,
        Self::ExtractBulk,
        Self::Raw,
        Self::RawBulk,
        Self::Valid,
        Self::ValidBulk,
        Self::Parked,
        Self::Events,
    ];

    /// Those that the services take their work from, in the order in which it passes them.
    pub const WORK: [Self; 7] = [
        Self::Extract,
        Self::ExtractBulk,
        Self::Raw,
        Self::RawBulk,
        Self::Valid,
        Self::ValidBulk,
        Self::Events,
    ];

    /// The exchange that its messages are published to. Control messages reach each extractor that is
    /// connected, too.
    pub fn exchange(self) -> &'static str {
        match self {
            Self::Control => "etl.control",
            Self::Extract
            | Self::ExtractBulk
            | Self::Raw
            | Self::RawBulk
            | Self::Valid
            | Self::ValidBulk
            | Self::Parked
            | Self::Events
            | Self::Archive
            | Self::Dead
            | Self::Unreadable => "",
        }
    }

    /// The name in RabbitMQ.
    pub fn name(self) -> &'static str {
        match self {
            Self::Extract => "etl.extract",
            Self::ExtractBulk => "etl.extract.bulk",
            Self::Raw => "etl.raw",
            Self::RawBulk => "etl.raw.bulk",
            Self::Valid => "etl.valid",
            Self::ValidBulk => "etl.valid.bulk",
            Self::Parked => "etl.parked",
            Self::Events => "etl.events",
            Self::Archive => "etl.archive",
            Self::Control => "etl.control",
            Self::Dead => "etl.dead",
            Self::Unreadable => "etl.unreadable",
        }
    }
}
