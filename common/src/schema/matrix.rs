//! Which Postgres types an Athena type may become.

use super::{AthenaType, PgType};

/// The Postgres type that holds every value of an Athena type; none where the text form that
/// Athena returns cannot be read back.
pub(crate) fn default_type(athena: AthenaType) -> Option<PgType> {
    Some(match athena {
        AthenaType::Boolean => PgType::Boolean,
        AthenaType::TinyInt | AthenaType::SmallInt => PgType::SmallInt,
        AthenaType::Integer => PgType::Integer,
        AthenaType::BigInt => PgType::BigInt,
        AthenaType::Real => PgType::Real,
        AthenaType::Double => PgType::Double,
        AthenaType::Decimal(precision, scale) => PgType::Numeric(Some((precision, scale))),
        AthenaType::Char | AthenaType::Varchar => PgType::Text,
        // Not jsonb, which drops duplicate keys and cannot hold \u0000.
        AthenaType::Json => PgType::Json,
        AthenaType::Date => PgType::Date,
        AthenaType::Time => PgType::Time,
        AthenaType::Timestamp => PgType::Timestamp,
        AthenaType::TimestampTz => PgType::TimestampTz,
        AthenaType::Varbinary => PgType::Bytea,
        AthenaType::Uuid => PgType::Uuid,
        AthenaType::IpAddress => PgType::Inet,
        AthenaType::IntervalDayToSecond | AthenaType::IntervalYearToMonth => PgType::Interval,
        AthenaType::Array | AthenaType::Map | AthenaType::Row => return None,
    })
}

/// Whether every value of the Athena type either becomes the same value of the Postgres type or is
/// rejected as a row. No value is truncated or loses its zone; one is rounded only where the job says
/// `round`.
pub(crate) fn is_lossless(athena: AthenaType, postgres: PgType, round: bool) -> bool {
    use AthenaType as A;
    use PgType as P;
    let is_text = matches!(postgres, P::Text | P::Varchar(_) | P::Char(_));
    let is_integer = matches!(postgres, P::SmallInt | P::Integer | P::BigInt);
    match athena {
        A::Char | A::Varchar => true,
        A::Boolean => is_text || postgres == P::Boolean,
        A::TinyInt | A::SmallInt => {
            is_text || is_integer || matches!(postgres, P::Numeric(_) | P::Real | P::Double)
        }
        A::Integer => is_text || is_integer || matches!(postgres, P::Numeric(_) | P::Double),
        A::BigInt | A::Decimal(..) => is_text || is_integer || matches!(postgres, P::Numeric(_)),
        A::Real | A::Double => {
            is_text
                || matches!(postgres, P::Numeric(size) if size.is_none() || round)
                || postgres == P::Double
                || (athena == A::Real && postgres == P::Real)
        }
        A::Json => is_text || matches!(postgres, P::Json | P::Jsonb),
        A::Date => is_text || postgres == P::Date,
        A::Time => is_text || postgres == P::Time,
        A::Timestamp => is_text || postgres == P::Timestamp,
        A::TimestampTz => is_text || postgres == P::TimestampTz,
        A::Varbinary => is_text || postgres == P::Bytea,
        A::Uuid => is_text || postgres == P::Uuid,
        A::IpAddress => is_text || postgres == P::Inet,
        A::IntervalDayToSecond | A::IntervalYearToMonth => is_text || postgres == P::Interval,
        A::Array | A::Map | A::Row => false,
    }
}
