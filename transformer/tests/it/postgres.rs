//! A real Postgres reads canonical text as the same value, and shows it as the same text.

use std::path::Path;

use common::schema::{AthenaType, PgType};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use testkit::servers::database;
use transformer::convert;

/// One line of the second table of `docs/types.md` whose value is not rejected.
struct Example {
    pg_type: String,
    canonical: String,
}

fn examples() -> Vec<Example> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/types.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (_, table) = document.split_once("| Athena's text |").unwrap();
    let (table, _) = table.split_once("<!-- tables: end -->").unwrap();
    let lines = table.lines().filter_map(|line| {
        let cells: Vec<_> = line
            .trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        let [_, _, pg_type, canonical] = cells[..] else {
            return None;
        };
        // For the values in the table, Rust's quoting is that of JSON.
        let canonical = canonical
            .strip_prefix('"')
            .map(|_| serde_json::from_str(canonical).unwrap())?;
        Some(Example {
            pg_type: pg_type.to_owned(),
            canonical,
        })
    });
    lines.collect()
}

async fn utc(connection: &mut PgConnection) {
    connection
        .execute("SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'")
        .await
        .unwrap();
}

/// The text that Postgres shows for the value that it reads from `text`.
async fn shown(connection: &mut PgConnection, text: &str, pg_type: &str) -> String {
    // A cast of inet to text adds the prefix that its output leaves out.
    let output = if pg_type == "inet" {
        "format('%s', v)"
    } else {
        "v::text"
    };
    let sql = format!("SELECT {output} FROM (SELECT $1::text::{pg_type} AS v) AS x");
    let query = sqlx::query_scalar(AssertSqlSafe(sql));
    let shown = query.bind(text).fetch_one(connection).await;
    shown.unwrap_or_else(|error| panic!("{text:?} as {pg_type}: {error}"))
}

/// A canonical time keeps Athena's zeros at its end; Postgres shows none.
fn as_shown(canonical: &str, pg_type: PgType) -> &str {
    match pg_type {
        PgType::Time | PgType::Timestamp if canonical.contains('.') => {
            canonical.trim_end_matches('0').trim_end_matches('.')
        }
        _ => canonical,
    }
}

#[tokio::test]
async fn documented_values_are_what_postgres_shows() {
    let database = database().await;
    let mut connection = database.pool.acquire().await.unwrap();
    utc(&mut connection).await;
    let examples = examples();
    assert!(
        examples.len() > 40,
        "the table has {} values",
        examples.len()
    );
    for Example { pg_type, canonical } in examples {
        let seen = shown(&mut connection, &canonical, &pg_type).await;
        match pg_type.parse().unwrap() {
            // Postgres spells floats in its own way; the value is the same.
            PgType::Real => assert_eq!(seen.parse::<f32>(), canonical.parse(), "{canonical}"),
            PgType::Double => assert_eq!(seen.parse::<f64>(), canonical.parse(), "{canonical}"),
            pg_type => assert_eq!(seen, as_shown(&canonical, pg_type), "{pg_type}"),
        }
    }
}

/// Pseudo-random numbers, the same in every run: Knuth's MMIX generator.
fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state: u64 = 1;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

/// Postgres' reading of the texts, in one query.
async fn all_shown(connection: &mut PgConnection, texts: &[String], pg_type: &str) -> Vec<String> {
    let sql = format!(
        "SELECT t::{pg_type}::text FROM unnest($1::text[]) WITH ORDINALITY AS x(t, n) ORDER BY n"
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(texts)
        .fetch_all(connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn moments_are_read_as_in_postgres() {
    let database = database().await;
    let mut connection = database.pool.acquire().await.unwrap();
    utc(&mut connection).await;
    let mut below = numbers();
    let mut local = |from_year: u64, years: u64| {
        let (year, month, day) = (from_year + below(years), 1 + below(12), 1 + below(28));
        let (hour, minute, second, micros) =
            (below(24), below(60), below(60), below(2) * below(1_000_000));
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}")
    };
    let plain: Vec<String> = (0..2_000).map(|_| local(1, 9_999)).collect();
    let mut zoned: Vec<String> = Vec::new();
    for zone in ["UTC", "+05:30", "-11:00", "+14", "+0545"] {
        zoned.extend((0..500).map(|_| format!("{} {zone}", local(2, 9_997))));
    }
    // Both time zone databases have the same rules for these years.
    for zone in [
        "America/Los_Angeles",
        "Europe/Berlin",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
    ] {
        zoned.extend((0..500).map(|_| format!("{} {zone}", local(1975, 50))));
    }
    for (texts, from, to) in [
        (plain, AthenaType::Timestamp, PgType::Timestamp),
        (zoned, AthenaType::TimestampTz, PgType::TimestampTz),
    ] {
        let wanted = all_shown(&mut connection, &texts, &to.to_string()).await;
        let mut refused = 0;
        for (text, wanted) in texts.iter().zip(wanted) {
            match convert(from, to, text) {
                Ok(seen) => assert_eq!(as_shown(&seen, to), wanted, "{text}"),
                // For an hour that occurs twice or never, Postgres guesses.
                Err(reason) if reason.to_string().contains("clocks of its zone") => refused += 1,
                Err(reason) => panic!("{reason}"),
            }
        }
        assert!(refused < 10, "{refused} refused");
    }
}

#[tokio::test]
async fn numbers_are_read_as_in_postgres() {
    let database = database().await;
    let mut connection = database.pool.acquire().await.unwrap();
    let mut below = numbers();
    let mut texts = Vec::new();
    for _ in 0..3_000 {
        let sign = ["", "-"][usize::from(below(2) == 0)];
        let (integer, zeros) = (
            below(1 << 30),
            "0".repeat(usize::try_from(below(4)).unwrap()),
        );
        let fraction = [
            String::new(),
            format!(".{}{zeros}", below(100_000)),
            format!(".{zeros}{}", below(100)),
        ];
        let exponent = [
            String::new(),
            format!("E{}", below(60)),
            format!("e-{}", below(60)),
        ];
        let (fraction, exponent) = (
            &fraction[usize::try_from(below(3)).unwrap()],
            &exponent[usize::try_from(below(3)).unwrap()],
        );
        texts.push(format!("{sign}{zeros}{integer}{fraction}{exponent}"));
    }
    let wanted = all_shown(&mut connection, &texts, "numeric").await;
    for (text, wanted) in texts.iter().zip(wanted) {
        let seen = convert(AthenaType::Varchar, PgType::Numeric(None), text).unwrap();
        assert_eq!(seen, wanted, "{text}");
    }
}
