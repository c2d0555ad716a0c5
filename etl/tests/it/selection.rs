//! Several runs at once, by job and state: the plan comes first, and nothing is done without a person or `--yes`.

use testkit::TIMEOUT;
use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;
use testkit::wait_until;

/// About 2 % of the sample's clicks have no country, so that each run is held.
const HELD: &str = "[parameters]\nday = { type = \"date\", default = \"2018-04-02\" }\n[target]\ntable = \"clicks\"\nmax_rejected = 1\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }, { not_empty = true }]\n[[columns]]\nname = \"day\"\nparameter = \"day\"\n";

/// Two held runs of the job `clicks`, `one` and `two`, and one of the job `other`.
async fn three_held_runs() -> Pipeline {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", HELD, sample::clicks(1_000));
    pipeline.job(
        "other",
        &HELD.replace("clicks", "other"),
        sample::clicks(1_000),
    );
    for (job, run, day) in [
        ("clicks", "one", "2018-04-02"),
        ("clicks", "two", "2018-04-03"),
        ("other", "three", "2018-04-02"),
    ] {
        let set = format!("day={day}");
        let run = ["run", job, "--run-id", run, "--set", &set, "--follow"];
        let held = pipeline.etl(&run).await;
        assert_eq!(held.code, Some(1), "{}{}", held.stdout, held.stderr);
        assert!(held.stdout.contains("is held"), "{}", held.stdout);
    }
    pipeline
}

async fn states(pipeline: &Pipeline) -> Vec<String> {
    pipeline.table("run_id, state", "etl.runs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_are_not_named_are_changed_only_when_agreed() {
    let pipeline = three_held_runs().await;
    let before = states(&pipeline).await;
    for command in [&["approve"][..], &["discard", "--why", "no"], &["cancel"]] {
        let which = ["--job", "clicks", "--state", "held"];
        let refused = pipeline.etl(&[command, &which].concat()).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""));
        for run in ["one", "two"] {
            let line = format!("etl: {} {run} (held, into public.clicks)\n", command[0]);
            assert!(refused.stderr.contains(&line), "{line}: {}", refused.stderr);
        }
        assert!(!refused.stderr.contains("three"), "{}", refused.stderr);
        for words in ["nothing was done: 2 runs were selected", "add --yes"] {
            assert!(refused.stderr.contains(words), "{}", refused.stderr);
        }
        // Agreement alone chooses no run.
        let nothing = pipeline.etl(&[command, &["--yes"]].concat()).await;
        assert_eq!(nothing.code, Some(2), "{}", nothing.stdout);
        let both = [command, &["one", "--job", "clicks", "--yes"]].concat();
        let both = pipeline.etl(&both).await;
        assert_eq!(both.code, Some(2), "a name and a job");
    }
    let last = pipeline
        .etl(&["approve", "--last", "--job", "clicks"])
        .await;
    assert!(
        last.stderr.contains("1 run was selected"),
        "{}",
        last.stderr
    );
    assert!(!last.stderr.contains("approve one"), "{}", last.stderr);
    assert_eq!(states(&pipeline).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_runs_are_decided_about_together() {
    let pipeline = three_held_runs().await;
    let latest = [
        "discard", "--job", "clicks", "--last", "--yes", "--why", "no",
    ];
    let discarded = pipeline.etl(&latest).await;
    assert_eq!(discarded.code, Some(0), "{}", discarded.stderr);
    assert!(
        discarded.stderr.contains("discard two (held"),
        "{}",
        discarded.stderr
    );
    let undecided = ["(one,held)", "(three,held)", "(two,cancelled)"];
    assert_eq!(states(&pipeline).await, undecided);
    let approved = pipeline
        .etl(&["approve", "--state", "held", "--yes", "--follow"])
        .await;
    assert_eq!(
        approved.code,
        Some(0),
        "{}{}",
        approved.stdout,
        approved.stderr
    );
    let decided = ["(one,completed)", "(three,completed)", "(two,cancelled)"];
    assert_eq!(states(&pipeline).await, decided);
    // Nothing is held any more.
    let none = pipeline.etl(&["approve", "--job", "clicks", "--yes"]).await;
    assert_eq!(none.code, Some(1), "{}", none.stdout);
    assert!(
        none.stderr.contains("there is no such run"),
        "{}",
        none.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn run_that_cannot_be_decided_about_keeps_no_other_from_it() {
    let pipeline = three_held_runs().await;
    let some = ["discard", "one", "nothing", "three", "--why", "no"];
    let discarded = pipeline.etl(&some).await;
    assert_eq!(discarded.code, Some(1), "{}", discarded.stdout);
    assert!(discarded.stderr.contains("nothing"), "{}", discarded.stderr);
    let decided = ["(one,cancelled)", "(three,cancelled)", "(two,held)"];
    assert_eq!(states(&pipeline).await, decided);
    // A program gets an answer for each, too.
    let some = ["approve", "nothing", "two", "--json"];
    let approved = pipeline.etl(&some).await;
    assert_eq!(approved.code, Some(1), "{}", approved.stdout);
    let answers = serde_json::Deserializer::from_str(&approved.stdout).into_iter();
    let answers: Vec<serde_json::Value> = answers.collect::<Result<_, _>>().unwrap();
    let why = answers[0]["error"].as_str().unwrap();
    assert!(why.contains("nothing"), "{why}");
    assert_eq!(answers[0]["exit_code"], 2);
    assert_eq!(answers[1]["run_id"], "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_open_runs_of_a_job_are_cancelled() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", HELD, sample::clicks(1));
    pipeline
        .cloud
        .answer("FROM clicks", Answer::running_for_ever());
    for (run, day) in [("one", "day=2018-04-02"), ("two", "day=2018-04-03")] {
        let asked = pipeline
            .etl(&["run", "clicks", "--run-id", run, "--set", day])
            .await;
        assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    }
    let running = "SELECT count(*) FROM etl.runs WHERE state = 'running'";
    wait_until("both to run", TIMEOUT, async || {
        pipeline.number(running).await == 2
    })
    .await;
    let cancelled = pipeline.etl(&["cancel", "--job", "clicks", "--yes"]).await;
    assert_eq!(
        cancelled.code,
        Some(0),
        "{}{}",
        cancelled.stdout,
        cancelled.stderr
    );
    assert_eq!(
        states(&pipeline).await,
        ["(one,cancelled)", "(two,cancelled)"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_of_chosen_runs_is_shown_before_it_begins() {
    let pipeline = three_held_runs().await;
    // Without the rules, no row is rejected any more.
    let lenient = HELD.replace("required = true", "required = false");
    let lenient = lenient.replace("not_empty = true", "not_empty = false");
    for job in ["clicks", "other"] {
        pipeline.write_job(job, &lenient.replace("clicks", job));
    }
    let replay = ["replay", "--job", "clicks", "--state", "held", "--follow"];
    let refused = pipeline.etl(&replay).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""));
    for line in ["replay one (held, into public.clicks)", "replay two (held"] {
        assert!(refused.stderr.contains(line), "{line}: {}", refused.stderr);
    }
    let none = "SELECT count(*) FROM etl.replays";
    assert_eq!(pipeline.number(none).await, 0, "nothing was done");
    let done = pipeline.etl(&[&replay[..], &["--yes"]].concat()).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    let replayed = ["(one,completed)", "(three,held)", "(two,completed)"];
    assert_eq!(states(&pipeline).await, replayed);
    // By name, nothing is asked; the latest of a job is one.
    let named = pipeline.etl(&["replay", "one", "two", "--follow"]).await;
    assert_eq!(named.code, Some(0), "{}{}", named.stdout, named.stderr);
    let last = ["replay", "--last", "--yes", "--follow"];
    let last = pipeline.etl(&last).await;
    assert_eq!(last.code, Some(0), "{}{}", last.stdout, last.stderr);
    assert!(last.stderr.contains("replay three ("), "{}", last.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_that_it_shows_not_all() {
    let pipeline = three_held_runs().await;
    let held = ["status", "--state", "held"];
    let all = pipeline.etl(&held).await;
    assert_eq!((all.code, all.stderr.as_str()), (Some(0), ""));
    let two = pipeline.etl(&[&held[..], &["--limit", "2"]].concat()).await;
    assert!(
        two.stderr.contains("the latest 2 of more runs; --limit"),
        "{}",
        two.stderr
    );
    let shown = |name: &str| two.stdout.contains(&format!("run  {name} ("));
    assert!(
        !shown("one") && shown("two") && shown("three"),
        "{}",
        two.stdout
    );
    let json = pipeline
        .etl(&[&held[..], &["--limit", "2", "--json"]].concat())
        .await;
    let runs: Vec<serde_json::Value> = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(runs.len(), 2, "{}", json.stdout);
}
