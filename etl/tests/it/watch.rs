//! `etl status --watch` shows a run until it ends, also without the broker.

use std::net::TcpListener;

use serde_json::Value;
use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::process::{Service, Signal};
use testkit::relay::{Mode, Relay};
use testkit::wait_until;

/// The run `daily`, completely extracted; its batches wait for the transformer.
async fn waiting() -> Pipeline {
    let pipeline = Pipeline::start().await;
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(5_000),
    );
    pipeline.services[1].signal(Signal::STOP);
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until("the whole result to be read", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.runs WHERE batches_expected = 3")
            .await
            == 1
    })
    .await;
    pipeline
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_run_is_shown_until_it_ends() {
    let pipeline = waiting().await;
    let watch = pipeline.service("etl").arg("status").arg("daily");
    let mut watcher = watch.arg("--watch").spawn();
    let looks = |log: &str| log.matches("run  daily (number 1").count();
    wait_until("a second check", TIMEOUT, async || {
        looks(&watcher.log()) >= 2
    })
    .await;
    let log = watcher.log();
    for word in [
        "state  running",
        "phase  loading: 0 of 5,000 rows",
        "0 of 3",
        "5,000 rows are extracted",
        "etl.raw",
    ] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert!(watcher.is_running() && !log.contains("completed"), "{log}");

    pipeline.services[1].signal(Signal::CONT);
    let code = watcher.wait(TIMEOUT).await.code();
    let log = watcher.log();
    assert_eq!(code, Some(0), "{log}");
    let (_, last) = log.rsplit_once("run  daily").unwrap();
    for word in [
        "state  completed in",
        "3 of 3",
        "5,000 rows extracted = 5,000 loaded + 0 rejected: balanced",
    ] {
        assert!(last.contains(word), "{word}: {log}");
    }
    assert!(!log.contains('\u{1b}'), "it is no terminal: {log}");
    // An ended run is shown once.
    let over = pipeline.etl(&["status", "daily", "--watch"]).await;
    assert_eq!((over.code, looks(&over.stdout)), (Some(0), 1));
    // Its exit code is that of `--follow`.
    let failed = "UPDATE etl.runs SET state = 'failed', failure = 'why'";
    let made = sqlx::query(failed).execute(&pipeline.database.pool);
    made.await.unwrap();
    let over = pipeline.etl(&["status", "daily", "--watch"]).await;
    assert_eq!(over.code, Some(1), "{}", over.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_is_shown_while_the_broker_is_away_or_silent() {
    let pipeline = waiting().await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("amqp://{}", silent.local_addr().unwrap());
    let closed = format!("amqp://127.0.0.1:{}", testkit::process::CLOSED_PORT);
    let command = |broker: &str, name: &str| -> Service {
        let service = pipeline.service("etl").env("ETL_AMQP_URL", broker);
        service.arg(name)
    };
    let status = |broker: &str| command(broker, "status").arg("daily");
    for (broker, why) in [(&closed, "connect"), (&silent, "did not answer")] {
        let shown = status(broker).run().await;
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
        for word in ["state  running", "0 of 3", "queues  unknown: ", why] {
            assert!(shown.stdout.contains(word), "{word}: {}", shown.stdout);
        }
        let proof = command(broker, "reconcile").run().await;
        let unknown = "whether messages of open runs were lost is unknown: ";
        assert_eq!(proof.code, Some(0), "{}", proof.stderr);
        for word in [unknown, why] {
            assert!(proof.stderr.contains(word), "{word}: {}", proof.stderr);
        }
        let json = status(broker).arg("--json").run().await;
        assert_eq!(json.code, Some(0), "{}", json.stderr);
        let json: Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!(
            (&json["state"], &json["queues"]),
            (&"running".into(), &Value::Null)
        );
        assert!(
            json["broker"]
                .as_str()
                .is_some_and(|said| said.contains(why)),
            "{json}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_wait_outlast_an_absent_database() {
    let pipeline = waiting().await;
    let relay = Relay::to_url(&pipeline.database.url).await;
    let url = relay.url_for(&pipeline.database.url);
    let start = |arguments: &[&str]| {
        let command = pipeline.service("etl").env("ETL_DATABASE_URL", &url);
        let arguments = arguments.iter();
        arguments
            .fold(command, |command, one| command.arg(one))
            .spawn()
    };
    let mut commands = [
        start(&["run", "clicks", "--run-id", "daily", "--follow"]),
        start(&["status", "daily", "--watch"]),
    ];
    wait_until("both to see the run", TIMEOUT, async || {
        commands.iter().all(|one| one.log().contains("loading: "))
    })
    .await;
    relay.set(Mode::Cut);
    for command in &mut commands {
        wait_until("a word about the database", TIMEOUT, async || {
            assert!(command.is_running(), "{}", command.log());
            command.log().contains("this command tries again")
        })
        .await;
        let log = command.log();
        assert!(log.contains("the run daily goes on"), "{log}");
        assert!(!log.contains("schema etl of this version"), "{log}");
    }
    relay.set(Mode::Pass);
    pipeline.services[1].signal(Signal::CONT);
    for command in &mut commands {
        let code = command.wait(TIMEOUT).await.code();
        let log = command.log();
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(log.matches("tries again").count(), 1, "{log}");
        assert!(log.contains("PostgreSQL answers again"), "{log}");
    }
}
