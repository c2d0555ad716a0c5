use super::*;

fn point(kind: ParameterType, text: &str) -> Point {
    Point::read(kind, text).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn values_have_the_order_of_their_type() {
    for (kind, ascending) in [
        (
            ParameterType::Integer,
            &["-10", "-9", "0", "9", "10", "9223372036854775807"][..],
        ),
        (
            ParameterType::Decimal,
            &[
                "-2.5",
                "-2.49",
                "-0.1",
                "0",
                "0.09",
                "0.1",
                "2.49",
                "2.5",
                "10.0001",
                "99999999999999999999999999999999999999",
            ],
        ),
        (
            ParameterType::Date,
            &["0001-01-01", "2018-04-02", "2018-04-10", "9999-12-31"],
        ),
        (
            ParameterType::Timestamp,
            &[
                "2018-04-02 00:00:00",
                "2018-04-02 00:00:00.001",
                "2018-04-02 00:00:00.1",
                "2018-04-02 10:00:00.000",
            ],
        ),
    ] {
        for pair in ascending.windows(2) {
            assert!(point(kind, pair[0]) < point(kind, pair[1]), "{pair:?}");
        }
    }
    let same = |kind, one: &str, other: &str| assert_eq!(point(kind, one), point(kind, other));
    same(
        ParameterType::Timestamp,
        "2018-04-02 00:00:00",
        "2018-04-02 00:00:00.000000000",
    );
    same(ParameterType::Decimal, "1.50", "01.5");
    same(ParameterType::Decimal, "-0.0", "0");
    for (kind, text) in [
        (ParameterType::Text, "a"),
        (ParameterType::Boolean, "true"),
        (ParameterType::Integer, "1e3"),
        (ParameterType::Date, "+10000-01-01 AD"),
        (ParameterType::Timestamp, "yesterday"),
    ] {
        assert_eq!(Point::read(kind, text), None, "{text}");
    }
}

fn range(from: &str, to: Option<&str>) -> WatermarkRange {
    WatermarkRange {
        column: "seen".to_owned(),
        parameters: vec!["since".to_owned(), "until".to_owned()],
        parameter_type: ParameterType::Timestamp,
        from: from.to_owned(),
        to: to.map(str::to_owned),
        at_most: None,
    }
}

#[test]
fn a_range_has_its_beginning_and_not_its_end() {
    let day = range("2018-04-02 00:00:00", Some("2018-04-03 00:00:00"));
    for (value, is_in) in [
        (Some("2018-04-02 00:00:00.000"), true),
        (Some("2018-04-02 23:59:59.999999999"), true),
        (Some("2018-04-03 00:00:00.000"), false),
        (Some("2018-04-01 23:59:59.999"), false),
        (Some("not a time"), false),
        (None, false),
    ] {
        assert_eq!(day.contains(value), is_in, "{value:?}");
    }
    let endless = range("2018-04-02 00:00:00", None);
    assert!(endless.contains(Some("9999-12-31 00:00:00")));
    assert!(!endless.is_empty() && !day.is_empty());
    assert!(range("2018-04-02 00:00:00", Some("2018-04-02 00:00:00")).is_empty());
    assert!(range("2018-04-02 00:00:00", Some("2018-04-01 00:00:00")).is_empty());
}

#[test]
fn ranges_that_touch_do_not_overlap() {
    let range = |from, to| range(from, to);
    let (one, two, three) = (
        "2018-04-01 00:00:00",
        "2018-04-02 00:00:00",
        "2018-04-03 00:00:00",
    );
    assert!(!range(one, Some(two)).overlaps(&range(two, Some(three))));
    assert!(!range(two, Some(three)).overlaps(&range(one, Some(two))));
    assert!(range(one, Some(three)).overlaps(&range(two, Some(three))));
    assert!(range(one, None).overlaps(&range(two, Some(three))));
    assert!(!range(three, None).overlaps(&range(one, Some(two))));
}

#[test]
fn the_next_watermark_never_goes_back_and_never_ahead_of_time() {
    let append = range("2018-04-02 00:00:00", Some("2018-04-03 00:00:00"));
    assert_eq!(
        append.next("2018-04-02 00:00:00", None),
        "2018-04-03 00:00:00"
    );
    let mut keyed = range("2018-04-01 21:00:00", None);
    keyed.at_most = Some("2018-04-10 00:00:00".to_owned());
    let watermark = "2018-04-02 00:00:00";
    for (found, next) in [
        (None, watermark),
        // Of the lag.
        (Some("2018-04-01 22:00:00.000"), watermark),
        (Some("2018-04-02 00:00:00.000"), watermark),
        (Some("2018-04-02 00:00:00.001"), "2018-04-02 00:00:00.001"),
        // Not rounded up: the range is closed, so that it is read again.
        (
            Some("2018-04-02 00:00:00.123456789"),
            "2018-04-02 00:00:00.123456",
        ),
        (Some("2099-01-01 00:00:00.000"), "2018-04-10 00:00:00"),
        (Some("+12345-01-01"), watermark),
    ] {
        assert_eq!(keyed.next(watermark, found), next, "{found:?}");
    }
    let numbers = WatermarkRange {
        parameter_type: ParameterType::Integer,
        from: "-5".to_owned(),
        at_most: None,
        ..keyed
    };
    assert_eq!(numbers.next("0", Some("-3")), "0");
    assert_eq!(numbers.next("9", Some("10")), "10");
}

#[test]
fn the_column_has_to_be_there_with_a_type_that_grows() {
    let column = |name: &str, type_name: &str| ResultColumn {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
    };
    let range = range("2018-04-02 00:00:00", None);
    let found = range.position(&[column("n", "bigint"), column("Seen", "timestamp(3)")]);
    assert_eq!(found, Ok(1));
    let missing = range
        .position(&[column("sen", "timestamp")])
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("\"seen\"") && missing.contains("did you mean"),
        "{missing}"
    );
    for other in [
        "varchar",
        "timestamp(3) with time zone",
        "date",
        "double",
        "real",
        "bigint",
        "unknown",
    ] {
        let refused = range
            .position(&[column("seen", other)])
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains(other) && refused.contains("timestamp"),
            "{refused}"
        );
    }
}

const SINCE: &str = "since = { type = \"timestamp\", watermark = \"seen\", initial = \"2018-04-01\", lag = \"3h\" }\n";
const UNTIL: &str = "until = { type = \"timestamp\", end_of = \"since\" }\n";
const UPSERT: &str = "mode = \"upsert\"\nkey = [\"k\"]\n";

/// A job with these parameters and this mode, and SQL that uses them.
fn job(parameters: &str, mode: &str) -> Result<Job, String> {
    let folder = tempfile::tempdir().unwrap();
    let names = parameters.lines().filter_map(|line| line.split_once(" = "));
    let names: Vec<_> = names.map(|(name, _)| format!(":{name}")).collect();
    let sql = format!("SELECT {}", names.join(", "));
    std::fs::write(folder.path().join("new.sql"), sql).unwrap();
    let toml = format!(
        "timezone = \"Europe/Amsterdam\"\n[source]\ndatabase = \"d\"\nsql = \"new.sql\"\n[parameters]\n{parameters}[target]\ntable = \"t\"\n{mode}"
    );
    std::fs::write(folder.path().join("new.toml"), toml).unwrap();
    Job::read(folder.path(), "new").map_err(|error| error.to_string())
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn settings_that_contradict_each_other_are_refused_with_what_to_change() {
    let number = "since = { type = \"integer\", watermark = \"n\", initial = 0, lag = \"10\" }\n";
    assert!(job(&format!("{SINCE}{UNTIL}"), "").is_ok());
    assert!(job(SINCE, UPSERT).is_ok());
    assert!(job(number, UPSERT).is_ok());
    let changed = |from: &str, to: &str| SINCE.replace(from, to);
    for (parameters, mode, part) in [
        (SINCE.to_owned(), "", "end_of = \"since\""),
        (
            format!("{}{UNTIL}", changed(", lag = \"3h\"", "")),
            "",
            "needs lag",
        ),
        (changed("\"3h\"", "\"3h ago\""), UPSERT, "lag = \"3h ago\""),
        (
            SINCE.to_owned(),
            "mode = \"upsert\"\nkey = [\"k\"]\n[[columns]]\nsource = \"Seen\"\nmask = \"sha256\"\n",
            "has a mask",
        ),
        (format!("{SINCE}{UNTIL}"), UPSERT, "without an end"),
        (format!("{SINCE}{UNTIL}"), "mode = \"replace\"\n", "replace"),
        (
            format!("{number}{}", UNTIL.replace("timestamp", "integer")),
            "",
            "before now",
        ),
        (
            format!("{SINCE}{}", UNTIL.replace("timestamp", "date")),
            "",
            "another type",
        ),
        (
            format!("{SINCE}{UNTIL}{}", UNTIL.replace("until", "till")),
            "",
            "second end",
        ),
        (
            format!("{SINCE}{UNTIL}{}", SINCE.replace("since", "begin")),
            "",
            "both have a watermark",
        ),
        (UNTIL.to_owned(), UPSERT, "no parameter with a watermark"),
        (
            changed("initial = \"2018-04-01\", ", ""),
            UPSERT,
            "needs initial",
        ),
        (changed("2018-04-01", "soon"), UPSERT, "\"soon\""),
        (changed("\"3h\"", "\"-3h\""), UPSERT, "lag = \"-3h\""),
        (changed("\"3h\"", "\"3\""), UPSERT, "lag = \"3\""),
        (
            changed("lag = \"3h\"", "default = \"2018-04-01\""),
            UPSERT,
            "remove the default",
        ),
        (
            changed("watermark = \"seen\", ", ""),
            UPSERT,
            "watermark = ",
        ),
        (changed("timestamp", "text"), UPSERT, "grows"),
        (number.replace("\"10\"", "\"3h\""), UPSERT, "lag = \"3h\""),
        (number.replace("integer", "decimal"), UPSERT, "lag = \"10\""),
    ] {
        let refused = job(&parameters, mode).unwrap_err();
        assert!(refused.contains(part), "{part}: {refused}");
    }
}

/// 12:30 in Amsterdam.
const NOW: &str = "2018-06-01T10:30:00.75Z";

fn read_on(
    job: &Job,
    set: &[(&str, &str)],
    watermark: Option<&str>,
    recorded: Option<&[(&str, &str)]>,
) -> (BTreeMap<String, String>, Option<ReadOn>) {
    let map = |values: &[(&str, &str)]| -> BTreeMap<String, String> {
        let values = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        values.collect()
    };
    let (set, recorded) = (map(set), recorded.map(map));
    let now = NOW.parse().unwrap();
    let mut values = job.resolve(&set, recorded.as_ref(), now);
    let is_recorded = recorded.is_some();
    let read_on = job
        .read_on(&set, &mut values, watermark, is_recorded, now)
        .unwrap();
    (job.request(&values).unwrap().parameters, read_on)
}

#[test]
fn an_append_reads_from_the_watermark_up_to_now_less_the_lag() {
    let job = job(&format!("{SINCE}{UNTIL}"), "").unwrap();
    let (values, first) = read_on(&job, &[], None, None);
    let first = first.unwrap();
    assert_eq!(values["since"], "2018-04-01 00:00:00");
    // In the job's time zone.
    assert_eq!(values["until"], "2018-06-01 09:30:00");
    assert_eq!(first.watermark, "2018-04-01 00:00:00");
    assert_eq!(first.range.to.as_deref(), Some("2018-06-01 09:30:00"));
    let (values, next) = read_on(&job, &[], Some("2018-06-01 09:00:00"), None);
    assert_eq!(values["since"], "2018-06-01 09:00:00");
    assert!(!next.unwrap().range.is_empty());
    // By hand: both of its ends.
    let by_hand = [("since", "2018-05-01"), ("until", "2018-05-02")];
    let (values, none) = read_on(&job, &by_hand, Some("2018-06-01 09:00:00"), None);
    assert_eq!(
        (values["until"].as_str(), none),
        ("2018-05-02 00:00:00", None)
    );
    for (name, value) in by_hand {
        let set = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let half = job.read_on(&set, &mut set.clone(), None, false, NOW.parse().unwrap());
        assert!(half.unwrap_err().contains("both of its ends"));
    }
    // Asked again.
    let recorded = [
        ("since", "2018-04-05 00:00:00"),
        ("until", "2018-04-06 00:00:00"),
    ];
    let (values, again) = read_on(&job, &[], Some("2018-04-05 00:00:00"), Some(&recorded));
    assert_eq!(
        (values["since"].as_str(), values["until"].as_str()),
        (recorded[0].1, recorded[1].1)
    );
    assert_eq!(again.unwrap().range.from, recorded[0].1);
    let (_, again) = read_on(
        &job,
        &recorded,
        Some("2018-04-05 00:00:00"),
        Some(&recorded),
    );
    assert!(
        again.is_some(),
        "asked again with the same values, it still reads on"
    );
}

#[test]
fn with_a_key_a_run_reads_from_the_watermark_less_the_lag() {
    let job = job(SINCE, UPSERT).unwrap();
    for (watermark, from) in [
        (None, "2018-04-01 00:00:00"),
        // Not before the initial value.
        (Some("2018-04-01 02:00:00"), "2018-04-01 00:00:00"),
        (Some("2018-04-02 02:00:00.5"), "2018-04-01 23:00:00.5"),
    ] {
        let (values, read_on) = read_on(&job, &[], watermark, None);
        let range = read_on.unwrap().range;
        assert_eq!(
            (values["since"].as_str(), range.from.as_str()),
            (from, from)
        );
        assert_eq!(
            (range.to.as_deref(), range.at_most.as_deref()),
            (None, Some("2018-06-01 12:30:00"))
        );
    }
    let number = "since = { type = \"integer\", watermark = \"n\", initial = 0, lag = \"10\" }\n";
    let job = self::job(number, UPSERT).unwrap();
    for (watermark, from) in [(None, "0"), (Some("4"), "0"), (Some("14"), "4")] {
        let (values, read_on) = read_on(&job, &[], watermark, None);
        assert_eq!(
            (values["since"].as_str(), read_on.unwrap().range.at_most),
            (from, None)
        );
    }
}

#[test]
fn a_watermark_of_another_type_names_the_command() {
    let job = job(SINCE, UPSERT).unwrap();
    let (set, now) = (BTreeMap::new(), NOW.parse().unwrap());
    let refused = job
        .read_on(&set, &mut BTreeMap::new(), Some("42"), false, now)
        .unwrap_err();
    assert!(refused.contains("etl watermark new --set"), "{refused}");
    assert_eq!(
        job.watermark_value("yesterday", now).unwrap(),
        "2018-05-31 00:00:00"
    );
    assert!(
        job.watermark_value("42", now)
            .unwrap_err()
            .contains("timestamp")
    );
}
