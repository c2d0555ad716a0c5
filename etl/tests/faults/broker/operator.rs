//! An operator's actions on a broker: closing connections, deleting queues, a shorter delivery timeout, wrong
//! declarations and missing permissions.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testkit::http::{Method, StatusCode};
use testkit::pipeline::Pipeline;
use testkit::process::Signal;
use testkit::servers::{Message, Vhost, private_broker};
use testkit::{wait_for, wait_until};

use super::{
    MANY, Run, SERVICES, TIMEOUT, await_all_ready, await_not_ready, bound, queues, service, slowly,
    state,
};

/// A connection in the management API. It closes connections by name, which is made of addresses and ports: a new
/// connection can have the name of a closed one, but not its start.
#[derive(Clone, Debug, PartialEq)]
struct Connection {
    name: String,
    connected_at: u64,
}

/// The services' connections, by the names that the services give them.
async fn connections(vhost: &Vhost) -> BTreeMap<String, Vec<Connection>> {
    let path = format!("vhosts/{}/connections", vhost.name);
    let (_, all) = vhost.broker.call(Method::GET, &path, Value::Null).await;
    let mut connections = BTreeMap::<_, Vec<_>>::new();
    for connection in all.as_array().into_iter().flatten() {
        let purpose = connection["client_properties"]["connection_name"].as_str();
        let name = connection["name"].as_str();
        let connected_at = connection["connected_at"].as_u64();
        if let (Some(purpose), Some(name), Some(connected_at)) = (purpose, name, connected_at)
            && SERVICES.iter().any(|service| purpose.starts_with(service))
        {
            let found = connections.entry(purpose.to_owned()).or_default();
            found.push(Connection {
                name: name.to_owned(),
                connected_at,
            });
        }
    }
    connections
}

/// Closes a connection. Returns whether this call closed it: a service may have closed its connection before.
async fn close(vhost: &Vhost, connection: &Connection) -> bool {
    let path = connection.name.replace(' ', "%20").replace('>', "%3E");
    let path = format!("connections/{path}");
    let (status, _) = vhost.broker.call(Method::DELETE, &path, Value::Null).await;
    status == StatusCode::NO_CONTENT
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_closed_by_an_operator_are_reopened() {
    let mut pipeline = Pipeline::start().await;
    // Keeps all stages busy for a similar time.
    bound(&pipeline, "etl.raw.bulk", 10).await;
    bound(&pipeline, "etl.valid.bulk", 10).await;
    let run = Run::start(&pipeline, "closed", MANY);
    let mut closed = Vec::new();
    for batches in [2, 20, 40] {
        run.until_loaded(&pipeline, batches).await;
        // The management API lists new connections after a delay.
        let mut known = BTreeMap::new();
        let what = "a consuming and a publishing connection of each service";
        let open = wait_for(what, TIMEOUT, async || {
            let mut open = connections(&pipeline.vhost).await;
            open.retain(|_, found| {
                found.retain(|connection| !closed.contains(connection));
                !found.is_empty()
            });
            if open != known {
                println!("open before batch {batches}: {open:?}");
                known.clone_from(&open);
            }
            (open.len() == 2 * SERVICES.len()).then_some(open)
        });
        let open = slowly(&pipeline.services[0], open).await;
        for connection in open.into_values().flatten() {
            if close(&pipeline.vhost, &connection).await {
                closed.push(connection);
            }
        }
    }
    await_all_ready(&mut pipeline).await;
    run.assert_complete(&pipeline).await;
    for service in &pipeline.services {
        let log = service.log();
        assert!(log.matches("connected to the broker").count() > 1);
        // A lost connection is a warning of the service, and no error of a library.
        assert!(
            !log.contains("\"ERROR\"") && !log.contains("lapin"),
            "{log}"
        );
    }
}

async fn await_consumed(vhost: &Vhost, queue: &str) {
    wait_until(&format!("a consumer of {queue}"), TIMEOUT, async || {
        vhost.exists(queue).await && vhost.consumers(queue).await > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_queues_are_declared_and_consumed_again() {
    let mut pipeline = Pipeline::archiving().await;
    // Each queue alone, with its consumers paused, and then all queues at once.
    for queue in queues().into_iter().chain(["etl.dead"]) {
        pipeline.vhost.delete_queue(queue).await;
        await_consumed(&pipeline.vhost, queue).await;
    }
    for queue in queues().into_iter().chain(["etl.dead", "etl.archive"]) {
        pipeline.vhost.delete_queue(queue).await;
    }
    for queue in queues().into_iter().chain(["etl.dead"]) {
        await_consumed(&pipeline.vhost, queue).await;
    }
    await_all_ready(&mut pipeline).await;
    // The archive has no consumer. A publish detects that it is missing, so the extractor must not be done yet.
    bound(&pipeline, "etl.raw.bulk", 10).await;
    let run = Run::start(&pipeline, "unarchived", MANY);
    run.until_loaded(&pipeline, 2).await;
    pipeline.vhost.delete_queue("etl.archive").await;
    run.assert_complete(&pipeline).await;
    assert!(pipeline.vhost.exists("etl.archive").await);
}

/// Checks that no message moves and that the run does not count as complete.
async fn assert_idle_and_open(pipeline: &Pipeline, run: &str) {
    for queue in queues() {
        await_consumed(&pipeline.vhost, queue).await;
    }
    wait_until("the pipeline to be idle", TIMEOUT, async || {
        for queue in queues() {
            let depth = pipeline.vhost.depth(queue).await;
            if depth.ready + depth.unacked + pipeline.vhost.ready(queue).await > 0 {
                return false;
            }
        }
        true
    })
    .await;
    assert_eq!(state(pipeline, run).await, "running");
    let reconciled = pipeline.etl(&["reconcile", run]).await;
    assert_eq!(reconciled.code, Some(1), "{}", reconciled.stdout);
}

/// The raw batches in the archive, without duplicates.
async fn archived(pipeline: &Pipeline, batches: usize) -> Vec<Message> {
    let mut found = BTreeMap::new();
    let mut count = batches;
    while found.len() < batches {
        for message in pipeline.vhost.read_stream("etl.archive", count).await {
            found.insert(message.message_id().unwrap().to_owned(), message);
        }
        count += 1;
    }
    found.into_values().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn run_with_deleted_batches_stays_open_until_they_are_replayed() {
    for (stage, queue) in [
        ("transformer", "etl.raw.bulk"),
        ("loader", "etl.valid.bulk"),
    ] {
        let mut pipeline = Pipeline::archiving().await;
        // The consumer of the queue is paused, so that there are messages to delete.
        service(&mut pipeline, stage).signal(Signal::STOP);
        let run = Run::start(&pipeline, "robbed", MANY);
        wait_until("everything to be in the queue", TIMEOUT, async || {
            let extractor = service(&mut pipeline, "extractor");
            extractor.log().contains("result extracted") && pipeline.vhost.ready(queue).await > 80
        })
        .await;
        pipeline.vhost.delete_queue(queue).await;
        service(&mut pipeline, stage).signal(Signal::CONT);
        let told = "SELECT count(*) FROM etl.runs WHERE batches_expected IS NOT NULL";
        wait_until(
            "the ledger to have the end of the result",
            TIMEOUT,
            async || pipeline.number(told).await == 1,
        )
        .await;
        assert_idle_and_open(&pipeline, "robbed").await;
        await_all_ready(&mut pipeline).await;
        // The archive has all batches.
        let batches = pipeline
            .number("SELECT batches_expected::bigint FROM etl.runs")
            .await;
        for message in archived(&pipeline, usize::try_from(batches).unwrap()).await {
            pipeline
                .vhost
                .publish_with("etl.raw", &message.body, message.properties)
                .await;
        }
        run.assert_complete(&pipeline).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_task_leaves_its_run_open_and_other_runs_complete() {
    let mut pipeline = Pipeline::start().await;
    service(&mut pipeline, "extractor").signal(Signal::STOP);
    let lost = Run::start(&pipeline, "lost", 1_000);
    wait_until("the task", TIMEOUT, async || {
        pipeline.vhost.depth("etl.extract").await.unacked
            + pipeline.vhost.ready("etl.extract").await
            > 0
    })
    .await;
    pipeline.vhost.delete_queue("etl.extract").await;
    service(&mut pipeline, "extractor").signal(Signal::CONT);
    await_consumed(&pipeline.vhost, "etl.extract").await;
    assert_ne!(state(&pipeline, "lost").await, "completed");
    // Until the run ends, an equal request is refused.
    let cancelled = pipeline.etl(&["cancel", "lost"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    Run::start(&pipeline, "next", 1_000)
        .assert_complete(&pipeline)
        .await;
    drop(lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_held_for_too_long_is_redelivered_and_loaded_once() {
    let broker = private_broker().await;
    // The state after half an hour; the broker checks every second instead of every minute.
    let impatient = "application:set_env(rabbit, consumer_timeout, 2500), application:set_env(rabbit, channel_tick_interval, 1000).";
    broker.rabbitmqctl(&["eval", impatient]).await;
    let mut pipeline = Pipeline::on(broker.vhost().await).await;
    for name in SERVICES {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    Run::start(&pipeline, "first", 10)
        .assert_complete(&pipeline)
        .await;
    // Within the time that a statement has.
    let slow = "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(4); RETURN NULL; END $$;
                CREATE TRIGGER slow AFTER INSERT ON public.clicks EXECUTE FUNCTION public.slow()";
    let pool = &pipeline.database.pool;
    sqlx::raw_sql(slow).execute(pool).await.unwrap();
    let run = Run::start(&pipeline, "held", 5_000);
    await_not_ready(service(&mut pipeline, "loader"), "PRECONDITION_FAILED").await;
    await_all_ready(&mut pipeline).await;
    run.assert_complete(&pipeline).await;
}

/// Starts each service with this URL. Each must exit by itself with this error.
async fn assert_refused(pipeline: &Pipeline, url: &str, sentence: &str) {
    for name in SERVICES {
        let mut service = pipeline.service(name).env("ETL_AMQP_URL", url).spawn();
        let code = service.wait(TIMEOUT).await.code();
        assert_eq!(code, Some(1), "{}", service.log());
        assert!(service.log().contains(sentence), "{}", service.log());
        assert!(!service.log().contains("trying again"), "{}", service.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_with_other_arguments_ends_the_service_with_an_error() {
    let pipeline = Pipeline::without_services().await;
    pipeline.vhost.declare("etl.valid").await;
    let sentence = "the queue etl.valid exists with other arguments than this version needs; let its consumers empty it, delete it";
    assert_refused(&pipeline, &pipeline.vhost.amqp_url, sentence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_without_permission_ends_the_service_with_an_error() {
    let pipeline = Pipeline::without_services().await;
    let (broker, vhost) = (&pipeline.vhost.broker, &pipeline.vhost.name);
    let user = format!("{vhost}-reader");
    let put = |path: String, body: Value| async move {
        let (status, answer) = broker.call(Method::PUT, &path, body).await;
        assert!(status.is_success(), "{answer}");
    };
    put(
        format!("users/{user}"),
        json!({ "password": "secret", "tags": "" }),
    )
    .await;
    let (_, server) = pipeline.vhost.amqp_url.split_once('@').unwrap();
    let url = |password: &str| format!("amqp://{user}:{password}@{server}");
    let sentence = "check the user, password, vhost and permissions in ETL_AMQP_URL";
    assert_refused(&pipeline, &url("wrong"), sentence).await;
    assert_refused(&pipeline, &url("secret"), sentence).await;
    let nothing_declared = json!({ "configure": "", "write": ".*", "read": ".*" });
    put(format!("permissions/{vhost}/{user}"), nothing_declared).await;
    let sentence = "may not do this on the broker: declaring the queue etl.unreadable";
    assert_refused(&pipeline, &url("secret"), sentence).await;
    let user = format!("users/{user}");
    broker.call(Method::DELETE, &user, Value::Null).await;
}
