//! Converts the moment that a clock in some zone showed to UTC.
//!
//! The zones are those of the time zone database that is compiled in, so that every replica and
//! every machine converts alike. A text that can mean two moments, or none, is refused.

use common::canonical::{Moment, SECOND, digits};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

use super::{OUT_OF_RANGE, Problem};

const UNKNOWN_ZONE: &str = "has a time zone that is not known";
/// Beyond jiff's range; UTC and offsets go further.
const TOO_FAR: &str = "is too far from today to be converted from its time zone; only UTC can be, \
                       so write AT TIME ZONE 'UTC' in the SELECT";
const TWICE: &str = "names a time that the clocks of its zone showed twice, so that the moment is not clear; \
                     write AT TIME ZONE 'UTC' in the SELECT";
const SKIPPED: &str = "names a time that the clocks of its zone skipped";

/// Converts a clock's moment in `zone`: `UTC`, an offset such as `+05:30`, or a zone's name.
pub(super) fn to_utc(moment: Moment, zone: &str) -> Result<Moment, Problem> {
    if matches!(zone, "UTC" | "Z" | "GMT") {
        return Ok(moment);
    }
    if zone.starts_with(['+', '-']) {
        let seconds = read_offset(zone).ok_or(UNKNOWN_ZONE)?;
        let micros = moment.since_epoch() - i128::from(seconds) * i128::from(SECOND);
        return Moment::from_micros(micros).ok_or(OUT_OF_RANGE);
    }
    let clock = to_jiff(moment).ok_or(TOO_FAR)?;
    let zone = TimeZone::get(zone).map_err(|_| UNKNOWN_ZONE)?;
    let meant = zone.to_ambiguous_timestamp(clock);
    let timestamp = match meant.offset() {
        AmbiguousOffset::Unambiguous { .. } => meant.unambiguous().map_err(|_| TOO_FAR)?,
        AmbiguousOffset::Fold { .. } => return Err(TWICE.into()),
        AmbiguousOffset::Gap { .. } => return Err(SKIPPED.into()),
    };
    Moment::from_micros(timestamp.as_microsecond().into()).ok_or_else(|| TOO_FAR.into())
}

/// Reads `+05`, `+0530` and `+05:30`, up to 15:59 as in Postgres. In seconds.
fn read_offset(text: &str) -> Option<i32> {
    let (sign, rest) = text.split_at(1);
    let (hours, minutes) = match rest.len() {
        2 => (rest, "00"),
        4 => rest.split_at_checked(2)?,
        5 => rest.split_once(':')?,
        _ => return None,
    };
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes) = (digits(hours.as_bytes())?, digits(minutes.as_bytes())?);
    if hours > 15 || minutes > 59 {
        return None;
    }
    let seconds = i32::try_from(hours * 3600 + minutes * 60).ok()?;
    Some(if sign == "-" { -seconds } else { seconds })
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
