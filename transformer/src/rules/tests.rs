//! Rules on values of each kind of type, and jobs that are refused.

use common::job::{ColumnSpec, JobSpec};

use super::*;
use crate::check_job;

fn rules(toml: &str) -> Vec<Rule> {
    #[derive(serde::Deserialize)]
    struct Written {
        rules: Vec<Rule>,
    }
    toml::from_str::<Written>(&format!("rules = [{toml}]"))
        .unwrap()
        .rules
}

fn checks(pg_type: &str, toml: &str) -> Checks {
    Checks::compile("c", pg_type.parse().unwrap(), &rules(toml)).unwrap()
}

/// The rule that a canonical value breaks.
fn broken(pg_type: &str, toml: &str, value: &str) -> Option<&'static str> {
    checks(pg_type, toml)
        .first_broken(Some(value))
        .map(|broken| broken.rule)
}

#[test]
fn null_passes_every_rule_but_required() {
    let all = r#"{ not_empty = true }, { one_of = ["a"] }, { none_of = ["b"] }, { min = "a" }, { max = "a" }, { max_length = 1 }, { pattern = "a" }"#;
    assert_eq!(checks("text", all).first_broken(None), None);
    let required = checks("text", &format!("{all}, {{ required = true }}"));
    assert_eq!(required.first_broken(None).unwrap().rule, "required");
    assert_eq!(required.first_broken(Some("a")), None);
    assert_eq!(
        checks("text", "{ required = false }").first_broken(None),
        None
    );
}

#[test]
fn first_broken_rule_is_the_reject() {
    let toml = r#"{ max_length = 2 }, { none_of = ["A1", "abc"] }, { pattern = "[A-Z]+" }"#;
    assert_eq!(broken("text", toml, "abc"), Some("max_length"));
    assert_eq!(broken("text", toml, "A1"), Some("none_of"));
    assert_eq!(broken("text", toml, "ab"), Some("pattern"));
    assert_eq!(broken("text", toml, "AB"), None);
    assert_eq!(
        broken("text", "{ not_empty = true }", ""),
        Some("not_empty")
    );
    assert_eq!(
        broken("char(2)", r#"{ one_of = ["DE", "AT "] }"#, "AT"),
        None
    );
}

#[test]
fn max_length_counts_characters() {
    assert_eq!(broken("text", "{ max_length = 3 }", "äöü"), None);
    assert_eq!(
        broken("text", "{ max_length = 3 }", "äöüß"),
        Some("max_length")
    );
}

#[test]
fn bounds_compare_values_of_the_type() {
    for (pg_type, bound, less, more) in [
        ("bigint", "10", "9", "11"),
        ("bigint", "-10", "-11", "9"),
        (
            "numeric",
            "\"9.9999999999999999999999\"",
            "9.9999999999999999999998",
            "10",
        ),
        ("numeric(10,2)", "-1.5", "-1.51", "-1.49"),
        ("numeric", "0", "-Infinity", "Infinity"),
        ("double precision", "1e3", "9.99E2", "1.0E10"),
        ("date", "2018-04-02", "2018-04-01", "12018-04-01"),
        ("date", "0001-01-01", "0044-03-15 BC", "0001-01-02"),
        ("time", "09:00:00", "08:59:59.999999", "10:00:00"),
        (
            "timestamp",
            "2018-04-02T10:00:00",
            "2018-04-02 09:59:59.5",
            "2018-04-02 10:00:00.5",
        ),
        (
            "timestamptz",
            "2018-04-02T10:00:00+02:00",
            "2018-04-02 07:59:59+00",
            "2018-04-02 08:00:01+00",
        ),
        ("text", "\"Z\"", "A", "a"),
        ("text", "\"\u{ffff}\"", "a", "\u{10000}"),
    ] {
        let (min, max) = (
            format!("{{ min = {bound} }}"),
            format!("{{ max = {bound} }}"),
        );
        assert_eq!(broken(pg_type, &min, less), Some("min"), "{less} < {bound}");
        assert_eq!(broken(pg_type, &min, more), None, "{more} > {bound}");
        assert_eq!(broken(pg_type, &max, more), Some("max"), "{more} > {bound}");
        assert_eq!(broken(pg_type, &max, less), None, "{less} < {bound}");
    }
    assert_eq!(broken("bigint", "{ min = 3 }, { max = 3 }", "3"), None);
    assert_eq!(broken("numeric", "{ min = 3 }, { max = 3 }", "3.00"), None);
    assert_eq!(
        broken("double precision", "{ min = 0 }", "NaN"),
        Some("min")
    );
    assert_eq!(
        broken("double precision", "{ max = 0 }", "NaN"),
        Some("max")
    );
}

#[test]
fn lists_compare_values_of_the_type() {
    assert_eq!(
        broken("numeric", r#"{ one_of = ["1.50", 2] }"#, "1.5"),
        None
    );
    assert_eq!(
        broken("numeric(5,2)", r#"{ one_of = ["1.5"] }"#, "1.50"),
        None
    );
    assert_eq!(
        broken("double precision", "{ none_of = [1000] }", "1.0E3"),
        Some("none_of")
    );
    assert_eq!(
        broken("double precision", "{ none_of = [0] }", "-0.0"),
        Some("none_of")
    );
    assert_eq!(broken("bigint", "{ one_of = [1, 2] }", "3"), Some("one_of"));
    assert_eq!(
        broken("date", "{ none_of = [2018-04-02] }", "2018-04-02"),
        Some("none_of")
    );
    assert_eq!(
        broken("boolean", "{ one_of = [true] }", "false"),
        Some("one_of")
    );
}

#[test]
fn pattern_matches_the_whole_value() {
    assert_eq!(
        broken("text", r#"{ pattern = "a|b" }"#, "ab"),
        Some("pattern")
    );
    assert_eq!(broken("text", r#"{ pattern = "a|b" }"#, "b"), None);
    assert_eq!(
        broken("text", r#"{ pattern = "a" }"#, "a\n"),
        Some("pattern")
    );
    assert_eq!(broken("text", r#"{ pattern = "(?x) a " }"#, "a"), None);
    // The pattern applies to the text that Postgres shows, without trailing zeros.
    let full_hour = r"{ pattern = '.* \d\d:00:00' }";
    for (time, rule) in [("09:00:00.000", None), ("09:00:00.500", Some("pattern"))] {
        let value = format!("2018-04-02 {time}");
        assert_eq!(broken("timestamp", full_hour, &value), rule);
    }
    let one_of = r#"{ one_of = ["2018-04-02 09:00:00"] }"#;
    assert_eq!(broken("timestamp", one_of, "2018-04-02 09:00:00.000"), None);
}

#[test]
fn reasons_are_sentences() {
    let reason = |pg_type: &str, toml: &str, value| {
        checks(pg_type, toml)
            .first_broken(Some(value))
            .unwrap()
            .reason
    };
    assert_eq!(
        reason("bigint", "{ min = 3 }", "2"),
        r#""2" is less than the minimum 3"#
    );
    assert_eq!(
        reason("text", r#"{ none_of = ["A1", "A2"] }"#, "A1"),
        r#""A1" is one of the values not allowed: "A1", "A2""#
    );
    assert_eq!(
        reason("text", "{ not_empty = true }", ""),
        "the value is empty"
    );
}

#[test]
fn unusable_rule_is_refused_with_the_job() {
    let refused = |pg_type: &str, toml: &str| {
        let pg_type = pg_type.parse().unwrap();
        Checks::compile("price", pg_type, &rules(toml))
            .unwrap_err()
            .to_string()
    };
    for (pg_type, toml, part) in [
        (
            "text",
            r#"{ pattern = "a(" }"#,
            "not a usable regular expression",
        ),
        (
            "text",
            r#"{ pattern = "a)|(b" }"#,
            "not a usable regular expression",
        ),
        (
            "text",
            r#"{ pattern = "(\\w{1,500}){500}" }"#,
            "not a usable regular expression",
        ),
        ("bigint", r#"{ min = "three" }"#, "not an integer"),
        ("smallint", "{ max = 40000 }", "out of the range"),
        ("date", "{ min = 20180402 }", "not a date"),
        (
            "timestamptz",
            "{ min = 2018-04-02T10:00:00 }",
            "no time zone",
        ),
        ("char(2)", r#"{ one_of = ["USA"] }"#, "holds 2"),
        ("double precision", r#"{ min = "NaN" }"#, "bound"),
        ("json", r#"{ one_of = ["{}"] }"#, "not compared"),
        ("boolean", "{ min = false }", "no order"),
        ("bigint", "{ not_empty = true }", "for text"),
        ("date", "{ max_length = 3 }", "for text"),
        ("text", "{ one_of = [] }", "empty"),
    ] {
        let error = refused(pg_type, toml);
        assert!(
            error.contains(part) && error.contains("\"price\""),
            "{toml}: {error}"
        );
    }
}

#[test]
fn job_is_checked_before_its_query_has_run() {
    let column = |pg_type: Option<&str>, toml: &str| ColumnSpec {
        source: Some("s".into()),
        pg_type: pg_type.map(|text| text.parse().unwrap()),
        rules: rules(toml),
        ..ColumnSpec::default()
    };
    let check_columns = |columns: &[ColumnSpec]| {
        check_job(&JobSpec {
            name: "j".into(),
            target: common::job::Target::default(),
            columns: columns.to_vec(),
            watermark: None,
        })
    };
    assert_eq!(
        check_columns(&[
            column(Some("bigint"), "{ min = 3 }"),
            column(None, "{ min = 3 }")
        ]),
        Ok(())
    );
    assert!(check_columns(&[column(Some("bigint"), r#"{ min = "x" }"#)]).is_err());
    assert!(check_columns(&[column(None, r#"{ pattern = "(" }"#)]).is_err());
    for (settings, part) in [
        (
            "name = \"n\"\nconstant = \"x\"\ntype = \"bigint\"",
            "not an integer",
        ),
        (
            "name = \"n\"\nrequested_at = true\nconstant = \"2018-04-02T00:00:00Z\"\ntype = \"timestamp\"",
            "would drop",
        ),
        (
            "source = \"s\"\nformat = \"%d.%m\"\ntype = \"date\"",
            "needs a year",
        ),
        (
            "source = \"s\"\nepoch = \"ms\"\nrules = [{ min = 3 }]",
            "timestamp",
        ),
    ] {
        let column: ColumnSpec = toml::from_str(settings).unwrap();
        let error = check_columns(&[column]).unwrap_err().to_string();
        assert!(error.contains(part), "{settings}: {error}");
    }
}
