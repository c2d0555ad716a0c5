//! What an operator can do to a broker: close connections, delete queues, shorten its patience, declare or permit the wrong
//! things.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testkit::http::{Method, StatusCode};
use testkit::line::Line;
use testkit::process::Signal;
use testkit::servers::{Message, Vhost, private_broker};
use testkit::{wait_for, wait_until};

use super::{
    MANY, PATIENCE, Run, SERVICES, await_all_ready, await_not_ready, bound, service, slowly, state,
};

const QUEUES: [&str; 4] = ["etl.extract", "etl.raw", "etl.valid", "etl.events"];

/// The services' connections as the management API knows them, by what the services call them: the names by which the API
/// closes them.
async fn connections(vhost: &Vhost) -> BTreeMap<String, Vec<String>> {
    let path = format!("vhosts/{}/connections", vhost.name);
    let (_, all) = vhost.broker.call(Method::GET, &path, Value::Null).await;
    let mut connections = BTreeMap::<_, Vec<_>>::new();
    for connection in all.as_array().into_iter().flatten() {
        let purpose = connection["client_properties"]["connection_name"].as_str();
        let name = connection["name"].as_str();
        if let (Some(purpose), Some(name)) = (purpose, name)
            && SERVICES.iter().any(|service| purpose.starts_with(service))
        {
            let names = connections.entry(purpose.to_owned()).or_default();
            names.push(name.to_owned());
        }
    }
    connections
}

/// Closes a connection, and says whether this did it: one whose service was about to close it may be gone.
async fn close(vhost: &Vhost, name: &str) -> bool {
    let path = name.replace(' ', "%20").replace('>', "%3E");
    let path = format!("connections/{path}");
    let (status, _) = vhost.broker.call(Method::DELETE, &path, Value::Null).await;
    status == StatusCode::NO_CONTENT
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_an_operator_closes_are_built_again() {
    let mut line = Line::start().await;
    // So that nobody is done long before the others.
    bound(&line, "etl.raw", 10).await;
    bound(&line, "etl.valid", 10).await;
    let run = Run::start(&line, "closed", MANY);
    let mut closed = Vec::new();
    for batches in [2, 20, 40] {
        run.until_loaded(&line, batches).await;
        // The management API takes a while to know everybody's connections.
        let mut known = BTreeMap::new();
        let what = "a consuming and a publishing connection of each service";
        let open = wait_for(what, PATIENCE, async || {
            let mut open = connections(&line.vhost).await;
            open.retain(|_, names| {
                names.retain(|name| !closed.contains(name));
                !names.is_empty()
            });
            if open != known {
                println!("open before batch {batches}: {open:?}");
                known.clone_from(&open);
            }
            (open.len() == 2 * SERVICES.len()).then_some(open)
        });
        let open = slowly(&line.services[0], open).await;
        for name in open.into_values().flatten() {
            if close(&line.vhost, &name).await {
                closed.push(name);
            }
        }
    }
    await_all_ready(&mut line).await;
    run.ends_well(&line).await;
    for service in &line.services {
        assert!(service.log().matches("connected to the broker").count() > 1);
    }
}

async fn await_consumed(vhost: &Vhost, queue: &str) {
    wait_until(&format!("a consumer of {queue}"), PATIENCE, async || {
        vhost.exists(queue).await && vhost.consumers(queue).await > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_are_deleted_are_declared_and_consumed_again() {
    let mut line = Line::start().await;
    // One after the other, with nobody at work, and all at once.
    for queue in QUEUES.into_iter().chain(["etl.dead"]) {
        line.vhost.delete_queue(queue).await;
        await_consumed(&line.vhost, queue).await;
    }
    for queue in QUEUES.into_iter().chain(["etl.dead", "etl.archive"]) {
        line.vhost.delete_queue(queue).await;
    }
    for queue in QUEUES.into_iter().chain(["etl.dead"]) {
        await_consumed(&line.vhost, queue).await;
    }
    await_all_ready(&mut line).await;
    // Nobody consumes the archive: that it is gone is seen when it is published to, and so the extractor must not be done.
    bound(&line, "etl.raw", 10).await;
    let run = Run::start(&line, "unarchived", MANY);
    run.until_loaded(&line, 2).await;
    line.vhost.delete_queue("etl.archive").await;
    run.ends_well(&line).await;
    assert!(line.vhost.exists("etl.archive").await);
}

/// Sees that the pipeline has come to rest and that nobody takes the run for complete.
async fn assert_noticed(line: &Line, run: &str) {
    for queue in QUEUES {
        await_consumed(&line.vhost, queue).await;
    }
    wait_until("the line to be at rest", PATIENCE, async || {
        for queue in QUEUES {
            let depth = line.vhost.depth(queue).await;
            if depth.ready + depth.unacked + line.vhost.ready(queue).await > 0 {
                return false;
            }
        }
        true
    })
    .await;
    assert_eq!(state(line, run).await, "running");
    let reconciled = line.etl(&["reconcile", run]).await;
    assert_eq!(reconciled.code, Some(1), "{}", reconciled.stdout);
}

/// The raw batches in the archive, each once.
async fn archived(line: &Line, batches: usize) -> Vec<Message> {
    let mut found = BTreeMap::new();
    let mut count = batches;
    while found.len() < batches {
        for message in line.vhost.read_stream("etl.archive", count).await {
            found.insert(message.message_id().unwrap().to_owned(), message);
        }
        count += 1;
    }
    found.into_values().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_batches_were_deleted_is_never_complete_until_they_are_back() {
    for (stage, queue) in [("transformer", "etl.raw"), ("loader", "etl.valid")] {
        let mut line = Line::start().await;
        // Who consumes the queue is held still, so that there is something in it to delete.
        service(&mut line, stage).signal(Signal::STOP);
        let run = Run::start(&line, "robbed", MANY);
        wait_until("everything to be in the queue", PATIENCE, async || {
            let extractor = service(&mut line, "extractor");
            extractor.log().contains("result extracted") && line.vhost.ready(queue).await > 80
        })
        .await;
        line.vhost.delete_queue(queue).await;
        service(&mut line, stage).signal(Signal::CONT);
        let told = "SELECT count(*) FROM etl.runs WHERE batches_expected IS NOT NULL";
        wait_until(
            "the loader to know how much there was",
            PATIENCE,
            async || line.number(told).await == 1,
        )
        .await;
        assert_noticed(&line, "robbed").await;
        await_all_ready(&mut line).await;
        // The archive has them all.
        let batches = line
            .number("SELECT batches_expected::bigint FROM etl.runs")
            .await;
        for message in archived(&line, usize::try_from(batches).unwrap()).await {
            line.vhost
                .publish_with("etl.raw", &message.body, message.properties)
                .await;
        }
        run.ends_well(&line).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_deleted_leaves_its_run_open_and_others_go_on() {
    let mut line = Line::start().await;
    service(&mut line, "extractor").signal(Signal::STOP);
    let lost = Run::start(&line, "lost", 1_000);
    wait_until("the task", PATIENCE, async || {
        line.vhost.depth("etl.extract").await.unacked + line.vhost.ready("etl.extract").await > 0
    })
    .await;
    line.vhost.delete_queue("etl.extract").await;
    service(&mut line, "extractor").signal(Signal::CONT);
    await_consumed(&line.vhost, "etl.extract").await;
    assert_ne!(state(&line, "lost").await, "completed");
    // While it is not over, another run of the same is not taken.
    let given_up = line.etl(&["cancel", "lost"]).await;
    assert_eq!(given_up.code, Some(0), "{}", given_up.stderr);
    Run::start(&line, "next", 1_000).ends_well(&line).await;
    drop(lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_held_for_too_long_comes_again_and_is_loaded_once() {
    let broker = private_broker().await;
    // As it is after half an hour, with a look every second instead of every minute.
    let impatient = "application:set_env(rabbit, consumer_timeout, 6000), application:set_env(rabbit, channel_tick_interval, 1000).";
    broker.rabbitmqctl(&["eval", impatient]).await;
    let mut line = Line::on(broker.vhost().await).await;
    for name in SERVICES {
        let service = line.service(name).start().await;
        line.services.push(service);
    }
    Run::start(&line, "first", 10).ends_well(&line).await;
    let mut lock = line.database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE clicks")
        .execute(&mut *lock)
        .await
        .unwrap();
    let run = Run::start(&line, "held", 1_000);
    await_not_ready(service(&mut line, "loader"), "PRECONDITION_FAILED").await;
    lock.rollback().await.unwrap();
    await_all_ready(&mut line).await;
    run.ends_well(&line).await;
}

/// Starts each service with this URL; each has to end by itself, and to say why.
async fn assert_refused(line: &Line, url: &str, sentence: &str) {
    for name in SERVICES {
        let mut service = line.service(name).env("ETL_AMQP_URL", url).spawn();
        let code = service.wait(PATIENCE).await.code();
        assert_eq!(code, Some(1), "{}", service.log());
        assert!(service.log().contains(sentence), "{}", service.log());
        assert!(!service.log().contains("trying again"), "{}", service.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_ends_the_service_with_a_sentence() {
    let line = Line::without_services().await;
    line.vhost.declare("etl.valid").await;
    let sentence = "the queue etl.valid exists with other arguments than this version needs; drain and delete it";
    assert_refused(&line, &line.vhost.amqp_url, sentence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_permission_ends_the_service_with_a_sentence() {
    let line = Line::without_services().await;
    let (broker, vhost) = (&line.vhost.broker, &line.vhost.name);
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
    let (_, server) = line.vhost.amqp_url.split_once('@').unwrap();
    let url = |password: &str| format!("amqp://{user}:{password}@{server}");
    let sentence = "check the user, password, vhost and permissions in ETL_AMQP_URL";
    assert_refused(&line, &url("wrong"), sentence).await;
    assert_refused(&line, &url("secret"), sentence).await;
    let nothing_declared = json!({ "configure": "", "write": ".*", "read": ".*" });
    put(format!("permissions/{vhost}/{user}"), nothing_declared).await;
    let sentence = "refused declaring the queue etl.dead";
    assert_refused(&line, &url("secret"), sentence).await;
    let user = format!("users/{user}");
    broker.call(Method::DELETE, &user, Value::Null).await;
}
