//! Child processes, tested with the test kit's own program.

use testkit::process::Service;
use testkit::{TIMEOUT, http, wait_for};

#[tokio::test]
async fn started_process_is_measured_and_terminates() {
    let mut process = Service::new("cloud").arg("10").spawn();
    let url = wait_for("the program to print its URL", TIMEOUT, async || {
        process
            .log()
            .lines()
            .next()
            .filter(|line| line.starts_with("http://"))
            .map(str::to_owned)
    })
    .await;
    assert_eq!(http::get(&format!("{url}/no/such")).await.unwrap().0, 404);
    assert!(process.peak_memory() > 0);
    assert!(process.is_running());
    assert_eq!(process.readiness().await, None);
    assert_eq!(
        process.terminate(TIMEOUT).await,
        None,
        "it does not handle SIGTERM"
    );
    assert!(!process.is_running());
}

#[tokio::test]
async fn killed_process_does_not_run() {
    let mut process = Service::new("cloud").spawn();
    process.kill9().await;
    assert!(!process.is_running());
}

#[tokio::test]
async fn command_returns_exit_code_and_output() {
    let finished = Service::new("cloud").arg("many").run().await;
    assert_eq!(finished.code, Some(1));
    assert!(
        finished.stderr.contains("the number of rows"),
        "{finished:?}"
    );
    assert_eq!(finished.stdout, "");
}

#[tokio::test]
#[should_panic(expected = "ended with exit status: 1 before it was ready")]
async fn start_of_a_service_that_ends_panics() {
    Service::new("cloud").arg("many").start().await;
}

#[tokio::test]
#[should_panic(expected = "cargo build --workspace")]
async fn missing_binary_panics_with_the_build_command() {
    Service::new("no-such-service");
}
