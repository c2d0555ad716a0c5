//! The canonical text of dates, times and numbers, which the transformer writes and the loader reads,
//! and the calendar behind it: the proleptic Gregorian one, as Java, SQL and Postgres have it.
//!
//! Canonical is what Postgres shows with `DateStyle ISO` and `TimeZone UTC`. The readers of parts
//! ([`Moment::read_day`], [`read_clock`], [`Number::read`]) also serve the wider forms of Athena.
//!
//! The loader reads every value that it copies: without `#[inline]` a date takes it half as long again.

use std::str::FromStr;

use crate::schema::PgType;

/// Microseconds of a second.
pub const SECOND: u64 = 1_000_000;
/// Microseconds of a day.
pub const DAY: u64 = 86_400 * SECOND;

/// Days of 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;
/// Days from 0000-03-01, where the years of the computation begin, to 1970-01-01.
const EPOCH: i64 = 719_468;

/// A point of the calendar without a zone. Year 0 is 1 BC. A time of day alone is the default day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub year: i32,
    pub month: u8,
    pub day: u8,
    /// Microseconds since midnight.
    pub micros: u64,
}

/// Why a text is not a day or a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misread {
    /// It is not written in the form of one.
    Form,
    /// No calendar or clock has it.
    Range,
}

impl Moment {
    /// Midnight of a day; None where the calendar has no such day.
    #[inline]
    pub fn midnight(year: i32, month: u32, day: u32) -> Option<Self> {
        let last = match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        if !(1..=last).contains(&day) {
            return None;
        }
        Some(Self {
            year,
            month: u8::try_from(month).ok()?,
            day: u8::try_from(day).ok()?,
            micros: 0,
        })
    }

    /// Midnight of the day that many days after 1970-01-01. None where the year exceeds 32 bits.
    ///
    /// Years begin in March, so that a leap day is the last of its year and the lengths of the months
    /// repeat: 153 days in five months.
    pub fn from_days(days: i64) -> Option<Self> {
        let days = days.checked_add(EPOCH)?;
        let (era, of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let (month, later) = if from_march < 10 {
            (from_march + 3, 0)
        } else {
            (from_march - 9, 1)
        };
        Some(Self {
            year: i32::try_from(era * 400 + year_of_era + later).ok()?,
            month: u8::try_from(month).ok()?,
            day: u8::try_from(day).ok()?,
            micros: 0,
        })
    }

    /// Days since 1970-01-01: the inverse of [`Self::from_days`].
    #[inline]
    pub fn days(self) -> i64 {
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = i64::from(self.year) - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        era * ERA + of_era - EPOCH
    }

    /// The moment that many microseconds after 1970-01-01 00:00:00, in the same zone; None beyond the years of the type.
    pub fn from_micros(micros: i128) -> Option<Self> {
        let days = i64::try_from(micros.div_euclid(DAY.into())).ok()?;
        Some(Self {
            micros: u64::try_from(micros.rem_euclid(DAY.into())).ok()?,
            ..Self::from_days(days)?
        })
    }

    /// Microseconds since 1970-01-01 00:00:00: the inverse of [`Self::from_micros`]. 24:00:00 is of the next day.
    pub fn since_epoch(self) -> i128 {
        i128::from(self.days()) * i128::from(DAY) + i128::from(self.micros)
    }

    /// The day of the week, Monday being 0.
    pub fn weekday(self) -> u32 {
        // 1970-01-01 was a Thursday.
        u32::try_from((self.days() + 3).rem_euclid(7)).unwrap_or_default()
    }

    /// Reads `YYYY-MM-DD` with a year of four to seven digits, which `year` turns into the calendar's.
    #[inline]
    pub fn read_day(text: &str, year: impl FnOnce(i32) -> Option<i32>) -> Result<Self, Misread> {
        let fields = || {
            let bytes = text.as_bytes();
            let (years, rest) = bytes.split_at_checked(bytes.len().checked_sub(6)?)?;
            if !(4..=7).contains(&years.len()) || rest[0] != b'-' || rest[3] != b'-' {
                return None;
            }
            let years = year(digits(years)?.cast_signed())?;
            Some((years, digits(&rest[1..3])?, digits(&rest[4..])?))
        };
        let (year, month, day) = fields().ok_or(Misread::Form)?;
        Self::midnight(year, month, day).ok_or(Misread::Range)
    }

    /// Reads the canonical text of a `date`, `time`, `timestamp` or `timestamptz`; the last in UTC.
    #[inline]
    pub fn from_canonical(pg_type: PgType, text: &str) -> Option<Self> {
        let (text, is_bc) = match text.strip_suffix(" BC") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let day = |text: &str| {
            let year = |year: i32| (year > 0).then_some(if is_bc { 1 - year } else { year });
            Self::read_day(text, year).ok()
        };
        let both = |text: &str| {
            let (date, time) = text.split_once(' ')?;
            let micros = canonical_time(time)?;
            Some(Self {
                micros,
                ..day(date)?
            })
        };
        match pg_type {
            PgType::Date => day(text),
            PgType::Time if !is_bc => Some(Self {
                micros: canonical_time(text)?,
                ..Self::default()
            }),
            PgType::Timestamp => both(text),
            PgType::TimestampTz => both(text.strip_suffix("+00")?),
            _ => None,
        }
    }
}

#[inline]
fn canonical_time(text: &str) -> Option<u64> {
    let (micros, fraction) = read_clock(text).ok()?;
    match fraction {
        [] => Some(micros),
        [b'.', fraction @ ..] if fraction.len() <= 6 => {
            let missing = 6 - u32::try_from(fraction.len()).ok()?;
            Some(micros + u64::from(digits(fraction)?) * 10_u64.pow(missing))
        }
        _ => None,
    }
}

/// Reads `HH:MM:SS` as microseconds since midnight, and returns what follows it.
#[inline]
pub fn read_clock(text: &str) -> Result<(u64, &[u8]), Misread> {
    let fields = || {
        let (clock, rest) = text.as_bytes().split_at_checked(8)?;
        if clock[2] != b':' || clock[5] != b':' {
            return None;
        }
        let number = |at: usize| digits(&clock[at..at + 2]).map(u64::from);
        Some((number(0)?, number(3)?, number(6)?, rest))
    };
    let (hour, minute, second, rest) = fields().ok_or(Misread::Form)?;
    if hour > 23 || minute > 59 || second > 59 {
        return Err(Misread::Range);
    }
    Ok(((hour * 3600 + minute * 60 + second) * SECOND, rest))
}

/// A number of one to nine digits and nothing else.
#[inline]
pub fn digits(text: &[u8]) -> Option<u32> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    text.iter().try_fold(0, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + u32::from(digit - b'0'))
    })
}

/// A number as it is written: `-`, digits, a fraction, an exponent.
#[derive(Debug, Clone, Copy)]
pub struct Number<'a> {
    pub negative: bool,
    pub integer: &'a str,
    /// Empty where there is none.
    pub fraction: &'a str,
    pub exponent: Option<&'a str>,
}

impl<'a> Number<'a> {
    /// Reads `-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?`: no blanks, no `+`, no bare point.
    pub fn read(text: &'a str) -> Option<Self> {
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let bytes = unsigned.as_bytes();
        let point = digits_before(bytes);
        let fraction = match &bytes[point..] {
            [b'.', rest @ ..] => point + 1..point + 1 + digits_before(rest),
            _ => point..point,
        };
        let exponent = match &bytes[fraction.end..] {
            [] => None,
            [b'e' | b'E', ..] => Some(&unsigned[fraction.end + 1..]),
            _ => return None,
        };
        let is_number = point > 0
            && (fraction.start == point || !fraction.is_empty())
            && exponent.is_none_or(|exponent| {
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                !digits.is_empty() && digits_before(digits.as_bytes()) == digits.len()
            });
        is_number.then_some(Self {
            negative: unsigned.len() < text.len(),
            integer: &unsigned[..point],
            fraction: &unsigned[fraction],
            exponent,
        })
    }

    /// Whether the value is 0, whatever the exponent.
    pub fn is_zero(&self) -> bool {
        let mut digits = self.integer.bytes().chain(self.fraction.bytes());
        digits.all(|digit| digit == b'0')
    }
}

/// The number of digits at the front.
fn digits_before(text: &[u8]) -> usize {
    let is_other = |byte: &u8| !byte.is_ascii_digit();
    text.iter().position(is_other).unwrap_or(text.len())
}

/// The values of floats, and of a `numeric` without precision, that are not numbers.
pub fn is_special(text: &str) -> bool {
    matches!(text, "NaN" | "Infinity" | "-Infinity")
}

/// An integer without a plus sign, which Rust reads and no canonical text has.
pub fn integer<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// The nearest `f32` or `f64`, as Postgres reads it. None where the text is not a number, or is out
/// of the type's range: it would be infinite, or zero without being 0.
pub fn float<T: FromStr + Copy + Into<f64>>(text: &str) -> Option<T> {
    let float: T = text.parse().ok()?;
    if is_special(text) {
        return Some(float);
    }
    // Rust also reads ".5", "+1" and "inf".
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let is_number = unsigned.starts_with(|first: char| first.is_ascii_digit());
    let value: f64 = float.into();
    let is_in_range = value.is_finite()
        && (value != 0.0 || Number::read(text).is_some_and(|number| number.is_zero()));
    (is_number && is_in_range).then_some(float)
}

#[cfg(test)]
mod tests {
    use jiff::civil::Date;

    use super::*;

    #[test]
    fn days_and_weekdays_agree_with_another_calendar() {
        // Two repetitions of the calendar, and the epoch.
        let first = Date::new(-401, 1, 1).unwrap();
        let last = Date::new(2001, 1, 1).unwrap();
        let before = (Date::new(1970, 1, 1).unwrap() - first).get_days();
        let dates = first.series(jiff::Span::new().days(1));
        for (count, date) in (0..).zip(dates.take_while(|date| *date < last)) {
            let days: i64 = count - i64::from(before);
            let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
            let moment = Moment::midnight(date.year().into(), month.into(), day.into());
            assert_eq!(Moment::from_days(days), moment, "{date}");
            assert_eq!(moment.unwrap().days(), days, "{date}");
            let weekday = date.weekday().to_monday_zero_offset();
            assert_eq!(moment.unwrap().weekday(), u32::try_from(weekday).unwrap());
        }
        assert_eq!(Moment::from_days(i64::MAX), None);
        for (year, month, day) in [(2001, 2, 29), (1900, 2, 29), (2018, 0, 1), (2018, 13, 1)] {
            assert_eq!(Moment::midnight(year, month, day), None);
        }
    }

    #[test]
    fn only_canonical_text_is_read() {
        let read = |pg_type: &str, text: &str| {
            Moment::from_canonical(pg_type.parse().unwrap(), text)
                .map(|moment| (moment.year, moment.month, moment.day, moment.micros))
        };
        let noon = 12 * 3600 * SECOND;
        for (pg_type, text, wanted) in [
            ("date", "12345-04-02", (12_345, 4, 2, 0)),
            ("date", "0044-03-15 BC", (-43, 3, 15, 0)),
            ("time", "12:00:00.5", (0, 0, 0, noon + 500_000)),
            ("timestamp", "0001-12-31 12:00:00 BC", (0, 12, 31, noon)),
            (
                "timestamptz",
                "0044-03-15 12:00:00+00 BC",
                (-43, 3, 15, noon),
            ),
        ] {
            assert_eq!(read(pg_type, text), Some(wanted), "{text}");
        }
        for (pg_type, text) in [
            ("date", "2018-4-2"),
            ("date", "0000-01-01"),
            ("date", "+12345-01-01"),
            ("date", "2018-04-02 00:00:00"),
            ("date", "x"),
            ("time", "24:00:00"),
            ("time", "12:00:00."),
            ("time", "12:00:00.1234567"),
            ("time", "12:00:00 BC"),
            ("timestamp", "2018-04-02"),
            ("timestamp", "2018-04-02 00:00:00+00"),
            ("timestamptz", "2018-04-02 00:00:00"),
            ("text", "2018-04-02"),
        ] {
            assert_eq!(read(pg_type, text), None, "{text} as {pg_type}");
        }
    }

    #[test]
    fn float_out_of_range_is_none() {
        assert_eq!(float::<f64>("1.0E10"), Some(1e10));
        assert_eq!(
            float::<f64>("-0.0").map(f64::to_bits),
            Some((-0.0_f64).to_bits())
        );
        assert_eq!(float::<f32>("-Infinity"), Some(f32::NEG_INFINITY));
        assert!(float::<f64>("NaN").is_some_and(f64::is_nan));
        for text in ["1e400", "1e-400", "inf", "nan", "+1", ".5", "", "0x1"] {
            assert_eq!(float::<f64>(text), None, "{text}");
        }
        assert_eq!(float::<f32>("1e-60"), None);
        assert_eq!(
            (integer::<i16>("-7"), integer::<i16>("+7")),
            (Some(-7), None)
        );
    }
}
