//! Dates and times, from the text that the transformer makes: what Postgres itself shows with `DateStyle ISO` and
//! `TimeZone UTC`, years before Christ with ` BC` at the end.

const MICROS: i64 = 1_000_000;
const MICROS_A_DAY: i64 = 86_400 * MICROS;

/// Days from 1970-01-01 to 2000-01-01, from which Postgres counts.
const EPOCH: i64 = 10_957;

/// Days since 2000-01-01.
pub(super) fn date(text: &str) -> Option<i32> {
    let (text, is_before_christ) = era(text);
    i32::try_from(days(text, is_before_christ)?).ok()
}

/// Microseconds since midnight.
pub(super) fn time(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let (clock, fraction) = bytes.split_at_checked(8)?;
    if clock[2] != b':' || clock[5] != b':' {
        return None;
    }
    let (hour, minute, second) = (
        number(&clock[..2])?,
        number(&clock[3..5])?,
        number(&clock[6..])?,
    );
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let micros = match fraction {
        [] => 0,
        [b'.', digits @ ..] if (1..=6).contains(&digits.len()) => {
            let missing = 6 - u32::try_from(digits.len()).ok()?;
            number(digits)? * 10_i64.pow(missing)
        }
        _ => return None,
    };
    Some((hour * 3_600 + minute * 60 + second) * MICROS + micros)
}

/// Microseconds since 2000-01-01 00:00.
pub(super) fn timestamp(text: &str) -> Option<i64> {
    let (text, is_before_christ) = era(text);
    let (day, clock) = text.split_once(' ')?;
    let day = days(day, is_before_christ)?.checked_mul(MICROS_A_DAY)?;
    day.checked_add(time(clock)?)
}

/// As [`timestamp`], of a text whose zone is UTC.
pub(super) fn timestamptz(text: &str) -> Option<i64> {
    match text.strip_suffix(" BC") {
        None => timestamp(text.strip_suffix("+00")?),
        Some(rest) => {
            let (day, clock) = rest.strip_suffix("+00")?.split_once(' ')?;
            let day = days(day, true)?.checked_mul(MICROS_A_DAY)?;
            day.checked_add(time(clock)?)
        }
    }
}

fn era(text: &str) -> (&str, bool) {
    match text.strip_suffix(" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

/// Days since 2000-01-01 of `YYYY-MM-DD`, where the year may have more digits.
fn days(text: &str, is_before_christ: bool) -> Option<i64> {
    let bytes = text.as_bytes();
    let (year, rest) = bytes.split_at_checked(bytes.len().checked_sub(6)?)?;
    if !(4..=7).contains(&year.len()) || rest[0] != b'-' || rest[3] != b'-' {
        return None;
    }
    let (year, month, day) = (number(year)?, number(&rest[1..3])?, number(&rest[4..])?);
    if year == 0 {
        return None;
    }
    let year = if is_before_christ { 1 - year } else { year };
    if !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day) {
        return None;
    }
    Some(since_1970(year, month, day) - EPOCH)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; year 0 is 1 BC. Years are counted from March, so that the
/// day that only some of them have is their last.
fn since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Digits alone, nine at most.
fn number(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + i64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_the_year_2000() {
        assert_eq!(date("2000-01-01"), Some(0));
        assert_eq!(date("1999-12-31"), Some(-1));
        assert_eq!(date("2000-03-01"), Some(60));
        assert_eq!(date("1970-01-01"), Some(-10_957));
        assert_eq!(date("4714-11-24 BC"), Some(-2_451_545));
        assert_eq!(date("0001-12-31 BC"), Some(date("0001-01-01").unwrap() - 1));
        assert_eq!(date("2001-02-29"), None);
    }

    #[test]
    fn moments_are_counted_in_microseconds() {
        assert_eq!(time("00:00:00.5"), Some(500_000));
        assert_eq!(timestamp("2000-01-01 00:00:01.000001"), Some(1_000_001));
        assert_eq!(timestamp("1999-12-31 23:59:59"), Some(-1_000_000));
        assert_eq!(timestamptz("2000-01-01 00:00:00+00"), Some(0));
        assert_eq!(
            timestamptz("0044-03-15 12:00:00+00 BC"),
            timestamp("0044-03-15 12:00:00 BC")
        );
    }
}
