//! Numbers that count from 1970-01-01 00:00:00 UTC, as moments.

use std::borrow::Cow;

use common::canonical::Moment;
use common::job::EpochUnit;
use common::schema::PgType;

use super::moment::{TOO_EXACT, show};
use super::{Decimal, Excess, OUT_OF_RANGE, Problem};

/// The moment in the column's type; a `timestamp` shows UTC.
pub(super) fn counted(
    text: &str,
    unit: EpochUnit,
    to: PgType,
    excess: Excess,
) -> Result<Cow<'static, str>, Problem> {
    let shift = match unit {
        EpochUnit::Seconds => 6,
        EpochUnit::Milliseconds => 3,
        EpochUnit::Microseconds => 0,
        EpochUnit::Nanoseconds => -3,
    };
    let number = Decimal::parse(text).ok_or("is not a number that counts since 1970")?;
    let (micros, is_exact) = number.shifted(shift).ok_or(OUT_OF_RANGE)?;
    if !is_exact && excess == Excess::Refuse {
        return Err(TOO_EXACT);
    }
    let moment = Moment::from_micros(micros).ok_or(OUT_OF_RANGE)?;
    show(moment, to, "UTC").map(Cow::Owned)
}
