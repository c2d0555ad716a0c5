//! Names of columns and tables.

use testkit::cloud::{Column, ResultSet};
use testkit::pipeline::Pipeline;

use super::{assert_unharmed, failure};

/// A name that is a statement when it is not quoted.
const STATEMENT: &str = "\"; DROP TABLE victim; --";

fn result(column: &str) -> ResultSet {
    ResultSet::table(
        &[(column, "varchar"), ("n", "bigint")],
        &[&[Some("a"), Some("1")], &[None, Some("2")]],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn names_too_long_for_postgres_are_refused_with_their_length() {
    let mut pipeline = Pipeline::start().await;
    let (fits, ascii, umlauts) = ("x".repeat(63), "x".repeat(64), "é".repeat(32));
    // In the query: Athena accepts longer names than Postgres.
    for (run, name) in [("ascii", &ascii), ("umlauts", &umlauts)] {
        pipeline.job(run, &super::plain(run), result(name));
        let reason = failure(&pipeline, run, run).await;
        assert!(
            reason.contains(name) && reason.contains("63 bytes"),
            "{reason}"
        );
    }
    // In the job: refused before anything is sent.
    for toml in [
        format!("[target]\ntable = \"{ascii}\"\n"),
        format!("[target]\ntable = \"{ascii}.t\"\n"),
        format!("[target]\ntable = \"t\"\n[[columns]]\nsource = \"n\"\nname = \"{umlauts}\"\n"),
    ] {
        pipeline.job("long", &toml, result("a"));
        let done = pipeline.etl(&["run", "long"]).await;
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains("63 bytes"), "{}", done.stderr);
    }
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .await,
        0
    );
    pipeline.job("fits", &super::plain(&fits), result(&fits));
    pipeline.run("fits", "fits").await;
    assert_eq!(
        pipeline
            .number(&format!("SELECT count({fits}) FROM {fits}"))
            .await,
        1
    );
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_contain_statements_are_quoted() {
    let mut pipeline = Pipeline::start().await;
    sqlx::raw_sql(
        "CREATE TABLE public.victim (a text); INSERT INTO public.victim VALUES ('alive')",
    )
    .execute(&pipeline.database.pool)
    .await
    .unwrap();
    let quoted = "\"\"\"; DROP TABLE victim; --\"";
    for (mode, key) in [
        ("append", ""),
        ("upsert", "key = ['\"; DROP TABLE victim; --']\n"),
    ] {
        let job = format!("statement-{mode}");
        let toml = format!(
            "[target]\ntable = '{mode}{STATEMENT}'\nmode = \"{mode}\"\n{key}\
             [[columns]]\nsource = '{STATEMENT}'\nrules = [{{ required = true }}]\n"
        );
        pipeline.job(&job, &toml, result(STATEMENT));
        let run = pipeline.run(&job, &job).await;
        assert_eq!(
            (&run["rows_loaded"], &run["rows_rejected"]),
            (&1.into(), &1.into()),
            "{run}"
        );
        pipeline.assert_reconciled(&job).await;
        let table = format!("\"{mode}{}", &quoted[1..]);
        assert_eq!(
            pipeline.table(&format!("{quoted}, n"), &table).await,
            ["(a,1)"]
        );
        let blamed = format!(
            "SELECT count(*) FROM etl.rejected_rows WHERE run_id = '{job}' AND column_name = '{STATEMENT}'"
        );
        assert_eq!(pipeline.number(&blamed).await, 1);
    }
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM victim WHERE a = 'alive'")
            .await,
        1
    );
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_any_characters_stay_unchanged() {
    let mut pipeline = Pipeline::start().await;
    let names = [
        "\"",
        "\"\"",
        "'",
        "\\",
        "a.b",
        "a b",
        " ",
        "\t",
        "\n",
        "$1",
        "%s",
        "{}",
        "select",
        "Ünïcödé",
        "😀",
        "pg_temp",
        "c0",
        "n",
        "--",
        "/*",
        "\u{202e}",
    ];
    let columns = names.map(|name| Column::new(name, "varchar")).to_vec();
    let row: Vec<_> = names.iter().map(|name| Some((*name).to_owned())).collect();
    for (job, target) in [
        ("append", String::new()),
        (
            "upsert",
            "mode = \"upsert\"\nkey = ['\"', \"'\"]\n".to_owned(),
        ),
    ] {
        let toml = format!("[target]\ntable = \"names_{job}\"\n{target}");
        pipeline.job(
            job,
            &toml,
            ResultSet::new(columns.clone(), vec![row.clone()]),
        );
        pipeline.run(job, job).await;
        pipeline.assert_reconciled(job).await;
        // Each column holds its own name.
        let sql = format!(
            "SELECT key FROM names_{job} AS t, json_each_text(to_json(t)) AS j WHERE key = value ORDER BY key COLLATE \"C\""
        );
        let found: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_all(&pipeline.database.pool)
            .await
            .unwrap();
        let mut wanted = names.to_vec();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }
    assert_unharmed(&mut pipeline).await;
}
