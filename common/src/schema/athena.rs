//! The types of a result's columns in Athena.
//!
//! Source: Amazon Athena User Guide, "Data types in Amazon Athena", and the `Type`, `Precision` and
//! `Scale` of `ColumnInfo` in the API reference.

use std::str::FromStr;

/// A type of a result column. `docs/types.md` shows the text of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AthenaType {
    Boolean,
    TinyInt,
    SmallInt,
    Integer,
    BigInt,
    Real,
    Double,
    /// Precision and scale; Athena's metadata always has both.
    Decimal(u32, u32),
    Char,
    Varchar,
    Json,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Varbinary,
    Uuid,
    IpAddress,
    IntervalDayToSecond,
    IntervalYearToMonth,
    /// Its text form cannot be read back.
    Array,
    /// Its text form cannot be read back.
    Map,
    /// Its text form cannot be read back.
    Row,
}

impl AthenaType {
    /// Whether its values are free text.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Char | Self::Varchar)
    }

    /// Whether the text of its values is a number with every digit that the number has.
    pub fn is_exact_number(self) -> bool {
        matches!(
            self,
            Self::TinyInt
                | Self::SmallInt
                | Self::Integer
                | Self::BigInt
                | Self::Decimal(..)
                | Self::Double
        )
    }
}

/// A type that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Athena type {0:?} is not known")]
pub struct UnknownAthenaType(pub String);

impl FromStr for AthenaType {
    type Err = UnknownAthenaType;

    /// Parses Athena's text, with or without parameters, in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownAthenaType(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let (name, arguments) = split_arguments(&lower).ok_or_else(unknown)?;
        Ok(match name.as_str() {
            "boolean" => Self::Boolean,
            "tinyint" => Self::TinyInt,
            "smallint" => Self::SmallInt,
            "integer" | "int" => Self::Integer,
            "bigint" => Self::BigInt,
            "real" | "float" => Self::Real,
            "double" => Self::Double,
            "decimal" => {
                let (precision, scale) = arguments.split_once(',').ok_or_else(unknown)?;
                let number = |text: &str| text.trim().parse().map_err(|_| unknown());
                Self::Decimal(number(precision)?, number(scale)?)
            }
            "char" => Self::Char,
            "varchar" | "string" => Self::Varchar,
            "json" => Self::Json,
            "date" => Self::Date,
            "time" => Self::Time,
            "timestamp" => Self::Timestamp,
            "timestamp with time zone" => Self::TimestampTz,
            "varbinary" | "binary" => Self::Varbinary,
            "uuid" => Self::Uuid,
            "ipaddress" => Self::IpAddress,
            "interval day to second" => Self::IntervalDayToSecond,
            "interval year to month" => Self::IntervalYearToMonth,
            "array" => Self::Array,
            "map" => Self::Map,
            "row" | "struct" => Self::Row,
            _ => return Err(unknown()),
        })
    }
}

/// Splits `timestamp(3) with time zone` into its name without parameters and the parameters.
fn split_arguments(text: &str) -> Option<(String, &str)> {
    let Some((before, rest)) = text.split_once(['(', '<']) else {
        return Some((text.to_owned(), ""));
    };
    let close = rest.rfind([')', '>'])?;
    Some((
        format!("{}{}", before.trim_end(), &rest[close + 1..]),
        &rest[..close],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_with_and_without_parameters() {
        for (text, wanted) in [
            ("varchar", AthenaType::Varchar),
            ("varchar(20)", AthenaType::Varchar),
            ("DECIMAL(38,10)", AthenaType::Decimal(38, 10)),
            ("timestamp(3) with time zone", AthenaType::TimestampTz),
            ("timestamp with time zone", AthenaType::TimestampTz),
            ("timestamp(6)", AthenaType::Timestamp),
            ("array(row(a integer, b varchar))", AthenaType::Array),
            ("struct<a:int>", AthenaType::Row),
        ] {
            assert_eq!(text.parse(), Ok(wanted), "{text}");
        }
        for bad in ["", "geometry", "decimal", "decimal(3", "decimal(a,b)"] {
            assert!(bad.parse::<AthenaType>().is_err(), "{bad}");
        }
    }
}
