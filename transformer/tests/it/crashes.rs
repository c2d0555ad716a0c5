//! A transformer that crashes, and a batch that crashes it.

use common::queue::QueueName;
use testkit::{TIMEOUT, wait_until};

use crate::fixture::{Fixture, batch};

#[tokio::test]
async fn crash_between_confirm_and_ack_duplicates_a_batch_and_loses_none() {
    let fixture = Fixture::new().await;
    let batches = [
        batch(0, &[[Some("DE"), Some("3")]]),
        batch(1, &[[Some("FR"), Some("x")]]),
    ];
    fixture.publish(&batches).await;
    let mut crashing = fixture
        .transformer()
        .env("ETL_FAILPOINT", "after_confirm")
        .start()
        .await;
    let first = fixture.take_valid(1).await.remove(0);
    crashing.kill9().await;

    let transformer = fixture.transformer().start().await;
    let mut again = fixture.take_valid(2).await;
    again.sort_by_key(|batch| batch.id.first_row);
    assert_eq!(again[0], first, "the batch is the same both times");
    assert_eq!(again[1].rejected.len(), 1);
    fixture.end(transformer).await;
}

#[tokio::test]
async fn batch_that_crashes_transformers_is_dead_lettered_alone() {
    let fixture = Fixture::new().await;
    let batches: Vec<_> = (0..5)
        .map(|place| batch(place, &[[Some("DE"), Some("3")]]))
        .collect();
    fixture.publish(&batches).await;
    // Each time the first batch of the queue.
    for _ in 0..7 {
        wait_until("all batches to be ready again", TIMEOUT, async || {
            fixture.vhost.ready_with_bulk("etl.raw").await == 5
        })
        .await;
        let mut crashing = fixture
            .transformer()
            .env("ETL_FAILPOINT", "transform=exit")
            .spawn();
        assert_eq!(crashing.wait(TIMEOUT).await.code(), Some(99));
    }
    let transformer = fixture.transformer().start().await;
    let mut first_rows: Vec<_> = fixture
        .take_valid(4)
        .await
        .iter()
        .map(|batch| batch.id.first_row)
        .collect();
    first_rows.sort_unstable();
    assert_eq!(first_rows, [100, 200, 300, 400]);
    let dead = fixture.take(QueueName::Dead, 1).await;
    assert_eq!(dead[0].message_id(), Some("run/0/0"));
    assert_eq!(dead[0].header("x-etl-attempts").as_deref(), Some("8"));
    fixture.end(transformer).await;
}
