//! An extractor between an emulator of AWS and a virtual host of its own.

use std::sync::Arc;
use std::time::Duration;

use common::Rows;
use common::job::{JobSpec, Mode, Results, Source, Target};
use common::message::{EventKind, ExtractTask, Limits, Message, RawBatch, RunEvent, TaskState};
use common::queue::{self, Connection, Outgoing, Publisher, Topology};
use common::settings::SecretUrl;
use testkit::TIMEOUT;
use testkit::cloud::Cloud;
use testkit::process::{Process, Service};
use testkit::servers::{Depth, Vhost, vhost};
use testkit::wait_until;

pub(crate) struct Fixture {
    pub(crate) cloud: Cloud,
    pub(crate) vhost: Vhost,
}

impl Fixture {
    /// An emulator and a virtual host with the queues, without an extractor.
    pub(crate) async fn new() -> Self {
        let fixture = Self {
            cloud: Cloud::start().await,
            vhost: vhost().await,
        };
        queue::declare(&fixture.connect().await, Topology::default())
            .await
            .unwrap();
        fixture
    }

    /// The same with an extractor that is ready.
    pub(crate) async fn started() -> (Self, Process) {
        let fixture = Self::new().await;
        let extractor = fixture.extractor().start().await;
        (fixture, extractor)
    }

    pub(crate) fn extractor(&self) -> Service {
        Service::new("extractor")
            .envs(self.cloud.env())
            .env("ETL_AMQP_URL", &self.vhost.amqp_url)
            // Some tests read it, in any setting of the suite.
            .env("ETL_ARCHIVE", "stream")
    }

    async fn connect(&self) -> Connection {
        let url: url::Url = self.vhost.amqp_url.parse().unwrap();
        Connection::open(&SecretUrl::from(url), "test")
            .await
            .unwrap()
    }

    pub(crate) async fn publish(&self, messages: &[Outgoing]) {
        let connection = self.connect().await;
        let mut publisher = Publisher::open(&connection).await.unwrap();
        publisher.publish(messages).await.unwrap();
        connection.close().await;
    }

    pub(crate) async fn send(&self, task: &ExtractTask) {
        self.publish(&[Outgoing::of(task).unwrap()]).await;
    }

    async fn take<M: Message>(&self, queue: &str) -> Vec<M> {
        let taken = self.vhost.take_all(queue).await;
        taken
            .iter()
            .map(|message| M::read(M::KIND, &message.body).unwrap())
            .collect()
    }

    /// Waits until a run has ended, and returns its last event. Takes all events off their queue.
    pub(crate) async fn end_of(&self, run: &str) -> EventKind {
        self.ends_of(run, 1).await.remove(0)
    }

    /// Waits until a run has ended `count` times.
    pub(crate) async fn ends_of(&self, run: &str, count: usize) -> Vec<EventKind> {
        let mut ends = Vec::new();
        wait_until(&format!("{count} ends of run {run}"), TIMEOUT, async || {
            let events: Vec<RunEvent> = self.take("etl.events").await;
            let of_run = events.into_iter().filter(|event| event.run.as_str() == run);
            ends.extend(of_run.map(|event| event.kind).filter(|kind| {
                matches!(kind, EventKind::Extracted { .. } | EventKind::Failed { .. })
            }));
            ends.len() >= count
        })
        .await;
        ends
    }

    /// Waits until one of a run's events is the last, and returns all of them. Takes all events off their queue.
    pub(crate) async fn events_until(
        &self,
        run: &str,
        is_last: impl Fn(&EventKind) -> bool,
    ) -> Vec<EventKind> {
        let mut kinds = Vec::new();
        wait_until(&format!("an event of run {run}"), TIMEOUT, async || {
            let events: Vec<RunEvent> = self.take("etl.events").await;
            let of_run = events.into_iter().filter(|event| event.run.as_str() == run);
            kinds.extend(of_run.map(|event| event.kind));
            kinds.iter().any(&is_last)
        })
        .await;
        kinds
    }

    /// Waits until a run has failed, and returns the reason.
    pub(crate) async fn failure_of(&self, run: &str) -> String {
        match self.end_of(run).await {
            EventKind::Failed { reason } => reason,
            other => panic!("run {run} should have failed: {other:?}"),
        }
    }

    /// Takes all batches off their queues, in the order of their rows.
    pub(crate) async fn batches(&self) -> Vec<RawBatch> {
        let mut batches: Vec<RawBatch> = self.take("etl.raw").await;
        batches.extend(self.take("etl.raw.bulk").await);
        batches.sort_by_key(|batch| batch.id.clone());
        batches
    }

    /// Waits until the management API shows no task, ready or unacked.
    pub(crate) async fn settled(&self) {
        let nothing = Depth {
            ready: 0,
            unacked: 0,
        };
        for queue in ["etl.extract", "etl.extract.bulk"] {
            wait_until(&format!("{queue} to be empty"), TIMEOUT, async || {
                self.vhost.depth(queue).await == nothing
            })
            .await;
        }
    }
}

/// The task that `etl run` publishes for a job that appends the query's columns unchanged.
pub(crate) fn task(run: &str, sql: &str) -> ExtractTask {
    ExtractTask {
        run: run.parse().unwrap(),
        run_no: 1,
        generation: 0,
        first_generation: 0,
        requested_at: jiff::Timestamp::UNIX_EPOCH,
        resumed_at: None,
        sql: sql.to_owned(),
        source: Source {
            database: "netflix".into(),
            workgroup: None,
            catalog: None,
            output_location: None,
            results: Results::Auto,
            max_scanned: None,
            timeout: Duration::from_mins(30),
            ..Source::default()
        },
        job: Arc::new(JobSpec {
            name: "clicks".into(),
            target: Target {
                table: "clicks".into(),
                mode: Mode::Append,
                ..Target::default()
            },
            columns: vec![],
            ..JobSpec::default()
        }),
        limits: Limits::default(),
        state: TaskState::Start { attempt: 1 },
    }
}

/// All rows of the batches, which must follow each other without a gap.
pub(crate) fn rows_of(batches: &[RawBatch]) -> Vec<Vec<Option<String>>> {
    let mut rows = Vec::new();
    for batch in batches {
        assert_eq!(
            batch.id.first_row,
            rows.len() as u64,
            "{}",
            Message::id(batch)
        );
        rows.extend(Rows::iter(&batch.rows).map(|row| row.to_vec()));
    }
    rows
}
