//! A virtual host with a transformer's queues, and batches to publish and take.

use std::sync::Arc;

use common::Rows;
use common::job::{ColumnSpec, JobSpec, Mode, Rule, Target};
use common::message::{BatchId, Message as _, RawBatch, ValidBatch};
use common::queue::{self, Connection, Outgoing, Publisher, QueueName, Topology};
use common::schema::ResultColumn;
use testkit::TIMEOUT;
use testkit::process::{Process, Service};
use testkit::servers::{Message, Vhost, vhost};
use testkit::wait_until;

pub(crate) struct Fixture {
    pub(crate) vhost: Vhost,
    connection: Connection,
}

impl Fixture {
    /// A virtual host with all queues declared.
    pub(crate) async fn new() -> Self {
        let vhost = vhost().await;
        let url: url::Url = vhost.amqp_url.parse().unwrap();
        let connection = Connection::open(&url.into(), "test").await.unwrap();
        queue::declare(&connection, Topology::default())
            .await
            .unwrap();
        Self { vhost, connection }
    }

    pub(crate) fn transformer(&self) -> Service {
        Service::new("transformer").env("ETL_AMQP_URL", &self.vhost.amqp_url)
    }

    pub(crate) async fn publish(&self, batches: &[RawBatch]) {
        let mut publisher = Publisher::open(&self.connection).await.unwrap();
        let window: Vec<_> = batches
            .iter()
            .map(|batch| Outgoing::of(batch).unwrap())
            .collect();
        publisher.publish(&window).await.unwrap();
        publisher.close().await;
    }

    /// Waits until `count` messages are ready in a queue, and takes them.
    pub(crate) async fn take(&self, queue: QueueName, count: u64) -> Vec<Message> {
        let what = format!("{count} messages in {}", queue.name());
        wait_until(&what, TIMEOUT, async || {
            self.vhost.ready(queue.name()).await >= count
        })
        .await;
        let taken = self.vhost.take_all(queue.name()).await;
        assert_eq!(taken.len() as u64, count, "{}", queue.name());
        taken
    }

    /// Waits for `count` `ValidBatch`es, and takes them.
    pub(crate) async fn take_valid(&self, count: u64) -> Vec<ValidBatch> {
        let what = format!("{count} valid batches");
        wait_until(&what, TIMEOUT, async || {
            self.vhost.ready_with_bulk("etl.valid").await >= count
        })
        .await;
        let mut taken = self.vhost.take_all("etl.valid").await;
        taken.extend(self.vhost.take_all("etl.valid.bulk").await);
        assert_eq!(taken.len() as u64, count);
        taken
            .iter()
            .map(|message| ValidBatch::read(ValidBatch::KIND, &message.body).unwrap())
            .collect()
    }

    /// Stops a transformer in order, and checks that its queues are empty.
    pub(crate) async fn end(&self, mut transformer: Process) {
        assert_eq!(transformer.terminate(TIMEOUT).await, Some(0));
        let log = transformer.log();
        assert!(!log.contains("lapin"), "an orderly stop is no error: {log}");
        assert_eq!(
            self.vhost.ready_with_bulk("etl.raw").await,
            0,
            "left in its queues"
        );
    }
}

/// A batch of a job with a `code` of two letters and a `count` of at least 1.
pub(crate) fn batch(place: u64, rows: &[[Option<&str>; 2]]) -> RawBatch {
    let mut all = Rows::new(2);
    for row in rows {
        all.push(*row);
    }
    let column = |source: &str, pg_type: &str, rule| ColumnSpec {
        source: Some(source.into()),
        pg_type: Some(pg_type.parse().unwrap()),
        rules: vec![rule],
        ..ColumnSpec::default()
    };
    let job = JobSpec {
        name: "sample".into(),
        target: Target {
            table: "sample".into(),
            mode: Mode::Append,
            ..Target::default()
        },
        columns: vec![
            column("code", "char(2)", Rule::NotEmpty(true)),
            column("count", "bigint", Rule::Min("1".into())),
        ],
        ..JobSpec::default()
    };
    let column = |name: &str, type_name: &str| ResultColumn {
        name: name.into(),
        type_name: type_name.into(),
    };
    RawBatch {
        id: BatchId {
            run: "run".parse().unwrap(),
            generation: 0,
            first_row: place * 100,
        },
        is_bulk: false,
        result_id: "q:pages".into(),
        job: Arc::new(job),
        columns: Arc::new(vec![column("code", "varchar"), column("count", "bigint")]),
        rows: all,
    }
}
