//! Receivers that fail, and loaders that die, while people are told of runs: each message arrives, nothing in it is a value of a
//! row, and no batch waits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use common::message::EventKind;
use common::queue::{Connection, Publisher, Topology, declare};
use ledger::Store;
use loader::channel::{Channel, parse};
use loader::outbox::send_all;
use serde_json::Value;
use sqlx::PgPool;
use testkit::TIMEOUT;
use testkit::endpoint::{Asked, Endpoint, Reply};
use testkit::process::Service;
use testkit::relay::{Mode, Relay};
use testkit::servers::{database, vhost};
use testkit::wait_until;
use tokio_util::sync::CancellationToken;

use crate::service::{World, sent};
use crate::support::{
    address, event, execute, extracted, ledger_database, request, shape, text, url, with_rejected,
};

/// Stands for a value of a row.
const MARKER: &str = "m4rker";

/// Stands for the secret in a webhook's URL.
const SECRET: &str = "s3cret";

const LEFT: &str = "SELECT count(*) FROM etl.outbox";

async fn notify(pool: &PgPool, channels: &str) {
    let says = format!(
        "INSERT INTO etl.jobs (job, notify, warn_rejected) VALUES ('job', '{{{channels}}}', '5%')"
    );
    execute(pool, &says).await;
}

/// The messages that an endpoint was sent, as text.
fn events(asked: &[Asked]) -> Vec<String> {
    let bodies = asked
        .iter()
        .map(|one| serde_json::from_str(&one.body).unwrap());
    let events = bodies.map(|body: Value| {
        format!(
            "{} {}",
            body["event"].as_str().unwrap(),
            body["run"].as_str().unwrap()
        )
    });
    events.collect()
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn failing_receiver_is_told_everything_in_the_end_and_no_batch_waits() {
    let answers = AtomicU32::new(0);
    let endpoint = Endpoint::start(move |_| match answers.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::text(500, "/hooks/s3cret is broken"),
        1 => Reply::Silence,
        _ => Reply::text(200, "ok"),
    })
    .await;
    let relay = Relay::to_url(&endpoint.url()).await;
    relay.set(Mode::Cut);
    let hook = format!("http://user:{SECRET}@{}/hooks/{SECRET}", relay.address());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("told");
    let world = World::with(
        database().await,
        &[
            ("ETL_NOTIFY_ONCALL_URL", &hook),
            (
                "ETL_NOTIFY_DATA_COMMAND",
                &format!("cat >>'{}'", file.display()),
            ),
        ],
    )
    .await;
    let pool = &world.database.pool;
    notify(pool, "data,oncall").await;
    for run in ["fails", "rejects", "later"] {
        request(pool, run).await;
    }
    let clicks = shape("clicks", &["n text"], &[]);
    let batch = clicks.batch("rejects", 0, &[vec![Some(MARKER)]]);
    let batch = with_rejected(batch, "type", &[("n", Some(MARKER))]);
    let failed = EventKind::Failed {
        reason: format!("Cannot cast '{MARKER}' to BIGINT"),
    };
    world
        .publish(&[
            sent(&event("fails", failed)),
            sent(&batch),
            sent(&extracted("rejects", 1, 2)),
        ])
        .await;
    // The command is told beside a receiver that closes every connection.
    wait_until("the command to be told", TIMEOUT, async || {
        let told = std::fs::read_to_string(&file).unwrap_or_default();
        told.lines().count() == 2
    })
    .await;
    world.until("an attempt to fail", "SELECT count(*) > 0 FROM etl.outbox WHERE last_error LIKE '%no answer of http://127.0.0.1:%'", "true").await;
    let errors = text(pool, "SELECT string_agg(last_error, ' ') FROM etl.outbox").await;
    relay.set(Mode::Pass);
    world
        .until(
            "a refusal",
            "SELECT count(*) > 0 FROM etl.outbox WHERE last_error LIKE '%answered 500%'",
            "true",
        )
        .await;
    let errors = errors + &text(pool, "SELECT string_agg(last_error, ' ') FROM etl.outbox").await;
    wait_until("a request without an answer", TIMEOUT, async || {
        endpoint.asked().len() == 2
    })
    .await;
    // While it hangs, batches are loaded.
    let later = clicks.batch("later", 0, &[vec![Some("x")]]);
    world
        .publish(&[sent(&later), sent(&extracted("later", 1, 1))])
        .await;
    let state = "SELECT state FROM etl.runs WHERE run_id = 'later'";
    world.until("a run beside it", state, "completed").await;
    assert_eq!(endpoint.asked().len(), 2, "it still hangs");
    assert_eq!(text(pool, LEFT).await, "2");
    world.until("an empty outbox", LEFT, "0").await;

    let mut told = events(&endpoint.asked()[2..]);
    told.sort();
    assert_eq!(told, ["failed fails", "rejected rejects"]);
    for asked in endpoint.asked() {
        assert_eq!(asked.path, format!("/hooks/{SECRET}"));
        assert!(
            asked
                .header("authorization")
                .is_some_and(|it| it.starts_with("Basic "))
        );
        let body: Value = serde_json::from_str(&asked.body).unwrap();
        assert_eq!(body["id"].as_str().map(str::len), Some(36), "{body}");
        assert!(!asked.body.contains(MARKER), "{body}");
    }
    let told = std::fs::read_to_string(&file).unwrap();
    assert!(
        !told.contains(MARKER) && told.contains("\"job\":\"job\""),
        "{told}"
    );
    let log = world.loader.log();
    for text in [&errors, &log] {
        assert!(!text.contains(SECRET) && !text.contains(MARKER), "{text}");
    }
    assert!(log.contains("cannot send a notification"), "{log}");
    let attempts = "etl_outbox_attempts_total";
    assert!(world.loader.metric(attempts).await >= Some(7.0));
}

#[tokio::test]
async fn loader_that_dies_after_sending_leaves_the_message_to_be_sent_again() {
    common::service::install_tls();
    let (database, vhost) = (ledger_database().await, vhost().await);
    let endpoint = Endpoint::start(|_| Reply::text(204, "")).await;
    notify(&database.pool, "oncall").await;
    request(&database.pool, "r").await;
    let service = || {
        Service::new("loader")
            .env("ETL_DATABASE_URL", &database.url)
            .env("ETL_AMQP_URL", &vhost.amqp_url)
            .env("ETL_NOTIFY_ONCALL_URL", &endpoint.url())
    };
    let broker = Connection::open(&url(&vhost.amqp_url), "test")
        .await
        .unwrap();
    declare(&broker, Topology::default()).await.unwrap();
    let failed = EventKind::Failed {
        reason: "because".to_owned(),
    };
    let mut publisher = Publisher::open(&broker).await.unwrap();
    publisher
        .publish(&[sent(&event("r", failed))])
        .await
        .unwrap();
    let mut dies = service().env("ETL_FAILPOINT", "after_send=exit").spawn();
    assert_eq!(dies.wait(TIMEOUT).await.code(), Some(99), "{}", dies.log());
    assert_eq!(text(&database.pool, LEFT).await, "1");
    // The lease of the one that died is over.
    execute(
        &database.pool,
        "UPDATE etl.outbox SET next_attempt_at = now()",
    )
    .await;
    let _loader = service().start().await;
    wait_until("an empty outbox", TIMEOUT, async || {
        text(&database.pool, LEFT).await == "0"
    })
    .await;
    let asked = endpoint.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(
        asked[0].body, asked[1].body,
        "with the id by which a receiver knows it"
    );
}

fn channel(key: &str, value: &str) -> Vec<Channel> {
    let settings = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    parse(settings).unwrap_or_else(|error| panic!("{error}"))
}

async fn fill(pool: &PgPool, messages: u32) {
    let fill = format!(
        "INSERT INTO etl.outbox (channel, event, job, run_id, body)
         SELECT 'oncall', 'failed', 'job', n, jsonb_build_object('event', 'failed', 'run', n::text) FROM generate_series(1, {messages}) AS g (n)"
    );
    execute(pool, &fill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_loaders_send_each_message_once() {
    common::service::install_tls();
    let database = ledger_database().await;
    fill(&database.pool, 30).await;
    let endpoint = Endpoint::start(|_| Reply::text(200, "")).await;
    let stop = CancellationToken::new();
    let address = address(&database.url);
    let stores = ["one", "two"].map(|name| Store::new(&address, name, 1));
    let channels = channel("oncall_url", &endpoint.url());
    let emptied = async {
        wait_until("an empty outbox", TIMEOUT, async || {
            text(&database.pool, LEFT).await == "0"
        })
        .await;
        stop.cancel();
    };
    futures::join!(
        send_all(&stores[0], &channels, &stop),
        send_all(&stores[1], &channels, &stop),
        emptied,
    );
    let mut told = events(&endpoint.asked());
    assert_eq!(told.len(), 30);
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 30, "each of them once");
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_fails_is_tried_again_and_its_words_are_nowhere() {
    common::service::install_tls();
    let database = ledger_database().await;
    fill(&database.pool, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("told");
    let file = file.display();
    // The first time it takes the message and fails.
    let command = format!(
        "if [ -e '{file}' ]; then cat >>'{file}'; else cat >'{file}'; echo 'no answer of https://host/s3cret' >&2; exit 3; fi"
    );
    let (stop, channels) = (
        CancellationToken::new(),
        channel("oncall_command", &command),
    );
    let store = Store::new(&address(&database.url), "test", 1);
    let watched = async {
        let why = "SELECT last_error FROM etl.outbox";
        wait_until("the failure", TIMEOUT, async || {
            !text(&database.pool, why).await.is_empty()
        })
        .await;
        assert_eq!(
            text(&database.pool, why).await,
            "the command of the channel ended with exit code 3; its words are left out, since they may have a secret: run it in a shell, as the same user, to see them"
        );
        wait_until("the second attempt", TIMEOUT, async || {
            text(&database.pool, LEFT).await == "0"
        })
        .await;
        stop.cancel();
    };
    futures::join!(send_all(&store, &channels, &stop), watched);
    let told = std::fs::read_to_string(file.to_string()).unwrap();
    let mut lines = told.lines();
    assert_eq!(lines.next(), lines.next(), "{told}");
}
