//! Dates and times in the format that a job defines: `%d.%m.%Y`.
//!
//! The specifiers are those of `strftime`. A value must match the format exactly: nothing is skipped,
//! no blank is optional, and a weekday must be the date's. A format that omits what the column needs,
//! or reads what the column would drop, is refused before the first row.
//!
//! Written by hand, since `jiff`'s strptime with a round trip is not as strict and not as wide: it reads
//! no `%Z`, no offset with a colon or `Z` and no more than nine digits of a second, and its round trip
//! refuses `01.250` and `APRIL`.

use std::borrow::Cow;
use std::fmt;

use common::canonical::{Moment, SECOND, digits};
use common::schema::PgType;

use super::moment::{NO_SUCH_DAY, NO_SUCH_TIME, read_fraction, show};
use super::{Excess, Problem};

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

/// The specifiers that a format may have.
const SPECIFIERS: &str = "%Y %y %m %b %B %d %a %A %H %I %p %M %S %f %z %Z %F %T %R %%, and %-m, %-d, %-H and %-I \
                       for numbers without a leading zero";

/// A parsed format.
#[derive(Debug, Clone)]
pub(crate) struct Format {
    to: PgType,
    pieces: Vec<Piece>,
    written: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Literal(char),
    /// Two digits, or one or two.
    Number {
        field: Field,
        padded: bool,
    },
    Year,
    MonthName {
        short: bool,
    },
    Weekday {
        short: bool,
    },
    HalfDay,
    Fraction,
    Offset,
    Zone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    YearOfCentury,
    Month,
    Day,
    Hour,
    HourOfHalfDay,
    Minute,
    Second,
}

/// The fields that were read from a text.
#[derive(Debug, Default)]
struct Found<'a> {
    year: Option<i32>,
    month: u32,
    day: u32,
    weekday: Option<usize>,
    hour: u64,
    is_afternoon: Option<bool>,
    minute: u64,
    second: u64,
    micros: u64,
    zone: &'a str,
}

impl Format {
    /// Parses a format for a column of this type, or returns what is wrong with it.
    pub(crate) fn parse(written: &str, to: PgType) -> Result<Self, String> {
        let expanded = written
            .replace("%F", "%Y-%m-%d")
            .replace("%T", "%H:%M:%S")
            .replace("%R", "%H:%M");
        let mut pieces = Vec::new();
        let mut rest = expanded.chars();
        while let Some(next) = rest.next() {
            pieces.push(if next == '%' {
                specifier(&mut rest)?
            } else {
                Piece::Literal(next)
            });
        }
        check(&pieces, to)?;
        Ok(Self {
            to,
            pieces,
            written: written.to_owned(),
        })
    }

    /// The text in the column's type.
    pub(crate) fn read(&self, text: &str, excess: Excess) -> Result<Cow<'static, str>, Problem> {
        let mut found = Found::default();
        let mut rest = text;
        for piece in &self.pieces {
            rest = piece
                .read(rest, &mut found, excess)?
                .ok_or_else(|| self.not_written_so())?;
        }
        if !rest.is_empty() {
            return Err(self.not_written_so());
        }
        show(found.moment()?, self.to, found.zone).map(Cow::Owned)
    }

    fn not_written_so(&self) -> Problem {
        format!("is not written as {self}").into()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// The piece of a specifier, after its `%`.
fn specifier(rest: &mut std::str::Chars<'_>) -> Result<Piece, String> {
    let mut next = rest.next();
    let padded = next != Some('-');
    if !padded {
        next = rest.next();
    }
    let number = |field| Piece::Number { field, padded };
    Ok(match (next, padded) {
        (Some('m'), _) => number(Field::Month),
        (Some('d'), _) => number(Field::Day),
        (Some('H'), _) => number(Field::Hour),
        (Some('I'), _) => number(Field::HourOfHalfDay),
        (Some('y'), true) => number(Field::YearOfCentury),
        (Some('M'), true) => number(Field::Minute),
        (Some('S'), true) => number(Field::Second),
        (Some('Y'), true) => Piece::Year,
        (Some('b'), true) => Piece::MonthName { short: true },
        (Some('B'), true) => Piece::MonthName { short: false },
        (Some('a'), true) => Piece::Weekday { short: true },
        (Some('A'), true) => Piece::Weekday { short: false },
        (Some('p'), true) => Piece::HalfDay,
        (Some('f'), true) => Piece::Fraction,
        (Some('z'), true) => Piece::Offset,
        (Some('Z'), true) => Piece::Zone,
        (Some('%'), true) => Piece::Literal('%'),
        (other, _) => {
            let sign = if padded { "" } else { "-" };
            let other = other.map(String::from).unwrap_or_default();
            return Err(format!(
                "%{sign}{other} is not known; it may have {SPECIFIERS}"
            ));
        }
    })
}

/// Refuses a format that omits what the column needs, or reads what it would drop.
fn check(pieces: &[Piece], to: PgType) -> Result<(), String> {
    let count =
        |wanted: &dyn Fn(&Piece) -> bool| pieces.iter().filter(|piece| wanted(piece)).count();
    let of = |field: Field| {
        count(&|piece| matches!(piece, Piece::Number { field: one, .. } if *one == field))
    };
    let year = count(&|piece| *piece == Piece::Year) + of(Field::YearOfCentury);
    let month = of(Field::Month) + count(&|piece| matches!(piece, Piece::MonthName { .. }));
    let day = of(Field::Day);
    let weekday = count(&|piece| matches!(piece, Piece::Weekday { .. }));
    let half_day = count(&|piece| *piece == Piece::HalfDay);
    let hour = of(Field::Hour) + of(Field::HourOfHalfDay);
    let (minute, second) = (of(Field::Minute), of(Field::Second));
    let fraction = count(&|piece| *piece == Piece::Fraction);
    let zone = count(&|piece| matches!(piece, Piece::Offset | Piece::Zone));
    let parts = [
        year, month, day, weekday, half_day, hour, minute, second, fraction, zone,
    ];
    if parts.iter().any(|count| *count > 1) {
        return Err("it has a part of a date or a time twice".to_owned());
    }
    let wants_date = to != PgType::Time;
    let wants_time = to != PgType::Date;
    if wants_date && year + month + day < 3 {
        return Err(format!(
            "{to} needs a year, a month and a day, and it has not all of them"
        ));
    }
    if !wants_date && year + month + day + weekday > 0 {
        return Err("time would drop the date that it has".to_owned());
    }
    if wants_time && hour == 0 {
        return Err(format!("{to} needs an hour, and it has none"));
    }
    if !wants_time && parts[4..].iter().any(|count| *count > 0) {
        return Err("date would drop the time that it has".to_owned());
    }
    if of(Field::HourOfHalfDay) != half_day {
        return Err("%I and %p go together".to_owned());
    }
    if hour < minute || minute < second || second < fraction {
        return Err("it has a part of a time without the greater one before it".to_owned());
    }
    match (to, zone) {
        (PgType::TimestampTz, 0) => Err("timestamptz needs a time zone, %z or %Z".to_owned()),
        (PgType::TimestampTz, _) | (_, 0) => check_borders(pieces),
        _ => Err(format!("{to} would drop the time zone that it has")),
    }
}

/// Refuses a part of variable length that runs into the next one.
fn check_borders(pieces: &[Piece]) -> Result<(), String> {
    for pair in pieces.windows(2) {
        let begins_with_digit = match pair[1] {
            Piece::Literal(c) => c.is_ascii_digit(),
            Piece::Number { .. } | Piece::Year | Piece::Fraction => true,
            _ => false,
        };
        let runs_on = match pair[0] {
            Piece::Number { padded: false, .. } | Piece::Fraction => begins_with_digit,
            Piece::Offset | Piece::Zone => !matches!(pair[1], Piece::Literal(c) if !is_of_zone(c)),
            _ => false,
        };
        if runs_on {
            return Err("it has a part of any length that runs into the next".to_owned());
        }
    }
    Ok(())
}

fn is_of_zone(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | ':' | '/' | '_')
}

impl Piece {
    /// Reads the piece at the front of a text, and returns the rest; None where the text begins with
    /// something else.
    fn read<'a>(
        self,
        text: &'a str,
        found: &mut Found<'a>,
        excess: Excess,
    ) -> Result<Option<&'a str>, Problem> {
        Ok(match self {
            Self::Literal(c) => text.strip_prefix(c),
            Self::Year => number(text, 4, 4).map(|(year, rest)| {
                found.year = Some(year.cast_signed());
                rest
            }),
            Self::Number { field, padded } => {
                let least = if padded { 2 } else { 1 };
                number(text, least, 2).map(|(number, rest)| {
                    found.set(field, number);
                    rest
                })
            }
            Self::MonthName { short } => name(text, &MONTHS, short).map(|(index, rest)| {
                found.month = index + 1;
                rest
            }),
            Self::Weekday { short } => name(text, &WEEKDAYS, short).map(|(index, rest)| {
                found.weekday = Some(index as usize);
                rest
            }),
            Self::HalfDay => text.split_at_checked(2).and_then(|(half, rest)| {
                found.is_afternoon = match half {
                    "AM" | "am" => Some(false),
                    "PM" | "pm" => Some(true),
                    _ => return None,
                };
                Some(rest)
            }),
            Self::Fraction => {
                let length = text.bytes().take_while(u8::is_ascii_digit).count();
                if !(1..=12).contains(&length) {
                    return Ok(None);
                }
                found.micros = read_fraction(&text.as_bytes()[..length], excess)?;
                Some(&text[length..])
            }
            Self::Offset | Self::Zone => {
                let (zone, rest) =
                    text.split_at(text.find(|c| !is_of_zone(c)).unwrap_or(text.len()));
                let is_offset = zone.starts_with(['+', '-']) || zone == "Z";
                let fits = !zone.is_empty() && (self == Self::Zone || is_offset);
                found.zone = zone;
                fits.then_some(rest)
            }
        })
    }
}

/// A number of `least` to `most` digits at the front of a text.
fn number(text: &str, least: usize, most: usize) -> Option<(u32, &str)> {
    let length = text
        .bytes()
        .take(most)
        .take_while(u8::is_ascii_digit)
        .count();
    if length < least {
        return None;
    }
    Some((digits(&text.as_bytes()[..length])?, &text[length..]))
}

/// One of the names, or its first three letters, at the front of a text, in any case.
fn name<'a>(text: &'a str, names: &[&str], short: bool) -> Option<(u32, &'a str)> {
    (0..).zip(names).find_map(|(index, name)| {
        let name = if short { &name[..3] } else { name };
        let (start, rest) = text.split_at_checked(name.len())?;
        start.eq_ignore_ascii_case(name).then_some((index, rest))
    })
}

impl Found<'_> {
    fn set(&mut self, field: Field, number: u32) {
        match field {
            // As in POSIX, 69 to 99 are of the 20th century.
            Field::YearOfCentury => {
                let century = if number < 69 { 2000 } else { 1900 };
                self.year = Some(century + number.cast_signed());
            }
            Field::Month => self.month = number,
            Field::Day => self.day = number,
            Field::Hour => self.hour = number.into(),
            // 12 AM is midnight; 0 and 13 are not hours of a half day.
            Field::HourOfHalfDay => {
                self.hour = match number {
                    12 => 0,
                    1..12 => number.into(),
                    _ => u64::MAX / 2,
                }
            }
            Field::Minute => self.minute = number.into(),
            Field::Second => self.second = number.into(),
        }
    }

    fn moment(&self) -> Result<Moment, Problem> {
        let mut moment = Moment::default();
        if let Some(year) = self.year {
            moment = Moment::of_day(year, self.month, self.day).ok_or(NO_SUCH_DAY)?;
            if self.weekday.is_some_and(|named| named != moment.weekday()) {
                return Err("names another day of the week than the date has".into());
            }
        }
        let hour = self.hour
            + if self.is_afternoon == Some(true) {
                12
            } else {
                0
            };
        if hour > 23 || self.minute > 59 || self.second > 59 {
            return Err(NO_SUCH_TIME);
        }
        let seconds = (hour * 60 + self.minute) * 60 + self.second;
        moment.micros = seconds * SECOND + self.micros;
        Ok(moment)
    }
}

#[cfg(test)]
mod tests;
