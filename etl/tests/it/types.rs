//! Every type through the whole pipeline: Postgres shows what Athena printed, from S3 and from pages. The limits of
//! each type, a thousand random values, and NULL.

use sqlx::{AssertSqlSafe, Executor as _};
use testkit::cloud::{Column, ResultSet};
use testkit::pipeline::Pipeline;
use testkit::values::{Kind, Value, kinds};

const RANDOM: usize = 1_000;

/// A column: its name, Athena type, and values; none is NULL.
struct Filled {
    name: String,
    athena: &'static str,
    values: Vec<Option<Value>>,
}

/// A column for each type, NULL in its first row, and all of the same length.
fn columns(text_of: impl Fn(&Kind, Value) -> Value) -> Vec<Filled> {
    let kinds = kinds();
    let most_edges = kinds.iter().map(|kind| kind.edges.len()).max().unwrap();
    let filled = kinds.iter().enumerate().map(|(index, kind)| {
        let mut values = vec![None];
        values.extend(kind.edges.iter().cloned().map(Some));
        values.resize(1 + most_edges, None);
        values.extend(kind.random(RANDOM).into_iter().map(Some));
        let values = values
            .into_iter()
            .map(|value| value.map(|value| text_of(kind, value)));
        Filled {
            name: format!("c{index}"),
            athena: kind.athena,
            values: values.collect(),
        }
    });
    filled.collect()
}

/// The columns as the result of a query, behind the number of the row.
fn result(columns: &[Filled], athena_type: impl Fn(&Filled) -> &'static str) -> ResultSet {
    let mut described = vec![Column::new("n", "integer")];
    described.extend(
        columns
            .iter()
            .map(|column| Column::new(&column.name, athena_type(column))),
    );
    let rows = (0..columns[0].values.len()).map(|row| {
        let mut values = vec![Some(row.to_string())];
        values.extend(columns.iter().map(|column| {
            let value = column.values[row].as_ref();
            value.map(|(athena, _)| athena.clone())
        }));
        values
    });
    ResultSet::new(described, rows.collect())
}

/// The text of a column in Postgres, by row.
async fn shown(pipeline: &Pipeline, table: &str, column: &str) -> Vec<Option<String>> {
    let mut connection = pipeline.database.pool.acquire().await.unwrap();
    let settings = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'";
    connection.execute(settings).await.unwrap();
    // A cast of inet to text would add the prefix that its output leaves out.
    let sql = format!(
        "SELECT CASE WHEN pg_typeof({column}) = 'inet'::regtype AND {column} IS NOT NULL THEN format('%s', {column}) ELSE {column}::text END FROM {table} ORDER BY n"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(sql));
    query.fetch_all(&mut *connection).await.unwrap()
}

/// Whether Postgres shows the expected text. A float halfway between two shortest decimals has two shortest forms, and
/// Postgres may choose the other one: such values are compared as numbers.
fn is_same(athena: &str, seen: Option<&String>, wanted: Option<&String>) -> bool {
    let (Some(seen), Some(wanted)) = (seen, wanted) else {
        return seen == wanted;
    };
    seen == wanted
        || match athena {
            "float" | "real" => {
                let [seen, wanted] = [seen, wanted].map(|text| text.parse::<f32>().unwrap());
                seen.to_bits() == wanted.to_bits()
            }
            "double" => {
                let [seen, wanted] = [seen, wanted].map(|text| text.parse::<f64>().unwrap());
                seen.to_bits() == wanted.to_bits()
            }
            _ => false,
        }
}

async fn assert_all_shown(pipeline: &Pipeline, table: &str, columns: &[Filled]) {
    for column in columns {
        let seen = shown(pipeline, table, &column.name).await;
        assert_eq!(seen.len(), column.values.len(), "{table} {}", column.athena);
        for (row, (seen, value)) in seen.iter().zip(&column.values).enumerate() {
            let wanted = value.as_ref().map(|(_, postgres)| postgres);
            assert!(
                is_same(column.athena, seen.as_ref(), wanted),
                "{table} {} row {row}: {seen:?} instead of {value:?}",
                column.athena
            );
        }
    }
}

fn job(results: &str, name: &str) -> String {
    format!(
        "[source]\ndatabase = \"d\"\nsql = \"{name}.sql\"\nresults = \"{results}\"\n[target]\ntable = \"{name}\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_stay_equal_from_s3_and_from_pages() {
    let pipeline = Pipeline::start().await;
    let columns = columns(|_, value| value);
    let rows = columns[0].values.len();
    for results in ["s3", "api"] {
        let name = format!("types_{results}");
        // No [[columns]]: names and types are the query's.
        pipeline.job(
            &name,
            &job(results, &name),
            result(&columns, |column| column.athena),
        );
        let run = pipeline.run(&name, &name).await;
        assert_eq!(
            run["rows_loaded"],
            rows,
            "{run}\n{:?}",
            reasons(&pipeline, &name).await
        );
        pipeline.assert_reconciled(&name).await;
        assert_all_shown(&pipeline, &name, &columns).await;
        for (index, kind) in kinds().iter().enumerate() {
            let found = format!(
                "SELECT count(*) FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attname = 'c{index}' AND atttypid = '{}'::regtype AND col_description(attrelid, attnum) LIKE 'From Athena''s %'",
                kind.postgres.split('(').next().unwrap()
            );
            assert_eq!(
                pipeline.number(&found).await,
                1,
                "{} becomes {}",
                kind.athena,
                kind.postgres
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_converted_to_every_declared_type() {
    let pipeline = Pipeline::start().await;
    // Text has the form that Postgres writes; intervals have the form of Athena.
    let columns = columns(|kind, (athena, postgres)| match kind.postgres {
        "interval" => (athena, postgres),
        _ => (postgres.clone(), postgres),
    });
    let rows = columns[0].values.len();
    let declared: Vec<String> = kinds()
        .iter()
        .enumerate()
        .map(|(n, kind)| {
            format!(
                "[[columns]]\nsource = \"c{n}\"\ntype = \"{}\"\n",
                kind.postgres
            )
        })
        .collect();
    let declared = declared.concat();
    for results in ["s3", "api"] {
        let name = format!("texts_{results}");
        let toml = job(results, &name) + &declared;
        pipeline.job(&name, &toml, result(&columns, |_| "varchar"));
        let run = pipeline.run(&name, &name).await;
        assert_eq!(
            run["rows_loaded"],
            rows,
            "{run}\n{:?}",
            reasons(&pipeline, &name).await
        );
        assert_all_shown(&pipeline, &name, &columns).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn formats_and_epochs_are_read_as_postgres_reads_them() {
    let pipeline = Pipeline::start().await;
    let timestamps = &kinds()
        .into_iter()
        .find(|kind| kind.athena == "timestamp(6)")
        .unwrap();
    // Years that to_timestamp reads too: four digits, after Christ.
    let texts: Vec<_> = timestamps
        .random(3_000)
        .into_iter()
        .map(|(_, postgres)| postgres)
        .filter(|text| !text.ends_with("BC") && text.as_bytes()[4] == b'-')
        .collect();
    assert!(texts.len() > RANDOM, "{} texts", texts.len());
    let names = ["n", "written", "plain", "seconds", "millis", "number"];
    let types = [
        "integer",
        "varchar",
        "timestamp",
        "bigint",
        "bigint",
        "bigint",
    ];
    let rows = texts.iter().enumerate().map(|(n, text)| {
        let (date, time) = text.split_once(' ').unwrap();
        let mut parts = date.split('-');
        let [year, month, day] = [(); 3].map(|()| parts.next().unwrap());
        let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let number = i64::try_from(n).unwrap() * 7_919_123_457 - 200_000_000_000;
        vec![
            n.to_string(),
            format!("{day}.{month}.{year} um {clock},{fraction}"),
            text.clone(),
            number.to_string(),
            number.to_string(),
            number.to_string(),
        ]
    });
    let rows: Vec<Vec<Option<String>>> = rows
        .map(|row| row.into_iter().map(Some).collect())
        .collect();
    let described = names
        .iter()
        .zip(types)
        .map(|(name, kind)| Column::new(name, kind))
        .collect::<Vec<_>>();
    for results in ["s3", "api"] {
        let name = format!("formats_{results}");
        let toml = job(results, &name)
            + "[[columns]]\nsource = \"written\"\ntype = \"timestamp\"\nformat = \"%d.%m.%Y um %T,%f\"\n\
               [[columns]]\nsource = \"seconds\"\nepoch = \"s\"\ntype = \"timestamp\"\n\
               [[columns]]\nsource = \"millis\"\nepoch = \"ms\"\n\
               [[columns]]\nsource = \"number\"\ntype = \"numeric\"\n";
        pipeline.job(
            &name,
            &toml,
            ResultSet::new(described.clone(), rows.clone()),
        );
        // Some numbers of seconds exceed the range of a timestamp; only those rows are rejected.
        pipeline.run(&name, &name).await;
        pipeline.assert_reconciled(&name).await;
        let unlike = format!(
            "SELECT count(*) FROM {name} WHERE written <> plain
             OR extract(epoch FROM seconds) <> number OR extract(epoch FROM millis) * 1000 <> number"
        );
        assert_eq!(pipeline.number(&unlike).await, 0);
        let loaded = pipeline
            .number(&format!("SELECT count(*) FROM {name}"))
            .await;
        let wrongly = format!(
            "SELECT count(*) FROM etl.rejected_rows WHERE run_id = '{name}' AND (column_name <> 'seconds' OR reason NOT LIKE '%out of the range%')"
        );
        assert_eq!(pipeline.number(&wrongly).await, 0);
        let most = format!("SELECT max(number)::bigint FROM {name}");
        assert!(pipeline.number(&most).await <= 9_224_318_015_999);
        assert!(loaded > 1_000, "{loaded} loaded");
    }
}

/// Some of the reasons of a run's rejected rows.
async fn reasons(pipeline: &Pipeline, run: &str) -> Vec<String> {
    let mut reasons = pipeline
        .table(
            "column_name, reason",
            &format!("etl.rejected_rows WHERE run_id = '{run}'"),
        )
        .await;
    reasons.truncate(5);
    reasons
}
