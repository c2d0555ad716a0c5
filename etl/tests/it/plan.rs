//! `etl plan` shows what a run would do, and changes nothing.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

const JOB: &str = "description = \"Clicks\"\n[source]\ndatabase = \"d\"\nsql = \"clicks.sql\"\n[parameters]\nfrom = { type = \"date\", default = \"2018-04-02\" }\n\
    [target]\ntable = \"clicks\"\nmode = \"upsert\"\nkey = [\"url\"]\n[[columns]]\nsource = \"url\"\ntype = \"text\"\nrules = [{ not_empty = true }]\n[[columns]]\nsource = \"visits\"\ntype = \"bigint\"\nrules = [{ min = 1 }]\n";

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn plan_shows_the_whole_run_and_changes_nothing() {
    let pipeline = Pipeline::without_services().await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    pipeline.job("clicks", JOB, sample::clicks(1));
    std::fs::write(
        pipeline.jobs.path().join("clicks.sql"),
        "SELECT * FROM clicks WHERE dt >= :from",
    )
    .unwrap();
    // The environment has no broker.
    let plan = async |more: &[&str]| {
        let closed = testkit::process::CLOSED_PORT;
        let command = pipeline.service("etl").env(
            "ETL_AMQP_URL",
            &format!("amqp://guest:guest@127.0.0.1:{closed}/%2f"),
        );
        let command = ["plan", "clicks"]
            .iter()
            .chain(more)
            .fold(command, |command, argument| command.arg(argument));
        command.run().await
    };
    let limits = pipeline.service("etl").env("ETL_BATCH_ROWS", "0");
    let refused = limits.arg("plan").arg("clicks").run().await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("ETL_BATCH_ROWS"),
        "{}",
        refused.stderr
    );
    let new = plan(&["--set", "from=2018-04-05"]).await;
    assert_eq!(new.code, Some(0), "{}", new.stderr);
    for said in [
        "WHERE dt >= DATE '2018-04-05'",
        "CREATE TABLE \"public\".\"clicks\"",
        "PRIMARY KEY (\"url\")",
        "not_empty",
        "min = ",
        "upsert",
        "bigint",
    ] {
        assert!(new.stdout.contains(said), "{said}: {}", new.stdout);
    }
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM pg_tables WHERE tablename = 'clicks'")
            .await,
        0
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
    let json: serde_json::Value = serde_json::from_str(&plan(&["--json"]).await.stdout).unwrap();
    assert_eq!(json["target"]["action"], "creates", "{json}");
    assert_eq!(json["parameters"]["from"], "2018-04-02");

    let execute = async |sql: &str| {
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
            .execute(&pipeline.database.pool)
            .await;
        done.unwrap();
    };
    execute("CREATE TABLE clicks (url text PRIMARY KEY, visits bigint, _batch bigint NOT NULL)")
        .await;
    let fits = plan(&["--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&fits.stdout).unwrap();
    assert_eq!(
        (fits.code, &json["target"]["action"]),
        (Some(0), &"fits".into())
    );
    execute("ALTER TABLE clicks ALTER visits TYPE integer").await;
    let refused = plan(&[]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(
        refused.stdout.contains("REFUSED") && refused.stdout.contains("ALTER TABLE"),
        "{}",
        refused.stdout
    );
    assert_eq!(plan(&["--set", "from=x"]).await.code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn table_with_unknown_columns_is_described_in_words() {
    let pipeline = Pipeline::without_services().await;
    let migrated = pipeline.service("loader").arg("migrate").run().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let plan = async |job: &str, target: &str| {
        pipeline.job(job, target, sample::clicks(1));
        pipeline.etl(&["plan", job]).await
    };
    for mode in ["upsert", "insert_only"] {
        let target = format!("[target]\ntable = \"visits\"\nmode = \"{mode}\"\nkey = [\"url\"]\n");
        for columns in ["", "[[columns]]\nsource = \"visits\"\ntype = \"bigint\"\n"] {
            let planned = plan("visits", &format!("{target}{columns}")).await;
            assert_eq!(planned.code, Some(0), "{}", planned.stderr);
            let said = planned.stdout;
            assert!(!said.contains("CREATE TABLE"), "{said}");
            for part in [
                "of the query's result",
                "\"_batch\" bigint NOT NULL",
                "PRIMARY KEY (\"url\")",
            ] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }
    let frozen = "[target]\ntable = \"frozen\"\nschema = \"freeze\"\n";
    let planned = plan("frozen", frozen).await;
    assert_eq!(planned.code, Some(1), "{}", planned.stderr);
    let said = planned.stdout;
    assert!(
        !said.contains("CREATE TABLE")
            && said.contains("schema = \"create\"")
            && said.contains("create it yourself with a column for each one"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn target_whose_deletions_cascade_is_refused_before_athena_is_asked() {
    let pipeline = Pipeline::start().await;
    let job = "[target]\ntable = \"public.clicks\"\nmode = \"replace\"\n[[columns]]\nsource = \"url\"\ntype = \"text\"\n";
    pipeline.job("clicks", job, sample::clicks(1));
    sqlx::raw_sql(
        "CREATE TABLE public.clicks (url text UNIQUE, visits bigint, _batch bigint);
         CREATE TABLE public.notes (url text REFERENCES public.clicks (url) ON DELETE SET NULL)",
    )
    .execute(&pipeline.database.pool)
    .await
    .unwrap();
    let plan = pipeline.etl(&["plan", "clicks"]).await;
    assert_eq!(plan.code, Some(1), "{}", plan.stdout);
    assert!(
        plan.stdout.contains("notes_url_fkey of public.notes")
            && plan.stdout.contains("allow_cascades"),
        "{}",
        plan.stdout
    );
    let run = pipeline.etl(&["run", "clicks"]).await;
    assert_eq!(run.code, Some(1), "{}", run.stdout);
    assert!(run.stderr.contains("allow_cascades"), "{}", run.stderr);
    assert_eq!(pipeline.cloud.started().len(), 0, "no query");
    pipeline.write_job(
        "clicks",
        &job.replace("mode =", "allow_cascades = true\nmode ="),
    );
    let plan = pipeline.etl(&["plan", "clicks"]).await;
    assert_eq!(plan.code, Some(0), "{}", plan.stdout);
}
