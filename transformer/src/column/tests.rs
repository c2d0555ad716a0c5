//! The settings of a column, value by value, compared with `docs/types.md`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use common::Rows;
use common::job::{ColumnSpec, resolve};
use common::schema::{ResultColumn, SchemaError};

use super::*;
use crate::documented::assert_documented;

type Example = (
    &'static str,
    &'static str,
    Option<&'static str>,
    Result<Option<&'static str>, &'static str>,
);

/// The Athena type, the column's settings, Athena's text, and the result: a value, NULL, or a part of
/// the reason.
const EXAMPLES: &[Example] = &[
    (
        "varchar",
        r#"type = "date"; format = "%d.%m.%Y""#,
        Some("02.04.2018"),
        Ok(Some("2018-04-02")),
    ),
    (
        "varchar",
        r#"type = "date"; format = "%d.%m.%Y""#,
        Some("2.4.2018"),
        Err("is not written as %d.%m.%Y"),
    ),
    (
        "varchar",
        r#"type = "date"; format = "%d.%m.%Y""#,
        Some("30.02.2018"),
        Err("no calendar"),
    ),
    (
        "varchar",
        r#"type = "date"; format = "%-d/%-m/%y""#,
        Some("2/4/18"),
        Ok(Some("2018-04-02")),
    ),
    (
        "varchar",
        r#"type = "date"; format = "%a, %d %b %Y""#,
        Some("Tue, 02 Apr 2018"),
        Err("another day of the week"),
    ),
    (
        "varchar",
        r#"type = "time"; format = "%I:%M %p""#,
        Some("12:05 AM"),
        Ok(Some("00:05:00")),
    ),
    (
        "varchar",
        r#"type = "timestamp"; format = "%Y%m%d%H%M%S""#,
        Some("20180402130501"),
        Ok(Some("2018-04-02 13:05:01")),
    ),
    (
        "varchar",
        r#"type = "timestamptz"; format = "%d/%b/%Y:%T %z""#,
        Some("02/Apr/2018:13:05:01 -0700"),
        Ok(Some("2018-04-02 20:05:01+00")),
    ),
    (
        "varchar",
        r#"type = "timestamptz"; format = "%F %R %Z""#,
        Some("2018-04-02 13:05 Europe/Berlin"),
        Ok(Some("2018-04-02 11:05:00+00")),
    ),
    (
        "bigint",
        r#"epoch = "s""#,
        Some("1522674301"),
        Ok(Some("2018-04-02 13:05:01+00")),
    ),
    (
        "bigint",
        r#"epoch = "ms""#,
        Some("1522674301250"),
        Ok(Some("2018-04-02 13:05:01.25+00")),
    ),
    (
        "bigint",
        r#"epoch = "us""#,
        Some("-1"),
        Ok(Some("1969-12-31 23:59:59.999999+00")),
    ),
    (
        "bigint",
        r#"epoch = "ns""#,
        Some("1522674301250000000"),
        Ok(Some("2018-04-02 13:05:01.25+00")),
    ),
    (
        "bigint",
        r#"epoch = "ns""#,
        Some("1522674301250000001"),
        Err("more than 6 digits"),
    ),
    (
        "bigint",
        r#"epoch = "ns"; round = true"#,
        Some("1522674301250000500"),
        Ok(Some("2018-04-02 13:05:01.250001+00")),
    ),
    (
        "bigint",
        r#"epoch = "ms"; type = "timestamp""#,
        Some("1522674301250"),
        Ok(Some("2018-04-02 13:05:01.25")),
    ),
    (
        "integer",
        r#"epoch = "s""#,
        Some("-2147483648"),
        Ok(Some("1901-12-13 20:45:52+00")),
    ),
    (
        "bigint",
        r#"epoch = "s""#,
        Some("253402300800"),
        Ok(Some("10000-01-01 00:00:00+00")),
    ),
    (
        "bigint",
        r#"epoch = "s""#,
        Some("-62167219200"),
        Ok(Some("0001-01-01 00:00:00+00 BC")),
    ),
    (
        "bigint",
        r#"epoch = "s""#,
        Some("9224318015999"),
        Ok(Some("294276-12-31 23:59:59+00")),
    ),
    (
        "bigint",
        r#"epoch = "s""#,
        Some("9224318016000"),
        Err("out of the range"),
    ),
    (
        "bigint",
        r#"epoch = "s""#,
        Some("-9223372036854775808"),
        Err("out of the range"),
    ),
    (
        "decimal(16,3)",
        r#"epoch = "s""#,
        Some("1522674301.250"),
        Ok(Some("2018-04-02 13:05:01.25+00")),
    ),
    (
        "double",
        r#"epoch = "s""#,
        Some("1.52267430125E9"),
        Ok(Some("2018-04-02 13:05:01.25+00")),
    ),
    (
        "double",
        r#"epoch = "s""#,
        Some("NaN"),
        Err("not a number that counts"),
    ),
    (
        "varchar",
        r#"epoch = "s""#,
        Some("1522674301"),
        Ok(Some("2018-04-02 13:05:01+00")),
    ),
    (
        "varchar",
        r#"epoch = "s""#,
        Some("2018-04-02"),
        Err("not a number that counts"),
    ),
    (
        "timestamp",
        "round = true",
        Some("2017-12-31 23:59:59.999999500"),
        Ok(Some("2018-01-01 00:00:00")),
    ),
    (
        "timestamp",
        "round = true",
        Some("2017-01-01 12:30:00.123456499"),
        Ok(Some("2017-01-01 12:30:00.123456")),
    ),
    (
        "timestamp with time zone",
        "round = true",
        Some("2017-01-01 12:30:00.123456789 UTC"),
        Ok(Some("2017-01-01 12:30:00.123457+00")),
    ),
    (
        "time",
        "round = true",
        Some("12:30:00.123456789"),
        Ok(Some("12:30:00.123457")),
    ),
    (
        "time",
        "round = true",
        Some("23:59:59.999999500"),
        Err("24:00:00"),
    ),
    (
        "decimal(10,3)",
        r#"type = "numeric(10,2)"; round = true"#,
        Some("1.005"),
        Ok(Some("1.01")),
    ),
    (
        "decimal(10,3)",
        r#"type = "numeric(10,2)"; round = true"#,
        Some("-0.004"),
        Ok(Some("0.00")),
    ),
    (
        "decimal(10,3)",
        r#"type = "numeric(3,2)"; round = true"#,
        Some("9.995"),
        Err("does not fit"),
    ),
    (
        "double",
        r#"type = "numeric(10,2)"; round = true"#,
        Some("0.1"),
        Ok(Some("0.10")),
    ),
    (
        "double",
        r#"type = "numeric(10,2)"; round = true"#,
        Some("1.0E-5"),
        Ok(Some("0.00")),
    ),
    ("varchar", "trim = true", Some(" a b\t"), Ok(Some("a b"))),
    (
        "varchar",
        r#"trim = true; type = "bigint""#,
        Some(" 42 "),
        Ok(Some("42")),
    ),
    ("char(4)", "trim = true", Some("DE  "), Ok(Some("DE"))),
    ("varchar", r#"null_if = ["", "n/a"]"#, Some("n/a"), Ok(None)),
    (
        "varchar",
        r#"null_if = ["", "n/a"]"#,
        Some("N/A"),
        Ok(Some("N/A")),
    ),
    (
        "varchar",
        r#"trim = true; null_if = """#,
        Some("  "),
        Ok(None),
    ),
    ("bigint", "null_if = -1", Some("-1"), Ok(None)),
    (
        "varchar",
        r#"type = "date"; null_if = "0000-00-00""#,
        Some("0000-00-00"),
        Ok(None),
    ),
    (
        "varchar",
        r#"null_if = "-"; rules = [{ required = true }]"#,
        Some("-"),
        Err("NULL, and one is required"),
    ),
    (
        "varchar",
        r#"case = "upper""#,
        Some("straße"),
        Ok(Some("STRASSE")),
    ),
    (
        "varchar",
        r#"case = "upper"; type = "varchar(6)""#,
        Some("straße"),
        Err("has 7 characters"),
    ),
    (
        "varchar",
        r#"case = "lower"; type = "boolean""#,
        Some("TRUE"),
        Ok(Some("true")),
    ),
    (
        "varchar",
        r#"case = "lower"; rules = [{ one_of = ["yes"] }]"#,
        Some("Yes"),
        Ok(Some("yes")),
    ),
    (
        "varchar",
        r#"mask = "sha256""#,
        Some("abc"),
        Ok(Some(
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        )),
    ),
    (
        "varchar",
        r#"mask = "redact""#,
        Some("abc"),
        Ok(Some("***")),
    ),
    (
        "varchar",
        r#"mask = "last4""#,
        Some("4111111111111234"),
        Ok(Some("****1234")),
    ),
    (
        "varchar",
        r#"mask = "last4""#,
        Some("1234567"),
        Ok(Some("****")),
    ),
    ("varchar", r#"mask = "redact""#, None, Ok(None)),
    ("varchar", r#"mask = "redact""#, Some(""), Ok(Some("***"))),
    (
        "bigint",
        r#"type = "text"; mask = "last4""#,
        Some("1234567890"),
        Ok(Some("****7890")),
    ),
    (
        "varchar",
        r#"trim = true; case = "lower"; mask = "sha256""#,
        Some(" ABC "),
        Ok(Some(
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        )),
    ),
    (
        "varchar",
        r#"mask = "redact"; rules = [{ pattern = "[0-9]+" }]"#,
        Some("secret"),
        Err("the value, which is masked, breaks the rule"),
    ),
    (
        "varchar",
        r#"mask = "last4"; type = "varchar(9)""#,
        Some("4111111111111234"),
        Ok(Some("****1234")),
    ),
];

/// Every Athena type that can be read, as its metadata writes it.
const ATHENA: &[&str] = &[
    "boolean",
    "tinyint",
    "smallint",
    "integer",
    "bigint",
    "real",
    "double",
    "decimal(10,2)",
    "char(5)",
    "varchar",
    "json",
    "date",
    "time",
    "timestamp",
    "timestamp with time zone",
    "varbinary",
    "uuid",
    "ipaddress",
    "interval day to second",
    "interval year to month",
];

/// Every Postgres type, with room for every mask.
const POSTGRES: &[&str] = &[
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "real",
    "double precision",
    "numeric",
    "numeric(10,2)",
    "text",
    "varchar",
    "varchar(64)",
    "char(64)",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
    "bytea",
    "json",
    "jsonb",
    "uuid",
    "inet",
];

/// Each setting alone.
const SETTINGS: &[&str] = &[
    r#"format = ".." "#,
    r#"epoch = "s" "#,
    "round = true",
    "trim = true",
    r#"null_if = "-" "#,
    r#"case = "lower" "#,
    r#"mask = "sha256" "#,
];

fn spec(settings: &str) -> ColumnSpec {
    let toml = format!("source = \"a\"\n{}", settings.replace("; ", "\n"));
    toml::from_str(&toml).unwrap_or_else(|error| panic!("{settings}: {error}"))
}

fn column(from: &str, settings: &str) -> Result<Column, PlanError> {
    let result = [ResultColumn {
        name: "a".into(),
        type_name: from.into(),
    }];
    Column::new(&resolve(&[spec(settings)], &result, &[])?[0])
}

fn made(from: &str, settings: &str, text: Option<&str>) -> Result<Option<String>, String> {
    let column = column(from, settings).unwrap_or_else(|error| panic!("{settings}: {error}"));
    let mut rows = Rows::new(1);
    rows.push([text]);
    let value = column.value(rows.row(0));
    value
        .map(|value| value.map(Cow::into_owned))
        .map_err(|reject| reject.reason)
}

#[test]
fn every_example_is_as_listed() {
    for &(from, settings, text, wanted) in EXAMPLES {
        let seen = made(from, settings, text);
        match (&seen, wanted) {
            (Ok(seen), Ok(wanted)) => assert_eq!(seen.as_deref(), wanted, "{settings} {text:?}"),
            (Err(reason), Err(part)) => {
                assert!(reason.contains(part), "{settings} {text:?}: {reason}");
            }
            _ => panic!("{settings} {text:?}: {seen:?} instead of {wanted:?}"),
        }
    }
}

/// Whether a column may have the setting; the pair of types must be allowed without it.
fn may_have(setting: &str, from: &str, to: &str) -> bool {
    let with = spec(&format!("type = \"{to}\"; {setting}"));
    let result = [ResultColumn {
        name: "a".into(),
        type_name: from.into(),
    }];
    match resolve(&[with], &result, &[]) {
        Ok(_) => true,
        Err(SchemaError::Setting { .. } | SchemaError::Lossy { .. }) => false,
        Err(error) => panic!("{setting} from {from} to {to}: {error}"),
    }
}

/// The settings that each type may have, and what they do.
fn tables() -> String {
    let mut tables =
        String::from("| setting | Athena types | Postgres types |\n| --- | --- | --- |\n");
    let general = |text: &str| {
        text.replace("(64)", "(n)")
            .replace("(5)", "(n)")
            .replace("(10,2)", "(p,s)")
    };
    let list = |names: &[&str], used: &BTreeSet<usize>| {
        if used.len() == names.len() {
            return "all".to_owned();
        }
        let names: Vec<_> = used
            .iter()
            .map(|index| format!("`{}`", general(names[*index])))
            .collect();
        names.join(", ")
    };
    for setting in SETTINGS {
        let (mut froms, mut tos) = (BTreeSet::new(), BTreeSet::new());
        for (f, from) in ATHENA.iter().enumerate() {
            for (t, to) in POSTGRES.iter().enumerate() {
                if may_have(setting, from, to) {
                    froms.insert(f);
                    tos.insert(t);
                }
            }
        }
        writeln!(
            tables,
            "| `{}` | {} | {} |",
            setting.trim(),
            list(ATHENA, &froms),
            list(POSTGRES, &tos)
        )
        .unwrap();
    }
    tables.push_str("\n| Athena type | the column's settings | Athena's text | becomes |\n| --- | --- | --- | --- |\n");
    for &(from, settings, text, _) in EXAMPLES {
        let shown =
            |text: Option<&str>| text.map_or("NULL".to_owned(), |text| format!("`{text:?}`"));
        let becomes = match made(from, settings, text) {
            Ok(value) => shown(value.as_deref()),
            Err(reason) => format!("rejected: {}", reason.replace('|', "\\|")),
        };
        writeln!(
            tables,
            "| `{from}` | `{settings}` | {} | {becomes} |",
            shown(text)
        )
        .unwrap();
    }
    tables
}

#[test]
fn documentation_has_the_same_tables() {
    assert_documented("settings", &tables());
}

#[test]
fn masked_value_is_in_no_reason_and_no_record() {
    const SECRET: &str = "4111 1111 1111 1234";
    for settings in [
        r#"mask = "sha256"; rules = [{ none_of = ["4111 1111 1111 1234"] }]"#,
        r#"mask = "redact"; rules = [{ one_of = ["x"] }]"#,
        r#"mask = "redact"; rules = [{ min = "5" }]"#,
        r#"mask = "redact"; rules = [{ max = "1" }]"#,
        r#"mask = "redact"; rules = [{ max_length = 3 }]"#,
        r#"mask = "redact"; rules = [{ pattern = "4112.*" }]"#,
    ] {
        let column = column("varchar", settings).unwrap();
        let mut rows = Rows::new(1);
        rows.push([Some(SECRET)]);
        rows.push([Some("4111 1111 1111 1234\0")]);
        for row in rows.iter() {
            let reject = column.value(row).unwrap_err();
            assert!(
                reject.reason.contains("masked"),
                "{settings}: {}",
                reject.reason
            );
            assert!(
                !reject.reason.contains("4111"),
                "{settings}: {}",
                reject.reason
            );
            let (position, hidden) = column.hidden(row).unwrap();
            assert_eq!(position, 0);
            assert!(!hidden.unwrap().contains("4111"), "{settings}");
        }
    }
    let column = column("varchar", r#"null_if = "4111"; mask = "sha256""#).unwrap();
    let mut rows = Rows::new(1);
    rows.push([Some("4111")]);
    assert_eq!(column.hidden(rows.row(0)), Some((0, None)));
}
