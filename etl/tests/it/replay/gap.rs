//! A gap in the archive is named and nothing is changed; a replay from Athena reads the result again without another
//! query, also when Athena has forgotten the first.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

use super::{ROWS, completes, refuses, succeeds};

const JOB: &str = "[target]\ntable = \"clicks\"\n";

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn replay_refused_for_a_gap_succeeds_from_athena() {
    let pipeline = Pipeline::archiving().await;
    let strict =
        format!("{JOB}[[columns]]\nsource = \"country\"\nrules = [{{ required = true }}]\n");
    pipeline.job("clicks", &strict, sample::clicks(20_000));
    pipeline.run("clicks", "daily").await;
    pipeline.write_job("clicks", JOB);
    let lost = pipeline.rows_of_batches("daily", 0..=4).await;

    // Retention deleted the first batches: only the last four are left.
    let mut archived = pipeline.vhost.read_stream("etl.archive", 9).await;
    let kept = archived.split_off(5);
    pipeline.vhost.delete_queue("etl.archive").await;
    refuses(
        &pipeline,
        &["replay", "daily"],
        1,
        &["rows 0..19999", "nothing was changed"],
    )
    .await;
    for message in kept {
        let properties = message.properties.clone();
        pipeline
            .vhost
            .publish_with("etl.archive", &message.body, properties)
            .await;
    }
    refuses(
        &pipeline,
        &["replay", "daily"],
        1,
        &[
            &format!("rows {lost} "),
            "nothing was changed",
            "--from-athena",
        ],
    )
    .await;
    refuses(
        &pipeline,
        &[
            "replay",
            "daily",
            "--rows",
            &pipeline.rows_of_batches("daily", 4..=6).await,
        ],
        1,
        &[
            &format!("rows {} ", pipeline.rows_of_batches("daily", 4..=4).await),
            "nothing was changed",
        ],
    )
    .await;
    // The requested batches are in the archive.
    let kept = pipeline.rows_of_batches("daily", 6..=8).await;
    succeeds(&pipeline, &["replay", "daily", "--rows", &kept, "--follow"]).await;

    pipeline.cloud.forget();
    let again = succeeds(&pipeline, &["replay", "daily", "--from-athena", "--follow"]).await;
    assert!(
        again.stdout.contains("read again, as generation 2"),
        "{}",
        again.stdout
    );
    pipeline.assert_reconciled("daily").await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
    assert!(pipeline.cloud.started().is_empty(), "no other query");

    // The reread batches are in the archive again.
    let rows = pipeline.table(&format!("{ROWS}, _batch"), "clicks").await;
    succeeds(&pipeline, &["replay", "daily", "--follow"]).await;
    completes(&pipeline, "daily").await;
    assert!(pipeline.table(&format!("{ROWS}, _batch"), "clicks").await == rows);
    assert_eq!(
        pipeline
            .number("SELECT generation::bigint FROM etl.runs")
            .await,
        3
    );
}
