//! The end of a service: by SIGTERM, or by a crash.

use std::time::Duration;

use testkit::TIMEOUT;
use testkit::pipeline::Pipeline;
use testkit::process::Process;
use testkit::wait_until;

use super::{MANY, Run, SERVICES, await_not_ready, service};

/// The deadline for the shutdown of a service (20 s), with a margin for a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until one of these services has worked on a run, by one of its counters, and removes it from the list.
async fn busy(services: &mut Vec<Process>, counter: &str) -> Process {
    let mut found = 0;
    wait_until(
        &format!("a service to count {counter}"),
        TIMEOUT,
        async || {
            for (index, service) in services.iter().enumerate() {
                if service.metric(counter).await > Some(0.0) {
                    found = index;
                    return true;
                }
            }
            false
        },
    )
    .await;
    services.remove(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn terminated_services_exit_and_other_replicas_continue() {
    let mut pipeline = Pipeline::with_replicas(2).await;
    let run = Run::start(&pipeline, "terminated", 2 * MANY);
    let mut services = std::mem::take(&mut pipeline.services);
    for (counter, batches) in [
        ("etl_rows_extracted_total", 2),
        ("etl_rows_transformed_total", 10),
        ("etl_rows_loaded_total", 20),
    ] {
        run.until_loaded(&pipeline, batches).await;
        let mut service = busy(&mut services, counter).await;
        assert_eq!(
            service.terminate(DEADLINE).await,
            Some(0),
            "{}",
            service.log()
        );
        assert!(
            !service.log().contains("\"ERROR\""),
            "an orderly stop is no error: {}",
            service.log()
        );
    }
    run.assert_open(&pipeline).await;
    run.assert_complete(&pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_and_settles_deliveries_in_progress() {
    let mut pipeline = Pipeline::start().await;
    // The target exists, and is locked when the next batch arrives.
    Run::start(&pipeline, "first", 10)
        .assert_complete(&pipeline)
        .await;
    let mut lock = pipeline.database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE clicks")
        .execute(&mut *lock)
        .await
        .unwrap();
    let mut run = Run::start(&pipeline, "second", 1_000);
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'clicks'::regclass AND NOT granted";
    wait_until("the loader to wait for the lock", TIMEOUT, async || {
        pipeline.number(waits).await > 0
    })
    .await;
    let mut loader = pipeline.services.remove(0);
    loader.signal(testkit::process::Signal::TERM);
    await_not_ready(&mut loader, "stop: finishing what is in hand").await;
    lock.rollback().await.unwrap();
    assert_eq!(
        loader.wait(DEADLINE).await.code(),
        Some(0),
        "{}",
        loader.log()
    );
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.batches WHERE run_id = 'second'")
            .await,
        1
    );
    assert_eq!(pipeline.vhost.ready("etl.valid").await, 0, "it was acked");
    let loader = pipeline.service("loader").start().await;
    pipeline.services.push(loader);
    run.follow.wait(TIMEOUT).await;
    assert_eq!(super::state(&pipeline, "second").await, "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_delivery_is_left_to_another_replica_and_the_exit_code_is_1() {
    let mut pipeline = Pipeline::start().await;
    let mut transformer = pipeline.services.remove(1);
    assert_eq!(transformer.terminate(DEADLINE).await, Some(0));
    let blocked = pipeline
        .service("transformer")
        .env("ETL_FAILPOINT", "transform");
    let mut blocked = blocked.env("ETL_SHUTDOWN_DEADLINE", "1s").start().await;
    let run = Run::start(&pipeline, "blocked", 5_000);
    wait_until("the transformer to be blocked", TIMEOUT, async || {
        blocked.log().contains("failpoint reached")
    })
    .await;
    assert_eq!(blocked.terminate(DEADLINE).await, Some(1));
    assert!(
        blocked.log().contains("not finished within 1s"),
        "{}",
        blocked.log()
    );
    let transformer = pipeline.service("transformer").start().await;
    pipeline.services.push(transformer);
    run.assert_complete(&pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_ends_the_process_with_an_error_and_another_replica_continues() {
    for (stage, point) in [
        ("loader", "before_commit@3=panic"),
        ("transformer", "transform@3=panic"),
        ("extractor", "after_window@2=panic"),
    ] {
        let mut pipeline = Pipeline::without_services().await;
        for name in SERVICES {
            let point = if name == stage { point } else { "" };
            let service = pipeline
                .service(name)
                .env("ETL_FAILPOINT", point)
                .start()
                .await;
            pipeline.services.push(service);
        }
        let run = Run::start(&pipeline, "crashed", 50_000);
        let crashed = service(&mut pipeline, stage);
        let status = crashed.wait(TIMEOUT).await;
        assert_eq!(status.code(), Some(101), "{}", crashed.log());
        *service(&mut pipeline, stage) = pipeline.service(stage).start().await;
        run.assert_complete(&pipeline).await;
    }
}
