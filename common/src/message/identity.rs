//! The identities of runs and batches.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The id of a run: 1 to 100 characters of `A-Z a-z 0-9 . _ -`, the first one alphanumeric, so that
/// headers, paths and shell commands need no quotes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

/// A text that is not a run id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a run id: 1 to 100 letters, digits, '.', '_' or '-', the first a letter or a digit"
)]
pub struct InvalidRunId(String);

impl RunId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunId {
    type Err = InvalidRunId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=100).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidRunId(text.chars().take(120).collect()))
        }
    }
}

impl TryFrom<String> for RunId {
    type Error = InvalidRunId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(run: RunId) -> Self {
        run.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a batch, the same in every delivery: the batches of a run are ranges of its result's rows, and each is
/// named after its first row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchId {
    pub run: RunId,
    /// 0 for the first attempt; each replay adds 1.
    pub generation: u32,
    /// The ordinal of the first row in the result, from 0.
    pub first_row: u64,
}

impl BatchId {
    /// The most rows of a run: `_batch` has 36 bits for the first row of a batch.
    pub const MAX_ROWS: u64 = 1 << 36;
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.run, self.generation, self.first_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_need_no_quotes() {
        for good in ["a", "daily-2018.04_02", &"x".repeat(100)] {
            assert!(good.parse::<RunId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a b", "a/b", "ä", &"x".repeat(101), "a\n"] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<RunId>("\"a/b\"").is_err());
    }
}
