//! A gap in the archive is named and nothing is changed; a replay from Athena reads the result again without another
//! query, also when Athena has forgotten the first.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

use super::{ROWS, completes, refuses, succeeds};

const JOB: &str = "[target]\ntable = \"clicks\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn replay_refused_for_a_gap_succeeds_from_athena() {
    let pipeline = Pipeline::archiving().await;
    let strict =
        format!("{JOB}[[columns]]\nsource = \"country\"\nrules = [{{ required = true }}]\n");
    pipeline.job("clicks", &strict, sample::clicks(20_000));
    pipeline.run("clicks", "daily").await;
    pipeline.write_job("clicks", JOB);

    // Retention deleted the first batches: only the last four are left.
    let mut archived = pipeline.vhost.read_stream("etl.archive", 9).await;
    let kept = archived.split_off(5);
    pipeline.vhost.delete_queue("etl.archive").await;
    refuses(
        &pipeline,
        &["replay", "daily"],
        1,
        &["batches 0..8", "nothing was changed"],
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
        &["batches 0..4", "nothing was changed", "--from-athena"],
    )
    .await;
    refuses(
        &pipeline,
        &["replay", "daily", "--seq", "4..6"],
        1,
        &["batches 4 ", "nothing was changed"],
    )
    .await;
    // The requested batches are in the archive.
    succeeds(&pipeline, &["replay", "daily", "--seq", "6..8", "--follow"]).await;

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
