//! Values of every type whose text can be parsed: the text that Athena prints for each, and the text that Postgres shows for
//! the same value (in UTC, with ISO dates). Both are built from the parts of the value, and neither from the other, so that
//! tests can compare any conversion with the expected result.
//!
//! Sources: Athena prints as Java and Trino do; PostgreSQL documentation, "Data Types".

mod moments;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// A value: Athena's text and Postgres'.
pub type Value = (String, String);

/// A type of a result, and its values.
pub struct Kind {
    /// As a query's metadata has it, with its parameters.
    pub athena: &'static str,
    /// The type it becomes by default.
    pub postgres: &'static str,
    /// The borders of the type, and its special values.
    pub edges: Vec<Value>,
    random: fn(&mut StdRng) -> Value,
}

impl Kind {
    /// The given number of random values, the same each time.
    pub fn random(&self, count: usize) -> Vec<Value> {
        let mut numbers = StdRng::seed_from_u64(20_180_402);
        (0..count).map(|_| (self.random)(&mut numbers)).collect()
    }
}

/// Every type.
#[expect(clippy::too_many_lines, reason = "a table of types")]
pub fn kinds() -> Vec<Kind> {
    let kind = |athena, postgres, edges, random| Kind {
        athena,
        postgres,
        edges,
        random,
    };
    let mut kinds = vec![
        kind("boolean", "boolean", same(&["true", "false"]), |r| {
            let truth: bool = r.random();
            twice(truth.to_string())
        }),
        kind("tinyint", "smallint", same(&["-128", "127", "0"]), |r| {
            twice(r.random::<i8>().to_string())
        }),
        kind("smallint", "smallint", same(&["-32768", "32767"]), |r| {
            twice(r.random::<i16>().to_string())
        }),
        kind(
            "integer",
            "integer",
            same(&["-2147483648", "2147483647"]),
            |r| twice(r.random::<i32>().to_string()),
        ),
        kind(
            "bigint",
            "bigint",
            same(&["-9223372036854775808", "9223372036854775807"]),
            |r| twice(r.random::<i64>().to_string()),
        ),
        kind(
            "float",
            "real",
            floats(&[
                f32::MAX,
                f32::MIN,
                f32::MIN_POSITIVE,
                0.1,
                1e6,
                1e7,
                1e-4,
                1e-5,
            ]),
            |r| {
                loop {
                    let number = f32::from_bits(r.random());
                    if number.is_finite() {
                        return float(number);
                    }
                }
            },
        ),
        kind(
            "double",
            "double precision",
            doubles(&[
                f64::MAX,
                f64::MIN,
                f64::MIN_POSITIVE,
                0.1,
                1e15,
                1e7,
                1e-4,
                1e-5,
            ]),
            |r| {
                loop {
                    let number = f64::from_bits(r.random());
                    if number.is_finite() {
                        return double(number);
                    }
                }
            },
        ),
        kind(
            "decimal(10,2)",
            "numeric(10,2)",
            same(&["99999999.99", "-99999999.99", "-0.01", "0.00"]),
            |r| twice(decimal(r.random_range(-9_999_999_999..=9_999_999_999), 2)),
        ),
        kind(
            "decimal(38,10)",
            "numeric(38,10)",
            same(&["9999999999999999999999999999.9999999999", "-0.0000000001"]),
            |r| {
                let most = 10_i128.pow(38) - 1;
                twice(decimal(r.random_range(-most..=most), 10))
            },
        ),
        kind(
            "decimal(38,0)",
            "numeric(38,0)",
            same(&["99999999999999999999999999999999999999", "0"]),
            |r| {
                let most = 10_i128.pow(38) - 1;
                twice(decimal(r.random_range(-most..=most), 0))
            },
        ),
        kind(
            "char(5)",
            "text",
            same(&["     ", "abcde", "ä😀   "]),
            |r| twice(format!("{:<5}", text(r, 5))),
        ),
        kind(
            "varchar",
            "text",
            same(&[
                "",
                " ",
                "\\N",
                "\\.",
                "\n",
                "\"",
                "\"\"",
                ",",
                "a\tb\r\n",
                "NULL",
                "ä😀\u{2028}",
            ]),
            |r| {
                let length = r.random_range(0..40);
                twice(text(r, length))
            },
        ),
        kind(
            "json",
            "json",
            same(&[
                "null",
                "{}",
                "[ ]",
                r#"{"b":1,"a":{"a":"\u0000"},"b":2}"#,
                "1e400",
                "\"\"",
            ]),
            |r| {
                let (key, length) = (r.random_range(0..9), r.random_range(0..20));
                let value = serde_json::Value::from(text(r, length));
                twice(format!(
                    "{{ \"k{key}\" :{value}, \"n\":[{}, null]}}",
                    r.random::<i64>()
                ))
            },
        ),
        kind(
            "varbinary",
            "bytea",
            vec![
                bytes(&[]),
                bytes(&[0]),
                bytes(&(0..=255).collect::<Vec<_>>()),
            ],
            |r| {
                let mut all = vec![0; r.random_range(0..40)];
                r.fill_bytes(&mut all);
                bytes(&all)
            },
        ),
        kind(
            "uuid",
            "uuid",
            same(&[
                "00000000-0000-0000-0000-000000000000",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ]),
            |r| {
                let digits = format!("{:032x}", r.random::<u128>());
                let parts = [
                    &digits[..8],
                    &digits[8..12],
                    &digits[12..16],
                    &digits[16..20],
                    &digits[20..],
                ];
                twice(parts.join("-"))
            },
        ),
        kind(
            "ipaddress",
            "inet",
            same(&[
                "0.0.0.0",
                "255.255.255.255",
                "::",
                "::1",
                "2001:db8::1",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ]),
            |r| {
                let address: IpAddr = if r.random() {
                    Ipv4Addr::from_bits(r.random()).into()
                } else {
                    // No part is zero: how the longest run of zeros is left out has an edge of its own.
                    Ipv6Addr::from_bits(
                        r.random::<u128>() | 0x0001_0001_0001_0001_0001_0001_0001_0001,
                    )
                    .into()
                };
                twice(address.to_string())
            },
        ),
    ];
    kinds.extend(moments::kinds());
    kinds
}

fn twice(text: String) -> Value {
    (text.clone(), text)
}

fn same(texts: &[&str]) -> Vec<Value> {
    texts.iter().map(|text| twice((*text).to_owned())).collect()
}

fn pairs(texts: &[(&str, &str)]) -> Vec<Value> {
    let owned = |(athena, postgres): &(&str, &str)| ((*athena).to_owned(), (*postgres).to_owned());
    texts.iter().map(owned).collect()
}

/// Letters, and characters with a meaning in CSV or COPY.
fn text(r: &mut StdRng, length: usize) -> String {
    const CHARACTERS: &[char] = &[
        'a', 'Z', '0', ' ', ',', '"', '\'', '\\', '\n', '\r', '\t', 'ä', 'ß', '€', '漢', '😀',
        '\u{301}', '|', 'N', '.',
    ];
    (0..length)
        .map(|_| CHARACTERS[r.random_range(0..CHARACTERS.len())])
        .collect()
}

fn decimal(unscaled: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (integer, fraction) = digits.split_at(digits.len() - scale);
    let (sign, point) = (
        if unscaled < 0 { "-" } else { "" },
        if scale == 0 { "" } else { "." },
    );
    format!("{sign}{integer}{point}{fraction}")
}

fn bytes(all: &[u8]) -> Value {
    let pairs: Vec<_> = all.iter().map(|byte| format!("{byte:02x}")).collect();
    (pairs.join(" "), format!("\\x{}", pairs.concat()))
}

fn specials() -> Vec<Value> {
    pairs(&[
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("0.0", "0"),
        ("-0.0", "-0"),
    ])
}

fn floats(numbers: &[f32]) -> Vec<Value> {
    let mut all: Vec<_> = numbers.iter().map(|number| float(*number)).collect();
    // Java has two digits of the least one, where one tells it from its neighbours.
    all.extend(pairs(&[("1.4E-45", "1e-45")]));
    all.extend(specials());
    all
}

fn doubles(numbers: &[f64]) -> Vec<Value> {
    let mut all: Vec<_> = numbers.iter().map(|number| double(*number)).collect();
    all.extend(pairs(&[("4.9E-324", "5e-324")]));
    all.extend(specials());
    all
}

fn float(number: f32) -> Value {
    both_floats(&format!("{number:e}"), 6)
}

fn double(number: f64) -> Value {
    both_floats(&format!("{number:e}"), 15)
}

/// Of the shortest digits that tell a number from its neighbours, `-1.25e-7`: Java's way to write them, and that of
/// Postgres, which has an exponent from so many digits before the point on.
fn both_floats(shortest: &str, digits_before: i32) -> Value {
    let (mantissa, exponent) = shortest.split_once('e').expect("a number has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    let (sign, mantissa) = mantissa
        .strip_prefix('-')
        .map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    let java = if (-3..7).contains(&exponent) {
        let plain = plain(&digits, exponent);
        if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        }
    } else {
        format!(
            "{}.{}E{exponent}",
            &digits[..1],
            if digits.len() > 1 { &digits[1..] } else { "0" }
        )
    };
    let postgres = if (-4..digits_before).contains(&exponent) {
        plain(&digits, exponent)
    } else {
        let point = if digits.len() > 1 { "." } else { "" };
        let sign = if exponent < 0 { '-' } else { '+' };
        format!(
            "{}{point}{}e{sign}{:02}",
            &digits[..1],
            &digits[1..],
            exponent.abs()
        )
    };
    (format!("{sign}{java}"), format!("{sign}{postgres}"))
}

/// The digits with their point, the first of them standing for ten to the power of `exponent`.
fn plain(digits: &str, exponent: i32) -> String {
    if exponent < 0 {
        let zeros = usize::try_from(-exponent - 1).expect("fits");
        return format!("0.{}{digits}", "0".repeat(zeros));
    }
    let before = usize::try_from(exponent + 1).expect("fits");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index == before {
            text.push('.');
        }
        text.push(digit);
    }
    let missing = before.saturating_sub(digits.len());
    write!(text, "{}", "0".repeat(missing)).expect("a text can be written to");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_java_and_postgres_write_them() {
        for (number, java, postgres) in [
            (1.0, "1.0", "1"),
            (-123.25, "-123.25", "-123.25"),
            (1e6, "1000000.0", "1000000"),
            (1e7, "1.0E7", "10000000"),
            (1.5e14, "1.5E14", "150000000000000"),
            (1e15, "1.0E15", "1e+15"),
            (0.001, "0.001", "0.001"),
            (0.0001, "1.0E-4", "0.0001"),
            (0.000_012_5, "1.25E-5", "1.25e-05"),
            (1.5e-200, "1.5E-200", "1.5e-200"),
        ] {
            assert_eq!(double(number), (java.to_owned(), postgres.to_owned()));
        }
        assert_eq!(float(1e6), ("1000000.0".to_owned(), "1e+06".to_owned()));
    }

    #[test]
    fn random_values_are_the_same_each_time() {
        for kind in kinds() {
            assert_eq!(kind.random(50), kind.random(50), "{}", kind.athena);
        }
    }
}
