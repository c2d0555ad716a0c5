//! What a person sees on a terminal: a bar once there is a total, colours, tables within the width, and a question.

use std::time::Duration;

use testkit::TIMEOUT;
use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;
use testkit::process::{Finished, Service, Signal};
use testkit::wait_until;

const JOB: &str = "[target]\ntable = \"clicks\"\n";

/// `etl` on a terminal.
fn etl(pipeline: &Pipeline, arguments: &[&str]) -> Service {
    let etl = arguments
        .iter()
        .fold(pipeline.service("etl"), |etl, one| etl.arg(one));
    etl.on_a_terminal()
}

/// A part of a bar, whether it is done or not.
fn is_bar(character: char) -> bool {
    matches!(character, '█' | '░')
}

#[tokio::test(flavor = "multi_thread")]
async fn bar_begins_when_the_number_of_rows_is_known() {
    let pipeline = Pipeline::start().await;
    let answer = Answer::rows(sample::clicks(5_000));
    let answer = answer.after(Duration::from_secs(1));
    pipeline.write_job("clicks", JOB);
    pipeline.cloud.answer("FROM clicks", answer);
    pipeline.services[1].signal(Signal::STOP);
    let run = ["run", "clicks", "--run-id", "daily", "--follow"];
    let mut follower = etl(&pipeline, &run).spawn();
    wait_until("the bar", TIMEOUT, async || {
        assert!(follower.is_running(), "{}", follower.log());
        let log = follower.log();
        log.contains("loading: 0 of 5,000 rows") && log.contains(is_bar)
    })
    .await;
    let log = follower.log();
    let (before, bar) = log.split_at(log.find("loading:").unwrap());
    assert!(before.contains("Athena running for"), "{log:?}");
    assert!(!before.contains(is_bar), "a bar without a total: {log:?}");
    assert!(!bar.contains('█'), "no row is loaded: {bar:?}");
    pipeline.services[1].signal(Signal::CONT);
    let code = follower.wait(TIMEOUT).await.code();
    let log = follower.log();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("completed: extracted 5,000"), "{log:?}");
    assert!(log.contains("run daily completed in"), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_has_colours_and_a_width() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(10));
    let name = "a-run-with-a-name-that-is-longer-than-most";
    pipeline.run("clicks", name).await;
    let green = "\u{1b}[38;5;2m";
    for command in [
        &["runs"][..],
        &["status", name, "--watch"],
        &["status", name],
    ] {
        let shown = etl(&pipeline, command).run().await;
        let colour = if command[0] == "runs" {
            green
        } else {
            "\u{1b}[32m"
        };
        assert!(shown.stdout.contains(colour), "{:?}", shown.stdout);
        let plain = etl(&pipeline, command).env("NO_COLOR", "1").run().await;
        assert!(!plain.stdout.contains(colour), "{:?}", plain.stdout);
        let json = [&command[..1], &["--json"]].concat();
        let json = etl(&pipeline, &json).run().await;
        assert!(!json.stdout.contains('\u{1b}'), "{:?}", json.stdout);
    }
    let watched = etl(&pipeline, &["status", name, "--watch"]).run().await;
    assert!(
        watched.stdout.contains("\u{1b}[H\u{1b}[J"),
        "{:?}",
        watched.stdout
    );
    let listed = etl(&pipeline, &["runs", "--color", "never"]).run().await;
    assert!(listed.stdout.contains(name), "{}", listed.stdout);
    assert!(
        !listed.stdout.contains("took"),
        "a spare column: {}",
        listed.stdout
    );
    let widest = listed.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{}", listed.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn person_is_asked_and_no_answer_changes_nothing() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(10));
    pipeline
        .cloud
        .answer("FROM clicks", Answer::running_for_ever());
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let cancel = ["cancel", "--job", "clicks"];
    let Finished { code, stdout, .. } = etl(&pipeline, &cancel).run().await;
    assert_eq!(code, Some(1), "{stdout}");
    for words in ["cancel daily (", "cancel 1 run? [y/N]", "nothing was done"] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    let open = "SELECT count(*) FROM etl.runs WHERE state IN ('requested', 'running')";
    assert_eq!(pipeline.number(open).await, 1);
}
