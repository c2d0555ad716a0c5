//! The service as a process with a broker: what it consumes, acks, dead-letters and survives.

use common::message::{Message, RunEvent, ValidBatch};
use common::queue::{Connection, Outgoing, Publisher, Topology, declare};
use testkit::TIMEOUT;
use testkit::process::{Process, Service};
use testkit::relay::Relay;
use testkit::servers::{Database, Vhost, database, private_postgres, vhost};
use testkit::wait_until;

use crate::support::{
    Shape, balance_of, event, execute, extracted, ledger_database, request, shape, text, url,
};

/// A loader process with its database and virtual host.
pub(crate) struct World {
    pub(crate) database: Database,
    pub(crate) vhost: Vhost,
    pub(crate) loader: Process,
    broker: Connection,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(database().await, &[]).await
    }

    pub(crate) async fn with(database: Database, environment: &[(&str, &str)]) -> Self {
        common::service::install_tls();
        let vhost = vhost().await;
        let loader = service(&database, &vhost, environment).start().await;
        let log = loader.log();
        assert!(
            !log.contains("ERROR"),
            "a new broker causes no warning: {log}"
        );
        let broker = Connection::open(&url(&vhost.amqp_url), "test")
            .await
            .unwrap();
        Self {
            database,
            vhost,
            loader,
            broker,
        }
    }

    pub(crate) async fn publish(&self, messages: &[Outgoing]) {
        Publisher::open(&self.broker)
            .await
            .unwrap()
            .publish(messages)
            .await
            .unwrap();
    }

    pub(crate) async fn until(&self, what: &str, sql: &str, wanted: &str) {
        wait_until(what, TIMEOUT, async || {
            text(&self.database.pool, sql).await == wanted
        })
        .await;
    }

    /// Waits until all earlier messages are handled: a batch behind them has been.
    pub(crate) async fn until_drained(&self) {
        let pool = &self.database.pool;
        request(pool, "marker").await;
        self.publish(&[sent(&clicks().batch("marker", 0, &[]))])
            .await;
        self.until(
            "the marker",
            "SELECT count(*) FROM etl.batches WHERE run_id = 'marker'",
            "1",
        )
        .await;
        wait_until("the loader's queues to be empty", TIMEOUT, async || {
            let (valid, events) = (
                self.vhost.ready_with_bulk("etl.valid").await,
                self.vhost.ready("etl.events").await,
            );
            valid + events + self.vhost.ready("etl.dead").await == 0
        })
        .await;
    }
}

fn service(database: &Database, vhost: &Vhost, environment: &[(&str, &str)]) -> Service {
    let service = Service::new("loader")
        .env("ETL_DATABASE_URL", &database.url)
        .env("ETL_AMQP_URL", &vhost.amqp_url);
    service.envs(
        environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

pub(crate) fn sent(message: &impl Message) -> Outgoing {
    Outgoing::of(message).unwrap()
}

fn clicks() -> Shape {
    shape("clicks", &["n bigint"], &[])
}

pub(crate) fn batch(first_row: u64) -> ValidBatch {
    let number = first_row.to_string();
    clicks().batch("r", first_row, &[vec![Some(number.as_str())]])
}

#[tokio::test]
async fn batches_and_events_complete_the_run() {
    let mut world = World::start().await;
    request(&world.database.pool, "r").await;
    let mut messages: Vec<Outgoing> = (0..30).rev().map(|row| sent(&batch(row))).collect();
    messages.insert(7, sent(&extracted("r", 30, 30)));
    messages.extend((0..30).map(|row| sent(&batch(row))));
    world.publish(&messages).await;
    wait_until("every delivery to be handled", TIMEOUT, async || {
        world.loader.metric("etl_batches_total").await == Some(60.0)
            && world.loader.metric("etl_events_total").await == Some(1.0)
    })
    .await;
    assert_eq!(
        balance_of(&world.database.pool, "r").await,
        "completed expected 30 extracted 30 loaded 30 deduplicated 0 rejected 0 balanced"
    );
    assert_eq!(
        text(&world.database.pool, "SELECT count(*) FROM clicks").await,
        "30"
    );
    assert_eq!(
        world.loader.metric("etl_rows_loaded_total").await,
        Some(30.0)
    );
    assert_eq!(world.loader.terminate(TIMEOUT).await, Some(0));
}

#[tokio::test]
async fn message_that_cannot_be_loaded_is_dead_lettered_with_its_reason() {
    let world = World::start().await;
    request(&world.database.pool, "r").await;
    world.publish(&[sent(&batch(0))]).await;
    world
        .until("the first batch", "SELECT count(*) FROM etl.batches", "1")
        .await;
    let other = clicks().batch("r", 0, &[vec![Some("7")]]);
    let unknown = clicks().batch("absent", 0, &[vec![Some("7")]]);
    world
        .publish(&[
            sent(&other),
            sent(&unknown),
            sent(&extracted("absent", 1, 1)),
            sent(&batch(1)),
        ])
        .await;
    world.vhost.publish("etl.valid", b"not json").await;
    let count = "SELECT count(*) FROM etl.dead_letters WHERE stage = 'loader' AND attempts > 0 AND dead_at IS NOT NULL";
    world.until("four dead letters", count, "4").await;
    world.until_drained().await;
    let dead_letters = "SELECT string_agg(concat_ws('|', message_id, run_id, queue, kind), ' ' ORDER BY message_id, queue) FROM etl.dead_letters WHERE message_id IS NOT NULL";
    assert_eq!(
        text(&world.database.pool, dead_letters).await,
        "absent/0/0|absent|etl.valid|valid-batch.v3 absent/0/extracted|absent|etl.events|run-event.v2 r/0/0|r|etl.valid|valid-batch.v3"
    );
    let body = "SELECT body FROM etl.dead_letters WHERE message_id = 'r/0/0'";
    let stored: Vec<u8> = sqlx::query_scalar(body)
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(stored, other.write().unwrap().bytes);
    assert!(
        text(
            &world.database.pool,
            "SELECT reason FROM etl.dead_letters WHERE message_id IS NULL"
        )
        .await
        .contains("type")
    );
    // The other messages were handled.
    world
        .until("the batch behind them", "SELECT count(*) FROM clicks", "2")
        .await;
}

#[tokio::test]
async fn redelivered_dead_letter_is_stored_once() {
    let world = World::start().await;
    let headers = |at: &str| {
        let mut table = lapin::types::FieldTable::default();
        for (name, value) in [
            ("run", "r"),
            ("x-etl-stage", "transformer"),
            ("x-etl-reason", "no\0 idea"),
            ("x-etl-dead-at", at),
            ("x-etl-queue", "etl.raw"),
        ] {
            table.insert(
                name.into(),
                lapin::types::AMQPValue::LongString(value.into()),
            );
        }
        lapin::BasicProperties::default()
            .with_delivery_mode(2)
            .with_headers(table)
            .with_message_id("r/0/1".into())
    };
    for at in [
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z",
    ] {
        world
            .vhost
            .publish_with("etl.dead", b"\x00\xff", headers(at))
            .await;
    }
    // The third is behind the second.
    let dead_letters = "SELECT count(*) || min(reason) || min(stage) || min(queue) || min(run_id) || min(length(body)) FROM etl.dead_letters";
    world
        .until(
            "two dead letters",
            dead_letters,
            "2no\u{2400} ideatransformeretl.rawr2",
        )
        .await;
}

#[tokio::test]
async fn message_over_the_delivery_limit_is_dead_lettered_unprocessed() {
    let (database, vhost) = (database().await, vhost().await);
    common::service::install_tls();
    let broker = Connection::open(&url(&vhost.amqp_url), "test")
        .await
        .unwrap();
    declare(&broker, Topology::default()).await.unwrap();
    Publisher::open(&broker)
        .await
        .unwrap()
        .publish(&[sent(&batch(0))])
        .await
        .unwrap();
    for _ in 0..7 {
        assert_eq!(vhost.peek_all("etl.valid").await.len(), 1);
    }
    let loader = service(&database, &vhost, &[]).start().await;
    request(&database.pool, "r").await;
    Publisher::open(&broker)
        .await
        .unwrap()
        .publish(&[sent(&batch(1))])
        .await
        .unwrap();
    let world = World {
        database,
        vhost,
        loader,
        broker,
    };
    world
        .until(
            "the innocent batch",
            "SELECT count(*) FROM etl.batches",
            "1",
        )
        .await;
    world
        .until(
            "the poison among the dead letters",
            "SELECT string_agg(message_id, ' ') FROM etl.dead_letters",
            "r/0/0",
        )
        .await;
    assert!(
        text(&world.database.pool, "SELECT reason FROM etl.dead_letters")
            .await
            .contains("delivered 8 times")
    );
}

/// Each loader that finds Postgres unavailable adds a delivery to the message's count. With enough loaders, the message
/// looks like one that kills its loaders.
#[tokio::test]
async fn message_redelivered_often_while_postgres_was_away_is_loaded() {
    let postgres = private_postgres().await;
    let world = World::with(postgres.database().await, &[]).await;
    request(&world.database.pool, "r").await;
    postgres.kill9().await;
    world.publish(&[sent(&batch(0))]).await;
    wait_until("the loader to wait", TIMEOUT, async || {
        let readiness = world.loader.readiness().await;
        readiness.is_some_and(|(ready, why)| !ready && why.contains("batches"))
            && world.vhost.ready("etl.valid").await == 1
    })
    .await;
    world.publish(&[sent(&batch(1))]).await;
    for _ in 0..7 {
        assert_eq!(world.vhost.peek_all("etl.valid").await.len(), 2);
    }
    postgres.restart().await;
    let counts =
        "SELECT count(*) || ' ' || (SELECT count(*) FROM etl.dead_letters) FROM etl.batches";
    world.until("both batches", counts, "2 0").await;
    world.until_drained().await;
    assert_eq!(text(&world.database.pool, counts).await, "3 0");
}

#[tokio::test]
async fn message_over_the_delivery_limit_is_kept_while_postgres_does_not_answer() {
    let (database, vhost) = (ledger_database().await, vhost().await);
    let broker = Connection::open(&url(&vhost.amqp_url), "test")
        .await
        .unwrap();
    declare(&broker, Topology::default()).await.unwrap();
    let mut publisher = Publisher::open(&broker).await.unwrap();
    publisher.publish(&[sent(&batch(0))]).await.unwrap();
    for _ in 0..7 {
        assert_eq!(vhost.peek_all("etl.valid").await.len(), 1);
    }
    request(&database.pool, "r").await;
    let relay = Relay::to_url(&database.url).await;
    // The check of Postgres uses a transaction.
    relay.lose_every_reply(b"BEGIN\0");
    let through_relay = relay.url_for(&database.url);
    let loader = service(
        &database,
        &vhost,
        &[("ETL_DATABASE_URL", through_relay.as_str())],
    )
    .spawn();
    wait_until("the loader to wait", TIMEOUT, async || {
        let readiness = loader.readiness().await;
        readiness.is_some_and(|(_, why)| why.contains("batches"))
    })
    .await;
    relay.lose_none();
    wait_until("the batch", TIMEOUT, async || {
        let count =
            "SELECT (SELECT count(*) FROM etl.batches) + (SELECT count(*) FROM etl.dead_letters)";
        text(&database.pool, count).await == "1"
    })
    .await;
    assert_eq!(
        text(&database.pool, "SELECT count(*) FROM etl.dead_letters").await,
        "0"
    );
}

#[tokio::test]
async fn loader_killed_at_any_point_loads_each_batch_once() {
    for point in ["mid_copy", "before_commit", "after_commit", "before_ack"] {
        let mut world = World::with(database().await, &[("ETL_FAILPOINT", point)]).await;
        request(&world.database.pool, "r").await;
        world
            .publish(&[
                sent(&batch(0)),
                sent(&batch(1)),
                sent(&extracted("r", 2, 2)),
            ])
            .await;
        wait_until(point, TIMEOUT, async || {
            world.loader.log().contains("failpoint reached")
        })
        .await;
        world.loader.kill9().await;
        world.loader = service(&world.database, &world.vhost, &[]).start().await;
        world
            .until(
                "the run to complete",
                "SELECT state FROM etl.runs WHERE run_id = 'r'",
                "completed",
            )
            .await;
        world.until_drained().await;
        assert_eq!(
            balance_of(&world.database.pool, "r").await,
            "completed expected 2 extracted 2 loaded 2 deduplicated 0 rejected 0 balanced",
            "{point}"
        );
        assert_eq!(
            text(
                &world.database.pool,
                "SELECT string_agg(n::text, ' ' ORDER BY n) FROM clicks"
            )
            .await,
            "0 1",
            "{point}"
        );
        assert_eq!(
            text(
                &world.database.pool,
                "SELECT count(*) FROM etl.dead_letters"
            )
            .await,
            "0",
            "{point}"
        );
    }
}

#[tokio::test]
async fn loader_continues_after_postgres_was_away_and_dead_letters_nothing() {
    let postgres = private_postgres().await;
    let world = World::with(postgres.database().await, &[]).await;
    request(&world.database.pool, "r").await;
    world.publish(&[sent(&batch(0))]).await;
    // Counted after the last read of the ledger: only the ack is left.
    wait_until("the first batch", TIMEOUT, async || {
        world.loader.metric("etl_batches_total").await == Some(1.0)
    })
    .await;
    postgres.kill9().await;
    let mut messages: Vec<_> = (1..12).map(|row| sent(&batch(row))).collect();
    messages.push(sent(&extracted("r", 12, 12)));
    world.publish(&messages).await;
    wait_until(
        "the loader to report that it is not ready",
        TIMEOUT,
        async || {
            world.loader.readiness().await.is_some_and(|(ready, why)| {
                !ready && why.contains("batches") && why.contains("events")
            })
        },
    )
    .await;
    // No delivery is held meanwhile.
    wait_until(
        "every message to be back in its queue",
        TIMEOUT,
        async || {
            let (mut ready, mut unacked) = (0, 0);
            for queue in ["etl.valid", "etl.valid.bulk", "etl.events"] {
                let depth = world.vhost.depth(queue).await;
                (ready, unacked) = (ready + depth.ready, unacked + depth.unacked);
            }
            (ready, unacked) == (12, 0)
        },
    )
    .await;
    postgres.restart().await;
    world
        .until(
            "the run to complete",
            "SELECT state FROM etl.runs WHERE run_id = 'r'",
            "completed",
        )
        .await;
    world.until_drained().await;
    assert_eq!(
        text(
            &world.database.pool,
            "SELECT count(*) || ' ' || (SELECT count(*) FROM etl.dead_letters) FROM clicks"
        )
        .await,
        "12 0"
    );
    wait_until("the loader to be ready", TIMEOUT, async || {
        world
            .loader
            .readiness()
            .await
            .is_some_and(|(ready, _)| ready)
    })
    .await;
}

#[tokio::test]
async fn unfit_table_does_not_delay_other_tables() {
    let world = World::start().await;
    execute(&world.database.pool, "CREATE TABLE narrow (n bigint)").await;
    request(&world.database.pool, "r").await;
    request(&world.database.pool, "unfit").await;
    let narrow = shape("narrow", &["n bigint"], &[]).batch("unfit", 0, &[vec![Some("1")]]);
    world.publish(&[sent(&narrow), sent(&batch(0))]).await;
    world
        .until("the other batch", "SELECT count(*) FROM etl.batches", "1")
        .await;
    world.until("the failure of its run", "SELECT count(*) FROM etl.runs WHERE run_id = 'unfit' AND failure LIKE '%ADD COLUMN \"_batch\" bigint;%'", "1").await;
}

#[tokio::test]
async fn wrong_settings_end_the_process_with_one_sentence() {
    let (database, vhost) = (database().await, vhost().await);
    // Of the server itself: a pooler takes what the server refuses for a failure that passes.
    let mut absent = url::Url::parse(&database.server.url()).unwrap();
    absent.set_path("no_such_database");
    for (name, value, part) in [
        ("ETL_DATABASE_URL", absent.into(), "no_such_database"),
        ("ETL_DATABASE_URL", "mysql://x".to_owned(), "postgres://"),
    ] {
        let finished = service(&database, &vhost, &[(name, &value)]).run().await;
        assert_eq!(finished.code, Some(1), "{}", finished.stderr);
        assert!(finished.stderr.contains(part), "{}", finished.stderr);
    }
}

#[tokio::test]
async fn loader_that_may_not_migrate_waits_for_the_schema() {
    let (database, vhost) = (database().await, vhost().await);
    let mut loader = service(&database, &vhost, &[("ETL_MIGRATE", "false")]).spawn();
    wait_until("the loader to say what it waits for", TIMEOUT, async || {
        let said = loader.readiness().await;
        said.is_some_and(|(ready, why)| !ready && why.contains("run, as its owner: loader migrate"))
    })
    .await;
    let finished = service(&database, &vhost, &[]).arg("migrate").run().await;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    loader.await_ready().await;
    assert_eq!(loader.terminate(TIMEOUT).await, Some(0));
}

/// The event of a failed run is applied to the ledger.
#[tokio::test]
async fn failed_run_records_its_reason() {
    let world = World::start().await;
    request(&world.database.pool, "r").await;
    let failed: RunEvent = event(
        "r",
        common::message::EventKind::Failed {
            reason: "SYNTAX_ERROR: line 1".into(),
        },
    );
    world.publish(&[sent(&failed)]).await;
    world
        .until(
            "the run to fail",
            "SELECT state || ' ' || failure FROM etl.runs",
            "failed SYNTAX_ERROR: line 1",
        )
        .await;
}
