//! Who is told of a job's runs, and how often a run is expected. A job names channels alone: it travels in messages, and the URL of
//! a webhook is a secret, so that the loader's settings have it.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::MaxRejected;

/// The longest name of a channel, which is a part of the names of settings.
const NAME_BYTES: usize = 40;

/// Many rejected rows, where the job does not say: as the alert rule `EtlManyRowsRejected` has it.
const WARN_REJECTED: MaxRejected = MaxRejected::PartsPerMillion(50_000);

/// What a job says about being told and about when it is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// The channels that are told.
    pub channels: Vec<ChannelName>,
    /// They are told of a completed run with more rejected rows.
    pub warn_rejected: MaxRejected,
    /// The job is late when no run has completed for longer.
    pub expected_every: Option<Duration>,
}

/// PostgreSQL cannot add any time to any other.
const EXPECTED_EVERY: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 3_660);

impl Notify {
    /// Refuses what has no effect.
    pub(super) fn new(
        channels: OneOrMore,
        warn_rejected: Option<MaxRejected>,
        expected_every: Option<Duration>,
    ) -> Result<Self, String> {
        let channels = match channels {
            OneOrMore::One(name) => vec![name],
            OneOrMore::More(names) => names,
        };
        let channels = channels.into_iter().map(ChannelName::try_from);
        let channels = channels.collect::<Result<Vec<_>, _>>()?;
        for (index, channel) in channels.iter().enumerate() {
            if channels[..index].contains(channel) {
                return Err(format!("notify has \"{channel}\" twice; remove one"));
            }
        }
        if channels.is_empty() && warn_rejected.is_some() {
            return Err(
                "warn_rejected says when a channel is told, and the job names none; add notify = \"...\" or remove it"
                    .to_owned(),
            );
        }
        if expected_every.is_some_and(|every| !EXPECTED_EVERY.contains(&every)) {
            return Err(
                "expected_every is shorter than a second or longer than ten years; write a time such as \"1d\" or \"15m\""
                    .to_owned(),
            );
        }
        Ok(Self {
            channels,
            warn_rejected: warn_rejected.unwrap_or(WARN_REJECTED),
            expected_every,
        })
    }
}

/// The name of a channel: `oncall` has its URL in `ETL_NOTIFY_ONCALL_URL`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChannelName(String);

impl ChannelName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ChannelName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if name.len() <= NAME_BYTES
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(is_part)
        {
            return Ok(Self(name));
        }
        Err(format!(
            "{name:?} is not the name of a channel: lower-case letters, digits and _, at most {NAME_BYTES}, such as \"oncall\"; its URL is a setting of the loader"
        ))
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A channel, or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Default for OneOrMore {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}
