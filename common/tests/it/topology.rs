//! The queues on brokers that lack a type of queue, and for users who may not declare them.

use common::message::Control;
use common::queue::{
    self, Archive, Archived, Connection, ControlReader, Declare, Outgoing, Publisher, QueueError,
    QueueName, Topology, inspect, pretended,
};
use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use testkit::relay::Relay;
use testkit::servers::{private_broker_without_streams, vhost};
use testkit::{TIMEOUT, wait_until};

use crate::{connect, url};

const STREAM: Topology = Topology {
    archive: Archive::Stream,
    declare: Declare::Create,
};
const SKIP: Topology = Topology {
    archive: Archive::Auto,
    declare: Declare::Skip,
};

async fn opened(url: &str) -> Connection {
    Connection::open(&url.parse().unwrap(), "test")
        .await
        .unwrap()
}

#[tokio::test]
async fn broker_without_streams_has_no_archive_and_every_other_queue() {
    let broker = private_broker_without_streams().await;
    let vhost = broker.vhost().await;
    let connection = opened(&vhost.amqp_url).await;
    let refused = queue::declare(&connection, STREAM).await.unwrap_err();
    assert!(
        matches!(refused, QueueError::NoStreams { .. }),
        "{refused:?}"
    );
    assert!(refused.is_configuration() && refused.to_string().contains("set ETL_ARCHIVE=off"));
    // Twice, on the same connection: a declaration of a stream would have closed it.
    for _ in 0..2 {
        let archived = queue::declare(&connection, Topology::default())
            .await
            .unwrap();
        let Archived::No(why) = archived else {
            panic!("{archived:?}")
        };
        assert!(
            why.contains("stream_queue") || why.contains("feature flag"),
            "{why}"
        );
    }
    for queue in QueueName::ALL {
        let found = inspect::look(&connection, queue).await.unwrap();
        assert_eq!(found.is_some(), queue != QueueName::Archive, "{queue:?}");
    }
    assert_eq!(pretended(&connection).await.unwrap(), None);
}

#[tokio::test]
async fn archive_is_left_alone_where_it_is_off() {
    let vhost = vhost().await;
    let off = Topology {
        archive: Archive::Off,
        declare: Declare::Create,
    };
    let connection = opened(&vhost.amqp_url).await;
    let archived = queue::declare(&connection, off).await.unwrap();
    assert_eq!(archived, Archived::No("ETL_ARCHIVE is off".to_owned()));
    assert!(!vhost.exists("etl.archive").await && vhost.exists("etl.raw").await);
    let archived = queue::declare(&connection, STREAM).await.unwrap();
    assert_eq!(archived, Archived::Yes);
    // The queue from before stays.
    assert!(!queue::declare(&connection, off).await.unwrap().is_yes());
    assert!(vhost.exists("etl.archive").await);
}

/// RabbitMQ hears arguments that it does not know, and ignores them, as a broker without quorum queues does.
async fn pretending(url: &str) -> (Relay, String) {
    let relay = Relay::to_url(url).await;
    relay.say_instead(&[
        ("x-queue-type", "x-queue-kind"),
        ("x-queue-leader-locator", "x-queue-leader-locatex"),
        ("x-delivery-limit", "x-delivery-limix"),
        ("x-dead-letter-strategy", "x-dead-letter-strategx"),
    ]);
    let url = relay.url_for(url);
    (relay, url)
}

#[tokio::test]
async fn broker_that_only_pretends_is_found_out() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    assert_eq!(pretended(&connection).await.unwrap(), None);
    let other = testkit::servers::vhost().await;
    let (_relay, through) = pretending(&other.amqp_url).await;
    let connection = opened(&through).await;
    // Also before any queue is there.
    assert!(pretended(&connection).await.unwrap().is_some());
    let archived = queue::declare(&connection, Topology::default())
        .await
        .unwrap();
    assert!(!archived.is_yes(), "{archived:?}");
    let said = pretended(&connection).await.unwrap().expect("it pretends");
    assert!(
        said.contains("only pretends to have quorum queues"),
        "{said}"
    );
    // Nothing is left behind: each queue is one of ours.
    let (_, queues) = other
        .broker
        .call(
            testkit::http::Method::GET,
            &format!("queues/{}", other.name),
            serde_json::Value::Null,
        )
        .await;
    let names: Vec<_> = queues.as_array().unwrap().iter().collect();
    assert!(
        names
            .iter()
            .all(|queue| !queue["name"].as_str().unwrap().contains("probe")),
        "{names:?}"
    );
}

#[tokio::test]
async fn queue_that_nobody_declared_is_waited_for_by_name() {
    let vhost = vhost().await;
    let connection = opened(&vhost.amqp_url).await;
    let absent = queue::declare(&connection, SKIP).await.unwrap_err();
    assert!(!absent.is_configuration());
    let said = absent.to_string();
    assert!(
        said.contains("etl.unreadable does not exist") && said.contains("etl topology"),
        "{said}"
    );
    queue::declare(&connection, STREAM).await.unwrap();
    let channel = vhost.channel().await;
    let deleted = channel.exchange_delete("etl.control".into(), ExchangeDeleteOptions::default());
    deleted.await.unwrap();
    let absent = queue::declare(&connection, SKIP).await.unwrap_err();
    assert!(
        absent
            .to_string()
            .contains("etl.control, an exchange, does not exist"),
        "{absent}"
    );
    // An administrator imports the definitions, and the services find what they would have declared.
    let definitions = queue::definitions(&url(&vhost), true).unwrap();
    let path = format!("definitions/{}", vhost.name);
    let (status, answer) = vhost
        .broker
        .call(testkit::http::Method::POST, &path, definitions)
        .await;
    assert!(status.is_success(), "{status} {answer}");
    assert_eq!(
        queue::declare(&connection, SKIP).await.unwrap(),
        Archived::Yes
    );
    assert_eq!(
        queue::declare(&connection, STREAM).await.unwrap(),
        Archived::Yes
    );
}

#[tokio::test]
async fn archive_that_is_no_stream_is_refused_and_keeps_its_messages() {
    let vhost = vhost().await;
    vhost.declare("etl.archive").await;
    vhost.publish("etl.archive", b"kept").await;
    let connection = opened(&vhost.amqp_url).await;
    let begin = queue::Begin::Offset(0);
    let reader = queue::StreamReader::open_archive(&connection, begin).await;
    let refused = reader.err().expect("it is no stream");
    assert!(
        refused.to_string().contains("etl.archive is not a stream"),
        "{refused}"
    );
    connection.close().await;
    wait_until("the messages to return", TIMEOUT, async || {
        vhost.ready("etl.archive").await == 2
    })
    .await;
}

#[tokio::test]
async fn reader_without_a_queue_of_its_own_finds_each_control_message_once() {
    let vhost = vhost().await;
    let administrator = connect(&vhost).await;
    let name = format!("{}-reader", vhost.name);
    let put = async |path: String, body| {
        let (status, answer) = vhost
            .broker
            .call(testkit::http::Method::PUT, &path, body)
            .await;
        assert!(status.is_success(), "{answer}");
    };
    put(
        format!("users/{name}"),
        serde_json::json!({ "password": "x", "tags": "" }),
    )
    .await;
    let body = serde_json::json!({ "configure": "", "write": ".*", "read": ".*" });
    put(format!("permissions/{}/{name}", vhost.name), body).await;
    let (_, server) = vhost.amqp_url.split_once('@').unwrap();
    let connection = opened(&format!("amqp://{name}:x@{server}")).await;
    let mut publisher = Publisher::open(&administrator).await.unwrap();
    let cancel = |run: u32| crate::cancel(run);
    publisher.publish(&[cancel(0)]).await.unwrap();
    let mut runs = Vec::new();
    let apply = |control: Control| runs.push(control.run.to_string());
    let mut reader = ControlReader::open(&connection, &connection, apply)
        .await
        .unwrap();
    assert_eq!(runs, ["r0"]);
    let messages: Vec<Outgoing> = vec![cancel(1), cancel(2)];
    publisher.publish(&messages).await.unwrap();
    for wanted in ["r1", "r2"] {
        let next = tokio::time::timeout(TIMEOUT, reader.next()).await.unwrap();
        assert_eq!(next.unwrap().run.as_str(), wanted);
    }
    vhost
        .broker
        .call(
            testkit::http::Method::DELETE,
            &format!("users/{name}"),
            serde_json::Value::Null,
        )
        .await;
}

#[tokio::test]
async fn padding_ends_a_segment_so_that_old_messages_go() {
    // As the archive is declared, but small and for a second.
    let vhost = vhost().await;
    let mut arguments = FieldTable::default();
    let mut set = |name: &str, value| {
        arguments.insert(name.into(), value);
    };
    set("x-queue-type", AMQPValue::LongString("stream".into()));
    set("x-max-age", AMQPValue::LongString("1s".into()));
    let segment = 1 << 20;
    set(
        "x-stream-max-segment-size-bytes",
        AMQPValue::LongInt(segment),
    );
    let durable = QueueDeclareOptions::durable();
    let channel = vhost.channel().await;
    let declared = channel.queue_declare("etl.archive".into(), durable, arguments);
    declared.await.unwrap();
    vhost.publish("etl.archive", b"a raw value").await;
    let connection = opened(&vhost.amqp_url).await;
    let first = async || {
        let begin = queue::Begin::Offset(0);
        let mut reader = queue::StreamReader::open_archive(&connection, begin)
            .await
            .unwrap();
        let first = reader.next_earlier().await.unwrap();
        reader.close(&connection).await;
        first.and_then(|message| message.offset())
    };
    // Until its messages are too old: that ends no segment.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(first().await, Some(0));
    wait_until("the broker to remove the segment", TIMEOUT, async || {
        queue::pad(&connection, 1 << 20).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
        first().await != Some(0)
    })
    .await;
}

#[tokio::test]
async fn archive_is_padded_once_a_day() {
    let vhost = vhost().await;
    let connection = connect(&vhost).await;
    assert!(!queue::limit_age(&connection).await.unwrap(), "it is empty");
    let mut publisher = Publisher::open(&connection).await.unwrap();
    publisher
        .publish(&[Outgoing::of(&crate::event(1)).unwrap().archived()])
        .await
        .unwrap();
    assert!(queue::limit_age(&connection).await.unwrap());
    assert!(!queue::limit_age(&connection).await.unwrap());
}
