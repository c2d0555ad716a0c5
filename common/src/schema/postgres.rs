//! The Postgres types that a target column may have, as they are written in a job and in DDL.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A Postgres type. Read from the text of a job (aliases included), shown as Postgres'
/// `format_type` shows it, so that the two can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PgType {
    Boolean,
    SmallInt,
    Integer,
    BigInt,
    Real,
    Double,
    /// Precision and scale; none means any.
    Numeric(Option<(u32, u32)>),
    Text,
    Varchar(Option<u32>),
    Char(u32),
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Interval,
    Bytea,
    Json,
    Jsonb,
    Uuid,
    Inet,
}

/// A type that a target column cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the Postgres type {0:?} is not known here; use boolean, smallint, integer, bigint, real, double precision, \
     numeric(p,s), text, varchar(n), char(n), date, time, timestamp, timestamptz, interval, bytea, json, jsonb, uuid or inet"
)]
pub struct UnknownPgType(pub String);

/// The types without arguments: the name that `format_type` shows, and the other names that a job may write.
const PLAIN: &[(&str, PgType, &[&str])] = &[
    ("boolean", PgType::Boolean, &["bool"]),
    ("smallint", PgType::SmallInt, &["int2"]),
    ("integer", PgType::Integer, &["int", "int4"]),
    ("bigint", PgType::BigInt, &["int8"]),
    ("real", PgType::Real, &["float4"]),
    ("double precision", PgType::Double, &["double", "float8"]),
    ("numeric", PgType::Numeric(None), &["decimal"]),
    ("text", PgType::Text, &[]),
    ("character varying", PgType::Varchar(None), &["varchar"]),
    ("character(1)", PgType::Char(1), &["char", "character"]),
    ("date", PgType::Date, &[]),
    ("time without time zone", PgType::Time, &["time"]),
    (
        "timestamp without time zone",
        PgType::Timestamp,
        &["timestamp"],
    ),
    (
        "timestamp with time zone",
        PgType::TimestampTz,
        &["timestamptz"],
    ),
    ("interval", PgType::Interval, &[]),
    ("bytea", PgType::Bytea, &[]),
    ("json", PgType::Json, &[]),
    ("jsonb", PgType::Jsonb, &[]),
    ("uuid", PgType::Uuid, &[]),
    ("inet", PgType::Inet, &[]),
];

impl JsonSchema for PgType {
    fn schema_name() -> Cow<'static, str> {
        "PgType".into()
    }

    /// The names, which editors complete, and the types with arguments.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = PLAIN.iter().flat_map(|(name, _, others)| {
            let others = others.iter().copied();
            others.chain([*name])
        });
        let names: Vec<_> = names.collect();
        json_schema!({
            "description": "A type of PostgreSQL, such as `bigint`, `numeric(12,2)` or `timestamptz`.",
            "type": "string",
            "anyOf": [{ "enum": names }, { "pattern": r"^[A-Za-z ]+\([0-9 ,]+\)[a-z ]*$" }],
        })
    }
}

impl FromStr for PgType {
    type Err = UnknownPgType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownPgType(text.to_owned());
        let words: Vec<_> = text.split_whitespace().collect();
        let lower = words.join(" ").to_ascii_lowercase();
        let is_meant = |name: &str, others: &[&str]| lower == name || others.contains(&&*lower);
        if let Some((_, plain, _)) = PLAIN
            .iter()
            .find(|(name, _, others)| is_meant(name, others))
        {
            return Ok(*plain);
        }
        if let Some(plain) = lower.contains("(6)").then(|| lower.replace("(6)", "")) {
            // A moment has six digits without a precision, too.
            let is_moment = |one: &Self| {
                matches!(
                    one,
                    Self::Time | Self::Timestamp | Self::TimestampTz | Self::Interval
                )
            };
            let plain: Option<Self> = plain.parse().ok();
            if let Some(moment) = plain.filter(is_moment) {
                return Ok(moment);
            }
        }
        let with_arguments = lower
            .strip_suffix(')')
            .and_then(|text| text.split_once('('));
        let (name, arguments) = with_arguments.ok_or_else(unknown)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| unknown());
        let length = || number(arguments).and_then(|n| if n > 0 { Ok(n) } else { Err(unknown()) });
        Ok(match name.trim_end() {
            "numeric" | "decimal" => {
                let (precision, scale) = arguments.split_once(',').unwrap_or((arguments, "0"));
                Self::Numeric(Some((number(precision)?, number(scale)?)))
            }
            "varchar" | "character varying" => Self::Varchar(Some(length()?)),
            "char" | "character" | "bpchar" => Self::Char(length()?),
            _ => return Err(unknown()),
        })
    }
}

impl PgType {
    /// The name for SQL that means the type of PostgreSQL with any `search_path`. The names that `Display` has for the
    /// others are words of SQL.
    pub fn qualified(self) -> String {
        match self {
            Self::Text
            | Self::Date
            | Self::Bytea
            | Self::Json
            | Self::Jsonb
            | Self::Uuid
            | Self::Inet => format!("pg_catalog.{self}"),
            Self::Boolean
            | Self::SmallInt
            | Self::Integer
            | Self::BigInt
            | Self::Real
            | Self::Double
            | Self::Numeric(_)
            | Self::Varchar(_)
            | Self::Char(_)
            | Self::Time
            | Self::Timestamp
            | Self::TimestampTz
            | Self::Interval => self.to_string(),
        }
    }
}

impl fmt::Display for PgType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numeric(Some((precision, scale))) => write!(f, "numeric({precision},{scale})"),
            Self::Varchar(Some(length)) => write!(f, "character varying({length})"),
            Self::Char(length) => write!(f, "character({length})"),
            plain => {
                let found = PLAIN.iter().find(|(_, one, _)| one == plain);
                f.write_str(
                    found
                        .expect("every type without arguments is in the table")
                        .0,
                )
            }
        }
    }
}

impl TryFrom<String> for PgType {
    type Error = UnknownPgType;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PgType> for String {
    fn from(pg_type: PgType) -> Self {
        pg_type.to_string()
    }
}

/// An identifier in double quotes, safe to place in SQL. It must have passed
/// [`check_identifier`](super::check_identifier), since Postgres truncates a longer one without an error.
pub fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_type_parses_to_itself() {
        for text in [
            "boolean",
            "smallint",
            "integer",
            "bigint",
            "real",
            "double precision",
            "numeric",
            "numeric(38,10)",
            "text",
            "character varying",
            "character varying(20)",
            "character(2)",
            "date",
            "time without time zone",
            "timestamp without time zone",
            "timestamp with time zone",
            "interval",
            "bytea",
            "json",
            "jsonb",
            "uuid",
            "inet",
        ] {
            assert_eq!(text.parse::<PgType>().unwrap().to_string(), text);
        }
        assert_eq!("CHAR(2)".parse(), Ok(PgType::Char(2)));
        assert_eq!("numeric(9)".parse(), Ok(PgType::Numeric(Some((9, 0)))));
        for (text, same) in [
            ("timestamp(6) without time zone", PgType::Timestamp),
            ("timestamp(6)", PgType::Timestamp),
            ("timestamptz(6)", PgType::TimestampTz),
            ("timestamp(6) with time zone", PgType::TimestampTz),
            ("time(6) without time zone", PgType::Time),
            ("interval(6)", PgType::Interval),
        ] {
            assert_eq!(text.parse(), Ok(same));
        }
        for bad in [
            "",
            "text(3)",
            "char(0)",
            "char(2",
            "money",
            "numeric(a)",
            "int; DROP TABLE x",
            "timestamp(3) without time zone",
            "timestamp(0)",
            "timestamptz(3)",
            "interval(3)",
            "interval year to month",
            "interval day to second(6)",
            "text(6)",
            "date(6)",
            "time(6) with time zone",
        ] {
            assert!(bad.parse::<PgType>().is_err(), "{bad}");
        }
    }

    #[test]
    fn quote_in_identifier_is_doubled() {
        assert_eq!(
            quoted(r#"a"; DROP TABLE b; --"#),
            r#""a""; DROP TABLE b; --""#
        );
    }
}
