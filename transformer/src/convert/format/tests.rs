//! Values that a format reads or refuses, and formats that are refused.

use proptest::prelude::*;

use super::*;

fn read(format: &str, to: &str, text: &str) -> Result<String, String> {
    let format = Format::parse(format, to.parse().unwrap())?;
    let read = format.read(text, Excess::Refuse);
    read.map(Cow::into_owned).map_err(Cow::into_owned)
}

#[test]
fn matching_value_is_read() {
    for (format, to, text, wanted) in [
        ("%d.%m.%Y", "date", "02.04.2018", "2018-04-02"),
        ("%Y%m%d", "date", "20180402", "2018-04-02"),
        ("%-d/%-m/%y", "date", "2/4/18", "2018-04-02"),
        ("%y%m%d", "date", "690101", "1969-01-01"),
        ("%a, %d %b %Y", "date", "Mon, 02 Apr 2018", "2018-04-02"),
        ("%A %-d %B %Y", "date", "monday 2 APRIL 2018", "2018-04-02"),
        ("%H%M", "time", "1330", "13:30:00"),
        ("%I:%M %p", "time", "12:05 AM", "00:05:00"),
        ("%I:%M %p", "time", "12:05 pm", "12:05:00"),
        ("%Y%m%d%H", "timestamp", "2018040213", "2018-04-02 13:00:00"),
        (
            "%FT%T.%f",
            "timestamp",
            "2018-04-02T13:00:01.25",
            "2018-04-02 13:00:01.25",
        ),
        (
            "%d/%b/%Y:%T %z",
            "timestamptz",
            "02/Apr/2018:13:00:01 -0700",
            "2018-04-02 20:00:01+00",
        ),
        (
            "%F %R %Z",
            "timestamptz",
            "2018-04-02 13:00 Europe/Berlin",
            "2018-04-02 11:00:00+00",
        ),
        (
            "%FT%TZ",
            "timestamp",
            "2018-04-02T13:00:01Z",
            "2018-04-02 13:00:01",
        ),
        ("100%% %F", "date", "100% 2018-04-02", "2018-04-02"),
    ] {
        assert_eq!(
            read(format, to, text).as_deref(),
            Ok(wanted),
            "{format} {text}"
        );
    }
}

#[test]
fn other_value_is_refused() {
    for (format, to, text, part) in [
        ("%d.%m.%Y", "date", "2.4.2018", "is not written as %d.%m.%Y"),
        ("%d.%m.%Y", "date", "02.04.2018 ", "is not written as"),
        ("%d.%m.%Y", "date", " 02.04.2018", "is not written as"),
        ("%d.%m.%Y", "date", "02.04.18", "is not written as"),
        ("%d.%m.%Y", "date", "30.02.2018", "no calendar"),
        ("%d.%m.%Y", "date", "00.01.2018", "no calendar"),
        ("%d.%m.%Y", "date", "01.13.2018", "no calendar"),
        ("%a %F", "date", "Tue 2018-04-02", "another day of the week"),
        ("%d %b %Y", "date", "02 Avr 2018", "is not written as"),
        ("%d %b %Y", "date", "02 April 2018", "is not written as"),
        ("%T", "time", "23:59:60", "no clock"),
        ("%T", "time", "24:00:00", "no clock"),
        ("%I %p", "time", "13 PM", "no clock"),
        ("%I %p", "time", "00 AM", "no clock"),
        ("%T.%f", "time", "10:00:00.1234567", "more than 6 digits"),
        (
            "%F %T %z",
            "timestamptz",
            "2018-04-02 10:00:00 UTC",
            "is not written as",
        ),
        (
            "%F %T %Z",
            "timestamptz",
            "2018-04-02 10:00:00 Mars/Base",
            "time zone",
        ),
        (
            "%F %T %Z",
            "timestamptz",
            "2017-11-05 01:30:00 America/Los_Angeles",
            "twice",
        ),
    ] {
        let error = read(format, to, text).unwrap_err();
        assert!(error.contains(part), "{format} {text}: {error}");
    }
}

#[test]
fn format_that_does_not_fit_the_type_is_refused() {
    for (format, to, part) in [
        ("%d.%m", "date", "needs a year"),
        ("", "date", "needs a year"),
        ("%F %H", "date", "would drop the time"),
        ("%F", "timestamp", "needs an hour"),
        ("%F %H", "time", "would drop the date"),
        ("%F %T %z", "timestamp", "would drop the time zone"),
        ("%F %T", "timestamptz", "needs a time zone"),
        ("%I:%M", "time", "go together"),
        ("%H %p", "time", "go together"),
        ("%H:%S", "time", "greater one"),
        ("%F %Y", "date", "twice"),
        ("%-d%m%Y", "date", "runs into"),
        ("%H:%M:%S.%f%z", "time", "would drop the time zone"),
        ("%F %T.%f%Y", "timestamp", "twice"),
        ("%Q", "date", "%Q is not known"),
        ("%F %", "date", "% is not known"),
        ("%-Y", "date", "%-Y is not known"),
    ] {
        let error = read(format, to, "").unwrap_err();
        assert!(error.contains(part), "{format}: {error}");
    }
}

proptest! {
    #[test]
    fn formatted_date_is_read_back(days in -700_000_i64..2_900_000) {
        let date = Moment::from_days(days).unwrap();
        let (year, month, day) = (date.year, date.month, date.day);
        prop_assume!((1..=9999).contains(&year));
        let iso = format!("{year:04}-{month:02}-{day:02}");
        prop_assert_eq!(read("%d %B, %Y", "date", &format!("{day:02} {}, {year:04}", MONTHS[usize::from(month) - 1])).unwrap(), iso.clone());
        prop_assert_eq!(read("%Y%m%d", "date", &iso.replace('-', "")).unwrap(), iso);
    }

    #[test]
    fn no_format_or_text_panics(format in "(%-?[YymbBdaAHIpMSfzZFTR%]|\\PC){0,9}", text in "\\PC{0,24}", to in prop::sample::select(vec!["date", "time", "timestamp", "timestamptz"])) {
        drop(read(&format, to, &text));
    }
}
