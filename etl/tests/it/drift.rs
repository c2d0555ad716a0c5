//! A query whose columns change: what is said before a run, what becomes of the run, and the advice of both, followed.

use testkit::cloud::ResultSet;
use testkit::pipeline::Pipeline;

const TARGET: &str = "[target]\ntable = \"visits\"\nmode = \"replace\"\n";

/// One row with these columns.
fn row(columns: &[(&str, &str)]) -> ResultSet {
    let values: Vec<_> = columns.iter().map(|_| Some("1")).collect();
    ResultSet::table(columns, &[&values])
}

/// Expects that this is said of the job `visits` before a run, and that a run fails by it and loads nothing.
async fn refused(pipeline: &Pipeline, run: &str, said: &str) {
    let rows = "SELECT count(*) FROM visits";
    let before = pipeline.number(rows).await;
    for command in ["plan", "validate"] {
        let found = pipeline.etl(&[command, "visits", "--connected"]).await;
        assert_eq!(found.code, Some(1), "{command}: {}", found.stderr);
        assert!(found.stdout.contains(said), "{command}: {}", found.stdout);
    }
    let failed = pipeline
        .etl(&["run", "visits", "--run-id", run, "--follow"])
        .await;
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stdout.contains(said), "{}", failed.stdout);
    let replay = format!("`etl replay {run}` loads what Athena returned");
    assert!(failed.stdout.contains(&replay), "{}", failed.stdout);
    assert_eq!(pipeline.number(rows).await, before);
    let dead_letters = "SELECT count(*) FROM etl.dead_letters";
    assert_eq!(pipeline.number(dead_letters).await, 0);
}

async fn done(pipeline: &Pipeline, command: &[&str]) {
    let done = pipeline.etl(command).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn changed_columns_are_found_before_a_run_and_fail_it_before_its_first_row() {
    let pipeline = Pipeline::archiving().await;
    let execute = async |sql: &'static str| {
        sqlx::raw_sql(sql)
            .execute(&pipeline.database.pool)
            .await
            .unwrap();
    };
    let url = ("url", "varchar");
    pipeline.job("visits", TARGET, row(&[url, ("n", "integer")]));
    let planned = pipeline.etl(&["plan", "visits", "--connected"]).await;
    assert_eq!(planned.code, Some(0), "{}", planned.stderr);
    assert!(
        planned.stdout.contains("the first batch creates it:\n"),
        "{}",
        planned.stdout
    );
    pipeline.run("visits", "monday").await;

    // A column less. It is accepted for once by another contract, and not asked about again.
    pipeline.job("visits", TARGET, row(&[url]));
    refused(
        &pipeline,
        "tuesday",
        "the query no longer has the column \"n\", which the run monday loaded",
    )
    .await;
    let evolve = format!("{TARGET}schema = \"evolve\"\n");
    pipeline.job("visits", &evolve, row(&[url]));
    let planned = pipeline.etl(&["plan", "visits", "--connected"]).await;
    assert_eq!(planned.code, Some(0), "{}", planned.stderr);
    assert!(
        planned.stdout.contains("warning: the query no longer has"),
        "{}",
        planned.stdout
    );
    let evolved = pipeline
        .etl(&[
            "run", "visits", "--run-id", "tuesday", "--retry", "--follow",
        ])
        .await;
    assert_eq!(evolved.code, Some(0), "{}", evolved.stderr);
    let less = "the query no longer has n, which the run before loaded";
    assert!(evolved.stderr.contains(less), "{}", evolved.stderr);
    let status = pipeline.etl(&["status", "tuesday"]).await;
    assert!(status.stdout.contains(less), "{}", status.stdout);

    // A column more: the statement, and then the result that was read already.
    pipeline.job("visits", TARGET, row(&[url, ("more", "integer")]));
    let queries = pipeline.cloud.started().len();
    refused(
        &pipeline,
        "wednesday",
        "has no column \"more\"; set schema = \"evolve\" in the job's target, or run: ALTER TABLE \"public\".\"visits\" ADD COLUMN \"more\" integer",
    )
    .await;
    execute("ALTER TABLE public.visits ADD COLUMN more integer").await;
    let asked = pipeline.cloud.started().len();
    assert!(asked > queries);
    done(&pipeline, &["replay", "wednesday", "--follow"]).await;
    assert_eq!(pipeline.cloud.started().len(), asked);
    pipeline.assert_reconciled("wednesday").await;

    // Another type: the type that the sentence names.
    pipeline.job("visits", TARGET, row(&[url, ("more", "bigint")]));
    refused(
        &pipeline,
        "thursday",
        "is integer, and the job makes it bigint; declare it as \"integer\" in the job, or run: ",
    )
    .await;
    let declared = format!("{TARGET}[[columns]]\nsource = \"more\"\ntype = \"integer\"\n");
    pipeline.job("visits", &declared, row(&[url, ("more", "bigint")]));
    pipeline.run("visits", "declared").await;
    pipeline.job("visits", TARGET, row(&[url, ("more", "bigint")]));
    execute("ALTER TABLE public.visits ALTER COLUMN more TYPE bigint USING more::bigint").await;
    done(
        &pipeline,
        &[
            "run", "visits", "--run-id", "thursday", "--retry", "--follow",
        ],
    )
    .await;
    assert_eq!(pipeline.table("url, n, more", "visits").await, ["(1,,1)"]);

    // No declaration helps where a value may have a fraction: the SELECT, or the table.
    for run in ["friday", "saturday"] {
        let half = ResultSet::table(&[url, ("more", "double")], &[&[Some("1"), Some("1.5")]]);
        pipeline.job("visits", TARGET, half);
        refused(
            &pipeline,
            run,
            "is bigint, and the job makes it double precision; CAST it in the SELECT to a type that fits, or run: ALTER TABLE \"public\".\"visits\" ALTER COLUMN \"more\" TYPE double precision USING \"more\"::double precision",
        )
        .await;
        if run == "friday" {
            pipeline.job("visits", TARGET, row(&[url, ("more", "bigint")]));
            let retry = ["run", "visits", "--run-id", run, "--retry", "--follow"];
            done(&pipeline, &retry).await;
        }
    }
    execute("ALTER TABLE \"public\".\"visits\" ALTER COLUMN \"more\" TYPE double precision USING \"more\"::double precision").await;
    done(&pipeline, &["replay", "saturday", "--follow"]).await;
    assert_eq!(pipeline.table("url, more", "visits").await, ["(1,1.5)"]);
}
