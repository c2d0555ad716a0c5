//! The Postgres types that a target column may have, as they are written in a job and in DDL.

use std::fmt;
use std::str::FromStr;

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

impl FromStr for PgType {
    type Err = UnknownPgType;

    #[expect(clippy::too_many_lines, reason = "a table of names")]
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownPgType(text.to_owned());
        let lower = text
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .to_ascii_lowercase();
        let (name, arguments) = match lower.split_once('(') {
            None => (lower.as_str(), None),
            Some((name, rest)) => (
                name.trim_end(),
                Some(rest.strip_suffix(')').ok_or_else(unknown)?),
            ),
        };
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| unknown());
        let length = || {
            arguments
                .map(number)
                .transpose()?
                .filter(|n| *n > 0)
                .ok_or_else(unknown)
        };
        if arguments.is_some()
            && !matches!(
                name,
                "numeric"
                    | "decimal"
                    | "varchar"
                    | "character varying"
                    | "char"
                    | "character"
                    | "bpchar"
            )
        {
            return Err(unknown());
        }
        Ok(match name {
            "boolean" | "bool" => Self::Boolean,
            "smallint" | "int2" => Self::SmallInt,
            "integer" | "int" | "int4" => Self::Integer,
            "bigint" | "int8" => Self::BigInt,
            "real" | "float4" => Self::Real,
            "double precision" | "double" | "float8" => Self::Double,
            "numeric" | "decimal" => Self::Numeric(match arguments {
                None => None,
                Some(arguments) => {
                    let (precision, scale) = arguments.split_once(',').unwrap_or((arguments, "0"));
                    Some((number(precision)?, number(scale)?))
                }
            }),
            "text" => Self::Text,
            "varchar" | "character varying" if arguments.is_none() => Self::Varchar(None),
            "varchar" | "character varying" => Self::Varchar(Some(length()?)),
            "char" | "character" if arguments.is_none() => Self::Char(1),
            "char" | "character" | "bpchar" => Self::Char(length()?),
            "date" => Self::Date,
            "time" | "time without time zone" => Self::Time,
            "timestamp" | "timestamp without time zone" => Self::Timestamp,
            "timestamptz" | "timestamp with time zone" => Self::TimestampTz,
            "interval" => Self::Interval,
            "bytea" => Self::Bytea,
            "json" => Self::Json,
            "jsonb" => Self::Jsonb,
            "uuid" => Self::Uuid,
            "inet" => Self::Inet,
            _ => return Err(unknown()),
        })
    }
}

impl fmt::Display for PgType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("boolean"),
            Self::SmallInt => f.write_str("smallint"),
            Self::Integer => f.write_str("integer"),
            Self::BigInt => f.write_str("bigint"),
            Self::Real => f.write_str("real"),
            Self::Double => f.write_str("double precision"),
            Self::Numeric(None) => f.write_str("numeric"),
            Self::Numeric(Some((precision, scale))) => write!(f, "numeric({precision},{scale})"),
            Self::Text => f.write_str("text"),
            Self::Varchar(None) => f.write_str("character varying"),
            Self::Varchar(Some(length)) => write!(f, "character varying({length})"),
            Self::Char(length) => write!(f, "character({length})"),
            Self::Date => f.write_str("date"),
            Self::Time => f.write_str("time without time zone"),
            Self::Timestamp => f.write_str("timestamp without time zone"),
            Self::TimestampTz => f.write_str("timestamp with time zone"),
            Self::Interval => f.write_str("interval"),
            Self::Bytea => f.write_str("bytea"),
            Self::Json => f.write_str("json"),
            Self::Jsonb => f.write_str("jsonb"),
            Self::Uuid => f.write_str("uuid"),
            Self::Inet => f.write_str("inet"),
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
        for bad in [
            "",
            "text(3)",
            "char(0)",
            "char(2",
            "money",
            "numeric(a)",
            "int; DROP TABLE x",
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
