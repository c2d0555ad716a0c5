//! What UTC showed when a clock in some zone showed a given moment.
//!
//! The zones are those of the time zone database that is compiled in, so that every replica and
//! every machine converts alike. Where the text can mean two moments, or none, it is refused.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

use super::Problem;
use super::moment::{Moment, read_digits};

const UNKNOWN_ZONE: &str = "has a time zone that is not known";
/// What jiff can convert; UTC needs no conversion and goes further.
const TOO_FAR: &str = "is too far from today to be converted from its time zone; only UTC can be, \
                       so write AT TIME ZONE 'UTC' in the SELECT";

/// Converts a clock's moment in `zone`: `UTC`, an offset such as `+05:30`, or a zone's name.
pub(super) fn to_utc(moment: Moment, zone: &str) -> Result<Moment, Problem> {
    if matches!(zone, "UTC" | "Z" | "GMT") {
        return Ok(moment);
    }
    let offset = if zone.starts_with(['+', '-']) {
        Some(read_offset(zone).ok_or(UNKNOWN_ZONE)?)
    } else {
        None
    };
    if offset == Some(Offset::UTC) {
        return Ok(moment);
    }
    let clock = to_jiff(moment).ok_or(TOO_FAR)?;
    let timestamp = if let Some(offset) = offset {
        offset.to_timestamp(clock).map_err(|_| TOO_FAR)?
    } else {
        let zone = TimeZone::get(zone).map_err(|_| UNKNOWN_ZONE)?;
        let meant = zone.to_ambiguous_timestamp(clock);
        match meant.offset() {
            AmbiguousOffset::Unambiguous { .. } => meant.unambiguous().map_err(|_| TOO_FAR)?,
            AmbiguousOffset::Fold { .. } => return Err(twice().into()),
            AmbiguousOffset::Gap { .. } => {
                return Err("names a time that the clocks of its zone skipped".into());
            }
        }
    };
    from_jiff(Offset::UTC.to_datetime(timestamp)).ok_or_else(|| TOO_FAR.into())
}

fn twice() -> &'static str {
    "names a time that the clocks of its zone showed twice, so that the moment is not clear; \
     write AT TIME ZONE 'UTC' in the SELECT"
}

/// Reads `+05`, `+0530` and `+05:30`, up to 15:59 as in Postgres.
fn read_offset(text: &str) -> Option<Offset> {
    let (sign, digits) = text.split_at(1);
    let (hours, minutes) = match digits.len() {
        2 => (digits, "00"),
        4 => digits.split_at_checked(2)?,
        5 => digits.split_once(':')?,
        _ => return None,
    };
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes) = (
        read_digits(hours.as_bytes())?,
        read_digits(minutes.as_bytes())?,
    );
    if hours > 15 || minutes > 59 {
        return None;
    }
    let seconds = i32::try_from(hours * 3600 + minutes * 60).ok()?;
    Offset::from_seconds(if sign == "-" { -seconds } else { seconds }).ok()
}

fn to_jiff(moment: Moment) -> Option<DateTime> {
    let (seconds, micros) = (moment.micros / 1_000_000, moment.micros % 1_000_000);
    DateTime::new(
        moment.year.try_into().ok()?,
        moment.month.try_into().ok()?,
        moment.day.try_into().ok()?,
        (seconds / 3600).try_into().ok()?,
        (seconds / 60 % 60).try_into().ok()?,
        (seconds % 60).try_into().ok()?,
        (micros * 1000).try_into().ok()?,
    )
    .ok()
}

fn from_jiff(clock: DateTime) -> Option<Moment> {
    let hours = u64::try_from(clock.hour()).ok()?;
    let minutes = u64::try_from(clock.minute()).ok()?;
    let seconds = u64::try_from(clock.second()).ok()?;
    let nanos = u64::try_from(clock.subsec_nanosecond()).ok()?;
    Some(Moment {
        year: clock.year().into(),
        month: clock.month().try_into().ok()?,
        day: clock.day().try_into().ok()?,
        micros: ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + nanos / 1000,
    })
}
