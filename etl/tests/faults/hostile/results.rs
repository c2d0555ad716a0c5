//! Result files that differ from what Athena reported.

use testkit::TIMEOUT;
use testkit::cloud::{Fault, Op, QueryState, sample};
use testkit::pipeline::Pipeline;
use testkit::wait_until;

use super::{assert_unharmed, failure, through};

/// The rows of a result of several batches.
const ROWS: u64 = 12_000;

/// Requests a run of the sample whose object in S3 is changed by `change` before the extractor reads it. The run must
/// fail; returns the reason.
async fn failure_of(
    pipeline: &Pipeline,
    run: &str,
    change: impl FnOnce(Vec<u8>) -> Vec<u8>,
) -> String {
    let result = sample::clicks(ROWS);
    let object = change(result.csv());
    pipeline.job(run, &through("s3", run), result);
    pipeline.cloud.always(Op::GetObject, Fault::Unavailable);
    let started = pipeline.cloud.started().len();
    let (reason, ()) = tokio::join!(failure(pipeline, run, run), async {
        let succeeded = || pipeline.cloud.states().get(started) == Some(&QueryState::Succeeded);
        wait_until("the query to succeed", TIMEOUT, async || succeeded()).await;
        let name = pipeline.cloud.object_of(&pipeline.cloud.started()[started]);
        pipeline.cloud.put_object(&name, &object);
        pipeline.cloud.always(Op::GetObject, Fault::Pass);
    });
    reason
}

/// The byte at which a row begins.
fn beginning_of(csv: &[u8], row: u64) -> usize {
    let mark = format!("?row={row:010}");
    let inside = csv
        .windows(mark.len())
        .position(|bytes| bytes == mark.as_bytes())
        .unwrap();
    // No value before the URL contains a line end.
    csv[..inside]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .unwrap()
        + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_utf_8_fails_the_run_and_names_row_and_column() {
    let mut pipeline = Pipeline::start().await;
    let reason = failure_of(&pipeline, "latin1", |mut csv| {
        let row = beginning_of(&csv, 9_000);
        let url = row
            + csv[row..]
                .windows(8)
                .position(|bytes| bytes == b"https://")
                .unwrap();
        csv[url] = 0xe9;
        csv
    })
    .await;
    assert!(
        reason.contains("row 9000 ") && reason.contains("column 2 ") && reason.contains("UTF-8"),
        "{reason}"
    );
    // Rows before the error may be loaded, and do not count as the result.
    let complete = "SELECT count(*) FROM etl.run_balance WHERE state = 'completed' OR balanced OR rows_expected IS NOT NULL";
    assert_eq!(pipeline.number(complete).await, 0);
    assert!(
        pipeline
            .number("SELECT coalesce(sum(rows_loaded), 0)::bigint FROM etl.run_balance")
            .await
            < 9_000
    );
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_file_or_file_with_other_columns_fails_the_run() {
    let mut pipeline = Pipeline::start().await;
    let reason = failure_of(&pipeline, "cut", |mut csv| {
        let row = beginning_of(&csv, 9_000);
        csv.truncate(row + 40);
        csv
    })
    .await;
    assert!(
        reason.contains("row 9000 ") && reason.contains("the file is truncated"),
        "{reason}"
    );
    let reason = failure_of(&pipeline, "columns", |mut csv| {
        let row = beginning_of(&csv, 9_000);
        csv.splice(row..row, b"\"one more\",".iter().copied());
        csv
    })
    .await;
    assert!(
        reason.contains("row 9000 ") && reason.contains("more than 6 columns"),
        "{reason}"
    );
    let reason = failure_of(&pipeline, "empty", |_| Vec::new()).await;
    assert!(reason.contains("column names"), "{reason}");
    let reason = failure_of(&pipeline, "other", |csv| {
        csv[beginning_of(&csv, 0)..].to_vec()
    })
    .await;
    assert!(reason.contains("column names"), "{reason}");
    let reason = failure_of(&pipeline, "garbage", |_| {
        (0..=255_u8).cycle().take(100_000).collect()
    })
    .await;
    assert!(reason.contains("the header"), "{reason}");
    assert_unharmed(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn object_of_an_unexpected_size_fails_the_run() {
    let mut pipeline = Pipeline::start().await;
    // The object is replaced between the query for its size and the read.
    let (reason, ()) = tokio::join!(
        async {
            pipeline.job("grown", &through("s3", "grown"), sample::clicks(ROWS));
            pipeline.cloud.fault(Op::GetObject, Fault::Pass);
            pipeline.cloud.always(Op::GetObject, Fault::Unavailable);
            failure(&pipeline, "grown", "grown").await
        },
        async {
            wait_until("the object to be found", TIMEOUT, async || {
                pipeline.cloud.count(Op::GetObject) > 1
            })
            .await;
            let name = pipeline.cloud.object_of(&pipeline.cloud.started()[0]);
            let mut csv = sample::clicks(ROWS).csv();
            csv.extend_from_slice(b"\"2018-04-02\",,,,,\n");
            pipeline.cloud.put_object(&name, &csv);
            pipeline.cloud.always(Op::GetObject, Fault::Pass);
        }
    );
    assert!(
        reason.contains("replaced") && reason.contains("run the job again"),
        "{reason}"
    );
    assert_unharmed(&mut pipeline).await;
}
