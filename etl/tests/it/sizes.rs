//! Results of boundary sizes are loaded completely, from S3 and from pages.

use testkit::cloud::{Column, ResultSet, sample};

use testkit::pipeline::Pipeline;

const CLICKS: &str = "[target]\ntable = \"TABLE\"\n";

/// A job that reads the same result from S3 or from pages.
fn through(results: &str, table: &str) -> String {
    format!(
        "[source]\ndatabase = \"d\"\nsql = \"{table}.sql\"\nresults = \"{results}\"\n{}",
        CLICKS.replace("TABLE", table)
    )
}

/// The expected rows of the sample, in the order of Postgres.
fn expected(result: &ResultSet) -> Vec<String> {
    result
        .range(0, result.rows())
        .into_iter()
        .map(|row| row[2].clone().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn results_around_the_end_of_a_page_are_loaded_from_s3_and_from_pages() {
    let pipeline = Pipeline::start().await;
    for rows in [0_u64, 1, 999, 1_000, 1_001, 1_670] {
        for results in ["s3", "api"] {
            let name = format!("clicks_{rows}_{results}");
            let result = sample::clicks(rows);
            pipeline.job(&name, &through(results, &name), result.clone());
            let run = pipeline.run(&name, &name).await;
            assert_eq!(run["rows_loaded"], rows, "{run}");
            assert_eq!(run["balanced"], true);
            pipeline.assert_reconciled(&name).await;
            let sql = format!("SELECT url FROM {name} ORDER BY url COLLATE \"C\"");
            let loaded: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                .fetch_all(&pipeline.database.pool)
                .await
                .unwrap();
            let mut wanted = expected(&result);
            wanted.sort();
            assert_eq!(loaded, wanted, "{name}");
        }
        let difference = format!(
            "SELECT count(*) FROM (SELECT dt, country, url, visits, seconds, seen_at FROM clicks_{rows}_s3
             EXCEPT ALL SELECT dt, country, url, visits, seconds, seen_at FROM clicks_{rows}_api) AS d"
        );
        assert_eq!(
            pipeline.number(&difference).await,
            0,
            "S3 and pages give the same rows"
        );
    }
    assert_eq!(pipeline.vhost.ready("etl.dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_rows_and_a_sparse_column_stay_unchanged() {
    let pipeline = Pipeline::start().await;
    let values: Vec<Vec<Option<String>>> = (0..2_500)
        .map(|n| {
            vec![match n % 3 {
                0 => None,
                1 => Some(String::new()),
                _ => Some("tie".to_owned()),
            }]
        })
        .collect();
    for results in ["s3", "api"] {
        let name = format!("one_{results}");
        pipeline.job(
            &name,
            &through(results, &name),
            ResultSet::new(vec![Column::new("v", "varchar")], values.clone()),
        );
        pipeline.run(&name, &name).await;
        pipeline.assert_reconciled(&name).await;
        assert_eq!(
            pipeline
                .number(&format!("SELECT count(*) FROM {name} WHERE v IS NULL"))
                .await,
            834
        );
        assert_eq!(
            pipeline
                .number(&format!("SELECT count(*) FROM {name} WHERE v = ''"))
                .await,
            833
        );
        assert_eq!(
            pipeline
                .number(&format!("SELECT count(*) FROM {name} WHERE v = 'tie'"))
                .await,
            833
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn million_rows_are_loaded_in_little_memory_from_s3_and_from_pages() {
    let rows: u64 = 1_000_000;
    let pipeline = Pipeline::start().await;
    for results in ["s3", "api"] {
        let name = format!("million_{results}");
        pipeline.job(&name, &through(results, &name), sample::clicks(rows));
        let run = pipeline.run(&name, &name).await;
        assert_eq!(run["rows_loaded"], rows, "{run}");
        pipeline.assert_reconciled(&name).await;
        // Every row has its ordinal in its URL: each occurs once.
        let distinct =
            format!("SELECT count(DISTINCT substring(url FROM 'row=([0-9]+)')) FROM {name}");
        assert_eq!(pipeline.number(&distinct).await, 1_000_000);
        for service in &pipeline.services {
            assert!(
                service.peak_memory() < 48 << 10,
                "{service:?} took {} KiB at its peak ({results})",
                service.peak_memory()
            );
        }
    }
}
