//! Parameters of a job: `:name` in its SQL, filled with typed SQL literals.
//!
//! A value that does not parse as its type is refused before anything is sent. A value has one canonical text, whatever its
//! spelling: the literal, the ledger, constants and windows all have it, so that requests of the same values are the same.
//! Text is quoted, so that no value can become a part of the statement.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{JobSpec, Scalar};
use crate::canonical::Number;
use crate::schema::PgType;

/// A parameter as a job declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterSpec {
    #[serde(rename = "type")]
    pub parameter_type: ParameterType,
    /// The value for a run that sets none. A parameter without a default must be set.
    pub default: Option<Scalar>,
}

/// The type of a parameter, which decides its literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterType {
    Text,
    Integer,
    Decimal,
    Boolean,
    Date,
    Timestamp,
}

/// A request: the SQL with the parameters filled in, their values by name, and the part of the job that
/// travels, with the values of the parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub sql: String,
    /// In their canonical text.
    pub parameters: BTreeMap<String, String>,
    pub spec: JobSpec,
}

/// Why a job and the given values make no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error("the job has no parameter {name:?}; it has {known}")]
    Unknown { name: String, known: String },
    #[error("the parameter {0:?} has no default; give it a value with --set {0}=...")]
    Missing(String),
    #[error("{value:?} is not a value of the parameter {name:?}, which is {}", parameter_type.words().1)]
    Invalid {
        name: String,
        parameter_type: ParameterType,
        value: String,
    },
    #[error("the job uses :{0}, which it does not declare; add it under [parameters]")]
    Undeclared(String),
}

impl ParameterSpec {
    /// The value that a run sets, or the default, in its canonical text.
    fn value(&self, name: &str, set: &BTreeMap<String, String>) -> Result<String, ParameterError> {
        let given = set.get(name).map(String::as_str);
        let value = given
            .or(self.default.as_ref().map(Scalar::as_str))
            .ok_or_else(|| ParameterError::Missing(name.to_owned()))?;
        let canonical = self.parameter_type.canonical(value);
        canonical.ok_or_else(|| ParameterError::Invalid {
            name: name.to_owned(),
            parameter_type: self.parameter_type,
            value: value.to_owned(),
        })
    }
}

impl ParameterType {
    /// The name, and the type with an example, for errors.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Text => ("text", "a text such as some text"),
            Self::Integer => ("integer", "an integer such as 42"),
            Self::Decimal => ("decimal", "a decimal such as 12.50"),
            Self::Boolean => ("boolean", "a boolean such as true"),
            Self::Date => ("date", "a date such as 2018-04-02"),
            Self::Timestamp => ("timestamp", "a timestamp such as 2018-04-02 13:00:00"),
        }
    }

    /// The text that all spellings of a value share: Postgres' text form of the type, without zeros that say nothing. None for a
    /// text that is not of this type.
    fn canonical(self, value: &str) -> Option<String> {
        match self {
            Self::Text => (!value.contains('\0')).then(|| value.to_owned()),
            Self::Integer => value.parse::<i64>().ok().map(|number| number.to_string()),
            Self::Decimal => canonical_decimal(value),
            Self::Boolean => value.parse::<bool>().ok().map(|truth| truth.to_string()),
            Self::Date => {
                let date = value.parse::<jiff::civil::Date>().ok()?;
                (date.year() > 0 && date.to_string() == value).then(|| value.to_owned())
            }
            Self::Timestamp => canonical_timestamp(value),
        }
    }

    /// The SQL literal of a canonical value.
    fn literal(self, value: &str) -> String {
        match self {
            Self::Text => format!("'{}'", value.replace('\'', "''")),
            // In brackets: after another `-`, its sign would begin a comment.
            Self::Integer if value.starts_with('-') => format!("({value})"),
            Self::Integer | Self::Boolean => value.to_owned(),
            Self::Decimal => format!("DECIMAL '{value}'"),
            Self::Date => format!("DATE '{value}'"),
            Self::Timestamp => format!("TIMESTAMP '{value}'"),
        }
    }

    /// The type of a column that holds the value.
    pub(super) fn pg_type(self) -> PgType {
        match self {
            Self::Text => PgType::Text,
            Self::Integer => PgType::BigInt,
            Self::Decimal => PgType::Numeric(None),
            Self::Boolean => PgType::Boolean,
            Self::Date => PgType::Date,
            Self::Timestamp => PgType::Timestamp,
        }
    }
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().0)
    }
}

/// `12.5` of `0012.50`, digit by digit: no float could keep every decimal.
fn canonical_decimal(value: &str) -> Option<String> {
    let number = Number::read(value).filter(|number| number.exponent.is_none())?;
    let integer = match number.integer.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let sign = if number.negative && !number.is_zero() {
        "-"
    } else {
        ""
    };
    Some(match number.fraction.trim_end_matches('0') {
        "" => format!("{sign}{integer}"),
        fraction => format!("{sign}{integer}.{fraction}"),
    })
}

/// `2018-04-02 13:00:00` of `2018-04-02T13:00`. Refuses a zone or an offset, which the parser ignores and the literal lacks; a
/// leap second, which the parser takes for the second before it; and what a `timestamp` of Postgres cannot hold or writes in
/// another way: nanoseconds, and years before 1.
fn canonical_timestamp(value: &str) -> Option<String> {
    let has_zone = value.get(10..)?.contains(['+', '-', 'Z', 'z', '[']);
    let whole = value.split(['.', ',']).next()?;
    let stamp = value.parse::<jiff::civil::DateTime>().ok();
    let is_leap = |second| second == 59 && whole.ends_with("60");
    stamp
        .filter(|stamp| !has_zone && !is_leap(stamp.second()))
        .filter(|stamp| stamp.year() > 0 && stamp.nanosecond() % 1_000 == 0)
        .map(|stamp| stamp.to_string().replace('T', " "))
}

/// Fills the values that a run sets, and the defaults of the others, into the SQL of a job. Also returns all values, in their
/// canonical text.
pub(super) fn render(
    sql: &str,
    declared: &BTreeMap<String, ParameterSpec>,
    set: &BTreeMap<String, String>,
) -> Result<(String, BTreeMap<String, String>), ParameterError> {
    if let Some(name) = set.keys().find(|name| !declared.contains_key(*name)) {
        let known = declared.keys().map(String::as_str).collect::<Vec<_>>();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        return Err(ParameterError::Unknown {
            name: name.clone(),
            known,
        });
    }
    let mut values = BTreeMap::new();
    let mut literals = BTreeMap::new();
    for (name, spec) in declared {
        let value = spec.value(name, set)?;
        literals.insert(name.as_str(), spec.parameter_type.literal(&value));
        values.insert(name.clone(), value);
    }
    Ok((substitute(sql, &literals)?, values))
}

/// What a parameter cannot be in (a string, a quoted identifier, a comment, the colons of a cast), or a parameter, whose name
/// is group 1. What is not closed extends to the end, and Athena reports it. A carriage return by itself ends a comment too
/// (Trino's grammar, `SIMPLE_COMMENT`).
static PIECE: LazyLock<Regex> = LazyLock::new(|| {
    let piece =
        r#"(?s)'[^']*'?|"[^"]*"?|--[^\r\n]*|/\*.*?(?:\*/|\z)|::+|:([A-Za-z_][A-Za-z0-9_]*)"#;
    Regex::new(piece).expect("a constant")
});

/// Replaces `:name` outside of strings, quoted identifiers and comments.
fn substitute(sql: &str, literals: &BTreeMap<&str, String>) -> Result<String, ParameterError> {
    let mut out = String::with_capacity(sql.len() + 64);
    let mut rest = 0;
    for name in PIECE.captures_iter(sql).filter_map(|piece| piece.get(1)) {
        let literal = literals.get(name.as_str());
        let undeclared = || ParameterError::Undeclared(name.as_str().to_owned());
        let literal = literal.ok_or_else(undeclared)?;
        out.push_str(&sql[rest..name.start() - 1]);
        rest = name.end();
        // Two adjacent literals would be one: 'a''b'.
        if out.ends_with(is_literals) {
            out.push(' ');
        }
        out.push_str(literal);
        if sql[rest..].starts_with(is_literals) {
            out.push(' ');
        }
    }
    Ok(out + &sql[rest..])
}

/// Whether a character beside a literal would become a part of it.
fn is_literals(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '\'' | '"' | '.' | '@')
}

#[cfg(test)]
mod tests;
