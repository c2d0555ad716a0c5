//! Brokers that lack something: room for a connection, streams, quorum queues. Each is named at start, and what can go on does.

use testkit::relay::Relay;
use testkit::servers::private_broker_without_streams;

use super::*;

/// Starts the services with this URL.
async fn start(pipeline: &mut Pipeline, url: &str) {
    for name in SERVICES {
        let service = pipeline.service(name).env("ETL_AMQP_URL", url);
        pipeline.services.push(service.start().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_of_connections_is_waited_for() {
    let pipeline = Pipeline::without_services().await;
    let (broker, vhost) = (&pipeline.vhost.broker, &pipeline.vhost.name);
    let path = format!("vhost-limits/{vhost}/max-connections");
    // A service has two.
    let (status, answer) = broker.call(Method::PUT, &path, json!({ "value": 1 })).await;
    assert!(status.is_success(), "{answer}");
    let mut loader = pipeline.service("loader").spawn();
    await_not_ready(
        &mut loader,
        "a limit of its connections or channels is reached",
    )
    .await;
    assert!(!loader.log().contains("password"), "{}", loader.log());
    broker.call(Method::DELETE, &path, Value::Null).await;
    loader.await_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_that_pretends_is_named_at_start() {
    let mut pipeline = Pipeline::without_services().await;
    let relay = Relay::to_url(&pipeline.vhost.amqp_url).await;
    // Arguments that RabbitMQ does not know: it ignores them.
    relay.say_instead(&[
        ("x-queue-type", "x-queue-kind"),
        ("x-queue-leader-locator", "x-queue-leader-locatex"),
        ("x-delivery-limit", "x-delivery-limix"),
        ("x-dead-letter-strategy", "x-dead-letter-strategx"),
    ]);
    let url = relay.url_for(&pipeline.vhost.amqp_url);
    pipeline.archive = Some("auto");
    start(&mut pipeline, &url).await;
    for service in &pipeline.services {
        let log = service.log();
        assert!(log.contains("only pretends to have quorum queues"), "{log}");
        assert!(log.contains("raw batches are not kept"), "{log}");
    }
    let doctor = pipeline
        .service("etl")
        .arg("doctor")
        .env("ETL_AMQP_URL", &url);
    let doctor = doctor.run().await;
    assert!(
        doctor
            .stdout
            .contains("only pretends to have quorum queues"),
        "{}",
        doctor.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn run_and_replay_complete_on_a_broker_without_streams() {
    let broker = private_broker_without_streams().await;
    let mut pipeline = Pipeline::on(broker.vhost().await).await;
    // By itself.
    pipeline.archive = Some("auto");
    let url = pipeline.vhost.amqp_url.clone();
    start(&mut pipeline, &url).await;
    for service in &pipeline.services {
        let log = service.log();
        assert!(
            log.contains("raw batches are not kept, since the broker has no streams"),
            "{log}"
        );
    }
    Run::start(&pipeline, "first", 20_000)
        .assert_complete(&pipeline)
        .await;
    let again = pipeline.etl(&["replay", "first", "--follow"]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(
        again
            .stderr
            .contains("no batch is archived (the broker has no streams"),
        "{}",
        again.stderr
    );
    pipeline.assert_reconciled("first").await;
    assert_eq!(pipeline.cloud.started().len(), 1, "one query");
    let doctor = pipeline.etl(&["doctor"]).await;
    assert!(
        doctor.stdout.contains("no batch is archived")
            && doctor
                .stdout
                .contains("get-bucket-lifecycle-configuration --bucket"),
        "{}",
        doctor.stdout
    );
    // ETL_ARCHIVE=stream is refused.
    let mut strict = pipeline
        .service("extractor")
        .env("ETL_ARCHIVE", "stream")
        .spawn();
    assert_eq!(strict.wait(TIMEOUT).await.code(), Some(1));
    assert!(
        strict.log().contains("set ETL_ARCHIVE=off"),
        "{}",
        strict.log()
    );
}
