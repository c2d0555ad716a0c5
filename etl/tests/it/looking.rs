//! Looking at several runs: by name, by job and state, and the latest one; watched together; in colours.

use serde_json::Value;
use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::process::Signal;
use testkit::wait_until;

const JOB: &str = "[target]\ntable = \"NAME\"\nmax_rejected = 10\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }]\n";

/// The jobs `clicks` and `visits`. A run of `visits` is held.
async fn pipeline() -> Pipeline {
    let pipeline = Pipeline::start().await;
    for (name, rows) in [("clicks", 500), ("visits", 5_000)] {
        pipeline.job(name, &JOB.replace("NAME", name), sample::clicks(rows));
    }
    pipeline
}

async fn printed(pipeline: &Pipeline, arguments: &[&str]) -> String {
    let done = pipeline.etl(arguments).await;
    assert_eq!(done.code, Some(0), "{arguments:?}: {}", done.stderr);
    done.stdout
}

/// The runs `one` and `two` of `clicks`, completed, and `three` of `visits`, held.
async fn three_runs() -> Pipeline {
    let pipeline = pipeline().await;
    pipeline.run("clicks", "one").await;
    pipeline.run("clicks", "two").await;
    let held = pipeline.etl(&["run", "visits", "--run-id", "three", "--follow"]);
    assert!(held.await.stdout.contains("is held"));
    pipeline
}

/// The names of the runs whose sheets are printed.
fn sheets(text: &str) -> Vec<&str> {
    let lines = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("run  "));
    lines
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_rejects_take_several_runs() {
    let pipeline = three_runs().await;
    for (arguments, runs) in [
        (&["one", "three"][..], &["one", "three"][..]),
        (&["th"], &["three"]),
        (&["--last"], &["three"]),
        (&["--last", "--job", "clicks"], &["two"]),
        (&["--job", "clicks"], &["one", "two"]),
        (&["--state", "held"], &["three"]),
        (
            &["--job", "clicks", "--state", "completed"],
            &["one", "two"],
        ),
    ] {
        let shown = printed(&pipeline, &[&["status"], arguments].concat()).await;
        assert_eq!(sheets(&shown), runs, "{arguments:?}: {shown}");
    }
    let json = async |arguments: &[&str]| {
        let text = printed(&pipeline, &[arguments, &["--json"]].concat()).await;
        serde_json::from_str::<Value>(&text).unwrap()
    };
    assert_eq!(json(&["status", "--last"]).await["run_id"], "three");
    let two = json(&["status", "--job", "clicks"]).await;
    assert_eq!(
        (&two[0]["run_id"], &two[1]["run_id"]),
        (&"one".into(), &"two".into())
    );
    for which in [
        &["--job", "clicks", "--state", "failed"][..],
        &["--job", "no"],
    ] {
        let none = pipeline.etl(&[&["status"], which].concat()).await;
        assert_eq!(none.code, Some(1), "{}", none.stdout);
        assert!(none.stderr.contains("no such run"), "{}", none.stderr);
    }

    let rejected = async |which: &[&str]| {
        let rows = json(&[&["rejects"], which].concat()).await;
        let rows = rows.as_array().unwrap().iter();
        let mut runs: Vec<_> = rows
            .map(|row| row["run_id"].as_str().unwrap().to_owned())
            .collect();
        runs.dedup();
        runs
    };
    assert_eq!(rejected(&["one", "three"]).await, ["one", "three"]);
    assert_eq!(rejected(&["--job", "clicks"]).await, ["one", "two"]);
    assert_eq!(rejected(&["--state", "held"]).await, ["three"]);
    assert_eq!(rejected(&["--last", "--job", "clicks"]).await, ["two"]);
    let listed = printed(&pipeline, &["rejects", "one", "two"]).await;
    assert!(
        listed.contains("runs") && listed.contains("two"),
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn open_and_held_runs_are_watched_until_all_are_over() {
    let pipeline = three_runs().await;
    let nothing = async || {
        printed(
            &pipeline,
            &["status", "--watch", "--state", "open", "--job", "clicks"],
        )
        .await
    };
    assert!(nothing().await.contains("no run is open or held"));
    // The batches of another run wait for the transformer.
    pipeline.services[1].signal(Signal::STOP);
    let mut watcher = pipeline.service("etl").arg("status").arg("--watch").spawn();
    let line = |log: &str, words: &[&str]| {
        let mut lines = log.lines();
        lines.any(|line| words.iter().all(|word| line.contains(word)))
    };
    let sees = async |watcher: &mut testkit::process::Process, words: &[&str]| {
        wait_until(&words.join(" "), TIMEOUT, async || {
            assert!(watcher.is_running(), "{}", watcher.log());
            line(&watcher.log(), words)
        })
        .await;
    };
    sees(&mut watcher, &["three", "held"]).await;
    assert!(!watcher.log().contains("two"), "it was over before");
    // A run that is requested meanwhile is watched, too.
    printed(&pipeline, &["run", "clicks", "--again", "--run-id", "four"]).await;
    sees(&mut watcher, &["four", "running", "loading", "0 of 500"]).await;
    pipeline.services[1].signal(Signal::CONT);
    sees(&mut watcher, &["four", "completed"]).await;
    printed(&pipeline, &["discard", "three", "--why", "a test"]).await;
    let code = watcher.wait(TIMEOUT).await.code();
    let log = watcher.log();
    assert_eq!(code, Some(1), "not every run is complete: {log}");
    assert!(line(&log, &["three", "cancelled"]), "{log}");
    assert!(!log.contains('\u{1b}'), "it is no terminal: {log}");
    let complete = pipeline.etl(&["status", "one", "two", "--watch"]).await;
    assert_eq!(complete.code, Some(0), "{}", complete.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn states_have_colours_only_where_they_are_wanted() {
    let pipeline = three_runs().await;
    let has_colours = async |arguments: &[&str], variables: &[&str]| {
        let etl = arguments
            .iter()
            .fold(pipeline.service("etl"), |etl, one| etl.arg(one));
        let etl = variables.iter().fold(etl, |etl, name| etl.env(name, "1"));
        let done = etl.run().await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        done.stdout.contains('\u{1b}')
    };
    for command in [&["runs"][..], &["status", "one"], &["jobs"]] {
        let with = |more: &[&'static str]| [command, more].concat();
        // The output is no terminal; CLICOLOR_FORCE is as if it were.
        for (more, variables, wanted) in [
            (&[][..], &[][..], false),
            (&[], &["CLICOLOR_FORCE"], true),
            (&[], &["CLICOLOR_FORCE", "NO_COLOR"], false),
            (&["--color", "always"], &["NO_COLOR"], true),
            (&["--color", "never"], &["CLICOLOR_FORCE"], false),
            (&["--color", "always", "--json"], &[], false),
        ] {
            let found = has_colours(&with(more), variables).await;
            assert_eq!(found, wanted, "{command:?} {more:?} {variables:?}");
        }
    }
    let coloured = printed(&pipeline, &["--color", "always", "runs"]).await;
    for state in ["\u{1b}[38;5;2m", "\u{1b}[38;5;3m"] {
        assert!(coloured.contains(state), "{coloured:?}");
    }
    let wrong = pipeline.etl(&["runs", "--color", "green"]).await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.stdout);
}
