//! The target of a job: its table, its mode, and when rows are committed.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::{IntoDeserializer as _, value};
use serde::{Deserialize, Serialize};

use super::Window;

/// The target of the rows. Every batch carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `table` or `schema.table`; the schema is `public` when absent.
    pub table: String,
    #[serde(default)]
    pub mode: Mode,
    /// The target columns that identify a row, for `upsert` and `insert_only`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub commit: Commit,
    #[serde(default, skip_serializing_if = "is_default")]
    pub schema: SchemaContract,
    /// The part of the table that a `replace` replaces; by default the whole table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_where: Option<Window>,
    /// A `replace` with fewer rows than this is held; [`MIN_ROWS`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rows: Option<u64>,
    /// A run with more rejected rows than this is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rejected: Option<MaxRejected>,
    /// Whether a run that loads none of its rows is as good as any other to the commands that wait for it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_all_rejected: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub duplicates: Duplicates,
    /// Whether rows may be deleted and updated although a foreign key of another table cascades: the other table changes, too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_cascades: bool,
    /// The roles that may read a table that the loader creates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
    /// The comment of a table that the loader creates; by default one that names the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// The tablespace of a table that the loader creates; by default that of the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace: Option<String>,
}

/// The default of `min_rows`: an empty result does not empty a table unless the job allows it.
pub const MIN_ROWS: u64 = 1;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Target {
    /// The schema and the table's name in it.
    pub fn schema_and_table(&self) -> (&str, &str) {
        self.table
            .split_once('.')
            .unwrap_or(("public", &self.table))
    }

    /// Whether the rows of this generation of a run collect in staging and reach the target in the
    /// transaction that completes the run. A replay replaces each batch by itself only in mode `append`:
    /// in the other modes, a row may have overwritten a row of another batch, or the reverse.
    pub fn is_staged(&self, generation: u32) -> bool {
        self.max_rejected.is_some() || self.mode.is_staged(self.commit, generation)
    }

    /// The fewest rows with which a run commits without approval.
    pub fn fewest_rows(&self) -> u64 {
        match self.mode {
            Mode::Replace => self.min_rows.unwrap_or(MIN_ROWS),
            Mode::Append | Mode::Upsert | Mode::InsertOnly => 0,
        }
    }

    /// Refuses a target whose window still has parameters: the rows to replace would be undefined.
    pub fn check(&self) -> Result<(), String> {
        match &self.replace_where {
            Some(window) if !window.is_filled() => Err(format!(
                "a target whose replace_where still has parameters: {window}"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// How the rows of a run change the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every row is added.
    #[default]
    Append,
    /// A row overwrites the row with the same key, unless that row is of a later batch.
    Upsert,
    /// A row is added unless its key exists.
    InsertOnly,
    /// The run's rows replace the table, or a window of it.
    Replace,
}

impl Mode {
    /// The name in a job and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Upsert => "upsert",
            Self::InsertOnly => "insert_only",
            Self::Replace => "replace",
        }
    }

    /// Whether a key identifies the rows.
    pub fn has_key(self) -> bool {
        match self {
            Self::Upsert | Self::InsertOnly => true,
            Self::Append | Self::Replace => false,
        }
    }

    /// Whether the rows of this generation of a run collect in staging, by the mode and the commit alone.
    pub fn is_staged(self, commit: Commit, generation: u32) -> bool {
        commit == Commit::Run
            || match self {
                Self::Append => false,
                Self::Upsert | Self::InsertOnly => generation > 0,
                Self::Replace => true,
            }
    }

    /// Whether a run of the same parameters adds its rows to those of an earlier one.
    pub fn adds(self) -> bool {
        match self {
            Self::Append => true,
            Self::Upsert | Self::InsertOnly | Self::Replace => false,
        }
    }

    /// Whether a run takes the place of the rows of earlier runs in a window of the table, all at once.
    pub fn replaces(self) -> bool {
        match self {
            Self::Replace => true,
            Self::Append | Self::Upsert | Self::InsertOnly => false,
        }
    }
}

impl TryFrom<String> for Mode {
    type Error = value::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::deserialize(text.into_deserializer())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// When rows reach the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Commit {
    /// Each batch by itself, when it arrives.
    #[default]
    Batch,
    /// All of them at once, when the run is complete.
    Run,
}

impl Commit {
    /// The name in a job and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Run => "run",
        }
    }
}

impl TryFrom<String> for Commit {
    type Error = value::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::deserialize(text.into_deserializer())
    }
}

/// What the loader may change about the target's columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaContract {
    /// The loader creates a missing table. An existing table must have the columns.
    #[default]
    Create,
    /// The loader also adds missing columns, nullable.
    Evolve,
    /// Nothing. A table that is missing or differs is refused.
    Freeze,
}

/// What happens to a second row with the same key in a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// One row is kept: the last in mode `upsert`, the first in mode `insert_only`.
    #[default]
    Last,
    /// The second row is rejected, with the rule `duplicate_key`.
    Reject,
}

/// A number of rejected rows, or a share of the rows that Athena returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "NumberOrText", into = "NumberOrText")]
pub enum MaxRejected {
    Rows(u64),
    /// In parts of a million, which is exact: `1%` is 10,000.
    PartsPerMillion(u32),
}

const MILLION: u32 = 1_000_000;

impl MaxRejected {
    /// Whether a run has too many rejected rows.
    pub fn is_exceeded(self, rejected: u64, extracted: u64) -> bool {
        match self {
            Self::Rows(most) => rejected > most,
            Self::PartsPerMillion(share) => {
                u128::from(rejected) * u128::from(MILLION)
                    > u128::from(extracted) * u128::from(share)
            }
        }
    }
}

impl fmt::Display for MaxRejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(most) => write!(f, "{most}"),
            Self::PartsPerMillion(share) => {
                let (whole, rest) = (share / 10_000, share % 10_000);
                if rest == 0 {
                    return write!(f, "{whole}%");
                }
                let rest = format!("{rest:04}");
                write!(f, "{whole}.{}%", rest.trim_end_matches('0'))
            }
        }
    }
}

impl FromStr for MaxRejected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || {
            format!(
                "{text:?} is neither a number of rows such as 100 nor a share such as \"1%\" or \"0.05%\" (at most four digits after the point)"
            )
        };
        let Some(share) = text.trim().strip_suffix('%') else {
            return text.trim().parse().map(Self::Rows).map_err(|_| problem());
        };
        let share = share.trim();
        let (whole, rest) = share.split_once('.').unwrap_or((share, "0"));
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(rest) || rest.len() > 4 {
            return Err(problem());
        }
        let parts = format!("{whole}{rest:0<4}")
            .parse()
            .map_err(|_| problem())?;
        if parts > MILLION {
            return Err(problem());
        }
        Ok(Self::PartsPerMillion(parts))
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberOrText> for MaxRejected {
    type Error = String;

    fn try_from(written: NumberOrText) -> Result<Self, String> {
        match written {
            NumberOrText::Number(most) => Ok(Self::Rows(most)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl From<MaxRejected> for NumberOrText {
    fn from(limit: MaxRejected) -> Self {
        match limit {
            MaxRejected::Rows(most) => Self::Number(most),
            MaxRejected::PartsPerMillion(_) => Self::Text(limit.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_rejected_parses_numbers_and_exact_shares() {
        for (text, shown) in [
            ("1%", "1%"),
            ("0.05%", "0.05%"),
            (" 12.5 % ", "12.5%"),
            ("100%", "100%"),
            ("0%", "0%"),
            ("17", "17"),
        ] {
            let limit: MaxRejected = text.parse().unwrap();
            assert_eq!(limit.to_string(), shown);
            let json = serde_json::to_string(&limit).unwrap();
            assert_eq!(serde_json::from_str::<MaxRejected>(&json).unwrap(), limit);
        }
        for bad in [
            "",
            "%",
            "1.",
            ".5%",
            "101%",
            "100.0001%",
            "-1",
            "1 percent",
            "0.00001%",
            "1e3",
        ] {
            let refused = bad.parse::<MaxRejected>().unwrap_err();
            assert!(refused.contains("neither a number"), "{bad}");
        }
        let one: MaxRejected = "1%".parse().unwrap();
        assert!(!one.is_exceeded(1, 100));
        assert!(one.is_exceeded(2, 199));
        assert!(!one.is_exceeded(0, 0));
        assert!(!MaxRejected::Rows(3).is_exceeded(3, 3));
        assert!(MaxRejected::Rows(3).is_exceeded(4, 1000));
        assert!(!one.is_exceeded(u64::MAX / 100, u64::MAX));
    }

    #[test]
    fn staged_modes_and_generations() {
        let append = Target::default();
        let upsert = Target {
            mode: Mode::Upsert,
            ..Target::default()
        };
        assert!(!append.is_staged(0) && !append.is_staged(3));
        assert!(!upsert.is_staged(0) && upsert.is_staged(1));
        let replace = Target {
            mode: Mode::Replace,
            ..Target::default()
        };
        assert!(replace.is_staged(0));
        assert_eq!((replace.fewest_rows(), upsert.fewest_rows()), (1, 0));
        let limited = Target {
            max_rejected: Some(MaxRejected::Rows(0)),
            ..Target::default()
        };
        assert!(limited.is_staged(0));
        let whole = Target {
            commit: Commit::Run,
            ..Target::default()
        };
        assert!(whole.is_staged(0));
    }

    #[test]
    fn target_without_newer_settings_keeps_its_meaning() {
        let old = r#"{"table":"t","mode":"upsert","key":["a"]}"#;
        let target: Target = serde_json::from_str(old).unwrap();
        assert_eq!(target.commit, Commit::Batch);
        assert_eq!(serde_json::to_string(&target).unwrap(), old);
    }
}
