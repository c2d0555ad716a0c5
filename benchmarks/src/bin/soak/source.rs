//! The rows: the sample's clicks, in another version for each run, so that an upsert changes rows; and a sum over rows that
//! does not depend on their order, computed from the source here and from the table in Postgres.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use testkit::cloud::{Answer, ResultSet, Row, sample};
use testkit::pipeline::Pipeline;

/// The load mode of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Append,
    Upsert,
}

/// The jobs, in the order in which they are run: name, mode, way.
pub(crate) const JOBS: [(&str, Mode, &str); 4] = [
    ("append_s3", Mode::Append, "s3"),
    ("upsert_pages", Mode::Upsert, "api"),
    ("append_pages", Mode::Append, "api"),
    ("upsert_s3", Mode::Upsert, "s3"),
];

/// A number of rows, and the sum of the first 60 bits of each row's SHA-256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) rows: u64,
    pub(crate) hash: u128,
}

/// The table that a mode's runs are loaded into.
pub(crate) fn table(mode: Mode) -> &'static str {
    match mode {
        Mode::Append => "clicks_appended",
        Mode::Upsert => "clicks_upserted",
    }
}

pub(crate) fn write_jobs(pipeline: &Pipeline) {
    for (name, mode, way) in JOBS {
        let target = match mode {
            Mode::Append => String::new(),
            Mode::Upsert => "mode = \"upsert\"\nkey = [\"url\"]\n".to_owned(),
        };
        let toml = format!(
            "[source]\ndatabase = \"d\"\nsql = \"{name}.sql\"\nresults = \"{way}\"\n\
             [parameters]\nversion = {{ type = \"integer\" }}\n[target]\ntable = \"{}\"\n{target}",
            table(mode)
        );
        pipeline.write_job(name, &toml);
        std::fs::write(
            pipeline.jobs.path().join(format!("{name}.sql")),
            "SELECT * FROM clicks WHERE version = :version",
        )
        .expect("the SQL of a job can be written");
    }
}

/// Lets the cloud answer the query for a version.
pub(crate) fn answer(pipeline: &Pipeline, version: u64, rows: u64) {
    pipeline.cloud.answer(
        &format!("version = {version}"),
        Answer::rows(clicks(rows, version)),
    );
}

/// The sample with `version` added to each row's visits.
fn clicks(rows: u64, version: u64) -> ResultSet {
    let base = sample::clicks(rows);
    ResultSet::generated(sample::columns(), rows, move |n| {
        changed(base.row(n), version)
    })
}

fn changed(mut row: Row, version: u64) -> Row {
    let visits = row[3]
        .as_deref()
        .and_then(|visits| visits.parse::<u64>().ok());
    row[3] = visits.map(|visits| (visits + version).to_string());
    row
}

/// The sum of a version's rows.
pub(crate) async fn expected(rows: u64, version: u64) -> Sum {
    let summing = tokio::task::spawn_blocking(move || {
        let source = clicks(rows, version);
        let mut sum = Sum::default();
        for n in 0..rows {
            sum.rows += 1;
            sum.hash += hash(&canonical(&source.row(n)));
        }
        sum
    });
    summing.await.expect("rows can be summed")
}

/// A row as [`CANONICAL`] writes it: values with a byte between them that no value has, another one for NULL.
fn canonical(row: &Row) -> String {
    let mut text = String::new();
    for (column, value) in row.iter().enumerate() {
        if column > 0 {
            text.push('\u{1f}');
        }
        match (column, value) {
            (_, None) => text.push('\u{1e}'),
            // As Postgres shows a double: the shortest text that is this number.
            (4, Some(value)) => write!(
                text,
                "{}",
                value
                    .parse::<f64>()
                    .expect("the sample's seconds are numbers")
            )
            .expect("a String takes everything"),
            (5, Some(value)) => {
                text.push_str(value);
                text.push_str("000");
            }
            (_, Some(value)) => text.push_str(value),
        }
    }
    text
}

/// A row of the target as text.
const CANONICAL: &str = "concat_ws(E'\\x1f', coalesce(dt::text, E'\\x1e'), coalesce(country, E'\\x1e'), coalesce(url, E'\\x1e'),
    coalesce(visits::text, E'\\x1e'), coalesce(seconds::text, E'\\x1e'), coalesce(to_char(seen_at, 'YYYY-MM-DD HH24:MI:SS.US'), E'\\x1e'))";

fn hash(text: &str) -> u128 {
    let digest = Sha256::digest(text.as_bytes());
    let first = digest[..8].try_into().expect("SHA-256 has 32 bytes");
    u128::from(u64::from_be_bytes(first) >> 4)
}

/// What a table holds of each run: its number, and the sum.
pub(crate) async fn loaded(pipeline: &Pipeline, mode: Mode) -> sqlx::Result<Vec<(i64, Sum)>> {
    let sql = format!(
        "SELECT etl.run_no(_batch), count(*), sum(('x' || left(encode(sha256(convert_to({CANONICAL}, 'UTF8')), 'hex'), 15))::bit(60)::bigint)::text
         FROM {} GROUP BY 1 ORDER BY 1",
        table(mode)
    );
    let found: Vec<(i64, i64, String)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .fetch_all(&pipeline.database.pool)
        .await?;
    let sums = found.into_iter().map(|(run, rows, hash)| {
        let hash = hash.parse().expect("a sum of bigints is a whole number");
        let rows = rows.unsigned_abs();
        (run, Sum { rows, hash })
    });
    Ok(sums.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_row_equals_postgres_text() {
        let row = [
            "2018-04-02",
            "",
            "u\n\"",
            "7",
            "12.0",
            "2018-04-02 01:02:03.450",
        ];
        let mut row: Row = row.iter().map(|value| Some((*value).to_owned())).collect();
        let wanted = "2018-04-02\u{1f}\u{1f}u\n\"\u{1f}7\u{1f}12\u{1f}2018-04-02 01:02:03.450000";
        assert_eq!(canonical(&row), wanted);
        row[1] = None;
        assert_eq!(
            canonical(&row),
            wanted.replacen('\u{1f}', "\u{1f}\u{1e}", 1)
        );
    }

    #[tokio::test]
    async fn sum_depends_on_version_and_rows_and_not_on_order() {
        let sum = expected(100, 1).await;
        assert_ne!(sum, expected(99, 1).await);
        assert_ne!(sum.hash, expected(100, 2).await.hash);
        let backwards = (0..100)
            .rev()
            .map(|n| hash(&canonical(&clicks(100, 1).row(n))));
        assert_eq!(backwards.sum::<u128>(), sum.hash);
    }
}
