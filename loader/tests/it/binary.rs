//! The binary and the text format of COPY store the same values: Postgres compares them bit by bit.

use common::Rows;
use common::schema::PgType;
use loader::copy::binary::encode;
use loader::copy::{CopyText, Last};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use testkit::servers::database;

/// Each type, the function that shows the bits of its values, and critical texts.
const TYPES: [(&str, &str, &[&str]); 20] = [
    ("boolean", "boolsend", &["true", "false"]),
    ("smallint", "int2send", &["-32768", "32767", "0"]),
    ("integer", "int4send", &["-2147483648", "2147483647", "0"]),
    (
        "bigint",
        "int8send",
        &["-9223372036854775808", "9223372036854775807", "-1"],
    ),
    (
        "real",
        "float4send",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "-0",
            "-0.0",
            "1e-45",
            "1.17549435E-38",
            "3.4028235E38",
            "16777217",
            "0.1",
            "7.038531e-26",
            "1.00000017881393432617187499",
        ],
    ),
    (
        "double precision",
        "float8send",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "-0",
            "4.9E-324",
            "2.2250738585072011e-308",
            "1.7976931348623157E308",
            "9007199254740993",
            "0.1",
            "1.0E10",
            "8.41E21",
            "5e-324",
            "6.631236846766476e-316",
        ],
    ),
    (
        "numeric",
        "numeric_send",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "0.000",
            "-0.1",
            "10000",
            "9999",
            "100000000.00000001",
            "0.0001",
            "0.00010",
            "-12345678901234567890123456789012345678",
            "1000000000000000000000000000000000000",
            "3.10",
        ],
    ),
    (
        "numeric(38,10)",
        "numeric_send",
        &[
            "1234567890123456789012345678.0123456789",
            "0.0000000001",
            "-1.0000000000",
            "0.0000000000",
        ],
    ),
    ("numeric(5,0)", "numeric_send", &["99999", "-1", "0"]),
    (
        "text",
        "textsend",
        &["", "ä漢😀", "a\tb\nc\\d\r", "\\.", "\\N"],
    ),
    ("varchar(3)", "varcharsend", &["", "äöü", "ab"]),
    ("char(3)", "bpcharsend", &["", "äöü", "ab"]),
    (
        "date",
        "date_send",
        &[
            "2000-01-01",
            "1999-12-31",
            "2000-02-29",
            "1900-02-28",
            "4714-11-24 BC",
            "0001-01-01",
            "0001-12-31 BC",
            "0005-02-29 BC",
            "5874897-12-31",
            "12345-06-07",
        ],
    ),
    (
        "time",
        "time_send",
        &["00:00:00", "23:59:59.999999", "12:00:00.5"],
    ),
    (
        "timestamp",
        "timestamp_send",
        &[
            "2000-01-01 00:00:00",
            "1999-12-31 23:59:59.999999",
            "4714-11-24 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
            "0001-12-31 23:59:59.5 BC",
        ],
    ),
    (
        "timestamptz",
        "timestamptz_send",
        &[
            "2000-01-01 00:00:00+00",
            "1969-12-31 23:59:59.999999+00",
            "4714-11-24 00:00:00+00 BC",
            "294276-12-31 23:59:59.999999+00",
        ],
    ),
    ("bytea", "byteasend", &["\\x", "\\x00ff10", "\\xDEADbeef"]),
    (
        "json",
        "json_send",
        &["{\"a\": [1, \"ä\\u0000\"], \"a\": 2}", "null", "1e400"],
    ),
    (
        "jsonb",
        "jsonb_send",
        &["{\"b\": [1, \"ä\"], \"a\": 2}", "null", "1e400"],
    ),
    (
        "uuid",
        "uuid_send",
        &[
            "00000000-0000-0000-0000-000000000000",
            "A0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ],
    ),
];

/// A reproducible sequence of pseudo-random numbers: Knuth's MMIX generator.
fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state: u64 = 7;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

fn digits(count: u64, below: &mut impl FnMut(u64) -> u64) -> String {
    let first = (1 + below(9)).to_string();
    (1..count).fold(first, |digits, _| digits + &below(10).to_string())
}

/// A date and its era.
fn date(below: &mut impl FnMut(u64) -> u64) -> (String, &'static str) {
    let (year, era) = match below(10) {
        0 => (1 + below(4_000), " BC"),
        1..5 => (1 + below(9_999), ""),
        _ => (1_970 + below(100), ""),
    };
    let date = format!("{year:04}-{:02}-{:02}", 1 + below(12), 1 + below(28));
    (date, era)
}

fn time(below: &mut impl FnMut(u64) -> u64) -> String {
    let clock = format!("{:02}:{:02}:{:02}", below(24), below(60), below(60));
    let fraction = format!(".{:06}", below(2) * below(1_000_000));
    clock + fraction.trim_end_matches('0').trim_end_matches('.')
}

/// A text in the canonical form of a type. None when the listed texts suffice.
fn random(pg_type: &str, below: &mut impl FnMut(u64) -> u64) -> Option<String> {
    let mut sign = || if below(2) == 0 { "" } else { "-" };
    let sign = sign();
    Some(match pg_type {
        "smallint" => format!("{sign}{}", digits(1 + below(4), below)),
        "integer" => format!("{sign}{}", digits(1 + below(9), below)),
        "bigint" => format!("{sign}{}", digits(1 + below(18), below)),
        "real" | "double precision" => {
            let most = if pg_type == "real" { 37 } else { 300 };
            let whole = digits(1 + below(20), below);
            let fraction = digits(1 + below(20), below);
            let exponent = below(most);
            let minus = if below(2) == 0 { "" } else { "-" };
            match below(3) {
                0 => format!("{sign}{whole}.{fraction}"),
                1 => format!("{sign}{}.{fraction}E{minus}{exponent}", below(10)),
                _ => format!(
                    "{sign}0.{}{fraction}",
                    "0".repeat(usize::try_from(below(9)).unwrap())
                ),
            }
        }
        "numeric" => {
            let whole = if below(4) == 0 {
                "0".to_owned()
            } else {
                digits(1 + below(38), below)
            };
            let zeros = "0".repeat(usize::try_from(below(9)).unwrap());
            match below(3) {
                0 => format!("{sign}{whole}"),
                1 => format!("{sign}{whole}.{zeros}{}", digits(1 + below(20), below)),
                _ => format!("{sign}{whole}.{}{zeros}", digits(1 + below(20), below)),
            }
        }
        "date" => {
            let (date, era) = date(below);
            date + era
        }
        "time" => time(below),
        "timestamp" | "timestamptz" => {
            let (date, era) = date(below);
            let zone = if pg_type == "timestamp" { "" } else { "+00" };
            format!("{date} {}{zone}{era}", time(below))
        }
        _ => return None,
    })
}

async fn copy(connection: &mut PgConnection, table: &str, format: &str, bytes: &[u8]) -> u64 {
    let statement = format!("COPY {table} FROM STDIN WITH (FORMAT {format})");
    let mut copy = connection.copy_in_raw(&statement).await.unwrap();
    copy.send(bytes).await.unwrap();
    copy.finish()
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error}"))
}

#[tokio::test]
async fn binary_and_text_copy_store_the_same_values() {
    let database = database().await;
    let mut connection = database.pool.acquire().await.unwrap();
    connection.execute("SET TimeZone = 'UTC'").await.unwrap();
    let mut below = numbers();
    for (number, (pg_type, send, special)) in TYPES.into_iter().enumerate() {
        let mut rows = Rows::new(1);
        rows.push([None]);
        for text in special {
            rows.push([Some(*text)]);
        }
        let texts = (0..3_000).map_while(|_| random(pg_type, &mut below));
        for text in texts {
            rows.push([Some(text.as_str())]);
        }
        let parsed: PgType = pg_type.parse().unwrap();
        let binary = encode(&rows, &[parsed], Last::Batch(7));
        let binary = binary.unwrap_or_else(|| panic!("a value of {pg_type} was not encoded"));
        let text = CopyText::encode(&rows, Last::Batch(7));
        let (one, other) = (format!("b{number}"), format!("t{number}"));
        for table in [&one, &other] {
            let create = format!("CREATE TABLE {table} (v {pg_type}, batch bigint, n serial)");
            connection.execute(AssertSqlSafe(create)).await.unwrap();
        }
        let count = rows.len() as u64;
        let columns = "(v, batch)";
        let stored = copy(
            &mut connection,
            &format!("{one} {columns}"),
            "binary",
            &binary,
        )
        .await;
        assert_eq!(stored, count, "{pg_type}");
        let lines = text.lines(0..rows.len());
        let stored = copy(
            &mut connection,
            &format!("{other} {columns}"),
            "text",
            lines,
        )
        .await;
        assert_eq!(stored, count, "{pg_type}");
        let differ = format!(
            "SELECT coalesce(string_agg(concat(b.v::text, ' for ', t.v::text), ', '), '') FROM {one} b FULL JOIN {other} t USING (n)
             WHERE {send}(b.v) IS DISTINCT FROM {send}(t.v) OR b.batch <> 7 OR b.v::text IS DISTINCT FROM t.v::text"
        );
        let differ: String = sqlx::query_scalar(AssertSqlSafe(differ))
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!(differ, "", "{pg_type}");
    }
}

/// Appends the index of the row instead of the number of the batch, as for staging.
#[tokio::test]
async fn last_value_may_be_the_index_of_the_row() {
    let database = database().await;
    let mut connection = database.pool.acquire().await.unwrap();
    let create = "CREATE TABLE staged (v text, n integer)";
    connection.execute(create).await.unwrap();
    let mut rows = Rows::new(1);
    for text in ["a", "b", "c"] {
        rows.push([Some(text)]);
    }
    let bytes = encode(&rows, &[PgType::Text], Last::Index).unwrap();
    assert_eq!(copy(&mut connection, "staged", "binary", &bytes).await, 3);
    let found: String = sqlx::query_scalar("SELECT string_agg(v || n, ' ' ORDER BY n) FROM staged")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    assert_eq!(found, "a0 b1 c2");
}
