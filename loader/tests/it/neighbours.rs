//! What is slow, locked or being committed keeps nothing else waiting: the loader goes on with the other runs.

use ledger::LockedRun;
use testkit::servers::database;

use crate::service::{World, sent};
use crate::support::{execute, extracted, request, shape, text};

/// Runs of one batch with one row, each into the table of its name.
async fn publish_runs(world: &World, runs: &[&str]) {
    for run in runs {
        request(&world.database.pool, run).await;
        let batch = shape(run, &["n bigint"], &[]).batch(run, 0, &[vec![Some("1")]]);
        world
            .publish(&[sent(&batch), sent(&extracted(run, 1, 1))])
            .await;
    }
}

async fn until_completed(world: &World, runs: &[&str]) {
    for run in runs {
        let state = format!("SELECT state FROM etl.runs WHERE run_id = '{run}'");
        let what = format!("the run {run} to complete");
        world.until(&what, &state, "completed").await;
    }
}

#[tokio::test]
async fn locked_target_keeps_no_other_batch_waiting() {
    let world = World::start().await;
    let pool = &world.database.pool;
    execute(pool, "CREATE TABLE bad (n bigint, _batch bigint)").await;
    let mut holder = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE public.bad")
        .execute(&mut *holder)
        .await
        .unwrap();
    // The first batch of the session, which the other workers would wait for.
    publish_runs(&world, &["bad", "one", "two", "three"]).await;
    until_completed(&world, &["one", "two", "three"]).await;
    assert_eq!(
        text(
            pool,
            "SELECT count(*) FROM etl.batches WHERE run_id = 'bad'"
        )
        .await,
        "0"
    );
    holder.rollback().await.unwrap();
    until_completed(&world, &["bad"]).await;
    assert_eq!(text(pool, "SELECT count(*) FROM bad").await, "1");
}

#[tokio::test]
async fn commit_of_a_run_keeps_no_batch_and_no_event_waiting() {
    // The commit takes for ever.
    let environment = [("ETL_FAILPOINT", "before_run_commit")];
    let world = World::with(database().await, &environment).await;
    request(&world.database.pool, "whole").await;
    let mut whole = shape("whole", &["n bigint"], &[]);
    whole.target.commit = common::job::Commit::Run;
    let batch = whole.batch("whole", 0, &[vec![Some("1")]]);
    world
        .publish(&[sent(&batch), sent(&extracted("whole", 1, 1))])
        .await;
    testkit::wait_until("the commit", testkit::TIMEOUT, async || {
        world.loader.log().contains("failpoint reached")
    })
    .await;
    // Events and batches of that run, too: they wait for nobody.
    world
        .publish(&[sent(&extracted("whole", 1, 1)), sent(&batch)])
        .await;
    publish_runs(&world, &["one", "two"]).await;
    until_completed(&world, &["one", "two"]).await;
    assert_eq!(
        text(
            &world.database.pool,
            "SELECT state FROM etl.runs WHERE run_id = 'whole'"
        )
        .await,
        "running"
    );
}

#[tokio::test]
async fn event_of_a_run_that_is_locked_is_put_off_and_noted_later() {
    let world = World::start().await;
    let pool = &world.database.pool;
    publish_runs(&world, &["first"]).await;
    until_completed(&world, &["first"]).await;
    request(pool, "locked").await;
    let mut holder = pool.begin().await.unwrap();
    let locked = "locked".parse().unwrap();
    LockedRun::lock(&mut holder, &locked).await.unwrap();
    let events: Vec<_> = (1..4)
        .map(|batches| {
            let progress = common::message::EventKind::Progress { batches, rows: 1 };
            sent(&crate::support::event("locked", progress))
        })
        .collect();
    world.publish(&events).await;
    publish_runs(&world, &["one"]).await;
    until_completed(&world, &["one"]).await;
    holder.rollback().await.unwrap();
    world
        .until(
            "the events of the run",
            "SELECT batches_extracted FROM etl.runs WHERE run_id = 'locked'",
            "3",
        )
        .await;
    world.until_drained().await;
    let dead = "SELECT count(*) FROM etl.dead_letters";
    assert_eq!(text(pool, dead).await, "0");
}
