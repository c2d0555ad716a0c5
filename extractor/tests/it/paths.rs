//! Both ways to read a result give every row, in the same batches.

use common::job::Results;
use common::message::{EventKind, Limits, RawBatch};
use testkit::cloud::{Answer, sample};

use crate::line::{Line, rows_of, task};

#[tokio::test]
async fn both_paths_give_every_row_in_the_same_batches() {
    let (line, _extractor) = Line::started().await;
    for rows in [0, 1, 999, 1_000, 1_001, 1_670] {
        let result = sample::clicks(rows);
        line.cloud.otherwise(Answer::rows(result.clone()));
        let mut both: Vec<Vec<RawBatch>> = Vec::new();
        for results in [Results::S3, Results::Api] {
            let mut task = task(
                &format!("rows-{rows}-{results:?}"),
                &format!("SELECT {rows}"),
            );
            task.source.results = results;
            task.limits = Limits {
                batch_rows: 300,
                batch_bytes: 20_000,
            };
            line.ask(&task).await;
            let end = line.end_of(task.run.as_str()).await;
            let batches = line.batches().await;
            let id = line.cloud.started().pop().unwrap();
            let EventKind::Extracted {
                result_id,
                batches: count,
                rows: total,
                bytes_scanned,
                result_location,
            } = end
            else {
                panic!("{end:?}")
            };
            assert_eq!(
                (count as usize, total, bytes_scanned),
                (batches.len(), rows, 1_234_567)
            );
            let object = format!("s3://{}", line.cloud.object_of(&id));
            assert_eq!(result_location, (results != Results::Api).then_some(object));
            assert!(
                batches.iter().all(|batch| batch.result_id == result_id),
                "{result_id}"
            );
            assert_eq!(
                result_id == format!("{id}:pages"),
                results == Results::Api,
                "{result_id}"
            );
            assert!(
                rows_of(&batches) == result.range(0, rows),
                "{rows} rows through {results:?}"
            );
            both.push(batches);
        }
        let contents = |batches: &[RawBatch]| {
            batches
                .iter()
                .map(|batch| batch.rows.clone())
                .collect::<Vec<_>>()
        };
        assert!(contents(&both[0]) == contents(&both[1]), "{rows} rows");
    }
    line.settled().await;
}

#[tokio::test]
async fn a_million_rows_take_little_memory_on_both_paths() {
    const ROWS: u64 = 1_000_000;
    let (line, extractor) = Line::started().await;
    line.cloud.otherwise(Answer::rows(sample::clicks(ROWS)));

    for results in [Results::S3, Results::Api] {
        let mut task = task(
            &format!("million-{results:?}"),
            &format!("SELECT {results:?}"),
        );
        task.source.results = results;
        line.ask(&task).await;
        let EventKind::Extracted { rows, batches, .. } = line.end_of(task.run.as_str()).await
        else {
            panic!()
        };
        assert_eq!(
            (rows, line.vhost.ready("etl.raw").await),
            (ROWS, u64::from(batches))
        );
        line.vhost.purge("etl.raw").await;
        let peak = extractor.vm_hwm();
        assert!(peak < 64 << 10, "{peak} KiB after {results:?}");
    }
}
