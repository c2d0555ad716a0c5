//! Dates, times and timestamps.
//!
//! Sources: PostgreSQL documentation, "Date/Time Types" (ranges) and "Date/Time Input". Athena prints
//! years as Java does: `+12345` beyond 9999, `0000` for 1 BC, `-0001` for 2 BC.

use std::borrow::Cow;
use std::fmt::Write;

use common::canonical::{DAY, Misread, Moment, SECOND, read_clock};
use common::schema::PgType;

use super::{Excess, OUT_OF_RANGE, Problem, zone};

/// Midnight of the first day that Postgres knows, 4714-11-24 BC.
const FIRST: Moment = Moment {
    year: -4713,
    month: 11,
    day: 24,
    micros: 0,
};
/// The last year of a `date`.
const LAST_DATE_YEAR: i32 = 5_874_897;
/// The last year of a `timestamp`.
const LAST_TIMESTAMP_YEAR: i32 = 294_276;

const NOT_A_DATE: Problem = Cow::Borrowed("is not a date written YYYY-MM-DD");
const NOT_A_TIME: Problem = Cow::Borrowed("is not a time written HH:MM:SS");
const NOT_A_TIMESTAMP: Problem = Cow::Borrowed("is not a timestamp written YYYY-MM-DD HH:MM:SS");
pub(super) const NO_SUCH_DAY: Problem = Cow::Borrowed("names a day that no calendar has");
pub(super) const NO_SUCH_TIME: Problem = Cow::Borrowed("names a time of day that no clock shows");
pub(super) const TOO_EXACT: Problem =
    Cow::Borrowed("has more than 6 digits of a second, which Postgres would round");
const NEXT_DAY: Problem = Cow::Borrowed("is 24:00:00 when it is rounded, which no clock shows");

/// `YYYY-MM-DD`.
pub(super) fn date(text: &str) -> Result<Cow<'_, str>, Problem> {
    let (date, era) = split_era(text);
    let moment = read_date(date, era)?;
    if moment >= FIRST && is_plain_year(text) {
        return Ok(text.into());
    }
    Ok(show(moment, PgType::Date, "")?.into())
}

/// `HH:MM:SS`, with or without a fraction.
pub(super) fn time(text: &str, excess: Excess) -> Result<Cow<'_, str>, Problem> {
    let time = read_time(text, excess)?;
    if let Some(length) = time.length {
        return Ok(text[..length].into());
    }
    let moment = Moment {
        micros: time.micros,
        ..Moment::default()
    };
    Ok(show(moment, PgType::Time, "")?.into())
}

/// A date and a time of day. A text with a zone is refused: Postgres would drop the zone.
pub(super) fn timestamp(text: &str, excess: Excess) -> Result<Cow<'_, str>, Problem> {
    let parts = Parts::split(text)?;
    if !parts.zone.is_empty() {
        return Err("has a time zone, which timestamp would drop; use timestamptz".into());
    }
    let (moment, length) = parts.read(excess)?;
    let moment = in_range(moment)?;
    if let Some(length) = length
        && is_plain_year(text)
        && parts.era.is_empty()
        && parts.separator == b' '
    {
        return Ok(text[..parts.date.len() + 1 + length].into());
    }
    Ok(show_timestamp(moment, "").into())
}

/// A date, a time of day and a zone, shown in UTC. A text without a zone is refused, since any zone
/// would be a guess.
pub(super) fn timestamptz(text: &str, excess: Excess) -> Result<Cow<'_, str>, Problem> {
    let parts = Parts::split(text)?;
    if parts.zone.is_empty() {
        return Err("has no time zone, and timestamptz needs one".into());
    }
    let (moment, _) = parts.read(excess)?;
    Ok(show(moment, PgType::TimestampTz, parts.zone)?.into())
}

/// A time's text without the zeros at the end of its fraction: the same for equal times.
pub(crate) fn without_zeros(time: &str) -> &str {
    if time.contains('.') {
        time.trim_end_matches('0').trim_end_matches('.')
    } else {
        time
    }
}

/// The moment as Postgres shows it in a column of one of the four types. `zone` is where the clock
/// was that showed it, for `timestamptz`.
pub(super) fn show(moment: Moment, to: PgType, zone: &str) -> Result<String, Problem> {
    let mut shown = String::with_capacity(16);
    match to {
        PgType::Date if moment < FIRST || moment.year > LAST_DATE_YEAR => return Err(OUT_OF_RANGE),
        PgType::Date => {
            show_date(moment, &mut shown);
            shown.push_str(era(moment));
        }
        PgType::Time if moment.micros >= DAY => return Err(NEXT_DAY),
        PgType::Time => show_time(moment, &mut shown),
        PgType::TimestampTz => {
            let utc = zone::to_utc(carried(moment)?, zone)?;
            return Ok(show_timestamp(in_range(utc)?, "+00"));
        }
        _ => return Ok(show_timestamp(in_range(carried(moment)?)?, "")),
    }
    Ok(shown)
}

/// The same moment where its seconds were rounded up to 24:00:00.
fn carried(moment: Moment) -> Result<Moment, Problem> {
    if moment.micros < DAY {
        return Ok(moment);
    }
    Moment::from_micros(moment.since_epoch()).ok_or(OUT_OF_RANGE)
}

/// The date as Postgres shows it, without the era.
fn show_date(moment: Moment, shown: &mut String) {
    let Moment {
        year, month, day, ..
    } = moment;
    let year = if year > 0 { year } else { 1 - year };
    // Writing to a string cannot fail.
    write!(shown, "{year:04}-{month:02}-{day:02}").ok();
}

fn show_time(moment: Moment, shown: &mut String) {
    let (seconds, fraction) = (moment.micros / SECOND, moment.micros % SECOND);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    write!(shown, "{hour:02}:{minute:02}:{second:02}").ok();
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        write!(shown, ".{}", digits.trim_end_matches('0')).ok();
    }
}

fn show_timestamp(moment: Moment, zone: &str) -> String {
    let mut shown = String::with_capacity(32);
    show_date(moment, &mut shown);
    shown.push(' ');
    show_time(moment, &mut shown);
    shown.push_str(zone);
    shown.push_str(era(moment));
    shown
}

fn era(moment: Moment) -> &'static str {
    if moment.year > 0 { "" } else { " BC" }
}

fn in_range(moment: Moment) -> Result<Moment, Problem> {
    if moment < FIRST || moment.year > LAST_TIMESTAMP_YEAR {
        Err(OUT_OF_RANGE)
    } else {
        Ok(moment)
    }
}

/// Whether the year has four digits and no sign, as Athena and Postgres both write it.
fn is_plain_year(text: &str) -> bool {
    text.as_bytes().get(4) == Some(&b'-') && !text.starts_with('-') && !text.starts_with("0000")
}

fn split_era(text: &str) -> (&str, &str) {
    let before = text.strip_suffix(" BC").unwrap_or(text);
    (before, &text[before.len()..])
}

/// The pieces of a timestamp's text.
struct Parts<'a> {
    date: &'a str,
    separator: u8,
    time: &'a str,
    /// Empty where there is none.
    zone: &'a str,
    era: &'a str,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, Problem> {
        let (moment, era) = split_era(text);
        let separator = moment.find([' ', 'T']).ok_or(NOT_A_TIMESTAMP)?;
        let (date, rest) = (&moment[..separator], &moment[separator + 1..]);
        let is_of_time = |byte: u8| byte.is_ascii_digit() || matches!(byte, b':' | b'.');
        let end = rest
            .bytes()
            .position(|byte| !is_of_time(byte))
            .unwrap_or(rest.len());
        let (time, zone) = rest.split_at(end);
        let zone = zone.strip_prefix(' ').unwrap_or(zone);
        if time.is_empty() || (zone.is_empty() && end < rest.len()) {
            return Err(NOT_A_TIMESTAMP);
        }
        Ok(Self {
            date,
            separator: moment.as_bytes()[separator],
            time,
            zone,
            era,
        })
    }

    /// The moment that the clock showed, and the length of the time's text that Postgres reads,
    /// unless it was rounded.
    fn read(&self, excess: Excess) -> Result<(Moment, Option<usize>), Problem> {
        let of_both = |problem: Problem| {
            if problem == NOT_A_DATE || problem == NOT_A_TIME {
                NOT_A_TIMESTAMP
            } else {
                problem
            }
        };
        let date = read_date(self.date, self.era).map_err(of_both)?;
        let time = read_time(self.time, excess).map_err(of_both)?;
        let moment = Moment {
            micros: time.micros,
            ..date
        };
        Ok((carried(moment)?, time.length))
    }
}

/// Reads `2018-04-02`, `+12345-04-02`, `12345-04-02` and `-0044-03-15`; with the era `" BC"` also
/// `0045-03-15`, as Postgres writes the last.
fn read_date(text: &str, era: &str) -> Result<Moment, Problem> {
    let (sign, unsigned) = match text.as_bytes().first() {
        Some(sign @ (b'+' | b'-')) => (Some(*sign), &text[1..]),
        _ => (None, text),
    };
    let year = |year: i32| match (sign, era) {
        (None, "") => Some(year),
        // Java writes a plus sign from five digits on.
        (Some(b'+'), "") => (unsigned.len() >= 11).then_some(year),
        (Some(_), "") => Some(-year),
        (None, _) => (year > 0).then_some(1 - year),
        (Some(_), _) => None,
    };
    Moment::read_day(unsigned, year).map_err(|misread| match misread {
        Misread::Form => NOT_A_DATE,
        Misread::Range => NO_SUCH_DAY,
    })
}

struct TimeOfDay {
    micros: u64,
    /// The bytes of its text up to the sixth digit of the fraction; of a longer fraction, without the
    /// zeros at its end. None where it was rounded.
    length: Option<usize>,
}

/// Reads `HH:MM:SS` and a fraction of at most 12 digits, of which 6 may be other than zero.
fn read_time(text: &str, excess: Excess) -> Result<TimeOfDay, Problem> {
    let (micros, rest) = read_clock(text).map_err(|misread| match misread {
        Misread::Form => NOT_A_TIME,
        Misread::Range => NO_SUCH_TIME,
    })?;
    let fraction = match rest {
        [] => &[],
        [b'.', digits @ ..] if (1..=12).contains(&digits.len()) => digits,
        _ => return Err(NOT_A_TIME),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(NOT_A_TIME);
    }
    let significant = fraction.len() - trailing_zeros(fraction);
    Ok(TimeOfDay {
        micros: micros + read_fraction(fraction, excess)?,
        length: match significant {
            _ if fraction.len() <= 6 => Some(text.len()),
            0 => Some(8),
            1..=6 => Some(9 + significant),
            _ => None,
        },
    })
}

/// The digits of a fraction of a second as microseconds; a whole second where they round up to one.
pub(super) fn read_fraction(digits: &[u8], excess: Excess) -> Result<u64, Problem> {
    let significant = digits.len() - trailing_zeros(digits);
    if significant > 6 && excess == Excess::Refuse {
        return Err(TOO_EXACT);
    }
    let padded = digits.iter().copied().chain(std::iter::repeat(b'0'));
    let micros = padded
        .take(6)
        .fold(0, |micros, digit| micros * 10 + u64::from(digit - b'0'));
    let up = digits.get(6).is_some_and(|digit| *digit >= b'5');
    Ok(micros + u64::from(up))
}

fn trailing_zeros(digits: &[u8]) -> usize {
    let zeros = digits.iter().rev().take_while(|digit| **digit == b'0');
    zeros.count()
}
