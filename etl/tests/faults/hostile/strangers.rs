//! What a stranger publishes to the queues and streams, while a run is in progress: headers of any type and size, properties
//! that are not UTF-8, bodies of all kinds. The run completes, each of these messages is a dead letter, or in
//! `etl.unreadable` where no client can receive it, and nothing else is.
//!
//! `STRANGERS_SEED` repeats a test with the seed that it printed, `PROPTEST_CASES` sets the number of random messages.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::servers::stranger::{Properties, Stranger, header, nested, text};
use testkit::{TIMEOUT, wait_until};

use super::{assert_works, plain};

const QUEUES: [&str; 6] = [
    "etl.extract",
    "etl.raw",
    "etl.valid",
    "etl.parked",
    "etl.events",
    "etl.dead",
];

/// RabbitMQ's `frame_max`, and what it takes beyond it.
const FRAME: usize = 131_072;
const FRAME_MARGIN: usize = 8;

struct Message {
    properties: Properties,
    body: Vec<u8>,
}

/// A header of every type under each name that has a meaning.
fn of_every_type() -> Vec<u8> {
    let kinds: [&[u8]; 14] = [
        b"b\xff",
        b"B\xff",
        b"s\xff\xff",
        b"u\xff\xff",
        b"I\xff\xff\xff\xff",
        b"i\xff\xff\xff\xff",
        b"l\xff\xff\xff\xff\xff\xff\xff\xff",
        b"L\xff\xff\xff\xff\xff\xff\xff\xff",
        b"f\x7f\x7f\xff\xff",
        b"d\x7f\xef\xff\xff\xff\xff\xff\xff",
        b"D\xff\xff\xff\xff\xff",
        b"T\xff\xff\xff\xff\xff\xff\xff\xff",
        b"V",
        b"x\0\0\0\x02\xff\0",
    ];
    let names: [&[u8]; 6] = [
        b"run",
        b"job",
        b"traceparent",
        b"x-etl-reason",
        b"x-etl-dead-at",
        b"x-death",
    ];
    let typed = kinds
        .iter()
        .flat_map(|value| names.map(|name| header(name, value)));
    typed.collect::<Vec<_>>().concat()
}

/// Properties that every client can receive, each with a reason to fail.
fn receivable() -> Vec<Properties> {
    let any = Properties::default;
    let long = |bytes: usize| text(&vec![b'x'; bytes]);
    vec![
        any(),
        any().headers(&header(b"a", &long(100_000))),
        any().headers(&header(b"run", &long(5_000))),
        any().headers(&header(b"run", &long(100_000))),
        any().headers(&header(b"job", &long(100_000))),
        any().headers(&header(b"traceparent", &long(100_000))),
        any().headers(&header(b"x-etl-reason", &long(100_000))),
        any().headers(&header(b"x-etl-stage", &long(100_000))),
        any().headers(&header(b"x-etl-queue", &long(100_000))),
        any().headers(&header(b"x-etl-dead-at", &text(b"-009999-01-01T00:00:00Z"))),
        any().headers(&header(b"x-etl-attempts", &text(b"99999999999999"))),
        any().headers(&header(b"run", &text(b"\xff\0\xfe"))),
        any().headers(&header(b"x-etl-reason", &text(b"\xff\0\xfe"))),
        any().headers(&header(b"n\0l", &text(b"a\0b"))),
        any().headers(&header(b"deep", &nested(1_000))),
        any().headers(&header(b"deep", &nested(26_000))),
        any().headers(&of_every_type()),
        any().kind(b"raw-batch.v3").content_encoding(b"lz4"),
        any().kind(b"raw-batch.v3"),
        any().kind(b"valid-batch.v3"),
        any().kind(b"run-event.v1"),
        any().kind(b"extract-task.v3"),
        any().kind(&[b'k'; 255]).message_id(&[b'm'; 255]),
        any()
            .delivery_mode(1)
            .priority(255)
            .expiration(b"60000")
            .reply_to(b"amq.rabbitmq.reply-to.x"),
        any().timestamp(u64::MAX).app_id("ä\0".as_bytes()),
    ]
}

/// Properties that the broker takes and no client can receive.
fn unreceivable() -> Vec<Properties> {
    let any = Properties::default;
    let frame = |bytes: usize| {
        let empty = any().headers(&header(b"a", &text(b""))).frame_bytes();
        any().headers(&header(b"a", &text(&vec![b'x'; bytes - empty])))
    };
    vec![
        any().message_id(b"caf\xe9"),
        any().headers(&header(b"caf\xe9", &text(b"latin-1"))),
        frame(FRAME + FRAME_MARGIN),
    ]
}

fn with_body(properties: Vec<Properties>, body: &[u8]) -> Vec<Message> {
    let all = properties.into_iter();
    all.map(|properties| Message {
        properties,
        body: body.to_vec(),
    })
    .collect()
}

/// Bodies that no reader takes.
fn random_body(random: &mut StdRng, batch: &[u8]) -> Vec<u8> {
    match random.random_range(0..6) {
        0 => Vec::new(),
        1 => b"{}".to_vec(),
        2 => vec![0; random.random_range(0..2 << 20)],
        3 => batch[..random.random_range(0..batch.len())].to_vec(),
        4 => (0..random.random_range(0..300))
            .map(|_| random.random())
            .collect(),
        _ => [b"\x03", batch].concat(),
    }
}

fn random_properties(random: &mut StdRng) -> Properties {
    let fixed = receivable();
    let mut properties = fixed[random.random_range(0..fixed.len())].clone();
    if random.random() {
        properties = properties.delivery_mode(random.random_range(1..3));
    }
    if random.random() {
        let kinds = [
            "raw-batch.v3",
            "valid-batch.v3",
            "run-event.v1",
            "extract-task.v3",
            "control.v1",
            "marker.v1",
            "",
        ];
        properties = properties.kind(kinds[random.random_range(0..kinds.len())].as_bytes());
    }
    if random.random() {
        let length = random.random_range(0..250);
        let id: String = (0..length / 4).map(|_| random.random::<char>()).collect();
        properties = properties.message_id(id.as_bytes());
    }
    properties
}

/// Publishes a message that no client can receive to every queue: each kind to some of them, or every kind to each. Returns how
/// many there are.
async fn publish_unreceivable(stranger: &mut Stranger, kinds: &[Message], is_long: bool) -> usize {
    let mut sent = 0;
    for (at, queue) in QUEUES.iter().enumerate() {
        for (kind, message) in kinds.iter().enumerate() {
            if is_long || at % kinds.len() == kind {
                let is_taken = stranger.publish(queue, &message.properties, &message.body);
                assert!(is_taken.await, "{queue}: {:?}", message.properties);
                sent += 1;
            }
        }
    }
    sent
}

/// Publishes all of these, numbered from `first`, to every queue, with a body that no other message has where the body alone
/// tells messages apart.
async fn publish_to_all(stranger: &mut Stranger, messages: &[Message], first: usize) -> usize {
    for (message, at) in messages.iter().zip(first..) {
        for queue in QUEUES {
            let mut body = message.body.clone();
            if queue == "etl.dead" {
                body.extend(format!("message {at}").bytes());
            }
            let is_taken = stranger.publish(queue, &message.properties, &body).await;
            assert!(is_taken, "{queue}: {:?}", message.properties);
        }
    }
    messages.len() * QUEUES.len()
}

/// A stream takes not every type of header: the broker closes the channel, and nothing is published.
async fn publish_to_stream(pipeline: &Pipeline, stream: &str, messages: &[Message]) {
    let mut stranger = Stranger::connect(&pipeline.vhost.amqp_url).await;
    for Message { properties, body } in messages {
        if !stranger.publish(stream, properties, body).await {
            stranger = Stranger::connect(&pipeline.vhost.amqp_url).await;
        }
    }
}

/// Waits until every message of a stranger is put aside, and checks that nothing else was.
async fn assert_put_aside(pipeline: &Pipeline, sent: usize, unreceivable: usize) {
    for queue in QUEUES {
        let what = format!("{queue} to be empty");
        wait_until(&what, TIMEOUT, async || {
            pipeline.vhost.ready(queue).await == 0
        })
        .await;
    }
    let (sent, unreceivable) = (sent as u64, unreceivable as u64);
    let stored = async || {
        let stored = pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await;
        u64::try_from(stored).unwrap()
    };
    wait_until("every message to be put aside", TIMEOUT, async || {
        stored().await + pipeline.vhost.ready("etl.unreadable").await >= sent
    })
    .await;
    let aside = (stored().await, pipeline.vhost.ready("etl.unreadable").await);
    assert_eq!(aside, (sent - unreceivable, unreceivable));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_strangers_are_put_aside_while_a_run_completes() {
    let number = |name: &str| std::env::var_os(name)?.to_str()?.parse::<u64>().ok();
    let seed = number("STRANGERS_SEED").unwrap_or_else(|| rand::rng().random());
    println!("STRANGERS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut pipeline = Pipeline::archiving().await;
    pipeline.job("clicks", &plain("clicks"), sample::clicks(20_000));
    pipeline.run("clicks", "before").await;
    let batch = pipeline
        .vhost
        .read_stream("etl.archive", 1)
        .await
        .remove(0)
        .body;
    let mut messages = with_body(receivable(), b"{}");
    // Each of those that no client can receive takes seconds, so that a short test has not every kind in every queue.
    let cases = number("PROPTEST_CASES");
    let is_long = cases.is_some();
    for _ in 0..cases.unwrap_or(50) / QUEUES.len() as u64 {
        let properties = random_properties(&mut random);
        let body = random_body(&mut random, &batch);
        messages.push(Message { properties, body });
    }
    let receivable = messages.len();
    let unreceivable = with_body(unreceivable(), b"x");
    let mut stranger = Stranger::connect(&pipeline.vhost.amqp_url).await;
    let (half, rest) = messages.split_at(receivable / 2);
    let mut sent = publish_to_all(&mut stranger, half, 0).await;
    pipeline.job("clicks", &plain("clicks"), sample::clicks(60_000));
    let run = pipeline
        .service("etl")
        .arg("run")
        .arg("clicks")
        .arg("--run-id")
        .arg("during");
    let mut run = run.arg("--again").arg("--follow").spawn();
    sent += publish_to_all(&mut stranger, rest, half.len()).await;
    let aside = publish_unreceivable(&mut stranger, &unreceivable, is_long).await;
    sent += aside;
    for stream in ["etl.archive", "etl.control"] {
        publish_to_stream(&pipeline, stream, &messages).await;
        publish_to_stream(&pipeline, stream, &unreceivable).await;
    }
    let status = run.wait(TIMEOUT).await;
    assert_eq!(status.code(), Some(0), "{}", run.log());
    assert_put_aside(&pipeline, sent, aside).await;
    pipeline.assert_reconciled("during").await;
    // The archive has messages of strangers among the batches, before and behind.
    for run in ["before", "during"] {
        let done = pipeline.etl(&["replay", run, "--follow"]).await;
        assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
    }
    assert_works(&mut pipeline).await;
    assert_put_aside(&pipeline, sent, aside).await;
    assert_removed_as_doctor_says(&pipeline).await;
}

/// Runs the command that `etl doctor` prints.
async fn assert_removed_as_doctor_says(pipeline: &Pipeline) {
    let said = pipeline.etl(&["doctor"]).await;
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    let (_, command) = said
        .stdout
        .split_once("rabbitmqctl purge_queue")
        .unwrap_or_else(|| panic!("doctor names no command: {}", said.stdout));
    let command = command
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let command: Vec<_> = ["purge_queue"].into_iter().chain(command).collect();
    pipeline.vhost.broker.rabbitmqctl(&command).await;
    assert_eq!(pipeline.vhost.ready("etl.unreadable").await, 0);
    let said = pipeline.etl(&["doctor"]).await;
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
}

/// Each reader of `etl.control` returns what it reads, so that no delivery limit moves such a message on.
#[tokio::test(flavor = "multi_thread")]
async fn unreceivable_control_message_keeps_no_extractor_from_starting() {
    let mut pipeline = Pipeline::without_services().await;
    for name in ["loader", "transformer"] {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    let mut stranger = Stranger::connect(&pipeline.vhost.amqp_url).await;
    for properties in unreceivable() {
        assert!(stranger.publish("etl.control", &properties, b"x").await);
    }
    let extractor = pipeline.service("extractor").start().await;
    assert!(
        extractor.log().contains("it was emptied"),
        "{}",
        extractor.log()
    );
    pipeline.services.push(extractor);
    pipeline.job("clicks", &plain("clicks"), sample::clicks(100));
    pipeline.run("clicks", "after").await;
}
