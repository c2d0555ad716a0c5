//! Dates, times and timestamps.
//!
//! Sources: PostgreSQL documentation, "Date/Time Types" (ranges) and "Date/Time Input"; years are
//! printed by Athena as Java prints them: `+12345` beyond 9999, `0000` for 1 BC, `-0001` for 2 BC.

use std::borrow::Cow;
use std::fmt::Write;

use common::schema::PgType;

use super::calendar::{days_of, from_days, next_day};
use super::{Excess, Problem, zone};

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

const MICROS: u64 = 1_000_000;
const DAY: u64 = 86_400 * MICROS;

const NOT_A_DATE: Problem = Cow::Borrowed("is not a date written YYYY-MM-DD");
const NOT_A_TIME: Problem = Cow::Borrowed("is not a time written HH:MM:SS");
const NOT_A_TIMESTAMP: Problem = Cow::Borrowed("is not a timestamp written YYYY-MM-DD HH:MM:SS");
pub(super) const NO_SUCH_DAY: Problem = Cow::Borrowed("names a day that no calendar has");
pub(super) const NO_SUCH_TIME: Problem = Cow::Borrowed("names a time of day that no clock shows");
pub(super) const TOO_EXACT: Problem =
    Cow::Borrowed("has more than 6 digits of a second, which Postgres would round");
pub(super) const OUT_OF_RANGE: Problem =
    Cow::Borrowed("is out of the range that Postgres can store");
const NEXT_DAY: Problem = Cow::Borrowed("is 24:00:00 when it is rounded, which no clock shows");

/// A point of the calendar without a zone. Year 0 is 1 BC. A time of day alone is of year 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    pub(super) year: i32,
    pub(super) month: u8,
    pub(super) day: u8,
    /// Since midnight.
    pub(super) micros: u64,
}

impl Moment {
    /// Reads what [`date`], [`time`], [`timestamp`] or [`timestamptz`] made. The zone is UTC in all
    /// of the last, so that it may be left out.
    pub(crate) fn of_canonical(text: &str) -> Option<Self> {
        let (text, era) = match text.strip_suffix(" BC") {
            Some(rest) => (rest, " BC"),
            None => (text, ""),
        };
        let text = text.strip_suffix("+00").unwrap_or(text);
        let Some((date, time)) = text.split_once(' ') else {
            if !text.contains(':') {
                return read_date(text, era).ok();
            }
            let micros = read_time(text, Excess::Refuse).ok()?.micros;
            return Some(Self {
                micros,
                ..Self::default()
            });
        };
        Some(Self {
            micros: read_time(time, Excess::Refuse).ok()?.micros,
            ..read_date(date, era).ok()?
        })
    }

    /// The moment that many microseconds after 1970-01-01 00:00:00, in the same zone.
    pub(super) fn of_micros(micros: i128) -> Option<Self> {
        let days = i64::try_from(micros.div_euclid(DAY.into())).ok()?;
        Some(Self {
            micros: u64::try_from(micros.rem_euclid(DAY.into())).ok()?,
            ..from_days(days)?
        })
    }

    /// The same moment where its seconds were rounded up to 24:00:00.
    pub(super) fn carried(self) -> Self {
        if self.micros < DAY {
            return self;
        }
        Self {
            micros: self.micros - DAY,
            ..next_day(self)
        }
    }

    /// The moment as Postgres shows it in a column of a type that a job may give a `format` for.
    pub(super) fn show(self, to: PgType, zone: &str) -> Result<String, Problem> {
        match to {
            PgType::Date => self.show_as_date(),
            PgType::Time => self.show_as_time(),
            PgType::TimestampTz => {
                let utc = zone::to_utc(self.carried(), zone)?;
                Ok(in_range(utc)?.show_timestamp("+00"))
            }
            _ => Ok(in_range(self.carried())?.show_timestamp("")),
        }
    }

    fn show_as_date(self) -> Result<String, Problem> {
        if self < FIRST || self.year > LAST_DATE_YEAR {
            return Err(OUT_OF_RANGE);
        }
        let mut shown = String::with_capacity(16);
        self.show_date(&mut shown);
        shown.push_str(self.era());
        Ok(shown)
    }

    fn show_as_time(self) -> Result<String, Problem> {
        if self.micros >= DAY {
            return Err(NEXT_DAY);
        }
        let mut shown = String::with_capacity(16);
        self.show_time(&mut shown);
        Ok(shown)
    }

    /// The date as Postgres shows it, without the era.
    fn show_date(self, shown: &mut String) {
        let year = if self.year > 0 {
            self.year
        } else {
            1 - self.year
        };
        // Writing to a string cannot fail.
        write!(shown, "{year:04}-{:02}-{:02}", self.month, self.day).ok();
    }

    fn show_time(self, shown: &mut String) {
        let seconds = self.micros / MICROS;
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(shown, "{hour:02}:{minute:02}:{second:02}").ok();
        let fraction = self.micros % MICROS;
        if fraction > 0 {
            let digits = format!("{fraction:06}");
            write!(shown, ".{}", digits.trim_end_matches('0')).ok();
        }
    }

    fn show_timestamp(self, zone: &str) -> String {
        let mut shown = String::with_capacity(32);
        self.show_date(&mut shown);
        shown.push(' ');
        self.show_time(&mut shown);
        shown.push_str(zone);
        shown.push_str(self.era());
        shown
    }

    fn era(self) -> &'static str {
        if self.year > 0 { "" } else { " BC" }
    }
}

/// `YYYY-MM-DD`.
pub(super) fn date(text: &str) -> Result<Cow<'_, str>, Problem> {
    let (date, era) = split_era(text);
    let moment = read_date(date, era)?;
    if moment >= FIRST && is_plain_year(text) {
        return Ok(text.into());
    }
    Ok(moment.show_as_date()?.into())
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
    Ok(moment.show_as_time()?.into())
}

/// A time's text without the zeros at the end of its fraction: the same for equal times.
pub(crate) fn without_zeros(time: &str) -> &str {
    if time.contains('.') {
        time.trim_end_matches('0').trim_end_matches('.')
    } else {
        time
    }
}

/// A date and a time of day. A text with a zone is refused: Postgres would drop the zone.
pub(super) fn timestamp(text: &str, excess: Excess) -> Result<Cow<'_, str>, Problem> {
    let parts = Parts::of(text)?;
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
    Ok(moment.show_timestamp("").into())
}

/// A date, a time of day and a zone, shown in UTC. A text without a zone is refused, since any would
/// be a guess.
pub(super) fn timestamptz(text: &str, excess: Excess) -> Result<Cow<'_, str>, Problem> {
    let parts = Parts::of(text)?;
    if parts.zone.is_empty() {
        return Err("has no time zone, and timestamptz needs one".into());
    }
    let (moment, _) = parts.read(excess)?;
    let moment = in_range(zone::to_utc(moment, parts.zone)?)?;
    Ok(moment.show_timestamp("+00").into())
}

fn in_range(moment: Moment) -> Result<Moment, Problem> {
    if moment < FIRST || moment.year > LAST_TIMESTAMP_YEAR {
        Err(OUT_OF_RANGE)
    } else {
        Ok(moment)
    }
}

/// A year of four digits and no sign, which Athena and Postgres write alike.
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
    fn of(text: &'a str) -> Result<Self, Problem> {
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

    /// The moment that the clock showed, and the length of the time's text that Postgres reads, unless it was rounded.
    fn read(&self, excess: Excess) -> Result<(Moment, Option<usize>), Problem> {
        let unclear = |problem: Problem| {
            if problem == NOT_A_DATE || problem == NOT_A_TIME {
                NOT_A_TIMESTAMP
            } else {
                problem
            }
        };
        let date = read_date(self.date, self.era).map_err(unclear)?;
        let time = read_time(self.time, excess).map_err(unclear)?;
        let moment = Moment {
            micros: time.micros,
            ..date
        };
        Ok((moment.carried(), time.length))
    }
}

/// Reads `2018-04-02`, `+12345-04-02`, `12345-04-02` and `-0044-03-15`; with the era `" BC"` also
/// `0045-03-15`, as Postgres writes the last.
fn read_date(text: &str, era: &str) -> Result<Moment, Problem> {
    let (sign, unsigned) = match text.as_bytes().first() {
        Some(sign @ (b'+' | b'-')) => (Some(*sign), &text[1..]),
        _ => (None, text),
    };
    let (year, rest) = unsigned.split_once('-').ok_or(NOT_A_DATE)?;
    let (month, day) = rest.split_once('-').ok_or(NOT_A_DATE)?;
    let digits = if sign == Some(b'+') { 5..=7 } else { 4..=7 };
    if !digits.contains(&year.len()) || month.len() != 2 || day.len() != 2 {
        return Err(NOT_A_DATE);
    }
    let number = |digits: &str| read_digits(digits.as_bytes()).ok_or(NOT_A_DATE);
    let (year, month, day) = (number(year)?.cast_signed(), number(month)?, number(day)?);
    let year = match (sign, era) {
        (None | Some(b'+'), "") => year,
        (Some(_), "") => -year,
        (None, _) if year > 0 => 1 - year,
        _ => return Err(NOT_A_DATE),
    };
    if !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day) {
        return Err(NO_SUCH_DAY);
    }
    let small = |number: u32| u8::try_from(number).map_err(|_| NO_SUCH_DAY);
    Ok(Moment {
        year,
        month: small(month)?,
        day: small(day)?,
        micros: 0,
    })
}

struct TimeOfDay {
    micros: u64,
    /// The bytes of its text up to the sixth digit of the fraction; of a longer one, without the zeros at its end. None
    /// where it was rounded.
    length: Option<usize>,
}

/// Reads `HH:MM:SS` and a fraction of at most 12 digits, of which 6 may be other than zero.
fn read_time(text: &str, excess: Excess) -> Result<TimeOfDay, Problem> {
    let bytes = text.as_bytes();
    let is_shaped = bytes.len() >= 8 && bytes[2] == b':' && bytes[5] == b':';
    if !is_shaped {
        return Err(NOT_A_TIME);
    }
    let number = |digits: &[u8]| read_digits(digits).map(u64::from).ok_or(NOT_A_TIME);
    let (hour, minute, second) = (
        number(&bytes[..2])?,
        number(&bytes[3..5])?,
        number(&bytes[6..8])?,
    );
    let fraction = match &bytes[8..] {
        [] => &[],
        [b'.', digits @ ..] if (1..=12).contains(&digits.len()) => digits,
        _ => return Err(NOT_A_TIME),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(NOT_A_TIME);
    }
    if hour > 23 || minute > 59 || second > 59 {
        return Err(NO_SUCH_TIME);
    }
    let significant = fraction.len() - trailing_zeros(fraction);
    Ok(TimeOfDay {
        micros: (hour * 3600 + minute * 60 + second) * MICROS + read_fraction(fraction, excess)?,
        length: match significant {
            _ if fraction.len() <= 6 => Some(bytes.len()),
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

/// Up to nine digits.
pub(super) fn read_digits(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + u32::from(digit - b'0'))
    })
}
