//! Relative dates and times: `yesterday`, `start of month`, `now - 2h`. A request resolves them once, in the job's time zone,
//! and the ledger records the result.

use jiff::civil::Date;
use jiff::{Span, ToSpan, Zoned};

/// What a relative value may be, for errors.
pub(super) const SYNTAX: &str = "now, today, yesterday, tomorrow, or start of hour, day, week, month, quarter or year, and behind it + or - times such as 2h, 3d or 1 month";

/// The point in time that a relative value means; none for a text that is no relative value. A week begins on Monday. Days and
/// longer units are those of the calendar, hours and shorter ones have their length, also where the clocks change.
pub(super) fn resolve(text: &str, now: &Zoned) -> Option<Zoned> {
    let text = text.trim().to_lowercase();
    let end = text.find(['+', '-']).unwrap_or(text.len());
    let (base, mut rest) = text.split_at(end);
    let mut moment = start(base.trim(), now)?;
    while let Some(sign) = rest.chars().next() {
        let amount = &rest[1..];
        let end = amount.find(['+', '-']).unwrap_or(amount.len());
        let span = span(amount[..end].trim())?;
        moment = match sign {
            '+' => moment.checked_add(span).ok()?,
            _ => moment.checked_sub(span).ok()?,
        };
        rest = &amount[end..];
    }
    Some(moment)
}

/// An amount of time without a sign: `2h 30m`, `1 month`.
pub(super) fn span(amount: &str) -> Option<Span> {
    let begins_with_digit = amount.bytes().next().is_some_and(|b| b.is_ascii_digit());
    let span: Span = amount.parse().ok().filter(|_| begins_with_digit)?;
    (!span.is_negative()).then_some(span)
}

fn start(base: &str, now: &Zoned) -> Option<Zoned> {
    let today = now.date();
    let midnight = |date: Date| date.to_zoned(now.time_zone().clone()).ok();
    let words: Vec<_> = base.split_whitespace().collect();
    match words[..] {
        ["now"] => Some(now.clone()),
        ["today"] | ["start", "of", "day"] => midnight(today),
        ["yesterday"] => midnight(today.yesterday().ok()?),
        ["tomorrow"] => midnight(today.tomorrow().ok()?),
        ["start", "of", "hour"] => {
            let (hour, zone) = (now.hour(), now.time_zone().clone());
            let first = today.at(hour, 0, 0, 0).to_zoned(zone).ok()?;
            // Of an hour that the clocks repeat, this one.
            let again = first.checked_add(1.hour()).ok()?;
            Some(if again.hour() == hour && again <= *now {
                again
            } else {
                first
            })
        }
        ["start", "of", "week"] => {
            let days = i64::from(today.weekday().to_monday_zero_offset());
            midnight(today.checked_sub(days.days()).ok()?)
        }
        ["start", "of", "month"] => midnight(today.first_of_month()),
        ["start", "of", "quarter"] => {
            let months = i64::from((today.month() - 1) % 3);
            midnight(today.first_of_month().checked_sub(months.months()).ok()?)
        }
        ["start", "of", "year"] => midnight(today.first_of_year()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str, now: &str) -> Option<String> {
        let now = now.parse().unwrap();
        resolve(text, &now).map(|moment| moment.datetime().to_string())
    }

    #[test]
    fn relative_values_are_those_of_the_calendar() {
        // A Thursday.
        let now = "2024-02-29T13:45:10.5[Europe/Amsterdam]";
        for (text, wanted) in [
            ("now", "2024-02-29T13:45:10.5"),
            ("today", "2024-02-29T00:00:00"),
            ("Yesterday", "2024-02-28T00:00:00"),
            ("tomorrow", "2024-03-01T00:00:00"),
            ("start of hour", "2024-02-29T13:00:00"),
            ("start of week", "2024-02-26T00:00:00"),
            ("start  of month", "2024-02-01T00:00:00"),
            ("start of quarter", "2024-01-01T00:00:00"),
            ("start of year", "2024-01-01T00:00:00"),
            ("now - 2h", "2024-02-29T11:45:10.5"),
            ("now-90m", "2024-02-29T12:15:10.5"),
            ("today - 1 year", "2023-02-28T00:00:00"),
            ("start of month - 1 month", "2024-01-01T00:00:00"),
            ("start of month + 1 month - 1 day", "2024-02-29T00:00:00"),
            ("today - 1d + 6h", "2024-02-28T06:00:00"),
            ("today - 2 weeks", "2024-02-15T00:00:00"),
        ] {
            assert_eq!(resolved(text, now).as_deref(), Some(wanted), "{text}");
        }
        for text in [
            "",
            "2024-02-29",
            "now -",
            "now - -2h",
            "now 2h",
            "2h",
            "noon",
            "start of",
            "start of decade",
            "now - 2 parsecs",
            "today - 9999999 years",
            "yesterday, please",
        ] {
            assert_eq!(resolved(text, now), None, "{text}");
        }
    }

    #[test]
    fn clocks_that_change_move_no_day_and_no_hour() {
        // The clocks went back at three: two o'clock came twice.
        let second = "2024-10-27T02:30:00+01:00[Europe/Amsterdam]";
        assert_eq!(
            resolved("start of day", second).as_deref(),
            Some("2024-10-27T00:00:00")
        );
        let now: Zoned = second.parse().unwrap();
        let hour = resolve("start of hour", &now).unwrap();
        assert_eq!(now.duration_since(&hour).as_mins(), 30);
        assert_eq!(
            resolved("now - 1h", second).as_deref(),
            Some("2024-10-27T02:30:00")
        );
        assert_eq!(
            resolved("now - 1d", second).as_deref(),
            Some("2024-10-26T02:30:00")
        );
    }
}
