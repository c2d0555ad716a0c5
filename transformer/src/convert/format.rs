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

use common::canonical::{Moment, SECOND, digits};
use common::schema::PgType;

use super::moment::{NO_SUCH_DAY, NO_SUCH_TIME, read_fraction, show};
use super::{Excess, Problem};

#[rustfmt::skip]
const MONTHS: [&str; 12] = [
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
];
#[rustfmt::skip]
const WEEKDAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

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
    Field(Field),
    /// One or two digits: `%-d`.
    Unpadded(Field),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Year,
    YearOfCentury,
    Month,
    MonthName,
    ShortMonthName,
    Day,
    Weekday,
    ShortWeekday,
    Hour,
    HourOfHalfDay,
    HalfDay,
    Minute,
    Second,
    Fraction,
    Offset,
    Zone,
}

/// The fields that were read from a text.
#[derive(Debug, Default)]
struct Found<'a> {
    year: Option<i32>,
    month: u32,
    day: u32,
    weekday: Option<u32>,
    hour: u32,
    is_afternoon: bool,
    minute: u32,
    second: u32,
    fraction: &'a str,
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
        check_borders(&pieces)?;
        Ok(Self {
            to,
            pieces,
            written: written.to_owned(),
        })
    }

    /// The text in the column's type.
    pub(crate) fn read(&self, text: &str, excess: Excess) -> Result<Cow<'static, str>, Problem> {
        let mut found = Found::default();
        let read = |rest, piece: &Piece| piece.read(rest, &mut found);
        match self.pieces.iter().try_fold(text, read) {
            Some("") => show(found.moment(excess)?, self.to, found.zone).map(Cow::Owned),
            _ => Err(format!("is not written as {}", self.written).into()),
        }
    }
}

/// The piece of a specifier, after its `%`.
fn specifier(rest: &mut std::str::Chars<'_>) -> Result<Piece, String> {
    let mut next = rest.next();
    let is_padded = next != Some('-');
    if !is_padded {
        next = rest.next();
    }
    let field = match (next, is_padded) {
        (Some('m'), _) => Field::Month,
        (Some('d'), _) => Field::Day,
        (Some('H'), _) => Field::Hour,
        (Some('I'), _) => Field::HourOfHalfDay,
        (Some('y'), true) => Field::YearOfCentury,
        (Some('M'), true) => Field::Minute,
        (Some('S'), true) => Field::Second,
        (Some('Y'), true) => Field::Year,
        (Some('b'), true) => Field::ShortMonthName,
        (Some('B'), true) => Field::MonthName,
        (Some('a'), true) => Field::ShortWeekday,
        (Some('A'), true) => Field::Weekday,
        (Some('p'), true) => Field::HalfDay,
        (Some('f'), true) => Field::Fraction,
        (Some('z'), true) => Field::Offset,
        (Some('Z'), true) => Field::Zone,
        (Some('%'), true) => return Ok(Piece::Literal('%')),
        (other, _) => {
            let sign = if is_padded { "" } else { "-" };
            let other = other.map(String::from).unwrap_or_default();
            return Err(format!(
                "%{sign}{other} is not known; it may have {SPECIFIERS}"
            ));
        }
    };
    Ok(if is_padded {
        Piece::Field(field)
    } else {
        Piece::Unpadded(field)
    })
}

/// Refuses a format that omits what the column needs, or reads what it would drop.
fn check(pieces: &[Piece], to: PgType) -> Result<(), String> {
    let count = |fields: &[Field]| {
        let is_one = |piece: &&Piece| match piece {
            Piece::Literal(_) => false,
            Piece::Field(field) | Piece::Unpadded(field) => fields.contains(field),
        };
        pieces.iter().filter(is_one).count()
    };
    let year = count(&[Field::Year, Field::YearOfCentury]);
    let month = count(&[Field::Month, Field::MonthName, Field::ShortMonthName]);
    let day = count(&[Field::Day]);
    let weekday = count(&[Field::Weekday, Field::ShortWeekday]);
    let half_day = count(&[Field::HalfDay]);
    let hour = count(&[Field::Hour, Field::HourOfHalfDay]);
    let (minute, second) = (count(&[Field::Minute]), count(&[Field::Second]));
    let fraction = count(&[Field::Fraction]);
    let zone = count(&[Field::Offset, Field::Zone]);
    let (of_date, of_time) = (
        [year, month, day, weekday],
        [half_day, hour, minute, second, fraction, zone],
    );
    let is_time = to == PgType::Time;
    if of_date.iter().chain(&of_time).any(|count| *count > 1) {
        return Err("it has a part of a date or a time twice".to_owned());
    }
    if !is_time && year + month + day < 3 {
        return Err(format!(
            "{to} needs a year, a month and a day, and it has not all of them"
        ));
    }
    if is_time && of_date != [0; 4] {
        return Err("time would drop the date that it has".to_owned());
    }
    if to != PgType::Date && hour == 0 {
        return Err(format!("{to} needs an hour, and it has none"));
    }
    if to == PgType::Date && of_time != [0; 6] {
        return Err("date would drop the time that it has".to_owned());
    }
    if count(&[Field::HourOfHalfDay]) != half_day {
        return Err("%I and %p go together".to_owned());
    }
    if hour < minute || minute < second || second < fraction {
        return Err("it has a part of a time without the greater one before it".to_owned());
    }
    match (to, zone) {
        (PgType::TimestampTz, 0) => Err("timestamptz needs a time zone, %z or %Z".to_owned()),
        (PgType::TimestampTz, _) | (_, 0) => Ok(()),
        _ => Err(format!("{to} would drop the time zone that it has")),
    }
}

/// Refuses a part of variable length that runs into the next one.
fn check_borders(pieces: &[Piece]) -> Result<(), String> {
    for pair in pieces.windows(2) {
        let begins_with_digit = match pair[1] {
            Piece::Literal(c) => c.is_ascii_digit(),
            Piece::Unpadded(_) => true,
            Piece::Field(field) => !matches!(
                field,
                Field::MonthName
                    | Field::ShortMonthName
                    | Field::Weekday
                    | Field::ShortWeekday
                    | Field::HalfDay
                    | Field::Offset
                    | Field::Zone
            ),
        };
        let runs_on = match pair[0] {
            Piece::Unpadded(_) | Piece::Field(Field::Fraction) => begins_with_digit,
            Piece::Field(Field::Offset | Field::Zone) => {
                !matches!(pair[1], Piece::Literal(c) if !is_of_zone(c))
            }
            Piece::Literal(_) | Piece::Field(_) => false,
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
    fn read<'a>(self, text: &'a str, found: &mut Found<'a>) -> Option<&'a str> {
        let (field, least) = match self {
            Self::Literal(c) => return text.strip_prefix(c),
            Self::Field(field) => (field, 2),
            Self::Unpadded(field) => (field, 1),
        };
        let (value, rest) = match field {
            Field::Year => number(text, 4, 4)?,
            Field::MonthName => name(text, &MONTHS, usize::MAX)?,
            Field::ShortMonthName => name(text, &MONTHS, 3)?,
            Field::Weekday => name(text, &WEEKDAYS, usize::MAX)?,
            Field::ShortWeekday => name(text, &WEEKDAYS, 3)?,
            Field::HalfDay => match text.split_at_checked(2)? {
                ("AM" | "am", rest) => (0, rest),
                ("PM" | "pm", rest) => (1, rest),
                _ => return None,
            },
            Field::Fraction => {
                let length = text.bytes().take_while(u8::is_ascii_digit).count();
                found.fraction = &text[..length];
                return (1..=12).contains(&length).then(|| &text[length..]);
            }
            Field::Offset | Field::Zone => {
                let end = text.find(|c| !is_of_zone(c)).unwrap_or(text.len());
                let (zone, rest) = text.split_at(end);
                let is_offset = zone.starts_with(['+', '-']) || zone == "Z";
                found.zone = zone;
                return (!zone.is_empty() && (field == Field::Zone || is_offset)).then_some(rest);
            }
            Field::YearOfCentury
            | Field::Month
            | Field::Day
            | Field::Hour
            | Field::HourOfHalfDay
            | Field::Minute
            | Field::Second => number(text, least, 2)?,
        };
        found.set(field, value);
        Some(rest)
    }
}

/// A number of `least` to `most` digits at the front of a text.
fn number(text: &str, least: usize, most: usize) -> Option<(u32, &str)> {
    let leading = text.bytes().take(most).take_while(u8::is_ascii_digit);
    let length = leading.count();
    if length < least {
        return None;
    }
    Some((digits(&text.as_bytes()[..length])?, &text[length..]))
}

/// The index of one of the names, or of its first letters, at the front of a text, in any case.
fn name<'a>(text: &'a str, names: &[&str], letters: usize) -> Option<(u32, &'a str)> {
    (0..).zip(names).find_map(|(index, name)| {
        let name = &name[..letters.min(name.len())];
        let (start, rest) = text.split_at_checked(name.len())?;
        start.eq_ignore_ascii_case(name).then_some((index, rest))
    })
}

impl Found<'_> {
    fn set(&mut self, field: Field, value: u32) {
        match field {
            Field::Year => self.year = Some(value.cast_signed()),
            // As in POSIX, 69 to 99 are of the 20th century.
            Field::YearOfCentury => {
                let century = if value < 69 { 2000 } else { 1900 };
                self.year = Some(century + value.cast_signed());
            }
            Field::Month => self.month = value,
            Field::MonthName | Field::ShortMonthName => self.month = value + 1,
            Field::Day => self.day = value,
            Field::Weekday | Field::ShortWeekday => self.weekday = Some(value),
            Field::Hour => self.hour = value,
            // 12 AM is midnight; 0 and 13 are not hours of a half day.
            Field::HourOfHalfDay => {
                let is_hour = (1..=12).contains(&value);
                self.hour = if is_hour { value % 12 } else { 24 };
            }
            Field::HalfDay => self.is_afternoon = value == 1,
            Field::Minute => self.minute = value,
            Field::Second => self.second = value,
            Field::Fraction | Field::Offset | Field::Zone => {}
        }
    }

    fn moment(&self, excess: Excess) -> Result<Moment, Problem> {
        let mut moment = Moment::default();
        if let Some(year) = self.year {
            moment = Moment::midnight(year, self.month, self.day).ok_or(NO_SUCH_DAY)?;
            if self.weekday.is_some_and(|named| named != moment.weekday()) {
                return Err("names another day of the week than the date has".into());
            }
        }
        let hour = self.hour + if self.is_afternoon { 12 } else { 0 };
        if hour > 23 || self.minute > 59 || self.second > 59 {
            return Err(NO_SUCH_TIME);
        }
        let seconds = u64::from((hour * 60 + self.minute) * 60 + self.second);
        moment.micros = seconds * SECOND + read_fraction(self.fraction.as_bytes(), excess)?;
        Ok(moment)
    }
}

#[cfg(test)]
mod tests;
