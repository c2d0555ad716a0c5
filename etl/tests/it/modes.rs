//! The modes of a target, through the whole pipeline.

use testkit::TIMEOUT;
use testkit::cloud::ResultSet;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

/// A job that replaces days.
const REPLACE: &str = r#"
[parameters]
from = { type = "date", default = "2018-04-02" }
to = { type = "date", default = "2018-04-04" }
[target]
table = "visits"
mode = "replace"
replace_where = "day between :from and :to"
[[columns]]
source = "dt"
name = "day"
type = "date"
"#;

fn visits(rows: &[(&str, &str)]) -> ResultSet {
    let rows: Vec<[Option<&str>; 2]> = rows.iter().map(|(day, n)| [Some(*day), Some(*n)]).collect();
    let rows: Vec<&[Option<&str>]> = rows.iter().map(<[_; 2]>::as_slice).collect();
    ResultSet::table(&[("dt", "varchar"), ("n", "bigint")], &rows)
}

async fn table(pipeline: &Pipeline) -> String {
    pipeline.table("day, n", "visits").await.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_run_replaces_its_window_and_no_other_row() {
    let pipeline = Pipeline::start().await;
    let first = [
        ("2018-04-02", "1"),
        ("2018-04-04", "2"),
        ("2018-04-09", "3"),
    ];
    pipeline.job("first", REPLACE, visits(&first));
    let later = REPLACE.replace("-02\"", "-09\"").replace("-04\"", "-09\"");
    pipeline.job("later", &later, visits(&[("2018-04-09", "4")]));
    pipeline.job("second", REPLACE, visits(&[("2018-04-03", "5")]));
    pipeline.job("empty", REPLACE, visits(&[]));
    let run = pipeline.run("later", "later").await;
    assert_eq!(run["rows_loaded"], 1, "{run}");
    let run = pipeline.run("first", "first").await;
    assert_eq!(
        (&run["rows_loaded"], &run["rows_rejected"]),
        (&2.into(), &1.into()),
        "{run}"
    );
    let rejects = pipeline.etl(&["rejects", "first"]).await;
    assert!(
        rejects.stdout.contains("replace_where"),
        "{}",
        rejects.stdout
    );
    assert_eq!(
        table(&pipeline).await,
        "(2018-04-02,1) (2018-04-04,2) (2018-04-09,4)"
    );
    // Rows that the new result lacks are removed; an upsert would keep them.
    pipeline.run("second", "second").await;
    assert_eq!(table(&pipeline).await, "(2018-04-03,5) (2018-04-09,4)");
    for run in ["later", "first", "second"] {
        pipeline.assert_reconciled(run).await;
    }
    // An empty result replaces nothing without approval.
    let asked = pipeline.etl(&["run", "empty", "--run-id", "empty"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let state = async |wanted: &str| {
        let sql =
            format!("SELECT count(*) FROM etl.runs WHERE run_id = 'empty' AND state = '{wanted}'");
        wait_until(&format!("the run to be {wanted}"), TIMEOUT, async || {
            pipeline.number(&sql).await == 1
        })
        .await;
    };
    state("held").await;
    assert_eq!(table(&pipeline).await, "(2018-04-03,5) (2018-04-09,4)");
    sqlx::query(
        "UPDATE etl.runs SET state = 'running', approved_at = now() WHERE run_id = 'empty'",
    )
    .execute(&pipeline.database.pool)
    .await
    .unwrap();
    state("completed").await;
    assert_eq!(table(&pipeline).await, "(2018-04-09,4)");
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_keys_keep_the_first_or_the_last_row_or_are_rejected() {
    let pipeline = Pipeline::start().await;
    let rows = [
        ("2018-04-02", "1"),
        ("2018-04-02", "2"),
        ("2018-04-03", "3"),
    ];
    for (job, target, wanted, rejected) in [
        (
            "last",
            "mode = \"upsert\"",
            "(2018-04-02,2) (2018-04-03,3)",
            0,
        ),
        (
            "one",
            "mode = \"insert_only\"\ncommit = \"run\"",
            "(2018-04-02,1) (2018-04-03,3)",
            0,
        ),
        (
            "none",
            "mode = \"upsert\"\nduplicates = \"reject\"",
            "(2018-04-02,1) (2018-04-03,3)",
            1,
        ),
    ] {
        let toml = format!(
            "[target]\ntable = \"{job}\"\n{target}\nkey = [\"day\"]\n[[columns]]\nsource = \"dt\"\nname = \"day\"\ntype = \"date\"\n"
        );
        pipeline.job(job, &toml, visits(&rows));
        let run = pipeline.run(job, job).await;
        assert_eq!(run["rows_rejected"], rejected, "{job}: {run}");
        assert_eq!(
            pipeline.table("day, n", job).await.join(" "),
            wanted,
            "{job}"
        );
        pipeline.assert_reconciled(job).await;
    }
    let rejects = pipeline.etl(&["rejects", "none"]).await;
    assert!(
        rejects.stdout.contains("duplicate_key"),
        "{}",
        rejects.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unfit_target_is_refused_before_the_query_starts() {
    let pipeline = Pipeline::without_services().await;
    let _loader = pipeline.service("loader").start().await;
    for sql in [
        "CREATE VIEW public.seen AS SELECT date '2018-04-02' AS day, 1::bigint AS _batch",
        "CREATE TABLE public.short (n bigint, _batch bigint)",
    ] {
        sqlx::query(sql)
            .execute(&pipeline.database.pool)
            .await
            .unwrap();
    }
    for (table, contract, part) in [
        ("seen", "create", "a view"),
        ("short", "create", "ADD COLUMN \"day\" date"),
        ("nothing", "freeze", "create it yourself with \"day\" date"),
    ] {
        let toml = REPLACE.replace(
            "\"visits\"",
            &format!("\"{table}\"\nschema = \"{contract}\""),
        );
        pipeline.job("refused", &toml, visits(&[]));
        let refused = pipeline.etl(&["run", "refused"]).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        let planned = pipeline.etl(&["plan", "refused"]).await;
        assert_eq!(planned.code, refused.code, "{}", planned.stdout);
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    // Here the job itself is invalid.
    pipeline.job(
        "elsewhere",
        &REPLACE.replace("\"visits\"", "\"nowhere.visits\""),
        visits(&[]),
    );
    for command in ["plan", "run"] {
        let refused = pipeline.etl(&[command, "elsewhere"]).await;
        assert_eq!(refused.code, Some(2), "{command}: {}", refused.stdout);
        assert!(refused.stderr.contains("ETL_SCHEMAS"), "{}", refused.stderr);
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
    assert!(pipeline.cloud.started().is_empty());
}
