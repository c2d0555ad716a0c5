//! Arbitrary values and names with a real Postgres: COPY stores the values unchanged, and names stay names.

use common::Rows;
use common::job::{Mode, Target};
use common::schema::{PgType, TargetColumn, check_identifier};
use loader::copy::{CopyText, Last};
use loader::ddl::{TableName, check_columns, create_table};
use loader::target::Prepared;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::support::{Shape, ledger_database};

type Value = Option<String>;

/// Each case takes up to three round trips: the default number of cases is lower than in other property tests.
fn runner() -> TestRunner {
    let config = Config::default();
    let cases = config.cases / 4 + 1;
    // The failed case is in the message; no regression file is written.
    let failure_persistence = None;
    TestRunner::new(Config {
        cases,
        failure_persistence,
        ..config
    })
}

/// Runs `case` on values of a strategy, all on one connection to a separate database.
fn on_postgres<S: Strategy>(strategy: S, case: &impl AsyncFn(&mut PgConnection, S::Value)) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let database = runtime.block_on(ledger_database());
    let connection = std::cell::RefCell::new(runtime.block_on(database.pool.acquire()).unwrap());
    let ran = runner().run(&strategy, |value| {
        runtime.block_on(case(&mut connection.borrow_mut(), value));
        Ok(())
    });
    ran.unwrap_or_else(|failure| panic!("{failure}"));
}

fn text() -> impl Strategy<Value = Value> {
    // Postgres' text has no NUL: the transformer rejects rows that have one.
    prop::option::of(
        "(?s)[\\\\.NtnrbfvxX0-7\t\n\r\u{b}\u{8}\u{c}\"',a-cäß😀\u{feff}\u{2028}]{0,8}|[^\u{0}]{0,8}",
    )
}

fn name() -> impl Strategy<Value = String> {
    let odd = "[\"'\\\\.;:, %$()\\-/*a-zA-ZäÖß😀\t\n\u{1}\u{202e}]{1,20}";
    let known = prop::sample::select(vec![
        "select",
        "n",
        "c0",
        "c1",
        "_batch_",
        "ctid_",
        "\"",
        "\"\"",
        "pg_temp",
        "COPY x, line 1",
        "a, column b: ",
    ]);
    prop_oneof![4 => odd.prop_map(String::from), 1 => known.prop_map(str::to_owned), 1 => "x{60}é?x?"]
        .prop_filter("a name that may be one", |name| check_identifier(name).is_ok())
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

#[test]
fn copied_values_are_stored_unchanged() {
    let rows = prop::collection::vec(prop::collection::vec(text(), 2), 0..60);
    on_postgres(
        rows,
        &async |connection: &mut PgConnection, values: Vec<Vec<Value>>| {
            execute(
            connection,
            "CREATE TEMP TABLE IF NOT EXISTS copied (a text, b text, n bigint); TRUNCATE copied",
        )
        .await;
            let mut rows = Rows::new(2);
            for row in &values {
                rows.push(row.iter().map(Option::as_deref));
            }
            let lines = CopyText::encode(&rows, Last::Index);
            let statement = "COPY copied (a, b, n) FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')";
            let mut copy = connection.copy_in_raw(statement).await.unwrap();
            copy.send(lines.lines(0..values.len())).await.unwrap();
            assert_eq!(copy.finish().await.unwrap(), values.len() as u64);
            let found: Vec<(Value, Value, i64)> =
                sqlx::query_as("SELECT a, b, n FROM copied ORDER BY n")
                    .fetch_all(connection)
                    .await
                    .unwrap();
            let found: Vec<Vec<Value>> = found.into_iter().map(|(a, b, _)| vec![a, b]).collect();
            assert_eq!(found, values);
        },
    );
}

#[test]
fn arbitrary_names_become_the_names_of_table_and_columns() {
    let names = (
        name(),
        prop::collection::btree_set(name(), 1..5),
        any::<bool>(),
    );
    on_postgres(
        names,
        &async |connection: &mut PgConnection, (table, columns, upsert)| {
            let column = |name| TargetColumn {
                name,
                pg_type: PgType::Text,
                athena_type: "it's".into(),
            };
            let columns: Vec<_> = columns.into_iter().map(column).collect();
            let key = if upsert {
                vec![columns[0].name.clone()]
            } else {
                Vec::new()
            };
            let mode = if upsert { Mode::Upsert } else { Mode::Append };
            // The part before a full stop would be a schema.
            let table = table.replace('.', "_");
            let target = Target {
                table,
                mode,
                key,
                ..Target::default()
            };
            let name = TableName::of(&target, &["public".to_owned()]).unwrap();
            check_columns(&name, &target, &columns).unwrap();
            let mut tx = connection.begin().await.unwrap();
            let connection = &mut *tx;
            execute(
                connection,
                &create_table(&name, &target, &columns, "it's; DROP"),
            )
            .await;
            let mut wanted: Vec<_> = columns.iter().map(|column| column.name.clone()).collect();
            wanted.push("_batch".to_owned());
            assert_eq!(columns_of(connection, &name.table).await, wanted);
            load_one_row(connection, &name, &target, columns).await;
            assert_eq!(count(connection, &name.sql()).await, 1);
            let tables = "pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
            assert_eq!(count(connection, tables).await, 1);
            tx.rollback().await.unwrap();
        },
    );
}

/// The columns of a table of schema `public`, from the catalog.
async fn columns_of(connection: &mut PgConnection, table: &str) -> Vec<String> {
    let known = "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        WHERE relname = $1 AND relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0";
    sqlx::query_scalar(known)
        .bind(table)
        .fetch_one(connection)
        .await
        .unwrap()
}

async fn count(connection: &mut PgConnection, what: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {what}");
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await
        .unwrap()
}

/// One row of `x`, as a batch.
async fn load_one_row(
    connection: &mut PgConnection,
    name: &TableName,
    target: &Target,
    columns: Vec<TargetColumn>,
) {
    let types = columns.iter().map(|column| column.pg_type.into()).collect();
    let prepared = Prepared::new(name, target, &columns, types, String::new());
    let row = vec![Some("x"); columns.len()];
    let shape = Shape {
        target: target.clone(),
        columns,
    };
    let batch = shape.batch("r", 0, &[row]);
    let written = prepared.write(connection, &batch, 1).await.unwrap();
    assert!(written.refused.is_empty(), "{written:?}");
}
