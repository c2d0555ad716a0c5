//! `etl run --follow`: the run's name comes first, and the run goes on without the command.

use testkit::TIMEOUT;
use testkit::cloud::sample;
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
            follower.log().contains("running")
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
