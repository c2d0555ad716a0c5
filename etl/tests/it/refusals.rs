//! Refused commands: one sentence with the remedy, an exit code, and no side effect.

use testkit::TIMEOUT;
use testkit::cloud::{Answer, sample};

use testkit::pipeline::Pipeline;

const JOB: &str = "[parameters]\nfrom = { type = \"date\", default = \"2018-04-02\" }\n[target]\ntable = \"clicks\"\n";

/// Checks that `etl` fails with this exit code and these words on standard error, prints nothing on standard output,
/// and shows no stack.
async fn refuses(pipeline: &Pipeline, arguments: &[&str], code: i32, words: &[&str]) {
    let done = pipeline.etl(arguments).await;
    assert_eq!(done.code, Some(code), "{arguments:?}: {}", done.stderr);
    for word in words {
        assert!(
            done.stderr.contains(word),
            "{arguments:?} does not say {word:?}: {}",
            done.stderr
        );
    }
    assert_eq!(done.stdout, "", "{arguments:?}");
    assert!(
        !done.stderr.contains("panicked") && !done.stderr.contains("Stack backtrace"),
        "{}",
        done.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_errors_exit_with_2_and_change_nothing() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(1));
    refuses(
        &pipeline,
        &["run", "click"],
        2,
        &["no job \"click\"", "clicks"],
    )
    .await;
    refuses(
        &pipeline,
        &["run", "clicks", "--set", "form=2018-04-02"],
        2,
        &["form", "from"],
    )
    .await;
    refuses(
        &pipeline,
        &["run", "clicks", "--set", "from=noon"],
        2,
        &["yesterday", "2018-04-02"],
    )
    .await;
    refuses(
        &pipeline,
        &["run", "clicks", "--run-id", "a/b"],
        2,
        &["run id"],
    )
    .await;
    refuses(&pipeline, &["status", "absent"], 2, &["no run \"absent\""]).await;
    pipeline.write_job("typo", "[target]\ntabel = \"clicks\"\n");
    refuses(&pipeline, &["run", "typo"], 2, &["tabel", "line"]).await;
    pipeline.write_job(
        "regex",
        "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"url\"\nrules = [{ pattern = \"(\" }]\n",
    );
    refuses(&pipeline, &["run", "regex"], 2, &["pattern", "url"]).await;
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
    assert_eq!(pipeline.vhost.ready("etl.extract").await, 0);
    assert!(pipeline.cloud.started().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_broker_or_database_is_reported_in_one_sentence() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(1));
    let closed = testkit::process::CLOSED_PORT;
    let ask = || pipeline.service("etl").arg("run").arg("clicks");
    let done = ask()
        .env(
            "ETL_AMQP_URL",
            &format!("amqp://guest:secret@127.0.0.1:{closed}/%2f"),
        )
        .run()
        .await;
    assert_eq!(done.code, Some(1));
    assert!(
        done.stderr.contains("ETL_AMQP_URL") && !done.stderr.contains("secret"),
        "{}",
        done.stderr
    );
    let done = ask()
        .env(
            "ETL_DATABASE_URL",
            &format!("postgres://etl:secret@127.0.0.1:{closed}/etl"),
        )
        .run()
        .await;
    assert_eq!(done.code, Some(1));
    assert!(
        done.stderr.contains("ETL_DATABASE_URL") && !done.stderr.contains("secret"),
        "{}",
        done.stderr
    );
    assert_eq!(pipeline.number("SELECT count(*) FROM etl.runs").await, 0);
}

/// URLs with a password in every form that somebody may write, each of which is wrong somewhere.
const WRONG: [&str; 13] = [
    "SCHEME://etl:hunt#er2@127.0.0.1/db",
    "SCHEME://etl:54#hunter2@127.0.0.1/db",
    "SCHEME://etl:54/hunter2@127.0.0.1/db",
    "SCHEME://etl:54?hunter2@127.0.0.1/db",
    "SCHEME://etl:hunter2@127.0.0.1:port/db",
    "SCHEME://etl:hunter2@127.0.0.1/%ff?hunter2=x",
    "SCHEME://etl:hunter2@127.0.0.1/x?sslmode=hunter2&heartbeat=hunter2&pasword=hunter2",
    "SCHEME:etl:hunter2@127.0.0.1/db",
    "etl:hunter2@127.0.0.1/db",
    "hunter2://etl:hunter2@127.0.0.1/db",
    "//etl:hunter2@127.0.0.1/db",
    "host=127.0.0.1 user=etl password=hunter2",
    "hunter2",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_program_quotes_a_url_that_may_have_a_password() {
    let pipeline = Pipeline::without_services().await;
    for (name, scheme, programs) in [
        (
            "ETL_AMQP_URL",
            "amqp",
            &[
                &["extractor"][..],
                &["transformer"],
                &["loader"],
                &["etl", "doctor"],
            ][..],
        ),
        (
            "ETL_DATABASE_URL",
            "postgres",
            &[
                &["loader"],
                &["loader", "migrate"],
                &["etl", "doctor"],
                &["etl", "status"],
            ],
        ),
    ] {
        for url in WRONG.map(|url| url.replace("SCHEME", scheme)) {
            for program in programs {
                let service = pipeline.service(program[0]).env(name, &url);
                let service = service.env("ETL_LOG", "trace");
                let arguments = program[1..].iter();
                let service = arguments.fold(service, |service, one| service.arg(one));
                let done = service.run().await;
                let said = done.stdout + &done.stderr;
                assert!(
                    !said.contains("hunt") && !said.contains("er2"),
                    "{program:?} with {url}: {said}"
                );
                let is_refused = said.contains(name) && done.code != Some(0);
                assert!(is_refused, "{program:?} with {url}: {said}");
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("etl.toml");
    std::fs::write(&file, "tasks = 2\namqp_url = \"amqp://etl:hunter2@h/").unwrap();
    for program in ["extractor", "loader", "transformer"] {
        let service = pipeline
            .service(program)
            .env("ETL_CONFIG", file.to_str().unwrap());
        let done = service.run().await;
        assert_eq!(done.code, Some(1), "{}", done.stderr);
        assert!(
            done.stderr.contains("line 2") && !done.stderr.contains("hunter2"),
            "{}",
            done.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_query_fails_the_run_with_athenas_message() {
    let pipeline = Pipeline::start().await;
    pipeline.write_job("clicks", JOB);
    pipeline.cloud.answer_once(
        "FROM clicks",
        Answer::failed_by_user("COLUMN_NOT_FOUND: line 1:8: Column 'x' cannot be resolved"),
    );
    let done = pipeline
        .etl(&["run", "clicks", "--run-id", "failed", "--follow"])
        .await;
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    assert!(
        done.stdout.contains("COLUMN_NOT_FOUND: line 1:8"),
        "{}",
        done.stdout
    );
    pipeline.cloud.answer_once(
        "FROM clicks",
        Answer::refused("Database nowhere does not exist"),
    );
    let done = pipeline
        .etl(&["run", "clicks", "--run-id", "refused", "--follow"])
        .await;
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    assert!(
        done.stdout.contains("Database nowhere does not exist"),
        "{}",
        done.stdout
    );
    let done = pipeline.etl(&["reconcile", "failed"]).await;
    assert_eq!(done.code, Some(1), "a failed run proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_message_is_dead_lettered_with_the_reason() {
    let pipeline = Pipeline::start().await;
    for queue in ["etl.extract", "etl.raw", "etl.valid", "etl.events"] {
        pipeline
            .vhost
            .publish(queue, b"\xff\x00 not a message")
            .await;
    }
    testkit::wait_until("four dead letters", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await
            == 4
    })
    .await;
    let kept = pipeline.number("SELECT count(*) FROM etl.dead_letters WHERE body = '\\xff00206e6f742061206d657373616765' AND reason <> ''").await;
    assert_eq!(kept, 4);
    let stages = pipeline.table("stage, queue", "etl.dead_letters").await;
    assert_eq!(
        stages,
        [
            "(extractor,etl.extract)",
            "(loader,etl.events)",
            "(loader,etl.valid)",
            "(transformer,etl.raw)"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn proving_commands_require_the_whole_name_of_a_run() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(10));
    let empty = pipeline.etl(&["reconcile"]).await;
    assert_eq!(empty.code, Some(1), "no runs prove nothing");
    pipeline.run("clicks", "daily-10").await;
    assert_eq!(pipeline.etl(&["reconcile", "daily-10"]).await.code, Some(0));
    refuses(
        &pipeline,
        &["reconcile", "daily-1"],
        2,
        &["no run \"daily-1\""],
    )
    .await;
    refuses(&pipeline, &["reconcile", ""], 2, &["no run"]).await;
    refuses(
        &pipeline,
        &["replay", "daily-1", "--missing"],
        2,
        &["no run"],
    )
    .await;
    assert_eq!(
        pipeline.etl(&["status", "daily-1"]).await.code,
        Some(0),
        "status accepts a part of a name"
    );
    // A rejected row that was deleted from the quarantine is not accounted for.
    pipeline.write_job("picky", "[target]\ntable = \"picky\"\nallow_all_rejected = true\n[[columns]]\nsource = \"url\"\nrules = [{ max_length = 1 }]\n");
    pipeline
        .cloud
        .answer("FROM picky", Answer::rows(sample::clicks(3)));
    pipeline.run("picky", "picky").await;
    let deleted = sqlx::query("DELETE FROM etl.rejected_rows WHERE row_number = 1");
    deleted.execute(&pipeline.database.pool).await.unwrap();
    assert_eq!(pipeline.etl(&["reconcile", "picky"]).await.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_request_of_a_failed_run_exits_with_1() {
    let pipeline = Pipeline::start().await;
    pipeline.write_job("clicks", JOB);
    pipeline
        .cloud
        .answer("FROM clicks", Answer::failed_by_user("no"));
    let first = pipeline
        .etl(&["run", "clicks", "--run-id", "daily", "--follow"])
        .await;
    assert_eq!(first.code, Some(1), "{}", first.stderr);
    let again = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(again.code, Some(1), "{}", again.stderr);
    assert!(
        again.stderr.contains("failed") && again.stderr.contains("--retry"),
        "{}",
        again.stderr
    );
}
