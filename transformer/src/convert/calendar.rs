//! The proleptic Gregorian calendar, as Java, SQL and Postgres have it. Year 0 is 1 BC.

use super::Moment;

/// Days of 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;
/// From 0000-03-01, where the years of the computation begin, to 1970-01-01.
const EPOCH: i64 = 719_468;

/// The days of a month.
pub(super) fn days_of(year: i32, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Midnight of the day after.
pub(super) fn next_day(moment: Moment) -> Moment {
    let Moment {
        year, month, day, ..
    } = moment;
    let (year, month, day) = if u32::from(day) < days_of(year, month.into()) {
        (year, month, day + 1)
    } else if month < 12 {
        (year, month + 1, 1)
    } else {
        (year + 1, 1, 1)
    };
    Moment {
        year,
        month,
        day,
        micros: 0,
    }
}

/// Midnight of the day that many days after 1970-01-01. None where the year is beyond 32 bits.
///
/// Years are counted from March, so that a leap day is the last of its year and the months before it
/// have lengths that repeat: 153 days in five months.
pub(super) fn from_days(days: i64) -> Option<Moment> {
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
    Some(Moment {
        year: i32::try_from(era * 400 + year_of_era + later).ok()?,
        month: u8::try_from(month).ok()?,
        day: u8::try_from(day).ok()?,
        micros: 0,
    })
}

/// The day of the week, Monday being 0.
pub(super) fn weekday(moment: Moment) -> usize {
    // January and February count as the last months of the year before.
    let (month, year) = (i64::from(moment.month), i64::from(moment.year));
    let (from_march, year) = if month > 2 {
        (month - 3, year)
    } else {
        (month + 9, year - 1)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = 365 * year + leap_days + (153 * from_march + 2) / 5 + i64::from(moment.day) - 1;
    // 0000-03-01 was a Wednesday.
    usize::try_from((days + 2).rem_euclid(7)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use jiff::civil::Date;

    use super::*;

    #[test]
    fn days_are_those_of_another_calendar() {
        // Two repetitions of the calendar, and the epoch.
        let first = Date::new(-401, 1, 1).unwrap();
        let last = Date::new(2001, 1, 1).unwrap();
        let epoch = Date::new(1970, 1, 1).unwrap();
        let before = (epoch - first).get_days();
        let mut moment = from_days((-before).into()).unwrap();
        let dates = first.series(jiff::Span::new().days(1));
        for (count, date) in dates.take_while(|date| *date < last).enumerate() {
            let seen = (
                moment.year,
                moment.month.cast_signed(),
                moment.day.cast_signed(),
            );
            assert_eq!(seen, (i32::from(date.year()), date.month(), date.day()));
            let days = i64::try_from(count).unwrap() - i64::from(before);
            assert_eq!(from_days(days), Some(moment), "{date}");
            let weekday = date.weekday().to_monday_zero_offset();
            assert_eq!(
                self::weekday(moment),
                usize::try_from(weekday).unwrap(),
                "{date}"
            );
            moment = next_day(moment);
        }
        assert_eq!(from_days(i64::MAX), None);
    }
}
