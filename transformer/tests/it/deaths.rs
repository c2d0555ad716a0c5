//! A transformer that dies, and a batch that makes it die.

use common::queue::QueueName;
use testkit::{PATIENCE, wait_until};

use crate::line::{Line, batch};

#[tokio::test]
async fn a_death_between_confirm_and_ack_doubles_a_batch_and_loses_none() {
    let line = Line::new().await;
    let batches = [
        batch(0, &[[Some("DE"), Some("3")]]),
        batch(1, &[[Some("FR"), Some("x")]]),
    ];
    line.publish(&batches).await;
    let mut doomed = line
        .transformer()
        .env("ETL_FAILPOINT", "after_confirm")
        .start()
        .await;
    let first = line.take_valid(1).await.remove(0);
    doomed.kill9().await;

    let transformer = line.transformer().start().await;
    let mut again = line.take_valid(2).await;
    again.sort_by_key(|batch| batch.id.seq);
    assert_eq!(again[0], first, "the same batch came out the same");
    assert_eq!(again[1].rejected.len(), 1);
    line.end(transformer).await;
}

#[tokio::test]
async fn a_batch_that_kills_transformers_is_given_up_and_takes_no_other_along() {
    let line = Line::new().await;
    let batches: Vec<_> = (0..5)
        .map(|seq| batch(seq, &[[Some("DE"), Some("3")]]))
        .collect();
    line.publish(&batches).await;
    // The first batch of the queue, each time.
    for _ in 0..7 {
        wait_until("all of them to be back", PATIENCE, async || {
            line.vhost.ready(QueueName::Raw.name()).await == 5
        })
        .await;
        let mut doomed = line
            .transformer()
            .env("ETL_FAILPOINT", "transform=exit")
            .spawn();
        assert_eq!(doomed.wait(PATIENCE).await.code(), Some(99));
    }
    let transformer = line.transformer().start().await;
    let mut seqs: Vec<_> = line
        .take_valid(4)
        .await
        .iter()
        .map(|batch| batch.id.seq)
        .collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [1, 2, 3, 4]);
    let dead = line.take(QueueName::Dead, 1).await;
    assert_eq!(dead[0].message_id(), Some("run/0/0"));
    assert_eq!(dead[0].header("x-etl-attempts").as_deref(), Some("8"));
    line.end(transformer).await;
}
