//! Athena's text for a value into the canonical text of a Postgres type, or the reason why not.
//!
//! A value is never rounded, cut, stripped of its time zone or guessed. What Postgres would accept and
//! change (a zone into `timestamp`, nine digits of a second, `31 32 33` into `bytea`) is converted or
//! refused here. Canonical is what Postgres shows for the value with `DateStyle ISO` and `TimeZone
//! UTC`. Exceptions: `char(n)` has no padding; `boolean`, floats and the zeros at the end of a second
//! keep Athena's spelling. `docs/types.md` has the whole matrix; a test compares it with this code.
//!
//! Most values are canonical as Athena writes them; those are returned borrowed.

mod binary;
mod decimal;
mod epoch;
mod format;
mod interval;
mod json;
mod moment;
mod network;
mod number;
mod zone;

use std::borrow::Cow;

use common::job::{ColumnSpec, EpochUnit};
use common::schema::{AthenaType, PgType};

use format::Format;

pub(crate) use decimal::Decimal;
pub(crate) use moment::without_zeros;

/// What is wrong with a value: the end of a sentence that begins with the value.
type Problem = Cow<'static, str>;

const OUT_OF_RANGE: Problem = Cow::Borrowed("is out of the range that Postgres can store");

/// The most characters that a reason shows of a value.
const SHOWN_CHARACTERS: usize = 60;

/// What to do with digits that the type does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    Refuse,
    /// The job sets `round = true`.
    Round,
}

/// A value that is not of its column's type: a sentence that shows the value and what is wrong with
/// it. It belongs in the quarantine and not in logs, since it contains a value of a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shown} {problem}")]
pub struct Unconvertible {
    shown: String,
    problem: Problem,
}

impl Unconvertible {
    /// The problem without the value.
    pub(crate) fn problem(&self) -> &str {
        &self.problem
    }
}

/// The conversion of a column's values.
#[derive(Debug, Clone)]
pub(crate) struct Conversion {
    from: AthenaType,
    to: PgType,
    reading: Reading,
    excess: Excess,
}

#[derive(Debug, Clone)]
enum Reading {
    /// As Athena or Postgres writes values of the type.
    Plain,
    Written(Format),
    Counted(EpochUnit),
}

impl Conversion {
    /// The conversion that a job defines, or what is wrong with its format. [`common::job::resolve`]
    /// must allow the pair of types and the settings.
    pub(crate) fn new(from: AthenaType, to: PgType, spec: &ColumnSpec) -> Result<Self, String> {
        let reading = match (&spec.format, spec.epoch) {
            (Some(format), _) => Reading::Written(Format::parse(format, to)?),
            (None, Some(unit)) => Reading::Counted(unit),
            (None, None) => Reading::Plain,
        };
        let excess = if spec.round {
            Excess::Round
        } else {
            Excess::Refuse
        };
        Ok(Self {
            from,
            to,
            reading,
            excess,
        })
    }

    /// Converts one value.
    pub(crate) fn convert<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, Unconvertible> {
        let converted = match &self.reading {
            Reading::Plain => convert_value(self.from, self.to, text, self.excess),
            Reading::Written(format) => format.read(text, self.excess),
            Reading::Counted(unit) => epoch::counted(text, *unit, self.to, self.excess),
        };
        converted.map_err(|problem| Unconvertible {
            shown: shown(text),
            problem,
        })
    }
}

/// Refuses a format that does not apply to the type, for a job whose query has not run yet.
pub(crate) fn check_format(format: &str, to: PgType) -> Result<(), String> {
    Format::parse(format, to).map(drop)
}

/// Converts one value. [`common::job::resolve`] must allow the pair of types.
///
/// A `varchar` or `char` may become any type, and must then be that type's text.
pub fn convert(from: AthenaType, to: PgType, text: &str) -> Result<Cow<'_, str>, Unconvertible> {
    let plain = Conversion {
        from,
        to,
        reading: Reading::Plain,
        excess: Excess::Refuse,
    };
    plain.convert(text)
}

fn convert_value(
    from: AthenaType,
    to: PgType,
    text: &str,
    excess: Excess,
) -> Result<Cow<'_, str>, Problem> {
    match to {
        PgType::Text | PgType::Varchar(None) => unlimited_text(text),
        PgType::Varchar(Some(length)) => limited_text(from, text, length),
        PgType::Char(length) => padded_text(text, length),
        PgType::Boolean => boolean(text),
        PgType::SmallInt => number::integer(from, text, i16::MIN.into(), i16::MAX.into(), to),
        PgType::Integer => number::integer(from, text, i32::MIN.into(), i32::MAX.into(), to),
        PgType::BigInt => number::integer(from, text, i64::MIN, i64::MAX, to),
        PgType::Real => number::float::<f32>(from, text, to),
        PgType::Double => number::float::<f64>(from, text, to),
        PgType::Numeric(size) => number::numeric(text, size, excess),
        PgType::Date => moment::date(text),
        PgType::Time => moment::time(text, excess),
        PgType::Timestamp => moment::timestamp(text, excess),
        PgType::TimestampTz => moment::timestamptz(text, excess),
        PgType::Interval => interval::interval(text),
        PgType::Bytea => binary::bytea(from, text),
        PgType::Json => json::json(text),
        PgType::Jsonb => json::jsonb(text),
        PgType::Uuid => network::uuid(text),
        PgType::Inet => network::inet(text),
    }
}

/// A value in quotes to begin a sentence with; a long one is truncated.
pub(crate) fn shown(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters.by_ref().take(SHOWN_CHARACTERS).collect();
    match characters.count() {
        0 => format!("{first:?}"),
        rest => format!("{first:?} (and {rest} more characters)"),
    }
}

fn unlimited_text(text: &str) -> Result<Cow<'_, str>, Problem> {
    if text.contains('\0') {
        return Err("has a NUL character, which Postgres cannot store in text".into());
    }
    Ok(text.into())
}

/// `varchar(n)`. The padding of an Athena `char` may be cut, since it has no meaning; the blanks of a
/// `varchar` may not.
fn limited_text(from: AthenaType, text: &str, length: u32) -> Result<Cow<'_, str>, Problem> {
    if fits(text, length) {
        return unlimited_text(text);
    }
    let unpadded = text.trim_end_matches(' ');
    if from == AthenaType::Char && fits(unpadded, length) {
        return unlimited_text(unpadded);
    }
    Err(too_long(text, length))
}

/// `char(n)` without its trailing blanks: they have no meaning in Postgres, which pads the value.
fn padded_text(text: &str, length: u32) -> Result<Cow<'_, str>, Problem> {
    let unpadded = text.trim_end_matches(' ');
    if fits(unpadded, length) {
        unlimited_text(unpadded)
    } else {
        Err(too_long(unpadded, length))
    }
}

/// Whether the text has at most `length` characters. Postgres counts code points.
fn fits(text: &str, length: u32) -> bool {
    let length = length as usize;
    text.len() <= length || text.chars().nth(length).is_none()
}

fn too_long(text: &str, length: u32) -> Problem {
    format!(
        "has {} characters, and the column holds {length}",
        text.chars().count()
    )
    .into()
}

fn boolean(text: &str) -> Result<Cow<'_, str>, Problem> {
    match text {
        "true" | "false" => Ok(text.into()),
        _ => Err("is neither true nor false".into()),
    }
}

#[cfg(test)]
mod tests;
