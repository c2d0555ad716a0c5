//! Messages that no version of this project sent.

use std::sync::Arc;

use common::Rows;
use common::job::{JobSpec, Target};
use common::message::{BatchId, Message as _, RawBatch};
use common::schema::ResultColumn;
use lapin::BasicProperties;
use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

use super::{assert_works, plain};

/// The queues, and the type of their messages with the version that is read.
const QUEUES: [(&str, &str, &str); 5] = [
    ("etl.extract", "extract-task", "v3"),
    ("etl.raw", "raw-batch", "v3"),
    ("etl.valid", "valid-batch", "v3"),
    ("etl.parked", "valid-batch", "v3"),
    ("etl.events", "run-event", "v2"),
];

/// A batch of one row of two values, and of so many columns.
fn raw(first_row: u64, columns: usize) -> RawBatch {
    let mut rows = Rows::new(2);
    rows.push([Some("a"), Some("b")]);
    let column = ResultColumn {
        name: "a".into(),
        type_name: "varchar".into(),
    };
    RawBatch {
        id: BatchId {
            run: "r".parse().unwrap(),
            generation: 0,
            first_row,
        },
        is_bulk: false,
        result_id: "q".into(),
        job: Arc::new(JobSpec {
            name: "j".into(),
            target: Target {
                table: "t".into(),
                ..Target::default()
            },
            ..JobSpec::default()
        }),
        columns: Arc::new(vec![column; columns]),
        rows,
    }
}

async fn await_dead_letters(pipeline: &Pipeline, dead_letters: i64) {
    let what = format!("{dead_letters} dead letters");
    wait_until(&what, TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await
            >= dead_letters
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_of_an_unknown_version_is_dead_lettered_complete() {
    let mut pipeline = Pipeline::archiving().await;
    pipeline.job("clicks", &plain("clicks"), sample::clicks(100));
    pipeline.run("clicks", "clicks").await;
    // A valid batch but for its version.
    let batch = pipeline.vhost.read_stream("etl.archive", 1).await.remove(0);
    for (queue, kind, _) in QUEUES {
        let properties = batch
            .properties
            .clone()
            .with_type(format!("{kind}.v9").as_str().into());
        pipeline
            .vhost
            .publish_with(queue, &batch.body, properties)
            .await;
    }
    await_dead_letters(&pipeline, 5).await;
    for (queue, kind, version) in QUEUES {
        let kept = format!(
            "SELECT count(*) FROM etl.dead_letters WHERE queue = '{queue}' AND kind = '{kind}.v9' AND reason LIKE '%{kind}.v9%{kind}.{version}%'
             AND length(body) = {} AND run_id = 'clicks'",
            batch.body.len()
        );
        assert_eq!(pipeline.number(&kept).await, 1, "{queue}");
    }
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 100);
    assert_works(&mut pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_with_hostile_properties_or_contradicting_bodies_are_dead_lettered() {
    let mut pipeline = Pipeline::start().await;
    let mut sent = 0;
    for (queue, kind, version) in QUEUES {
        let kind = format!("{kind}.{version}");
        let bodies: [&[u8]; 6] = [
            b"",
            b"{}",
            b"[[[[[[[[",
            b"null",
            b"\xff\xfe\x00",
            br#"{"run":"../../etc","id":{"run":"'; DROP"}}"#,
        ];
        for body in bodies {
            let properties = BasicProperties::default().with_type(kind.as_str().into());
            pipeline
                .vhost
                .publish_with(
                    queue,
                    body,
                    properties.with_message_id("'; DROP TABLE etl.runs; --".into()),
                )
                .await;
            sent += 1;
        }
    }
    // Counts that do not add up, and row numbers out of range.
    for batch in [raw(0, 1), raw(u64::MAX, 2)] {
        let properties = BasicProperties::default().with_type("raw-batch.v3".into());
        let body = batch.write().unwrap().bytes;
        pipeline
            .vhost
            .publish_with("etl.raw", &body, properties)
            .await;
        sent += 1;
    }
    await_dead_letters(&pipeline, sent).await;
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters WHERE reason <> ''")
            .await,
        sent
    );
    assert_works(&mut pipeline).await;
}

/// As after a restore of the database to a time before the run was requested.
#[tokio::test(flavor = "multi_thread")]
async fn paused_task_of_a_run_that_the_ledger_lacks_is_dead_lettered() {
    let mut pipeline = Pipeline::without_services().await;
    for name in ["loader", "transformer"] {
        let service = pipeline.service(name).start().await;
        pipeline.services.push(service);
    }
    pipeline.job("clicks", &plain("clicks"), sample::clicks(100));
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "gone"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let task = pipeline.vhost.take_all("etl.extract").await.remove(0);
    sqlx::query("DELETE FROM etl.runs")
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let vhost = &pipeline.vhost;
    vhost
        .publish_with("etl.parked", &task.body, task.properties)
        .await;
    await_dead_letters(&pipeline, 1).await;
    let kept = "SELECT count(*) FROM etl.dead_letters WHERE queue = 'etl.parked' AND run_id = 'gone' AND reason LIKE '%gone%'";
    assert_eq!(pipeline.number(kept).await, 1);
    let extractor = pipeline.service("extractor").start().await;
    pipeline.services.push(extractor);
    assert_works(&mut pipeline).await;
}
