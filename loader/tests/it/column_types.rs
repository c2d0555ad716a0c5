//! Columns of an existing table whose types are no types of a job: taken where every value of the job is the same value there,
//! refused otherwise, with a statement and with a declaration that a job can have.

use common::job::{Commit, Mode, Window};
use common::message::ValidBatch;
use sqlx::PgPool;

use crate::support::{
    Shape, execute, extracted, ledger_database, loader, refusal, request_for, shape, text,
};

const TYPES: &str = "CREATE EXTENSION citext SCHEMA public; CREATE TYPE mood AS ENUM ('sad', 'it''s fine'); CREATE SCHEMA \"Far\";
    CREATE DOMAIN \"Far\".\"Short\" AS varchar(5) CHECK (VALUE <> 'bad'); CREATE DOMAIN shorter AS \"Far\".\"Short\"; CREATE DOMAIN moody AS mood";

/// The columns of the table, what the job makes of them, and a value.
const TAKEN: [(&str, &str, &str); 11] = [
    ("timestamp(6)", "timestamp", "2018-04-02 10:00:00.123456"),
    (
        "timestamptz(6)",
        "timestamptz",
        "2018-04-02 10:00:00.123456+00",
    ),
    ("time(6)", "time", "10:00:00.123456"),
    ("interval(6)", "interval", "1 day"),
    ("citext", "text", "MiXed"),
    ("citext", "varchar(9)", "MiXed"),
    ("mood", "text", "it's fine"),
    ("moody", "text", "sad"),
    ("\"Far\".\"Short\"", "varchar(5)", "short"),
    ("shorter", "varchar(3)", "abc"),
    ("\"Far\".\"Short\"[]", "text", ""),
];

const WAYS: [(Mode, Commit); 4] = [
    (Mode::Append, Commit::Batch),
    (Mode::Append, Commit::Run),
    (Mode::Upsert, Commit::Batch),
    (Mode::Replace, Commit::Run),
];

fn way((mode, commit): (Mode, Commit), columns: &[&str]) -> Shape {
    let key: &[&str] = if mode.has_key() { &["k"] } else { &[] };
    let mut shape = shape("t", columns, key);
    shape.target.mode = mode;
    shape.target.commit = commit;
    shape
}

async fn load(pool: &PgPool, loader: &loader::load::Loader, batch: &ValidBatch) -> String {
    loader.handle(batch).await.unwrap();
    let run = batch.id.run.as_str();
    let rows = batch.rows_extracted() as u64;
    loader.handle_event(&extracted(run, 1, rows)).await.unwrap();
    let state = "SELECT concat_ws(' ', state, held_because) FROM etl.runs";
    text(pool, state).await
}

#[tokio::test]
async fn column_that_takes_every_value_of_the_job_is_taken() {
    let taken = &TAKEN[..10];
    for one in WAYS {
        let database = ledger_database().await;
        let pool = &database.pool;
        execute(pool, TYPES).await;
        let columns = taken.iter().enumerate();
        let existing = columns
            .clone()
            .map(|(n, (existing, ..))| format!("c{n} {existing}"));
        let existing: Vec<_> = existing.collect();
        let ddl = format!(
            "CREATE TABLE t (k bigint PRIMARY KEY, {}, _batch bigint)",
            existing.join(", ")
        );
        execute(pool, &ddl).await;
        let wanted = columns.map(|(n, (_, wanted, _))| format!("c{n} {wanted}"));
        let wanted: Vec<_> = ["k bigint".to_owned()].into_iter().chain(wanted).collect();
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        let shape = way(one, &wanted);
        request_for(pool, "r", &shape.target).await;
        let mut rows = vec![
            ["1"]
                .into_iter()
                .chain(taken.iter().map(|(.., value)| *value))
                .map(Some)
                .collect(),
            ["2"]
                .into_iter()
                .map(Some)
                .chain(taken.iter().map(|_| None))
                .collect::<Vec<_>>(),
        ];
        let is_staged = shape.target.is_staged(0);
        if !is_staged {
            // Neither a value of the enum, nor one that the domain takes: these rows are refused, and the others are not cut.
            for (column, value) in [(7, "elated"), (9, "bad"), (9, "longer")] {
                let mut row = rows[0].clone();
                row[0] = Some(["3", "4", "5"][rows.len() - 2]);
                row[column] = Some(value);
                rows.push(row);
            }
        }
        let batch = shape.batch("r", 0, &rows);
        assert_eq!(load(pool, &loader(&database), &batch).await, "completed");
        let values = "SELECT string_agg(concat_ws('|', k, c0, c1 AT TIME ZONE 'UTC', c2, c3, c4, c5, c6, c7, c8, c9), ', ' ORDER BY k) FROM public.t";
        assert_eq!(
            text(pool, values).await,
            "1|2018-04-02 10:00:00.123456|2018-04-02 10:00:00.123456|10:00:00.123456|1 day|MiXed|MiXed|it's fine|sad|short|abc, 2",
            "{one:?}"
        );
        let rejected = "SELECT string_agg(concat_ws(' ', row_number, column_name), ', ' ORDER BY row_number) FROM etl.rejected_rows";
        let expected = if is_staged { "" } else { "2 c6, 3, 4" };
        assert!(text(pool, rejected).await.starts_with(expected), "{one:?}");
    }
}

/// What is declared in the sentence, if anything, and the statement, which is run.
#[tokio::test]
async fn other_column_is_refused_with_remedies_that_work() {
    for (existing, wanted, value, declare) in [
        (
            "timestamp(3)",
            "timestamp",
            "2018-04-02 10:00:00.123456",
            None,
        ),
        (
            "timestamptz(0)",
            "timestamptz",
            "2018-04-02 10:00:00.123456+00",
            None,
        ),
        ("text[]", "text", "{a,b}", None),
        ("mood", "integer", "1", Some("text")),
        (
            "\"Far\".\"Short\"",
            "text",
            "longer",
            Some("character varying(5)"),
        ),
        ("citext", "integer", "1", Some("text")),
        ("date", "bigint", "1", Some("date")),
        ("boolean", "double precision", "1", Some("boolean")),
    ] {
        for one in WAYS {
            let database = ledger_database().await;
            let pool = &database.pool;
            execute(pool, TYPES).await;
            let ddl = format!("CREATE TABLE t (k bigint PRIMARY KEY, c {existing}, _batch bigint)");
            execute(pool, &ddl).await;
            let wanted = format!("c {wanted}");
            let shape = way(one, &["k bigint", &wanted]);
            request_for(pool, "r", &shape.target).await;
            let batch = shape.batch("r", 0, &[vec![Some("1"), Some(value)]]);
            let loader = loader(&database);
            let refused = refusal(&loader, pool, &batch).await;
            let (said, statement) = refused.split_once("run: ").unwrap();
            let offered = said.split_once("declare it as \"").map(|(_, end)| end);
            let offered = offered
                .and_then(|end| end.split_once('"'))
                .map(|(one, _)| one);
            assert_eq!(offered, declare, "{refused}");
            if let Some(declare) = declare {
                declare.parse::<common::schema::PgType>().unwrap();
            }
            execute(pool, statement).await;
            assert_eq!(load(pool, &loader, &batch).await, "completed", "{existing}");
            let is_same = format!("SELECT c = '{value}' FROM public.t");
            assert_eq!(text(pool, &is_same).await, "true", "{existing}");
        }
    }
}

/// Its equality is another one, and the loader's statements do not use it.
#[tokio::test]
async fn column_that_compares_otherwise_finds_no_rows() {
    for existing in ["citext", "mood"] {
        let database = ledger_database().await;
        let pool = &database.pool;
        execute(pool, TYPES).await;
        let ddl = format!("CREATE TABLE t (k {existing} PRIMARY KEY, v text, _batch bigint)");
        execute(pool, &ddl).await;
        let upsert = way(WAYS[2], &["k text", "v text"]);
        let mut replace = way(WAYS[3], &["k text", "v text"]);
        let window = Window::parse("k = 'sad'").unwrap();
        replace.target.replace_where = Some(window.filled(&std::collections::BTreeMap::new()));
        for shape in [&upsert, &replace] {
            let run = shape.target.mode.name();
            request_for(pool, run, &shape.target).await;
            let batch = shape.batch(run, 0, &[vec![Some("sad"), Some("x")]]);
            let refused = refusal(&loader(&database), pool, &batch).await;
            assert!(refused.contains("rows are found by it"), "{refused}");
        }
        let refused = loader(&database);
        let batch = upsert.batch("upsert", 0, &[vec![Some("sad"), Some("x")]]);
        let sentence = refusal(&refused, pool, &batch).await;
        execute(pool, sentence.split_once("run: ").unwrap().1).await;
        refused.handle(&batch).await.unwrap();
    }
}
