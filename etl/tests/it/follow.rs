//! `etl run --follow`: the phases of a run in few lines where there is no terminal; the run's name comes first, and the run goes on without the command.

use std::time::Duration;

use testkit::TIMEOUT;
use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;
use testkit::process::Signal;
use testkit::wait_until;

const JOB: &str = "[target]\ntable = \"clicks\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_command_says_that_the_run_goes_on() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(5_000));
    // The batches wait for the transformer.
    pipeline.services[1].signal(Signal::STOP);
    for signal in [Signal::INT, Signal::TERM] {
        let etl = pipeline.service("etl").arg("run").arg("clicks");
        let mut follower = etl.arg("--run-id").arg("daily").arg("--follow").spawn();
        wait_until("the run to be followed", TIMEOUT, async || {
            assert!(follower.is_running(), "{}", follower.log());
            follower.log().contains("loading: ")
        })
        .await;
        follower.signal(signal);
        let code = follower.wait(TIMEOUT).await.code();
        let log = follower.log();
        assert_eq!(code, Some(1), "{signal:?}: {log}");
        let first = log.lines().next().unwrap_or_default();
        let names = if signal == Signal::INT {
            "etl: the run daily is requested"
        } else {
            "etl: the run daily was requested before"
        };
        assert_eq!(first, names, "{log}");
        for words in [
            "the run daily goes on",
            "etl status daily --watch",
            "etl cancel daily",
        ] {
            assert!(log.contains(words), "{signal:?}: {log}");
        }
    }
    pipeline.services[1].signal(Signal::CONT);
    let followed = pipeline.etl(&["status", "daily", "--watch"]).await;
    assert_eq!(followed.code, Some(0), "{}", followed.stdout);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_phase_is_a_line_without_a_bar() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(5_000));
    let answer = Answer::rows(sample::clicks(5_000));
    let answer = answer.after(Duration::from_secs(2));
    pipeline.cloud.answer("FROM clicks", answer);
    // Nothing takes the task, and then nothing takes the batches.
    pipeline.services[1].signal(Signal::STOP);
    pipeline.services[2].signal(Signal::STOP);
    let etl = pipeline.service("etl").arg("run").arg("clicks");
    let mut follower = etl.arg("--run-id").arg("daily").arg("--follow").spawn();
    for (phase, service) in [("queued for ", 2), ("Athena running for ", 1)] {
        wait_until(phase, TIMEOUT, async || {
            assert!(follower.is_running(), "{}", follower.log());
            follower.log().contains(phase)
        })
        .await;
        pipeline.services[service].signal(Signal::CONT);
    }
    let code = follower.wait(TIMEOUT).await.code();
    let log = follower.log();
    assert_eq!(code, Some(0), "{log}");
    let phases = [
        "queued",
        "Athena running",
        "etl: completed: extracted 5,000",
    ];
    let places: Vec<_> = phases.iter().map(|phase| log.find(phase)).collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{log}"
    );
    assert!(
        !log.contains('\u{1b}') && !log.contains('\r'),
        "no bar: {log}"
    );
    let repeated = log.matches("Athena running").count();
    assert!(repeated < 4, "few lines: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_scanned_grow_while_the_query_runs() {
    const TOTAL: i64 = 4 << 30;
    let pipeline = Pipeline::start().await;
    pipeline.write_job("clicks", JOB);
    let answer = Answer::rows(sample::clicks(10));
    let answer = answer.after(Duration::from_secs(7)).scanned(4 << 30);
    pipeline.cloud.answer("FROM clicks", answer.scanning());
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let scanned = "SELECT coalesce((SELECT bytes_scanned FROM etl.runs), 0)";
    let mut seen = vec![0];
    wait_until("two figures before the end", TIMEOUT, async || {
        let bytes = pipeline.number(scanned).await;
        if bytes > seen[seen.len() - 1] {
            seen.push(bytes);
        }
        seen.len() > 2
    })
    .await;
    assert!(seen[2] < TOTAL, "{seen:?}");
    let status = pipeline.etl(&["status", "daily"]).await.stdout;
    let line = status
        .lines()
        .find(|line| line.contains("Athena running for "));
    assert!(
        line.is_some_and(|line| line.contains(" GiB scanned")),
        "{status}"
    );
    let done = pipeline.etl(&["status", "daily", "--watch"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stdout);
    assert_eq!(pipeline.number(scanned).await, TOTAL);
}
