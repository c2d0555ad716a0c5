//! Dates, times, timestamps and intervals.

use rand::Rng as _;
use rand::rngs::StdRng;

use super::{Kind, Value, pairs};

#[expect(clippy::too_many_lines, reason = "a table of types")]
pub(super) fn kinds() -> Vec<Kind> {
    vec![
        Kind {
            athena: "date",
            postgres: "date",
            edges: pairs(&[
                ("0001-01-01", "0001-01-01"),
                ("0000-12-31", "0001-12-31 BC"),
                ("0000-02-29", "0001-02-29 BC"),
                ("-0001-01-01", "0002-01-01 BC"),
                ("-4713-11-24", "4714-11-24 BC"),
                ("9999-12-31", "9999-12-31"),
                ("+10000-01-01", "10000-01-01"),
                ("+5874897-12-31", "5874897-12-31"),
            ]),
            random: |r| {
                let day = Day::random(r, -4_000, 20_000);
                (day.athena(), format!("{}{}", day.postgres(), day.era()))
            },
        },
        Kind {
            athena: "time(3)",
            postgres: "time",
            edges: pairs(&[
                ("00:00:00.000", "00:00:00"),
                ("23:59:59.999", "23:59:59.999"),
            ]),
            random: |r| {
                let (seconds, millis) = (r.random_range(0..86_400), r.random_range(0..1_000));
                let clock = clock(seconds);
                (
                    format!("{clock}.{millis:03}"),
                    format!("{clock}{}", fraction(millis, 3)),
                )
            },
        },
        timestamps("timestamp(3)", |r| random_timestamp(r, 3)),
        timestamps("timestamp(6)", |r| random_timestamp(r, 6)),
        timestamps("timestamp(9)", |r| random_timestamp(r, 9)),
        Kind {
            athena: "timestamp with time zone",
            postgres: "timestamptz",
            edges: pairs(&[
                ("1970-01-01 00:00:00.000 UTC", "1970-01-01 00:00:00+00"),
                ("0001-01-01 00:00:00.000 UTC", "0001-01-01 00:00:00+00"),
                ("-0043-03-15 12:00:00.000 UTC", "0044-03-15 12:00:00+00 BC"),
                (
                    "+12345-06-07 08:09:10.120 UTC",
                    "12345-06-07 08:09:10.12+00",
                ),
                ("2017-12-31 23:30:00.000 -00:30", "2018-01-01 00:00:00+00"),
                ("2018-01-01 05:45:00.000 +05:45", "2018-01-01 00:00:00+00"),
                (
                    "2016-02-29 20:00:00.001 America/Los_Angeles",
                    "2016-03-01 04:00:00.001+00",
                ),
            ]),
            random: zoned,
        },
        Kind {
            athena: "interval day to second",
            postgres: "interval",
            edges: pairs(&[
                ("0 00:00:00.000", "00:00:00"),
                ("1 00:00:00.000", "1 day"),
                ("-1 00:00:00.000", "-1 days"),
                ("-0 00:00:00.001", "-00:00:00.001"),
                ("99999 23:59:59.999", "99999 days 23:59:59.999"),
            ]),
            random: |r| {
                let (days, seconds, millis) = (
                    r.random_range(2..10_000),
                    r.random_range(1..86_400),
                    r.random_range(0..1_000),
                );
                let (sign, clock) = (if r.random() { "-" } else { "" }, clock(seconds));
                let athena = format!("{sign}{days} {clock}.{millis:03}");
                (
                    athena,
                    format!("{sign}{days} days {sign}{clock}{}", fraction(millis, 3)),
                )
            },
        },
        Kind {
            athena: "interval year to month",
            postgres: "interval",
            edges: pairs(&[
                ("0-0", "00:00:00"),
                ("1-0", "1 year"),
                ("0-1", "1 mon"),
                ("-0-11", "-11 mons"),
                ("-1-1", "-1 years -1 mons"),
                ("178956969-11", "178956969 years 11 mons"),
            ]),
            random: |r| {
                let (years, months) = (r.random_range(2..1_000_000), r.random_range(2..12));
                let sign = if r.random() { "-" } else { "" };
                (
                    format!("{sign}{years}-{months}"),
                    format!("{sign}{years} years {sign}{months} mons"),
                )
            },
        },
    ]
}

fn timestamps(athena: &'static str, random: fn(&mut StdRng) -> Value) -> Kind {
    Kind {
        athena,
        postgres: "timestamp",
        edges: pairs(&[
            ("1970-01-01 00:00:00.000", "1970-01-01 00:00:00"),
            ("0001-01-01 00:00:00.000", "0001-01-01 00:00:00"),
            ("0000-12-31 23:59:59.999", "0001-12-31 23:59:59.999 BC"),
            ("-4713-11-24 00:00:00.000", "4714-11-24 00:00:00 BC"),
            ("9999-12-31 23:59:59.999999", "9999-12-31 23:59:59.999999"),
            (
                "+294276-12-31 23:59:59.999999",
                "294276-12-31 23:59:59.999999",
            ),
        ]),
        random,
    }
}

/// A day of the calendar that Java and Postgres share.
struct Day {
    year: i32,
    month: u32,
    of_month: u32,
}

impl Day {
    fn random(r: &mut StdRng, from_year: i32, to_year: i32) -> Self {
        let (year, month) = (r.random_range(from_year..to_year), r.random_range(1..=12));
        let days = match month {
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        Self {
            year,
            month,
            of_month: r.random_range(1..=days),
        }
    }

    /// As Java writes it: year 0 is 1 BC, and a year of more than four digits has a sign.
    fn athena(&self) -> String {
        let Self {
            year,
            month,
            of_month,
        } = self;
        let sign = match year {
            ..0 => "-",
            0..=9999 => "",
            _ => "+",
        };
        format!("{sign}{:04}-{month:02}-{of_month:02}", year.abs())
    }

    fn postgres(&self) -> String {
        let Self {
            year,
            month,
            of_month,
        } = self;
        let year = if *year > 0 { *year } else { 1 - year };
        format!("{year:04}-{month:02}-{of_month:02}")
    }

    fn era(&self) -> &'static str {
        if self.year > 0 { "" } else { " BC" }
    }
}

fn clock(seconds: u32) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// A fraction of a second without the zeros at its end.
fn fraction(number: u32, digits: usize) -> String {
    if number == 0 {
        return String::new();
    }
    let digits = format!("{number:0digits$}");
    format!(".{}", digits.trim_end_matches('0'))
}

/// With so many digits of a second, of which six at most are not zero.
fn random_timestamp(r: &mut StdRng, digits: usize) -> Value {
    let (day, clock) = (
        Day::random(r, -4_000, 20_000),
        clock(r.random_range(0..86_400)),
    );
    let kept = digits.min(6);
    let number = r.random_range(0..10_u32.pow(u32::try_from(kept).expect("fits")));
    let athena = format!("{number:0kept$}{}", "0".repeat(digits - kept));
    (
        format!("{} {clock}.{athena}", day.athena()),
        format!(
            "{} {clock}{}{}",
            day.postgres(),
            fraction(number, kept),
            day.era()
        ),
    )
}

/// In UTC, with an offset, or in a zone whose offset in January and July is known.
fn zoned(r: &mut StdRng) -> Value {
    const ZONES: [(&str, i32, i32); 4] = [
        ("America/New_York", -300, -240),
        ("Europe/Berlin", 60, 120),
        ("Asia/Kolkata", 330, 330),
        ("Australia/Sydney", 660, 600),
    ];
    let mut day = Day::random(r, 1_990, 2_038);
    let (zone, offset) = match r.random_range(0..3) {
        0 => ("UTC".to_owned(), 0),
        1 => {
            let quarters = r.random_range(-48_i32..=56);
            let (sign, minutes) = (if quarters < 0 { '-' } else { '+' }, quarters.abs() * 15);
            (
                format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60),
                quarters * 15,
            )
        }
        _ => {
            let (name, january, july) = ZONES[r.random_range(0..ZONES.len())];
            let winter: bool = r.random();
            day.month = if winter { 1 } else { 7 };
            (name.to_owned(), if winter { january } else { july })
        }
    };
    // The minutes of a day that is the same one in UTC.
    let utc = r.random_range(0.max(-offset)..1_440.min(1_440 - offset));
    let (seconds, millis) = (r.random_range(0..60), r.random_range(0..1_000));
    let at = |minutes: i32| clock(u32::try_from(minutes).expect("within a day") * 60 + seconds);
    (
        format!("{} {}.{millis:03} {zone}", day.athena(), at(utc + offset)),
        format!("{} {}{}+00", day.postgres(), at(utc), fraction(millis, 3)),
    )
}
