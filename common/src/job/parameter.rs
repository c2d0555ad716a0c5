//! Parameters of a job: `:name` in its SQL, filled with typed SQL literals.
//!
//! A value that does not parse as its type is refused before anything is sent. A value has one canonical text, whatever its
//! spelling: the literal, the ledger, constants and windows all have it, so that requests of the same values are the same.
//! Text is quoted, so that no value can become a part of the statement.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use jiff::Zoned;
use jiff::civil::{Date, DateTime};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{JobSpec, ReadOn, Scalar, relative, watermark};
use crate::canonical::Number;
use crate::nearest::did_you_mean;
use crate::schema::PgType;

/// A parameter as a job declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParameterSpec {
    /// The type, which decides the literal in the SQL.
    #[serde(rename = "type")]
    pub parameter_type: ParameterType,
    /// The value for a run that sets none. A parameter without a default must be set. A date or a timestamp may be relative:
    /// `yesterday`, `start of month - 1 month`, `now - 2h`.
    pub default: Option<Scalar>,
    /// The column of the result whose values grow: the parameter's value is where the last complete run of the job ended, so that
    /// a run reads what is new. In mode `append` the SQL compares with `>=`, and with `<` for the parameter with `end_of`; with a
    /// key it compares with `>=` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<String>,
    /// From where the first run reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Scalar>,
    /// How late a row may appear and is still read: a time such as `3h` or `2d`, or a whole number. In mode `append` a range ends
    /// so long before now; with a key it begins so long before the watermark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<Scalar>,
    /// The parameter with the watermark, of whose range this one is the end: now, less the lag. For mode `append`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of: Option<String>,
}

/// The type of a parameter, which decides its literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
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
    /// What it reads on from, in a job with a watermark.
    pub read_on: Option<ReadOn>,
}

impl Request {
    /// The request that reads on from a watermark, so that the run advances it.
    #[must_use]
    pub fn reading_on(mut self, read_on: Option<ReadOn>) -> Self {
        if let Some(read_on) = &read_on {
            self.spec.watermark = Some(read_on.range.clone());
        }
        self.read_on = read_on;
        self
    }
}

/// Why a job and the given values make no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error(
        "the job has no parameter {name:?}; it has {}{}",
        listed(known),
        did_you_mean(name, known)
    )]
    Unknown { name: String, known: Vec<String> },
    #[error("the parameter {0:?} has no default; give it a value with --set {0}=...")]
    Missing(String),
    #[error("{value:?} is not a value of the parameter {name:?}, which is {} {parameter_type} such as {}{}", parameter_type.article(), parameter_type.example(), parameter_type.or_relative())]
    Invalid {
        name: String,
        parameter_type: ParameterType,
        value: String,
    },
    #[error("the job uses :{0}, which it does not declare; add it under [parameters]")]
    Undeclared(String),
}

/// `a, b`, or `none`.
fn listed(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
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
    /// The type of a value that a person wrote: the first that it is a value of, and text in the end.
    pub fn of(value: &str) -> Self {
        use ParameterType::{Boolean, Date, Decimal, Integer, Text, Timestamp};
        let all = [Boolean, Integer, Decimal, Date, Timestamp];
        let fits = |one: &Self| one.canonical(value).is_some();
        all.into_iter().find(fits).unwrap_or(Text)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Decimal => "decimal",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
        }
    }

    pub(super) fn article(self) -> &'static str {
        match self {
            Self::Integer => "an",
            Self::Text | Self::Decimal | Self::Boolean | Self::Date | Self::Timestamp => "a",
        }
    }

    /// A value of this type: for errors, and for queries whose rows do not matter.
    pub(super) fn example(self) -> &'static str {
        match self {
            Self::Text => "some text",
            Self::Integer => "42",
            Self::Decimal => "12.50",
            Self::Boolean => "true",
            Self::Date => "2018-04-02",
            Self::Timestamp => "2018-04-02 13:00:00",
        }
    }

    fn or_relative(self) -> String {
        if self.is_moment() {
            format!(", or relative: {}", relative::SYNTAX)
        } else {
            String::new()
        }
    }

    /// Whether its values are points in time, which may be relative.
    pub fn is_moment(self) -> bool {
        match self {
            Self::Date | Self::Timestamp => true,
            Self::Text | Self::Integer | Self::Decimal | Self::Boolean => false,
        }
    }

    /// The value that a relative one means; none for a value that is not relative. A timestamp has whole seconds.
    pub(super) fn resolved(self, value: &str, now: &Zoned) -> Option<String> {
        let moment = relative::resolve(value, now).filter(|_| self.is_moment())?;
        Some(self.moment(&moment))
    }

    /// The day, or the whole second, of a point in time.
    pub(super) fn moment(self, moment: &Zoned) -> String {
        let stamp = moment.datetime();
        if self == Self::Date {
            return stamp.date().to_string();
        }
        let whole = stamp.with().subsec_nanosecond(0).build();
        whole.unwrap_or(stamp).to_string().replace('T', " ")
    }

    /// A value less a lag: `3h` of a date or a timestamp, a number of an integer. None for a lag that is not of its kind.
    pub(super) fn less(self, value: &str, lag: &str) -> Option<String> {
        match self {
            Self::Date | Self::Timestamp => {
                let stamp: DateTime = match self {
                    Self::Date => value.parse::<Date>().ok()?.into(),
                    _ => value.parse().ok()?,
                };
                let less = stamp.checked_sub(relative::span(lag)?).ok()?;
                let less = match self {
                    Self::Date => less.date().to_string(),
                    _ => less.to_string(),
                };
                self.canonical(&less)
            }
            Self::Integer => {
                let lag = lag.parse::<i64>().ok().filter(|lag| *lag >= 0)?;
                Some(value.parse::<i64>().ok()?.checked_sub(lag)?.to_string())
            }
            Self::Text | Self::Decimal | Self::Boolean => None,
        }
    }

    /// The canonical text of a value, without digits beyond the microsecond.
    pub(super) fn floored(self, value: &str) -> Option<String> {
        let end = value.find('.').map_or(value.len(), |point| point + 7);
        match self {
            Self::Timestamp => self.canonical(value.get(..end).unwrap_or(value)),
            _ => self.canonical(value),
        }
    }

    /// The text that all spellings of a value share: Postgres' text form of the type, without zeros that say nothing. None for a
    /// text that is not of this type.
    pub(super) fn canonical(self, value: &str) -> Option<String> {
        match self {
            Self::Text => (!value.contains('\0')).then(|| value.to_owned()),
            Self::Integer => value.parse::<i64>().ok().map(|number| number.to_string()),
            Self::Decimal => canonical_decimal(value),
            Self::Boolean => value.parse::<bool>().ok().map(|truth| truth.to_string()),
            Self::Date => {
                let date = value.parse::<Date>().ok()?;
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
        f.write_str(self.name())
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
    let stamp = value.parse::<DateTime>().ok();
    let is_leap = |second| second == 59 && whole.ends_with("60");
    stamp
        .filter(|stamp| !has_zone && !is_leap(stamp.second()))
        .filter(|stamp| stamp.year() > 0 && stamp.nanosecond() % 1_000 == 0)
        .map(|stamp| stamp.to_string().replace('T', " "))
}

/// The values that are set, and the defaults that are relative, with each relative one resolved: as recorded, or by the clock.
/// A range of a watermark is from its initial value up to now, less the lag.
pub(super) fn resolve(
    declared: &BTreeMap<String, ParameterSpec>,
    set: &BTreeMap<String, String>,
    recorded: Option<&BTreeMap<String, String>>,
    now: &Zoned,
) -> BTreeMap<String, String> {
    let mut values = set.clone();
    let watermark = watermark::watermark(declared);
    let lag = watermark
        .and_then(|one| one.spec.lag.as_ref())
        .map(Scalar::as_str);
    let end = lag.map_or("now".to_owned(), |lag| format!("now - {lag}"));
    for (name, spec) in declared {
        let given = set.get(name).map(String::as_str);
        let given = given.or(spec.default.as_ref().map(Scalar::as_str));
        let given = given.or(spec.end_of.as_ref().map(|_| end.as_str()));
        if let (None, Some(initial)) = (given, &spec.initial) {
            let recorded = recorded.and_then(|values| values.get(name).cloned());
            values.insert(
                name.clone(),
                recorded.unwrap_or_else(|| initial.as_str().to_owned()),
            );
        }
        let resolved = given.and_then(|value| spec.parameter_type.resolved(value, now));
        if let Some(resolved) = resolved {
            let recorded = recorded.and_then(|values| values.get(name));
            values.insert(name.clone(), recorded.unwrap_or(&resolved).clone());
        }
    }
    values
}

/// Fills the values that a run sets, and the defaults of the others, into the SQL of a job. Also returns all values, in their
/// canonical text.
pub(super) fn render(
    sql: &str,
    declared: &BTreeMap<String, ParameterSpec>,
    set: &BTreeMap<String, String>,
) -> Result<(String, BTreeMap<String, String>), ParameterError> {
    if let Some(name) = set.keys().find(|name| !declared.contains_key(*name)) {
        return Err(ParameterError::Unknown {
            name: name.clone(),
            known: declared.keys().cloned().collect(),
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

/// Adds a value for each parameter that has none.
pub(super) fn with_examples(
    declared: &BTreeMap<String, ParameterSpec>,
    set: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let missing = declared.iter().filter(|(_, spec)| spec.default.is_none());
    let examples = missing.map(|(name, spec)| {
        let example = spec.parameter_type.example().to_owned();
        (name.clone(), example)
    });
    let mut values: BTreeMap<_, _> = examples.collect();
    values.extend(set.clone());
    values
}

/// The parameters that a statement uses, outside of strings, quoted identifiers and comments.
pub fn parameters_of(sql: &str) -> impl Iterator<Item = &str> {
    let names = PIECE.captures_iter(sql).filter_map(|piece| piece.get(1));
    names.map(|name| name.as_str())
}

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
