//! The typed queue with a real broker: what counts as published, and what a delivery reports.

#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod connecting;
mod topology;

use common::job::{JobSpec, Mode, Source, Target};
use common::message::{
    Command, Control, EventKind, ExtractTask, Limits, Message, RunEvent, RunId, TaskState,
};
use common::queue::{
    self, Connection, ConnectionEvent, Consumer, ControlReader, Delivery, Handler, Intake,
    Outgoing, Prefetch, Publisher, QueueError, QueueName, Stage, Topology, Unreadable, Workers,
    inspect,
};
use common::settings::SecretUrl;
use futures::StreamExt;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use testkit::TIMEOUT;
use testkit::http::Method;
use testkit::process::CLOSED_PORT;
use testkit::servers::stranger::{Properties, Stranger, header, text};
use testkit::servers::{Vhost, private_broker, vhost};
use tokio_util::sync::CancellationToken;

fn url(vhost: &Vhost) -> SecretUrl {
    url::Url::parse(&vhost.amqp_url).unwrap().into()
}

async fn connect(vhost: &Vhost) -> Connection {
    let connection = Connection::open(&url(vhost), "test").await.unwrap();
    queue::declare(&connection, Topology::default())
        .await
        .unwrap();
    connection
}

fn event(batches: u32) -> RunEvent {
    let kind = EventKind::Progress { batches, rows: 7 };
    RunEvent {
        run: "r".parse().unwrap(),
        generation: 0,
        job: "j".into(),
        kind,
    }
}

fn task(run: &str, sql: &str) -> ExtractTask {
    let target = Target {
        table: "t".into(),
        mode: Mode::Append,
        ..Target::default()
    };
    ExtractTask {
        run: run.parse().unwrap(),
        run_no: 1,
        generation: 0,
        first_generation: 0,
        requested_at: jiff::Timestamp::UNIX_EPOCH,
        resumed_at: None,
        sql: sql.into(),
        source: Source {
            database: "d".into(),
            workgroup: None,
            catalog: None,
            output_location: None,
            results: common::job::Results::Auto,
            max_scanned: None,
            timeout: std::time::Duration::from_mins(1),
            ..Source::default()
        },
        job: JobSpec {
            name: "j".into(),
            target,
            columns: vec![],
            watermark: None,
        }
        .into(),
        limits: Limits::default(),
        state: TaskState::Start { attempt: 1 },
    }
}

#[tokio::test]
async fn published_message_is_delivered_and_gone_after_ack() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    let mut publisher = Publisher::open(&connection).await.unwrap();
    let sent = task("run-1", "SELECT 1");
    publisher
        .publish(&[Outgoing::of(&sent).unwrap()])
        .await
        .unwrap();
    let mut consumer = Consumer::<ExtractTask>::open(&connection, 1).await.unwrap();
    let delivery = consumer.next().await.unwrap();
    assert_eq!(delivery.read().unwrap(), sent);
    assert_eq!(
        (delivery.id(), delivery.deliveries()),
        ("run-1/0/start-1", 1)
    );
    assert_eq!(delivery.run(), Some("run-1".parse::<RunId>().unwrap()));
    // Not acked: the message is redelivered, with its count.
    consumer.close(&connection).await;
    let mut consumer = Consumer::<ExtractTask>::open(&connection, 1).await.unwrap();
    let delivery = consumer.next().await.unwrap();
    assert_eq!(delivery.deliveries(), 2);
    delivery.ack().await.unwrap();
    consumer.close(&connection).await;
    assert_eq!(vhost.ready("etl.extract").await, 0);
}

#[tokio::test]
async fn unroutable_message_does_not_count_as_published() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    let mut publisher = Publisher::open(&connection).await.unwrap();
    vhost.delete_queue("etl.events").await;
    let window: Vec<_> = (0..200).map(|n| Outgoing::of(&event(n)).unwrap()).collect();
    let refused = publisher.publish(&window).await;
    assert!(
        matches!(
            refused,
            Err(QueueError::Unroutable { ref queue }) if queue == "etl.events"
        ),
        "{refused:?}"
    );
    queue::declare(&connection, Topology::default())
        .await
        .unwrap();
    publisher.publish(&window).await.unwrap();
    assert_eq!(vhost.ready("etl.events").await, 200);
}

#[tokio::test]
async fn full_queue_accepts_every_message_once_there_is_room() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    // A policy bounds a queue that is already declared.
    let policy = serde_json::json!({ "pattern": "etl.events", "apply-to": "queues", "definition": { "max-length": 5 } });
    let path = format!("policies/{}/small", vhost.name);
    assert!(
        vhost
            .broker
            .call(Method::PUT, &path, policy)
            .await
            .0
            .is_success()
    );
    let mut publisher = Publisher::open(&connection).await.unwrap();
    let window: Vec<_> = (0..60).map(|n| Outgoing::of(&event(n)).unwrap()).collect();
    let drain = async {
        // The queue is full first, so that most of the window is refused.
        let minute = std::time::Duration::from_mins(1);
        testkit::wait_until("the queue to be full", minute, async || {
            vhost.ready("etl.events").await >= 5
        })
        .await;
        let mut consumer = Consumer::<RunEvent>::open(&connection, 1).await.unwrap();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 60 {
            let delivery = consumer.next().await.unwrap();
            seen.insert(delivery.id().to_owned());
            delivery.ack().await.unwrap();
        }
        consumer.close(&connection).await;
        seen
    };
    testkit::wait_until("the bound is in force", TIMEOUT, async || {
        let (_, queue) = vhost
            .broker
            .call(
                Method::GET,
                &format!("queues/{}/etl.events", vhost.name),
                serde_json::Value::Null,
            )
            .await;
        queue["policy"] == "small"
    })
    .await;
    // A refused message that counted as published would never arrive.
    let both = async { tokio::join!(publisher.publish(&window), drain) };
    let (outcome, seen) = tokio::time::timeout(TIMEOUT, both)
        .await
        .expect("every message comes");
    outcome.unwrap();
    assert_eq!(seen.len(), 60);
}

#[tokio::test]
async fn foreign_message_is_refused_and_dead_lettered_unchanged() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    let mut publisher = Publisher::open(&connection).await.unwrap();
    vhost.publish("etl.extract", b"{\"not\": \"a task\"}").await;
    let mut consumer = Consumer::<ExtractTask>::open(&connection, 1).await.unwrap();
    let delivery = consumer.next().await.unwrap();
    let refused = delivery.read().unwrap_err();
    assert!(matches!(refused, Unreadable::Kind { .. }), "{refused}");
    publisher
        .publish(&[Outgoing::dead(
            &delivery,
            "extractor",
            &refused.to_string(),
            1,
        )])
        .await
        .unwrap();
    delivery.ack().await.unwrap();
    let mut dead = Consumer::open_dead(&connection, 1).await.unwrap();
    let dead_letter = dead.next_dead().await.unwrap();
    assert_eq!(dead_letter.body(), b"{\"not\": \"a task\"}");
    assert_eq!(
        dead_letter.header("x-etl-stage").as_deref(),
        Some("extractor")
    );
    assert_eq!(
        dead_letter.header("x-etl-queue").as_deref(),
        Some("etl.extract")
    );
    assert_eq!(dead_letter.header("x-etl-attempts").as_deref(), Some("1"));
    assert!(
        dead_letter
            .header("x-etl-reason")
            .unwrap()
            .contains(ExtractTask::KIND)
    );
    dead_letter.ack().await.unwrap();
}

#[tokio::test]
async fn unreadable_body_is_refused_without_its_values() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    let properties = lapin::BasicProperties::default().with_type(ExtractTask::KIND.into());
    vhost
        .publish_with("etl.extract", b"{\"run\": \"secret value\"}", properties)
        .await;
    let mut consumer = Consumer::<ExtractTask>::open(&connection, 1).await.unwrap();
    let refused = consumer
        .next()
        .await
        .unwrap()
        .read()
        .unwrap_err()
        .to_string();
    assert!(!refused.contains("secret"), "{refused}");
}

#[tokio::test]
async fn deleted_queue_ends_its_consumer_with_an_error() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    let mut consumer = Consumer::<RunEvent>::open(&connection, 1).await.unwrap();
    vhost.delete_queue("etl.events").await;
    let ended = consumer.next().await;
    assert!(matches!(
        ended,
        Err(QueueError::ConsumerEnded {
            queue: "etl.events"
        })
    ));
}

#[tokio::test]
async fn connection_lost_before_listening_is_reported_as_lost() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    connection.close().await;
    let mut events = connection.events();
    let told = tokio::time::timeout(TIMEOUT, events.next()).await;
    let lost = ConnectionEvent::Lost("it ended without a reason".to_owned());
    assert_eq!(told, Ok(Some(lost)));
}

#[tokio::test]
async fn queue_with_other_arguments_is_refused_by_name() {
    let vhost = vhost().await;
    vhost.declare("etl.raw").await;
    let connection = Connection::open(&url(&vhost), "test").await.unwrap();
    let refused = queue::declare(&connection, Topology::default())
        .await
        .unwrap_err();
    assert!(refused.is_configuration(), "{refused}");
    assert!(
        matches!(
            refused,
            QueueError::Mismatch {
                queue: "etl.raw",
                ..
            }
        ),
        "{refused}"
    );
}

/// Until this version it was a stream.
#[tokio::test]
async fn old_control_stream_is_refused_with_the_command_that_removes_it() {
    let vhost = vhost().await;
    let channel = vhost.channel().await;
    let mut arguments = FieldTable::default();
    let stream = AMQPValue::LongString("stream".into());
    arguments.insert("x-queue-type".into(), stream);
    let durable = QueueDeclareOptions::durable();
    let declared = channel.queue_declare("etl.control".into(), durable, arguments);
    declared.await.unwrap();
    let connection = Connection::open(&url(&vhost), "test").await.unwrap();
    let refused = queue::declare(&connection, Topology::default())
        .await
        .unwrap_err();
    assert!(refused.is_configuration(), "{refused}");
    let remedy = "rabbitmqctl delete_queue --vhost VHOST etl.control";
    assert!(refused.to_string().contains(remedy), "{refused}");
}

fn cancel(run: u32) -> Outgoing {
    let control = Control {
        run: format!("r{run}").parse().unwrap(),
        run_no: 1,
        generation: 0,
        at: jiff::Timestamp::UNIX_EPOCH,
        job: "j".into(),
        command: Command::Cancel,
    };
    Outgoing::of(&control).unwrap()
}

#[tokio::test]
async fn every_control_message_reaches_earlier_and_later_readers_and_stays() {
    // More than the 2,000 that RabbitMQ takes for 'no limit' of a prefetch.
    const KEPT: u32 = 2_500;
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    let mut publisher = Publisher::open(&connection).await.unwrap();
    let window: Vec<_> = (0..KEPT).map(cancel).collect();
    publisher.publish(&window).await.unwrap();
    let connections = futures::future::join_all((0..5).map(|_| connect(&vhost))).await;
    let read = async |connection| {
        let mut runs = Vec::new();
        let apply = |control: Control| runs.push(control.run.to_string());
        let reader = ControlReader::open(connection, connection, apply).await;
        (reader.unwrap(), runs)
    };
    let wanted: Vec<_> = (0..KEPT).map(|n| format!("r{n}")).collect();
    // One after another, and several at once.
    let mut readers = vec![read(&connections[0]).await];
    readers.extend(futures::future::join_all(connections[1..4].iter().map(read)).await);
    for (_, runs) in &readers {
        assert!(*runs == wanted, "{} of {KEPT}", runs.len());
    }
    publisher.publish(&[cancel(KEPT)]).await.unwrap();
    for (reader, _) in &mut readers {
        let next = tokio::time::timeout(TIMEOUT, reader.next()).await;
        assert_eq!(next.unwrap().unwrap().run.as_str(), format!("r{KEPT}"));
    }
    let (_, runs) = read(&connections[4]).await;
    assert_eq!(runs.len(), wanted.len() + 1);
    testkit::wait_until("the messages to return", TIMEOUT, async || {
        vhost.ready("etl.control").await == u64::from(KEPT) + 1
    })
    .await;
}

#[tokio::test]
async fn wrong_credentials_are_a_configuration_error_without_the_password() {
    let vhost = vhost().await;
    let mut wrong = url::Url::parse(&vhost.amqp_url).unwrap();
    wrong.set_password(Some("not-the-password")).unwrap();
    let Err(refused) = Connection::open(&wrong.into(), "test").await else {
        panic!("connected")
    };
    assert!(refused.is_configuration(), "{refused:?}");
    assert!(
        !refused.to_string().contains("not-the-password"),
        "{refused}"
    );
}

#[tokio::test]
async fn hosts_are_tried_in_turn_and_an_error_names_each() {
    let vhost = vhost().await;
    let (user, rest) = vhost.amqp_url.split_once('@').unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let closed = format!("127.0.0.1:{CLOSED_PORT}");
    let open = async |user: &str, hosts: &str| {
        let url: SecretUrl = format!("{user}@{hosts}/{path}").parse().unwrap();
        Connection::open(&url, "test").await
    };
    // Each attempt begins at a random host.
    for _ in 0..5 {
        let connection = open(user, &format!("{closed},{host},localhost:{CLOSED_PORT}")).await;
        connection.unwrap().close().await;
    }
    let hosts = format!("{closed},localhost:{CLOSED_PORT}");
    let Err(error) = open(user, &hosts).await else {
        panic!("connected")
    };
    let text = error.to_string();
    assert!(
        text.contains(&closed) && text.contains("localhost:1/"),
        "{text}"
    );
    assert!(
        text.contains("refused") && !error.is_configuration(),
        "{text}"
    );
    // A node that stops may refuse a user, and must not end a service: a refusal counts where no host accepts.
    let refused = open("amqp://guest:wrong", &format!("{host},{closed}")).await;
    assert!(refused.is_err_and(|error| error.is_configuration()));
}

/// Acks what it gets, and stops after so many deliveries.
struct Recorder {
    stop: CancellationToken,
    wanted: usize,
    /// The windows: the id of each delivery and its count.
    windows: Vec<Vec<(String, u32)>>,
}

impl Handler<RunEvent> for &mut Recorder {
    type Fault = QueueError;

    async fn handle(
        &mut self,
        deliveries: Vec<Delivery<RunEvent>>,
        _: &mut Intake<'_, RunEvent>,
    ) -> Result<(), QueueError> {
        let seen = |one: &Delivery<RunEvent>| (one.id().to_owned(), one.deliveries());
        self.windows.push(deliveries.iter().map(seen).collect());
        for delivery in deliveries {
            delivery.ack().await?;
        }
        if self.windows.concat().len() == self.wanted {
            self.stop.cancel();
        }
        Ok(())
    }
}

#[tokio::test]
async fn redelivered_message_is_isolated_and_dead_lettered_at_the_limit() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    let mut publisher = Publisher::open(&connection).await.unwrap();
    for returns in [2, 7] {
        let window: Vec<_> = (0..5).map(|n| Outgoing::of(&event(n)).unwrap()).collect();
        publisher.publish(&window).await.unwrap();
        for _ in 0..returns {
            let mut consumer = Consumer::<RunEvent>::open(&connection, 1).await.unwrap();
            let delivery = consumer.next().await.unwrap();
            assert_eq!(delivery.id(), "r/0/progress-0");
            consumer.close(&connection).await;
        }
        let stop = CancellationToken::new();
        let mut recorder = Recorder {
            stop: stop.clone(),
            // The one that came back too often is dead-lettered instead.
            wanted: if returns == 2 { 5 } else { 4 },
            windows: Vec::new(),
        };
        let prefetch = Prefetch {
            deliveries: 4,
            together: 4,
            bytes: 1 << 20,
            alone: TIMEOUT,
        };
        let stage = Stage {
            name: "test",
            consuming: &connection,
            publishing: &connection,
            stop: &stop,
        };
        let workers = Workers {
            queue: QueueName::Events,
            handlers: vec![&mut recorder],
        };
        let consumed = queue::consume(&stage, prefetch, [workers], || {});
        tokio::time::timeout(TIMEOUT, consumed)
            .await
            .expect("every message comes")
            .unwrap();
        if returns == 2 {
            let alone = vec![("r/0/progress-0".to_owned(), 3)];
            assert_eq!(recorder.windows.remove(0), alone);
            assert_eq!(vhost.ready("etl.dead").await, 0);
        } else {
            let dead = vhost.take_all("etl.dead").await;
            let [dead] = &dead[..] else {
                panic!("{} dead letters", dead.len())
            };
            let reason = dead.header("x-etl-reason").unwrap();
            assert!(reason.starts_with("it was delivered 8 times"), "{reason}");
            assert_eq!(dead.header("x-etl-stage").as_deref(), Some("test"));
        }
        // One delivery is in hand until it succeeds, and no other message counts a second one.
        assert_eq!(recorder.windows[0], [("r/0/progress-1".to_owned(), 1)]);
        let others = recorder.windows.concat();
        assert!(others.iter().all(|(_, count)| *count == 1), "{others:?}");
    }
}

#[tokio::test]
async fn every_queue_survives_a_killed_broker() {
    let broker = private_broker().await;
    let vhost = broker.vhost().await;
    let connection = connect(&vhost).await;
    let mut publisher = Publisher::open(&connection).await.unwrap();
    let window: Vec<_> = (0..50).map(|n| Outgoing::of(&event(n)).unwrap()).collect();
    publisher.publish(&window).await.unwrap();
    broker.kill9().await;
    assert!(publisher.publish(&window).await.is_err());
    broker.restart().await;
    let connection = Connection::open(&url(&vhost), "test").await.unwrap();
    // The broker accepts connections a little before its queues and streams have a leader again.
    testkit::wait_until("the queues to be declared again", TIMEOUT, async || {
        queue::declare(&connection, Topology::default())
            .await
            .is_ok()
    })
    .await;
    testkit::wait_until("the queue is back", TIMEOUT, async || {
        let state = inspect::look(&connection, QueueName::Events).await;
        matches!(state, Ok(Some(state)) if state.messages >= 50)
    })
    .await;
}

#[tokio::test]
async fn dead_letter_of_a_message_with_large_headers_is_small() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    let many = (0..25).flat_map(|n| header(format!("h{n}").as_bytes(), &text(&[b'y'; 1_000])));
    let mut headers: Vec<u8> = many.collect();
    headers.extend(header(b"large", &text(&vec![b'x'; 100_000])));
    headers.extend(header(b"run", &text(b"r")));
    let mut stranger = Stranger::connect(&vhost.amqp_url).await;
    let sent = Properties::default().headers(&headers);
    assert!(stranger.publish("etl.extract", &sent, b"x").await);
    let mut consumer = Consumer::<ExtractTask>::open(&connection, 1).await.unwrap();
    let delivery = consumer.next().await.unwrap();
    let dead = Outgoing::dead(&delivery, "test", &"reason ".repeat(20_000), 1);
    let mut publisher = Publisher::open(&connection).await.unwrap();
    publisher.publish(&[dead]).await.unwrap();
    let dead = vhost.take_all("etl.dead").await.remove(0);
    assert_eq!(dead.header("run").as_deref(), Some("r"));
    assert_eq!(dead.header("large"), None);
    let kept: Vec<_> = (0..25)
        .filter_map(|n| dead.header(&format!("h{n}")))
        .collect();
    assert_eq!(kept, vec!["y".repeat(1_000); 8]);
    assert_eq!(dead.header("x-etl-omitted").as_deref(), Some("18"));
    assert_eq!(dead.header("x-etl-reason").unwrap().len(), 4_000);
}
