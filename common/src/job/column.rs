//! The settings of one column: the source of its values, their treatment, and their rules. The transformer
//! changes values; this module checks which settings go together and with which types, so that a job is
//! refused before anything is sent.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Rule, Scalar};
use crate::schema::{AthenaType, PgType};

/// One `[[columns]]`. A column of the result that is not declared keeps its name and gets the
/// default type.
///
/// A value passes these in this order: `trim`, `null_if`, `case`, the type (with `format`,
/// `epoch` and `round`), the rules, `mask`. NULL stays NULL in all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ColumnSpec {
    /// The column's name in the result. A column without a source has one value for every row of a run:
    /// `constant`, `parameter` or `requested_at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The column's name in the target; by default the source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The column's type in the target; by default the one of Athena's type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub pg_type: Option<PgType>,
    /// The format of a date or a time in text, in the syntax of `strftime`: `%d.%m.%Y`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The value counts these units since 1970-01-01 00:00:00 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<EpochUnit>,
    /// Round values to the digits of the type. Without it, a value with more digits rejects its row.
    #[serde(skip_serializing_if = "is_false")]
    pub round: bool,
    /// Remove white space from both ends of a text.
    #[serde(skip_serializing_if = "is_false")]
    pub trim: bool,
    /// Values, as Athena writes them, that mean NULL.
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "OneOrMany")]
    pub null_if: Vec<Scalar>,
    /// Change a text to lower or upper case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<Case>,
    /// Replace the value, so that nothing after the transformer sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<Mask>,
    /// The value of every row. A request fills in the value of `parameter` or `requested_at` here, so
    /// that a replay gives the same rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constant: Option<Scalar>,
    /// The parameter of the run whose value the column has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// The column has the time of the run's request.
    #[serde(skip_serializing_if = "is_false")]
    pub requested_at: bool,
    /// What a value must fulfil; a row that breaks one is rejected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// Whether Athena takes two names for one.
pub(super) fn same_name(one: &str, other: &str) -> bool {
    one == other || one.to_lowercase() == other.to_lowercase()
}

/// The unit of a number that is a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EpochUnit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "us")]
    Microseconds,
    #[serde(rename = "ns")]
    Nanoseconds,
}

/// The case of a text, by Unicode's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    Lower,
    Upper,
}

/// The replacement of a hidden value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// SHA-256 in hex. Equal values stay equal, so that the column can be a key or be joined. A guess of
    /// the value can be checked.
    Sha256,
    /// Three stars for every value.
    Redact,
    /// Four stars and the last four characters; four stars for a text of fewer than eight.
    Last4,
}

impl Mask {
    /// The length of the longest replacement, in characters.
    pub fn length(self) -> u32 {
        match self {
            Self::Sha256 => 64,
            Self::Redact => 3,
            Self::Last4 => 8,
        }
    }
}

/// A setting that contradicts another setting or a type, with the problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    pub setting: &'static str,
    pub problem: String,
}

fn unfit(setting: &'static str, problem: impl Into<String>) -> Unfit {
    let problem = problem.into();
    Unfit { setting, problem }
}

impl ColumnSpec {
    /// Whether the column is filled from the result's column of this name. Athena's names are the same in upper and lower
    /// case.
    pub fn is_of(&self, result_column: &str) -> bool {
        (self.source.as_ref()).is_some_and(|source| same_name(source, result_column))
    }

    /// The column's name in the target.
    pub fn target_name(&self) -> &str {
        let name = self.name.as_deref().or(self.source.as_deref());
        name.unwrap_or_default()
    }

    /// The type in the target, if the job alone decides it.
    pub fn declared_type(&self) -> Option<PgType> {
        let implied = if self.requested_at || self.epoch.is_some() {
            Some(PgType::TimestampTz)
        } else if self.constant.is_some() && self.parameter.is_none() {
            Some(PgType::Text)
        } else {
            None
        };
        self.pg_type.or(implied)
    }

    /// Refuses contradicting settings of a job file, before a request fills in values.
    pub(super) fn check(&self) -> Result<(), Unfit> {
        let sources = [
            self.source.is_some(),
            self.constant.is_some(),
            self.parameter.is_some(),
            self.requested_at,
        ];
        match sources.into_iter().filter(|given| *given).count() {
            1 => {}
            0 => {
                return Err(unfit(
                    "source",
                    "it is missing; name the query's column, or give constant, parameter or requested_at",
                ));
            }
            _ => {
                return Err(unfit(
                    "source",
                    "a column has one of source, constant, parameter and requested_at; remove the others",
                ));
            }
        }
        if self.source.is_some() {
            return self.check_types(None, self.declared_type());
        }
        if self.name.is_none() {
            return Err(unfit("name", "a column without a source needs one"));
        }
        match self.used() {
            None => Ok(()),
            Some(setting) => Err(unfit(
                setting,
                "it is for columns of the query, and this one is the same in every row",
            )),
        }
    }

    /// The first setting that changes or checks a value.
    fn used(&self) -> Option<&'static str> {
        let settings = [
            ("format", self.format.is_some()),
            ("epoch", self.epoch.is_some()),
            ("round", self.round),
            ("trim", self.trim),
            ("null_if", !self.null_if.is_empty()),
            ("case", self.case.is_some()),
            ("mask", self.mask.is_some()),
            ("rules", !self.rules.is_empty()),
        ];
        settings
            .into_iter()
            .find_map(|(name, used)| used.then_some(name))
    }

    /// Refuses settings that have no meaning for the column's types. Skips an unknown type: the result's
    /// before the query, the target's where the job does not set it.
    pub(crate) fn check_types(
        &self,
        from: Option<AthenaType>,
        to: Option<PgType>,
    ) -> Result<(), Unfit> {
        let text_only = [
            ("trim", self.trim),
            ("case", self.case.is_some()),
            ("format", self.format.is_some()),
        ];
        for (setting, used) in text_only {
            if used && from.is_some_and(|from| !from.is_text()) {
                let problem = "it is for text, and the query's column is none";
                return Err(unfit(setting, problem));
            }
        }
        self.check_moments(from, to)?;
        if self.round && to.is_some_and(|to| !can_be_rounded_to(to)) {
            return Err(unfit(
                "round",
                "it is for numeric(p,s), time, timestamp and timestamptz",
            ));
        }
        match (self.mask, to) {
            (None, _) | (_, None) => Ok(()),
            (Some(mask), Some(to)) => check_mask(mask, to),
        }
    }

    fn check_moments(&self, from: Option<AthenaType>, to: Option<PgType>) -> Result<(), Unfit> {
        use PgType::{Date, Time, Timestamp, TimestampTz};
        if self.format.is_some() && self.epoch.is_some() {
            return Err(unfit(
                "epoch",
                "a value is written with a format or counted since the epoch; remove one of the two",
            ));
        }
        if self.format.is_some() && !matches!(to, Some(Date | Time | Timestamp | TimestampTz)) {
            return Err(unfit(
                "format",
                "it needs type = \"date\", \"time\", \"timestamp\" or \"timestamptz\"",
            ));
        }
        if self.epoch.is_some() {
            if from.is_some_and(|from| !from.is_text() && !from.is_exact_number()) {
                let problem = "it is for whole numbers, decimals, double and text, and the query's column is none of these";
                return Err(unfit("epoch", problem));
            }
            if !matches!(to, None | Some(Timestamp | TimestampTz)) {
                return Err(unfit(
                    "epoch",
                    "it needs type = \"timestamptz\" or \"timestamp\"",
                ));
            }
        }
        Ok(())
    }
}

fn can_be_rounded_to(to: PgType) -> bool {
    matches!(
        to,
        PgType::Numeric(Some(_)) | PgType::Time | PgType::Timestamp | PgType::TimestampTz
    )
}

fn check_mask(mask: Mask, to: PgType) -> Result<(), Unfit> {
    let room = match to {
        PgType::Text | PgType::Varchar(None) => u32::MAX,
        PgType::Varchar(Some(length)) | PgType::Char(length) => length,
        _ => {
            let problem = format!("it makes text, and the column is {to}; write type = \"text\"");
            return Err(unfit("mask", problem));
        }
    };
    let needed = mask.length();
    if needed > room {
        let problem = format!("it makes {needed} characters, and {to} holds {room}");
        return Err(unfit("mask", problem));
    }
    Ok(())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

/// `"-"` or `["-", "n/a"]`.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a value or a list of values")]
enum OneOrMany {
    One(Scalar),
    Many(Vec<Scalar>),
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Scalar>, D::Error> {
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(value) => vec![value],
        OneOrMany::Many(values) => values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> ColumnSpec {
        toml::from_str(toml).unwrap_or_else(|error| panic!("{toml}: {error}"))
    }

    #[test]
    fn column_survives_json() {
        let column = read(
            r#"source = "card"
               name = "card_number"
               type = "text"
               trim = true
               null_if = "-"
               case = "upper"
               mask = "last4"
               rules = [{ required = true }]"#,
        );
        assert_eq!(column.null_if, ["-".into()]);
        assert_eq!(
            (column.case, column.mask),
            (Some(Case::Upper), Some(Mask::Last4))
        );
        let json = serde_json::to_string(&column).unwrap();
        assert_eq!(serde_json::from_str::<ColumnSpec>(&json).unwrap(), column);
        // Absent settings take no bytes in a batch.
        let plain = serde_json::to_string(&read("source = \"a\"")).unwrap();
        assert_eq!(plain, r#"{"source":"a"}"#);
        assert_eq!(
            read("source = \"n\"\nnull_if = [-1, \"\"]").null_if.len(),
            2
        );
    }

    #[test]
    fn contradiction_names_its_setting() {
        for (toml, setting) in [
            ("name = \"a\"", "source"),
            ("source = \"a\"\nconstant = \"x\"", "source"),
            ("parameter = \"p\"\nrequested_at = true", "source"),
            ("constant = \"x\"", "name"),
            ("name = \"a\"\nconstant = \"x\"\ntrim = true", "trim"),
            (
                "name = \"a\"\nconstant = \"x\"\nrules = [{ required = true }]",
                "rules",
            ),
            ("source = \"a\"\nformat = \"%Y\"", "format"),
            ("source = \"a\"\nformat = \"%Y\"\ntype = \"text\"", "format"),
            ("source = \"a\"\nepoch = \"ms\"\ntype = \"date\"", "epoch"),
            (
                "source = \"a\"\nepoch = \"s\"\nformat = \"%Y\"\ntype = \"timestamp\"",
                "epoch",
            ),
            ("source = \"a\"\nround = true\ntype = \"bigint\"", "round"),
            (
                "source = \"a\"\nmask = \"redact\"\ntype = \"bigint\"",
                "mask",
            ),
            (
                "source = \"a\"\nmask = \"sha256\"\ntype = \"varchar(63)\"",
                "mask",
            ),
            (
                "source = \"a\"\nmask = \"last4\"\ntype = \"char(7)\"",
                "mask",
            ),
        ] {
            let error = read(toml).check().unwrap_err();
            assert_eq!(error.setting, setting, "{toml}: {}", error.problem);
        }
        for toml in [
            "source = \"a\"\nmask = \"sha256\"",
            "source = \"a\"\nmask = \"sha256\"\ntype = \"char(64)\"",
            "source = \"a\"\nepoch = \"us\"",
            "source = \"a\"\nround = true",
            "name = \"a\"\nrequested_at = true",
            "name = \"a\"\nconstant = 1\ntype = \"bigint\"",
        ] {
            assert_eq!(read(toml).check(), Ok(()), "{toml}");
        }
        for bad in [
            "mask = \"md5\"",
            "case = \"title\"",
            "epoch = \"m\"",
            "tirm = true",
        ] {
            assert!(toml::from_str::<ColumnSpec>(bad).is_err(), "{bad}");
        }
    }
}
