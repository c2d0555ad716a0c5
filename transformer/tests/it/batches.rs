//! Batches in, batches and dead letters out.

use std::sync::Arc;

use common::job::{JobSpec, Rule};
use common::message::Message;
use common::queue::QueueName;
use testkit::TIMEOUT;
use testkit::wait_until;

use crate::fixture::{Fixture, batch};

#[tokio::test]
async fn redelivered_batch_gives_the_same_batch() {
    let fixture = Fixture::new().await;
    let raw = batch(
        0,
        &[
            [Some("DE"), Some("3")],
            [Some(""), Some("4")],
            [Some("FR"), Some("0")],
            [None, None],
        ],
    );
    fixture.publish(&[raw.clone(), raw]).await;
    let transformer = fixture.transformer().start().await;
    let valid = fixture.take_valid(2).await;
    assert_eq!(valid[0], valid[1]);
    assert_eq!(valid[0].check(), Ok(()));
    assert_eq!(valid[0].row_offsets, [0, 3]);
    let rules: Vec<_> = valid[0]
        .rejected
        .iter()
        .map(|row| row.reject.rule.as_str())
        .collect();
    assert_eq!(rules, ["not_empty", "min"]);
    // Counted after the acks.
    wait_until("the metrics", TIMEOUT, async || {
        transformer.metric("etl_rows_rejected_total").await == Some(4.0)
    })
    .await;
    assert_eq!(transformer.metric("etl_batches_total").await, Some(2.0));
    assert_eq!(
        transformer.metric("etl_rows_transformed_total").await,
        Some(8.0)
    );
    fixture.end(transformer).await;
}

#[tokio::test]
async fn unusable_batch_is_dead_lettered_and_others_are_not() {
    let fixture = Fixture::new().await;
    let mut unfit = batch(1, &[[Some("DE"), Some("3")]]);
    let mut job = JobSpec::clone(&unfit.job);
    job.columns[0].rules.push(Rule::Pattern("(".into()));
    unfit.job = Arc::new(job);
    fixture
        .publish(&[batch(0, &[[Some("DE"), Some("3")]]), unfit])
        .await;
    fixture
        .vhost
        .publish(QueueName::Raw.name(), b"\xff not a batch")
        .await;
    fixture
        .publish(&[batch(2, &[[Some("FR"), Some("4")]]), batch(3, &[])])
        .await;

    let transformer = fixture.transformer().start().await;
    let mut first_rows: Vec<_> = fixture
        .take_valid(3)
        .await
        .iter()
        .map(|batch| batch.id.first_row)
        .collect();
    first_rows.sort_unstable();
    assert_eq!(first_rows, [0, 200, 300]);
    let mut dead = fixture.take(QueueName::Dead, 2).await;
    dead.sort_by_key(|message| message.body.len());
    let reasons: Vec<_> = dead
        .iter()
        .map(|message| message.header("x-etl-reason").unwrap())
        .collect();
    assert_eq!(dead[0].body, b"\xff not a batch");
    assert!(reasons[0].contains("raw-batch.v3"), "{}", reasons[0]);
    assert_eq!(dead[1].message_id(), Some("run/0/100"));
    assert!(
        reasons[1].contains("pattern of column \"code\""),
        "{}",
        reasons[1]
    );
    for message in &dead {
        assert_eq!(
            message.header("x-etl-stage").as_deref(),
            Some("transformer")
        );
        assert_eq!(
            message.header("x-etl-queue").as_deref(),
            Some(QueueName::Raw.name())
        );
    }
    fixture.end(transformer).await;
}

#[tokio::test]
async fn replicas_share_the_batches() {
    let fixture = Fixture::new().await;
    let first = fixture.transformer().start().await;
    let second = fixture.transformer().start().await;
    let batches: Vec<_> = (0..60)
        .map(|place| batch(place, &[[Some("DE"), Some("3")]]))
        .collect();
    fixture.publish(&batches).await;
    let mut first_rows: Vec<_> = fixture
        .take_valid(60)
        .await
        .iter()
        .map(|batch| batch.id.first_row)
        .collect();
    first_rows.sort_unstable();
    assert!(first_rows.into_iter().eq((0..60).map(|place| place * 100)));
    fixture.end(first).await;
    fixture.end(second).await;
}
