//! The settings that only the extractor has. The standard AWS variables configure AWS.

use std::num::NonZeroU32;

use serde::Deserialize;

/// The extractor's settings, beside those of every service.
#[derive(Debug, Clone, Deserialize)]
pub struct Settings {
    /// Long results that are read at the same time (`ETL_TASKS`).
    #[serde(default = "two")]
    pub tasks: NonZeroU32,
    /// Whether S3 requests use `http://host/bucket/key` (`ETL_S3_PATH_STYLE`). The default is true where
    /// an endpoint is configured, and false elsewhere.
    pub s3_path_style: Option<bool>,
}

fn two() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(1)
}
