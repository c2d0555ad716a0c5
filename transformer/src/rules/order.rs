//! Equality and order of the values of a Postgres type.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use common::canonical::Moment;
use common::schema::PgType;

use crate::convert::{Decimal, without_zeros};

/// A text that is the same for equal values of the type. Most types have one canonical text for a
/// value; numbers with a point or an exponent and fractions of a second have several.
pub(super) fn key(pg_type: PgType, canonical: &str) -> Cow<'_, str> {
    match pg_type {
        PgType::Numeric(None) | PgType::Real | PgType::Double => match Decimal::parse(canonical) {
            Some(number) => number.key().into(),
            None => canonical.into(),
        },
        PgType::Time | PgType::Timestamp => without_zeros(canonical).into(),
        PgType::Numeric(Some(_))
        | PgType::Boolean
        | PgType::SmallInt
        | PgType::Integer
        | PgType::BigInt
        | PgType::Text
        | PgType::Varchar(_)
        | PgType::Char(_)
        | PgType::Date
        | PgType::TimestampTz
        | PgType::Interval
        | PgType::Bytea
        | PgType::Json
        | PgType::Jsonb
        | PgType::Uuid
        | PgType::Inet => canonical.into(),
    }
}

/// The bound of `min` or `max`. Displays its canonical text.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    value: Ordered,
    shown: String,
}

#[derive(Debug, Clone)]
enum Ordered {
    Integer(i64),
    Number(Decimal<'static>),
    Moment(Moment, PgType),
    Text,
}

impl Bound {
    /// Reads a bound of a column of this type. Refuses a type without a useful order.
    pub(super) fn parse(pg_type: PgType, canonical: &str) -> Result<Self, String> {
        let value = match pg_type {
            PgType::SmallInt | PgType::Integer | PgType::BigInt => {
                canonical.parse().ok().map(Ordered::Integer)
            }
            PgType::Real | PgType::Double | PgType::Numeric(_) => {
                Decimal::parse(canonical).map(|number| Ordered::Number(number.into_owned()))
            }
            PgType::Date | PgType::Time | PgType::Timestamp | PgType::TimestampTz => {
                Moment::from_canonical(pg_type, canonical)
                    .map(|moment| Ordered::Moment(moment, pg_type))
            }
            PgType::Text | PgType::Varchar(_) | PgType::Char(_) => Some(Ordered::Text),
            PgType::Boolean
            | PgType::Interval
            | PgType::Bytea
            | PgType::Json
            | PgType::Jsonb
            | PgType::Uuid
            | PgType::Inet => {
                return Err(format!(
                    "values of {pg_type} have no order that it could use"
                ));
            }
        };
        let value = value.ok_or_else(|| format!("{canonical:?} cannot be a bound"))?;
        Ok(Self {
            value,
            shown: canonical.to_owned(),
        })
    }

    /// Compares a canonical value with the bound; None for `NaN`.
    pub(super) fn compared(&self, value: &str) -> Option<Ordering> {
        match &self.value {
            Ordered::Integer(bound) => value.parse::<i64>().ok().map(|value| value.cmp(bound)),
            Ordered::Number(bound) => match value {
                "Infinity" => Some(Ordering::Greater),
                "-Infinity" => Some(Ordering::Less),
                _ => Decimal::parse(value).map(|value| value.cmp(bound)),
            },
            Ordered::Moment(bound, pg_type) => {
                Moment::from_canonical(*pg_type, value).map(|value| value.cmp(bound))
            }
            // The order of UTF-8 is that of the code points.
            Ordered::Text => Some(value.cmp(&self.shown)),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}
