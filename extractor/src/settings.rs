//! The extractor's own settings. AWS is configured as everywhere, by its own variables.

use std::num::NonZeroU32;

use serde::Deserialize;

/// Besides those that every service has.
#[derive(Debug, Clone, Deserialize)]
pub struct Settings {
    /// Tasks that are worked on at the same time (`ETL_TASKS`).
    #[serde(default = "two")]
    pub tasks: NonZeroU32,
    /// Whether S3 is asked for `http://host/bucket/key` (`ETL_S3_PATH_STYLE`); when not set, where an
    /// endpoint of one's own is configured.
    pub s3_path_style: Option<bool>,
}

fn two() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(1)
}
