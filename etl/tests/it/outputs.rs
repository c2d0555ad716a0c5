//! The output of every command about a run, as transcripts of one pipeline: text for people and JSON for scripts.
//! Values that depend on time are replaced.

use regex::Regex;
use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

use crate::dead::{DROPS_ROWS, EVOLVING};

const STRICT: &str = "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }, { not_empty = true }]\n";
const LENIENT: &str = "[target]\ntable = \"clicks\"\n";

/// Commands with their output, in order.
#[derive(Default)]
struct Transcript(String);

impl Transcript {
    async fn of(pipeline: &Pipeline, commands: &[&[&str]]) -> Self {
        let mut transcript = Self::default();
        for arguments in commands {
            let done = pipeline.etl(arguments).await;
            let quoted: Vec<_> = arguments.iter().map(|argument| quoted(argument)).collect();
            let errors = done.stderr.lines().filter(|line| !is_progress(line));
            let mut said = vec![format!("$ etl {}", quoted.join(" "))];
            said.extend(done.stdout.lines().chain(errors).map(str::to_owned));
            if done.code != Some(0) {
                said.push(format!("(exit code {})", done.code.unwrap_or(-1)));
            }
            transcript.0.push_str(&said.join("\n"));
            transcript.0.push('\n');
            transcript.0.push('\n');
        }
        transcript
    }

    /// Without values that depend on the machine or the time.
    fn timeless(&self) -> String {
        let mut text = self.0.clone();
        for (pattern, instead) in [
            (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
            (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "EXECUTION"),
            (r" in \d+\.\d s", " in N s"),
            (r"\b\d+ s ago", "N s ago"),
            (r"[\d,]+ rows a second", "N rows a second"),
            (r#"("age_seconds"|"rows_per_second"): [\d.]+"#, "$1: N"),
            (r"\b\d+ waiting, \d+ consumers?", "N waiting, N consumers"),
            (r#"("messages"|"consumers"): \d+"#, "$1: N"),
            (r"age +reason +body", "age  reason  body"),
            (r", [\d.]+ (s|min) so far", ", N s so far"),
            (r"took +age", "took  age"),
            (r"\d+\.\d s +\d+\.\d s", "N s  N s"),
            (r"\b\d+ s +", "N s  "),
        ] {
            let pattern = Regex::new(pattern).unwrap();
            text = pattern.replace_all(&text, instead).into_owned();
        }
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        lines.join("\n")
    }
}

fn quoted(argument: &str) -> String {
    if argument.contains(' ') {
        format!("\"{argument}\"")
    } else {
        argument.to_owned()
    }
}

/// Whether a line reports progress, which differs each time.
fn is_progress(line: &str) -> bool {
    let lines = "^etl: (queued for|Athena running for|extracting:|loading:|committing:|(held|completed): extracted|the run has not started yet)";
    Regex::new(lines).unwrap().is_match(line)
}

macro_rules! assert_transcript {
    ($name:literal, $pipeline:expr, $commands:expr) => {
        let said = Transcript::of($pipeline, $commands).await.timeless();
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!($name, said);
        });
    };
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table of commands")]
async fn requests_rejects_replays_and_traces() {
    let pipeline = Pipeline::archiving().await;
    pipeline.job("clicks", STRICT, sample::clicks(1_000));
    assert_transcript!(
        "requests",
        &pipeline,
        &[
            &["run", "clicks", "--run-id", "daily"],
            &["run", "clicks", "--run-id", "daily", "--json"],
            &["run", "clicks", "--run-id", "daily", "--follow"],
            &["runs"],
            &["runs", "--state", "failed"],
            &["runs", "--json"],
            &["status", "daily"],
            &["status", "daily", "--json"],
            &["reconcile"],
            &["reconcile", "daily", "--json"],
            &["prune", "--older-than", "30d", "--dry-run"],
            &["prune", "--older-than", "30d", "--json"],
        ]
    );
    assert_transcript!(
        "rejects",
        &pipeline,
        &[
            &["rejects", "daily", "--limit", "3"],
            &["rejects", "daily", "--limit", "2", "--json"],
            &[
                "rejects",
                "--job",
                "clicks",
                "--rule",
                "not_empty",
                "--limit",
                "2"
            ],
            &["rejects", "daily", "--rule", "pattern"],
            &["rejects", "daily", "--limit", "3", "--export", "csv"],
            &["rejects", "daily", "--limit", "2", "--export", "json"],
        ]
    );
    pipeline.write_job("clicks", LENIENT);
    assert_transcript!(
        "replay",
        &pipeline,
        &[
            &["replay", "daily", "--missing"],
            &["replay", "daily", "--missing", "--json"],
            &["replay", "daily", "--rejected-only", "--follow"],
            &["replay", "daily", "--rejected-only"],
            &["replay", "daily", "--follow", "--json"],
            &["replay", "daily", "--from-athena", "--follow"],
            &[
                "replay",
                "--job",
                "clicks",
                "--since",
                "2018-04-02",
                "--until",
                "2018-04-03",
                "--yes"
            ],
            &["replay", "absent"],
            &["status", "daily"],
        ]
    );
    let trace = [
        "trace",
        "--table",
        "clicks",
        "--where",
        "visits > 0",
        "--limit",
        "2",
    ];
    assert_transcript!(
        "trace",
        &pipeline,
        &[&trace, &[&trace[..], &["--json"]].concat()]
    );
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table of commands")]
async fn dead_letters_and_decisions() {
    let mut pipeline = Pipeline::start().await;
    pipeline.job("clicks", EVOLVING, sample::clicks(1_000));
    // Before the first row, another program creates a table that drops rows.
    pipeline.services[0].kill9().await;
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let made = sqlx::raw_sql(DROPS_ROWS);
    made.execute(&pipeline.database.pool).await.unwrap();
    pipeline.services[0] = pipeline.service("loader").start().await;
    let dead_letters = async |pipeline: &Pipeline, wanted: i64| {
        wait_until("dead letters", TIMEOUT, async || {
            pipeline
                .number("SELECT count(*) FROM etl.dead_letters")
                .await
                == wanted
        })
        .await;
    };
    dead_letters(&pipeline, 1).await;
    wait_until("the end of the result to be known", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.runs WHERE batches_expected = 1")
            .await
            == 1
    })
    .await;
    for (count, junk) in [(2, &b"\xff\x00 not a message"[..]), (3, b"nor is this")] {
        pipeline.vhost.publish("etl.raw", junk).await;
        dead_letters(&pipeline, count).await;
    }
    assert_transcript!(
        "dead_list",
        &pipeline,
        &[
            &["dead", "list"],
            &["dead", "list", "--limit", "1"],
            &["dead", "list", "--job", "visits"],
            &["dead", "list", "--json"],
            &["dead", "show", "1"],
            &["dead", "show", "2", "--json"],
            &["status", "daily"],
            &["reconcile", "daily"],
        ]
    );
    let gone = sqlx::query("DROP TABLE public.clicks");
    gone.execute(&pipeline.database.pool).await.unwrap();
    assert_transcript!(
        "dead_settled",
        &pipeline,
        &[
            &["dead", "drop", "2", "--why", "a test"],
            &["dead", "drop", "3", "--why", "a test", "--json"],
            &["dead", "drop", "3", "--why", "again"],
            &["dead", "replay", "1"],
            &["dead", "replay", "1", "--json"],
            &["dead", "replay", "--all"],
            &["dead", "replay", "4711"],
        ]
    );
    wait_until("the run to complete", TIMEOUT, async || {
        pipeline.etl(&["reconcile", "daily"]).await.code == Some(0)
    })
    .await;

    let held = "[target]\ntable = \"held\"\nmax_rejected = 0\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }]\n";
    pipeline.job("held", held, sample::clicks(1_000));
    let run = |name| ["run", "held", "--run-id", name, "--again", "--follow"];
    assert_transcript!(
        "decisions",
        &pipeline,
        &[
            &run("first"),
            &["status", "first"],
            &["approve", "first", "--follow"],
            &run("second"),
            &["discard", "second", "--why", "too many"],
            &["status", "second"],
            &run("third"),
            &["discard", "third", "--why", "too many", "--json"],
            &["cancel", "third"],
            &["cancel", "third", "--undo", "--json"],
            &run("fourth"),
            &["approve", "fourth", "--json"],
        ]
    );
}
