//! The whole matrix of types, value by value, compared with `docs/types.md`.

use std::fmt::Write;

use common::job::{ColumnSpec, resolve};
use common::schema::ResultColumn;
use proptest::prelude::*;

use super::*;
use crate::documented::assert_documented;

/// Every Athena type, as its metadata writes it.
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
    "array(integer)",
    "map(varchar,integer)",
    "row(a integer)",
];

/// Every Postgres type that a target column may have.
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
    "varchar(5)",
    "char(5)",
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

type Example = (
    &'static str,
    &'static str,
    &'static str,
    Result<&'static str, &'static str>,
);

/// Athena type, Athena's text, Postgres type, and the canonical text or a part of the reason.
#[rustfmt::skip]
const EXAMPLES: &[Example] = &[
    ("boolean", "true", "boolean", Ok("true")),
    ("varchar", "TRUE", "boolean", Err("neither true nor false")),
    ("varchar", "1", "boolean", Err("neither true nor false")),
    ("tinyint", "-128", "smallint", Ok("-128")),
    ("integer", "32767", "smallint", Ok("32767")),
    ("integer", "32768", "smallint", Err("out of the range of smallint")),
    ("bigint", "-2147483649", "integer", Err("out of the range of integer")),
    ("bigint", "-9223372036854775808", "bigint", Ok("-9223372036854775808")),
    ("varchar", "9223372036854775808", "bigint", Err("out of the range of bigint")),
    ("bigint", "9223372036854775807", "numeric(19,0)", Ok("9223372036854775807")),
    ("bigint", "9223372036854775807", "numeric(18,0)", Err("does not fit into numeric(18,0)")),
    ("varchar", "007", "bigint", Ok("7")),
    ("varchar", "-0", "bigint", Ok("0")),
    ("varchar", "+5", "bigint", Err("not an integer")),
    ("varchar", " 5", "bigint", Err("not an integer")),
    ("varchar", "", "bigint", Err("not an integer")),
    ("varchar", "5.0", "bigint", Err("not an integer")),
    ("decimal(10,2)", "5.00", "bigint", Ok("5")),
    ("decimal(10,2)", "5.10", "bigint", Err("has a fraction")),
    ("decimal(38,10)", "1234567890123456789012345678.0123456789", "numeric(38,10)", Ok("1234567890123456789012345678.0123456789")),
    ("decimal(10,2)", "-0.50", "numeric(10,2)", Ok("-0.50")),
    ("decimal(10,2)", "1.50", "numeric(9,1)", Ok("1.5")),
    ("decimal(10,2)", "1.55", "numeric(9,1)", Err("more than 1 digits after the point, and is not rounded")),
    ("decimal(10,2)", "12345678.00", "numeric(9,2)", Err("does not fit into numeric(9,2)")),
    ("varchar", "1.5E3", "numeric", Ok("1500")),
    ("varchar", "1,5", "numeric", Err("not a decimal number")),
    ("double", "1.0E10", "numeric", Ok("10000000000")),
    ("double", "NaN", "numeric", Ok("NaN")),
    ("double", "-Infinity", "numeric", Ok("-Infinity")),
    ("varchar", "NaN", "numeric(10,2)", Err("not a decimal number")),
    ("real", "3.4028235E38", "real", Ok("3.4028235E38")),
    ("real", "0.1", "double precision", Ok("0.1")),
    ("double", "4.9E-324", "double precision", Ok("4.9E-324")),
    ("double", "-0.0", "double precision", Ok("-0.0")),
    ("double", "Infinity", "double precision", Ok("Infinity")),
    ("varchar", "1E309", "double precision", Err("out of the range of double precision")),
    ("varchar", "1E-400", "double precision", Err("out of the range of double precision")),
    ("varchar", "16777217", "real", Err("more digits than real keeps")),
    ("varchar", "0.1", "real", Ok("0.1")),
    ("varchar", "inf", "double precision", Err("not a number")),
    ("varchar", "Zoë", "text", Ok("Zoë")),
    ("varchar", "", "text", Ok("")),
    ("varchar", "a\0b", "text", Err("NUL")),
    ("varchar", "Zürich", "varchar(6)", Ok("Zürich")),
    ("varchar", "Zürich!", "varchar(6)", Err("has 7 characters, and the column holds 6")),
    ("varchar", "abc   ", "varchar(5)", Err("has 6 characters, and the column holds 5")),
    ("char(10)", "abc       ", "varchar(5)", Ok("abc")),
    ("char(10)", "US        ", "char(2)", Ok("US")),
    ("varchar", "USA", "char(2)", Err("has 3 characters, and the column holds 2")),
    ("date", "2018-04-02", "date", Ok("2018-04-02")),
    ("date", "+12345-01-01", "date", Ok("12345-01-01")),
    ("date", "-0043-03-15", "date", Ok("0044-03-15 BC")),
    ("date", "0000-02-29", "date", Ok("0001-02-29 BC")),
    ("date", "-4714-01-01", "date", Err("out of the range")),
    ("varchar", "2019-02-29", "date", Err("no calendar has")),
    ("varchar", "2018-4-2", "date", Err("not a date")),
    ("varchar", "2018-04-02 00:00:00", "date", Err("not a date")),
    ("time", "03:04:05.600", "time", Ok("03:04:05.600")),
    ("varchar", "24:00:00", "time", Err("no clock shows")),
    ("timestamp", "2017-01-01 00:00:00.000", "timestamp", Ok("2017-01-01 00:00:00.000")),
    ("timestamp", "2017-01-01 12:30:00.123456", "timestamp", Ok("2017-01-01 12:30:00.123456")),
    ("timestamp", "2017-01-01 12:30:00.123456000", "timestamp", Ok("2017-01-01 12:30:00.123456")),
    ("timestamp", "2017-01-01 12:30:00.123456789", "timestamp", Err("Postgres would round")),
    ("timestamp", "+294276-12-31 23:59:59.999", "timestamp", Ok("294276-12-31 23:59:59.999")),
    ("timestamp", "+294277-01-01 00:00:00.000", "timestamp", Err("out of the range")),
    ("timestamp", "-0043-03-15 12:00:00.000", "timestamp", Ok("0044-03-15 12:00:00 BC")),
    ("varchar", "2017-01-01T12:30:00", "timestamp", Ok("2017-01-01 12:30:00")),
    ("varchar", "2017-01-01", "timestamp", Err("not a timestamp")),
    ("varchar", "2017-01-01 12:30:00 UTC", "timestamp", Err("has a time zone")),
    ("timestamp with time zone", "2017-01-01 00:00:00.000 UTC", "timestamptz", Ok("2017-01-01 00:00:00+00")),
    ("timestamp with time zone", "2017-01-01 00:00:00.000 America/Los_Angeles", "timestamptz", Ok("2017-01-01 08:00:00+00")),
    ("timestamp with time zone", "2017-01-01 00:00:00.000 +05:30", "timestamptz", Ok("2016-12-31 18:30:00+00")),
    ("timestamp with time zone", "2017-11-05 01:30:00.000 America/Los_Angeles", "timestamptz", Err("showed twice")),
    ("timestamp with time zone", "2017-03-12 02:30:00.000 America/Los_Angeles", "timestamptz", Err("skipped")),
    ("timestamp with time zone", "-0043-03-15 12:00:00.000 UTC", "timestamptz", Ok("0044-03-15 12:00:00+00 BC")),
    ("varchar", "2017-01-01T00:00:00Z", "timestamptz", Ok("2017-01-01 00:00:00+00")),
    ("varchar", "2017-01-01 00:00:00 Mars/Olympus", "timestamptz", Err("not known")),
    ("varchar", "2017-01-01 00:00:00", "timestamptz", Err("no time zone")),
    ("varbinary", "31 32 FF", "bytea", Ok("\\x3132ff")),
    ("varbinary", "", "bytea", Ok("\\x")),
    ("varbinary", "3 1", "bytea", Err("two-digit hex bytes")),
    ("varchar", "31 32", "bytea", Err("does not begin with \\x")),
    ("varchar", "\\x3132", "bytea", Ok("\\x3132")),
    ("json", "{\"b\": [1, \"\\u0000\"], \"a\": null}", "json", Ok("{\"b\": [1, \"\\u0000\"], \"a\": null}")),
    ("varchar", "{}", "jsonb", Ok("{}")),
    ("json", "{\"a\": NaN}", "json", Err("not valid JSON")),
    ("json", "{\"a\": \"\\u0000\"}", "jsonb", Err("jsonb cannot keep")),
    ("json", "{\"a\": 1, \"a\": 2}", "jsonb", Err("occurs twice")),
    ("json", "[1e400]", "jsonb", Err("out of range")),
    ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "uuid", Ok("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    ("varchar", "a0eebc999c0b4ef8bb6d6bb9bd380a11", "uuid", Err("not a UUID")),
    ("ipaddress", "10.0.0.1", "inet", Ok("10.0.0.1")),
    ("ipaddress", "2001:DB8:0:0:0:0:0:1", "inet", Ok("2001:db8::1")),
    ("varchar", "10.0.0.0/8", "inet", Ok("10.0.0.0/8")),
    ("varchar", "10.0.0.1/32", "inet", Ok("10.0.0.1")),
    ("varchar", "10.0.0.256", "inet", Err("not an IP address")),
    ("varchar", "10.0.0.1/33", "inet", Err("prefix")),
    ("interval day to second", "2 03:04:05.000", "interval", Ok("2 days 03:04:05")),
    ("interval day to second", "-1 00:00:00.500", "interval", Ok("-1 days -00:00:00.5")),
    ("interval day to second", "0 00:00:00.000", "interval", Ok("00:00:00")),
    ("interval year to month", "1-2", "interval", Ok("1 year 2 mons")),
    ("interval year to month", "-1-2", "interval", Ok("-1 years -2 mons")),
    ("varchar", "1 day", "interval", Err("not an interval")),
];

/// A value of each Athena type that is not text and can be read back.
const VALUES: &[(&str, &str)] = &[
    ("boolean", "false"),
    ("tinyint", "7"),
    ("smallint", "7"),
    ("integer", "7"),
    ("bigint", "7"),
    ("real", "0.5"),
    ("double", "0.5"),
    ("decimal(10,2)", "7.00"),
    ("json", "[1]"),
    ("date", "2018-04-02"),
    ("time", "03:04:05.000"),
    ("timestamp", "2018-04-02 03:04:05.000"),
    ("timestamp with time zone", "2018-04-02 03:04:05.000 UTC"),
    ("varbinary", "61"),
    ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("ipaddress", "10.0.0.1"),
    ("interval day to second", "1 00:00:00.000"),
    ("interval year to month", "1-0"),
];

fn athena(text: &str) -> AthenaType {
    text.parse().unwrap()
}

fn postgres(text: &str) -> PgType {
    text.parse().unwrap()
}

/// The type that a column becomes when the job declares `wanted`.
fn resolved(from: &str, wanted: Option<&str>) -> Option<PgType> {
    let spec = ColumnSpec {
        source: Some("a".into()),
        pg_type: wanted.map(postgres),
        ..ColumnSpec::default()
    };
    let result = [ResultColumn {
        name: "a".into(),
        type_name: from.into(),
    }];
    resolve(&[spec], &result, &[])
        .ok()
        .map(|columns| columns[0].target.pg_type)
}

#[test]
fn every_example_converts_as_listed() {
    for &(from, text, to, wanted) in EXAMPLES {
        assert!(resolved(from, Some(to)).is_some(), "{from} may become {to}");
        let seen = convert(athena(from), postgres(to), text);
        match (&seen, wanted) {
            (Ok(seen), Ok(wanted)) => assert_eq!(seen, wanted, "{from} {text:?} into {to}"),
            (Err(reason), Err(part)) => assert!(
                reason.to_string().contains(part),
                "{from} {text:?} into {to}: {reason}"
            ),
            _ => panic!("{from} {text:?} into {to}: {seen:?} instead of {wanted:?}"),
        }
    }
}

#[test]
fn canonical_text_converts_to_itself() {
    for &(_, _, to, wanted) in EXAMPLES {
        // The least double has one digit fewer than Java prints, and an interval is read in Athena's format.
        let is_exempt = postgres(to) == PgType::Interval || wanted == Ok("4.9E-324");
        if let (Ok(canonical), false) = (wanted, is_exempt) {
            let again = convert(AthenaType::Varchar, postgres(to), canonical);
            assert_eq!(again.as_deref(), Ok(canonical), "{to}");
        }
    }
}

#[test]
fn every_allowed_pair_of_types_converts_a_value() {
    for &(from, value) in VALUES {
        let targets = POSTGRES
            .iter()
            .filter(|to| resolved(from, Some(to)).is_some());
        for to in targets {
            let short = value.chars().count() <= 5 || !matches!(*to, "varchar(5)" | "char(5)");
            let seen = convert(athena(from), postgres(to), value);
            assert_eq!(seen.is_ok(), short, "{from} into {to}: {seen:?}");
        }
    }
    for to in POSTGRES {
        let kind = std::mem::discriminant(&postgres(to));
        let example = EXAMPLES
            .iter()
            .find(|example| std::mem::discriminant(&postgres(example.2)) == kind);
        assert!(example.is_some(), "an example of something into {to}");
    }
}

/// The two tables of `docs/types.md`.
fn tables() -> String {
    let mut tables = String::from(
        "| Athena type | becomes | or, where the job says so |\n| --- | --- | --- |\n",
    );
    let general = |text: &str| text.replace("(5)", "(n)").replace("(10,2)", "(p,s)");
    for from in ATHENA {
        let default = resolved(from, None);
        let becomes = default.map_or("refused: write `CAST(.. AS JSON)`".to_owned(), |to| {
            format!("`{to}`")
        });
        let others: Vec<_> = POSTGRES
            .iter()
            .filter(|to| resolved(from, Some(to)).is_some() && Some(postgres(to)) != default)
            .map(|to| format!("`{to}`"))
            .collect();
        let others = if others.len() == POSTGRES.len() - 1 {
            "every type, whose text it must then be".to_owned()
        } else {
            others.join(", ")
        };
        writeln!(
            tables,
            "{}",
            general(&format!("| `{from}` | {becomes} | {others} |"))
        )
        .unwrap();
    }
    tables.push_str(
        "\n| Athena type | Athena's text | Postgres type | becomes |\n| --- | --- | --- | --- |\n",
    );
    for &(from, text, to, _) in EXAMPLES {
        let becomes = match convert(athena(from), postgres(to), text) {
            Ok(canonical) => format!("`{canonical:?}`"),
            Err(reason) => format!("rejected: {}", reason.to_string().replace('|', "\\|")),
        };
        writeln!(tables, "| `{from}` | `{text:?}` | `{to}` | {becomes} |").unwrap();
    }
    tables
}

#[test]
fn documentation_has_the_same_tables() {
    assert_documented("tables", &tables());
}

proptest! {
    #[test]
    fn integers_pass_unchanged(number: i64) {
        let text = number.to_string();
        prop_assert!(matches!(convert(AthenaType::BigInt, PgType::BigInt, &text), Ok(Cow::Borrowed(seen)) if seen == text));
        let small = convert(AthenaType::BigInt, PgType::SmallInt, &text);
        prop_assert_eq!(small.is_ok(), i16::try_from(number).is_ok());
    }

    #[test]
    fn text_passes_unchanged(text in "[^\\x00]*") {
        prop_assert!(matches!(convert(AthenaType::Varchar, PgType::Text, &text), Ok(Cow::Borrowed(seen)) if seen == text));
    }

    #[test]
    fn decimal_keeps_its_value(unscaled in -10_i128.pow(37)..10_i128.pow(37), scale in 0_usize..38, to_scale in 0_u32..40) {
        let digits = format!("{:0>38}", unscaled.unsigned_abs());
        let (integer, fraction) = digits.split_at(38 - scale);
        let point = if scale == 0 { "" } else { "." };
        let text = format!("{}{integer}{point}{fraction}", if unscaled < 0 { "-" } else { "" });
        for size in [None, Some((38, to_scale))] {
            if let Ok(seen) = convert(AthenaType::Decimal(38, 0), PgType::Numeric(size), &text) {
                prop_assert_eq!(Decimal::parse(&seen), Decimal::parse(&text));
                let decimals = seen.split_once('.').map_or(0, |(_, fraction)| fraction.len());
                prop_assert!(size.is_none_or(|(_, scale)| decimals == scale as usize));
            } else {
                prop_assert!(size.is_some(), "numeric without a size holds every decimal");
            }
        }
    }

    #[test]
    fn doubles_pass_unchanged(number: f64) {
        let text = format!("{number:?}").replace("inf", "Infinity");
        let seen = convert(AthenaType::Double, PgType::Double, &text).unwrap();
        prop_assert_eq!(seen, &*text);
    }

    #[test]
    fn bytes_convert_to_the_same_bytes(bytes: Vec<u8>) {
        let shown: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let seen = convert(AthenaType::Varbinary, PgType::Bytea, &shown.join(" ")).unwrap().into_owned();
        prop_assert_eq!(seen, format!("\\x{}", shown.concat()));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,24}", odd in "[-+0-9:. TZEe/xBCU]{0,32}") {
        for to in POSTGRES {
            for text in [&text, &odd] {
                drop(convert(AthenaType::Varchar, postgres(to), text));
                drop(convert(AthenaType::Varbinary, postgres(to), text));
            }
        }
    }
}
