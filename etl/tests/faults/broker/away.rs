//! A broker that is killed, restarted, or not there when the services start.

use testkit::line::Line;
use testkit::servers::private_broker;

use super::{MANY, Run, SERVICES, await_all_ready, await_not_ready, bound, slowly};

/// A line whose broker is the test's own, with the services running.
async fn private_line() -> Line {
    let mut line = Line::on(private_broker().await.vhost().await).await;
    for name in SERVICES {
        let service = line.service(name).start().await;
        line.services.push(service);
    }
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_under_load_loses_nothing() {
    let mut line = private_line().await;
    // So that nobody is done long before the others.
    bound(&line, "etl.raw", 10).await;
    bound(&line, "etl.valid", 10).await;
    let run = Run::start(&line, "killed", MANY);
    for batches in [10, 30] {
        run.until_loaded(&line, batches).await;
        slowly(&line.services[0], line.vhost.broker.kill9()).await;
        for service in &mut line.services {
            await_not_ready(service, "broker: ").await;
        }
        slowly(&line.services[0], line.vhost.broker.restart()).await;
    }
    await_all_ready(&mut line).await;
    run.ends_well(&line).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_in_good_order_loses_nothing() {
    let mut line = private_line().await;
    let run = Run::start(&line, "restarted", MANY);
    run.until_loaded(&line, 10).await;
    line.vhost.broker.stop().await;
    for service in &mut line.services {
        await_not_ready(service, "broker: ").await;
    }
    line.vhost.broker.restart().await;
    await_all_ready(&mut line).await;
    run.ends_well(&line).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_start_before_the_broker_wait_for_it() {
    let broker = private_broker().await;
    let mut line = Line::on(broker.vhost().await).await;
    broker.stop().await;
    for name in SERVICES {
        let service = line.service(name).spawn();
        line.services.push(service);
    }
    for service in &mut line.services {
        await_not_ready(service, "connecting to amqp://").await;
        let tries = service.log().matches("trying again").count();
        assert!(tries < 20, "{tries} tries in no time: {}", service.log());
    }
    broker.restart().await;
    await_all_ready(&mut line).await;
    Run::start(&line, "patient", 5_000).ends_well(&line).await;
}
