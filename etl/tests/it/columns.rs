//! Column settings of a job through the whole pipeline: masks that hide values after the transformer, columns that the
//! job adds, and settings that are refused.

use std::collections::BTreeMap;

use common::message::{Message as _, ValidBatch};
use testkit::TIMEOUT;
use testkit::cloud::{Answer, ResultSet};
use testkit::pipeline::Pipeline;

/// Card numbers that must not appear in clear text: in loaded rows, in rows that break a rule of this or another
/// column, in a row with a NUL, and in a row that Postgres refuses.
const CARDS: [&str; 6] = [
    "4111-2222-3333-1001",
    "4111-2222-3333-1002",
    "4111-2222-3333-1003",
    "4111-2222-3333-1004",
    "4111-2222\0-3333-1005",
    "4111-2222-3333-1006",
];

const MASKED: &str = r#"
[target]
table = "cards"
[[columns]]
source = "card"
mask = "MASK"
trim = true
rules = [{ pattern = ".*[^2]" }]
[[columns]]
source = "phone"
type = "text"
mask = "sha256"
[[columns]]
source = "amount"
rules = [{ min = 0 }]
"#;

fn cards() -> ResultSet {
    let rows: Vec<Vec<Option<String>>> = CARDS
        .iter()
        .zip(["1", "2", "-3", "4", "5", "666"])
        .map(|(card, amount)| {
            vec![
                Some(format!(" {card}")),
                Some("491234567".to_owned()),
                Some(amount.to_owned()),
            ]
        })
        .chain([vec![None, None, Some("7".to_owned())]])
        .collect();
    let columns = [
        ("card", "varchar"),
        ("phone", "bigint"),
        ("amount", "bigint"),
    ];
    let columns = columns.map(|(name, kind)| testkit::cloud::Column::new(name, kind));
    ResultSet::new(columns.to_vec(), rows)
}

/// All content of the database as text: every table outside of the server's own schemas.
async fn everything(pipeline: &Pipeline) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&pipeline.database.pool)
    .await
    .unwrap();
    let mut all = String::new();
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT row_to_json(t)::text FROM {table} t"
        )))
        .fetch_all(&pipeline.database.pool)
        .await
        .unwrap();
        all.push_str(&rows.join("\n"));
    }
    all
}

#[track_caller]
fn assert_hidden(text: &str, place: &str) {
    for secret in ["4111-2222", "3333-100", "491234567"] {
        if let Some(at) = text.find(secret) {
            let from = (0..=at.saturating_sub(80))
                .rev()
                .find(|from| text.is_char_boundary(*from));
            panic!(
                "{secret} is in {place}: ...{}",
                &text[from.unwrap_or(0)..at + secret.len()]
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn masked_values_are_hidden_after_the_transformer() {
    for mask in ["sha256", "redact", "last4"] {
        let mut pipeline = Pipeline::without_services().await;
        // Its replay masks what the archive has.
        pipeline.archive = Some("stream");
        let logged = |pipeline: &Pipeline, name| {
            pipeline
                .service(name)
                .env(
                    "ETL_LOG",
                    "info,common=trace,extractor=trace,transformer=trace,loader=trace",
                )
                .start()
        };
        let mut loader = pipeline.service("loader").start().await;
        pipeline
            .services
            .push(logged(&pipeline, "transformer").await);
        pipeline.services.push(logged(&pipeline, "extractor").await);
        // Postgres refuses a row that the transformer cannot recognise as bad.
        sqlx::raw_sql("CREATE TABLE cards (card text, phone text, amount bigint CHECK (amount <> 666), _batch bigint NOT NULL)")
            .execute(&pipeline.database.pool)
            .await
            .unwrap();
        pipeline.job("cards", &MASKED.replace("MASK", mask), cards());
        loader.kill9().await;
        let asked = pipeline.etl(&["run", "cards", "--run-id", "cards"]).await;
        assert_eq!(asked.code, Some(0), "{}", asked.stderr);
        testkit::wait_until("the batch to wait for a loader", TIMEOUT, async || {
            pipeline.vhost.ready("etl.valid").await == 1
        })
        .await;
        let waiting = pipeline.vhost.take_all("etl.valid").await;
        let batch = ValidBatch::read(ValidBatch::KIND, &waiting[0].body).unwrap();
        let body = serde_json::to_string(&batch).unwrap();
        assert_hidden(&body, "etl.valid");
        assert!(body.contains("masked"), "{body}");

        // The archive has the batch, and the replay masks it again.
        pipeline.services.push(logged(&pipeline, "loader").await);
        testkit::wait_until("the batch to be missed", TIMEOUT, async || {
            pipeline
                .number("SELECT count(*) FROM etl.runs WHERE batches_expected = 1")
                .await
                == 1
        })
        .await;
        let replayed = pipeline.etl(&["replay", "cards", "--missing"]).await;
        assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
        testkit::wait_until("the run to complete", TIMEOUT, async || {
            pipeline.etl(&["reconcile", "cards"]).await.code == Some(0)
        })
        .await;
        let kept = pipeline
            .table("row_number, column_name, rule", "etl.rejected_rows")
            .await;
        assert_eq!(kept.len(), 4, "{kept:?}");
        assert!(
            kept[0].starts_with("(1,card,pattern") && kept[1].starts_with("(2,amount,min"),
            "{kept:?}"
        );
        assert!(
            kept[2].starts_with("(4,card,type") && kept[3].contains("postgres"),
            "{kept:?}"
        );
        assert_eq!(
            pipeline
                .number("SELECT count(*) FROM cards WHERE card IS NULL AND phone IS NULL")
                .await,
            1
        );
        let equal = "SELECT count(DISTINCT phone) FROM cards";
        assert_eq!(
            pipeline.number(equal).await,
            1,
            "equal values have equal masks"
        );

        assert_hidden(&everything(&pipeline).await, "Postgres");
        for command in [
            &["rejects", "cards", "--json"][..],
            &["rejects", "cards"],
            &["status", "cards", "--json"],
        ] {
            assert_hidden(&pipeline.etl(command).await.stdout, "the output of etl");
        }
        for service in &pipeline.services {
            assert_hidden(&service.log(), "a log");
        }
    }
}

const ADDED: &str = r#"
[parameters]
from = { type = "date", default = "2018-04-02" }
[target]
table = "added"
mode = "upsert"
key = ["tenant", "n"]
[[columns]]
source = "n"
type = "numeric"
[[columns]]
name = "tenant"
constant = "acme"
[[columns]]
name = "first_day"
parameter = "from"
[[columns]]
name = "asked"
requested_at = true
"#;

#[tokio::test(flavor = "multi_thread")]
async fn added_columns_have_the_values_of_the_run_after_redeliveries() {
    let pipeline = Pipeline::start().await;
    pipeline.write_job("added", ADDED);
    let result = ResultSet::table(&[("n", "bigint")], &[&[Some("1")], &[Some("2")]]);
    pipeline.cloud.answer("FROM added", Answer::rows(result));
    let run = [
        "run",
        "added",
        "--run-id",
        "one",
        "--set",
        "from=2018-04-05",
        "--follow",
    ];
    let done = pipeline.etl(&run).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    // A repeated request, also one whose first attempt was lost, is the same run.
    assert_eq!(pipeline.etl(&run).await.code, Some(0));
    let same = "SELECT count(*) FROM added a JOIN etl.runs r ON r.run_no = etl.run_no(a._batch)
                WHERE a.asked = r.requested_at AND a.tenant = 'acme' AND a.first_day = date '2018-04-05'";
    assert_eq!(pipeline.number(same).await, 2);
    let comment = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'added'::regclass AND col_description(attrelid, attnum) LIKE 'From the job%'";
    assert_eq!(pipeline.number(comment).await, 3);
    let types: BTreeMap<String, String> = sqlx::query_as::<_, (String, String)>(
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'added'::regclass AND attnum > 0",
    )
    .fetch_all(&pipeline.database.pool)
    .await
    .unwrap()
    .into_iter()
    .collect();
    for (column, wanted) in [
        ("tenant", "text"),
        ("first_day", "date"),
        ("asked", "timestamp with time zone"),
        ("n", "numeric"),
    ] {
        assert_eq!(types[column], wanted, "{column}");
    }
}

/// Invalid columns of a job, and a word of the reason.
const IMPOSSIBLE: [(&str, &str); 9] = [
    (
        "source = \"n\"\nmask = \"sha256\"\ntype = \"bigint\"",
        "mask",
    ),
    ("source = \"n\"\ntype = \"text\"\nformat = \"%Y\"", "format"),
    (
        "source = \"n\"\ntype = \"date\"\nformat = \"%d.%m\"",
        "needs a year",
    ),
    ("source = \"n\"\ntype = \"bigint\"\nround = true", "round"),
    (
        "name = \"m\"\nconstant = \"x\"\ntype = \"bigint\"",
        "not an integer",
    ),
    (
        "name = \"m\"\nrequested_at = true\ntype = \"timestamp\"",
        "would drop",
    ),
    ("name = \"m\"\nparameter = \"p\"", "[parameters]"),
    ("name = \"m\"", "source"),
    ("source = \"n\"\ncase = \"title\"", "line"),
];

#[tokio::test(flavor = "multi_thread")]
async fn invalid_columns_of_a_job_are_refused_before_anything_is_sent() {
    let pipeline = Pipeline::start().await;
    for (number, (column, part)) in IMPOSSIBLE.iter().enumerate() {
        let name = format!("wrong{number}");
        pipeline.write_job(
            &name,
            &format!("[target]\ntable = \"t\"\n[[columns]]\n{column}\n"),
        );
        let done = pipeline.etl(&["run", &name]).await;
        assert_eq!(done.code, Some(2), "{column}: {}", done.stderr);
        assert!(done.stderr.contains(part), "{column}: {}", done.stderr);
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
    assert!(pipeline.cloud.started().is_empty());
}

/// A job's columns, the result's (name and type), and the refusal.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
);

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_contradict_the_result_fail_the_run_before_the_first_batch() {
    let pipeline = Pipeline::start().await;
    let columns = |toml: &str| format!("[target]\ntable = \"t\"\n{toml}");
    let cases: [Case; 8] = [
        (
            "",
            &[("a", "bigint"), ("a", "bigint")],
            "give one of them an alias: SELECT ... AS another_name",
        ),
        (
            "",
            &[("a", "bigint"), ("", "bigint")],
            "give it an alias: SELECT ... AS some_name",
        ),
        (
            "",
            &[("a", "hologram")],
            "the Athena type hologram, which is not known here",
        ),
        (
            "",
            &[("tags", "map(varchar,integer)")],
            "CAST(\"tags\" AS JSON) AS \"tags\"",
        ),
        (
            "[[columns]]\nsource = \"a\"\nmask = \"redact\"\n",
            &[("a", "bigint")],
            "write type = \"text\"",
        ),
        (
            "[[columns]]\nsource = \"a\"\ntrim = true\n",
            &[("a", "bigint")],
            "cannot have trim",
        ),
        (
            "[[columns]]\nsource = \"a\"\ntype = \"timestamp\"\n",
            &[("a", "timestamp with time zone")],
            "without loss",
        ),
        (
            "[[columns]]\nname = \"a\"\nconstant = \"x\"\n",
            &[("a", "bigint")],
            "two columns are named \"a\"",
        ),
    ];
    for (number, (toml, result, part)) in cases.iter().enumerate() {
        let name = format!("result{number}");
        pipeline.job(&name, &columns(toml), ResultSet::table(result, &[]));
        let done = pipeline
            .etl(&["run", &name, "--run-id", &name, "--follow"])
            .await;
        assert_eq!(done.code, Some(1), "{part}: {}", done.stderr);
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.batches").await, 0);
    assert_eq!(pipeline.vhost.ready("etl.raw").await, 0);
}
