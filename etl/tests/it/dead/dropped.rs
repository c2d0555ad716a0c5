//! Dropped dead letters: the ledger has the person's name and reason, and the run completes without them.

use testkit::TIMEOUT;
use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::wait_until;

use super::{DROPS_ROWS, EVOLVING};

/// Waits until the run is complete and reconciled.
async fn completes(pipeline: &Pipeline, run: &str) {
    wait_until("the run to complete", TIMEOUT, async || {
        pipeline.etl(&["reconcile", run]).await.code == Some(0)
    })
    .await;
}

/// The run `daily` of three batches, none of them loaded: another program has created a table that drops rows.
async fn blocked_by_a_trigger() -> Pipeline {
    let mut pipeline = Pipeline::start().await;
    pipeline.job("clicks", EVOLVING, sample::clicks(5_000));
    pipeline.services[0].kill9().await;
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let made = sqlx::raw_sql(DROPS_ROWS);
    made.execute(&pipeline.database.pool).await.unwrap();
    pipeline.services[0] = pipeline.service("loader").start().await;
    pipeline
}

/// The identity of the second batch of `daily`.
const SECOND: &str =
    "(SELECT message_id FROM etl.dead_letters WHERE message_id ~ '^daily/0/[0-9]+$'
    ORDER BY split_part(message_id, '/', 3)::bigint OFFSET 1 LIMIT 1)";

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn dropped_batch_is_counted_and_its_run_completes() {
    let pipeline = blocked_by_a_trigger().await;
    let dead_letters = "SELECT count(*) FROM etl.dead_letters WHERE resolved_at IS NULL";
    wait_until("all batches to be dead letters", TIMEOUT, async || {
        pipeline.number(dead_letters).await == 3
    })
    .await;

    for (filter, found) in [
        (&["--run", "daily"][..], 3),
        (&["--job", "clicks", "--stage", "loader"], 3),
        (&["--stage", "transformer"], 0),
    ] {
        let listed = pipeline
            .etl(&[&["dead", "list", "--json"], filter].concat())
            .await;
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), found, "{filter:?}");
    }
    let listed = pipeline.etl(&["dead", "list", "--limit", "2"]).await;
    assert!(
        listed.stdout.contains("daily/0/") && listed.stdout.contains(" s "),
        "{}",
        listed.stdout
    );
    assert!(
        listed.stderr.contains("the first 2 of 3"),
        "{}",
        listed.stderr
    );

    let number = format!("SELECT id FROM etl.dead_letters WHERE message_id = {SECOND}");
    let id = pipeline.number(&number).await.to_string();
    let why = pipeline.etl(&["dead", "drop", &id]).await;
    assert_eq!(why.code, Some(2), "{}", why.stderr);
    let done = pipeline
        .etl(&["dead", "drop", &id, "--why", "the source was wrong"])
        .await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let rows = pipeline
        .number("SELECT rows_dropped FROM etl.batches")
        .await;
    let said = done.stdout.replace(',', "");
    assert!(
        rows > 0 && said.contains(&format!("{rows} rows of the batch from row ")),
        "{}",
        done.stdout
    );
    let twice = pipeline.etl(&["dead", "drop", &id, "--why", "again"]).await;
    assert_eq!(twice.code, Some(1), "{}", twice.stderr);
    assert!(
        twice
            .stderr
            .contains("was resolved before: dropped by tester"),
        "{}",
        twice.stderr
    );

    let dropped = sqlx::query("DROP TABLE public.clicks");
    dropped.execute(&pipeline.database.pool).await.unwrap();
    let replayed = pipeline
        .etl(&["dead", "replay", "--all", "--run", "daily"])
        .await;
    assert_eq!(
        (replayed.code, replayed.stdout.trim()),
        (Some(0), "2 dead letters replayed"),
        "{}",
        replayed.stderr
    );
    completes(&pipeline, "daily").await;
    assert_eq!(
        pipeline.number("SELECT count(*) FROM clicks").await,
        5_000 - rows
    );
    let written = pipeline
        .table(
            "first_row = 0, rows_extracted = rows_dropped, dropped_by, drop_reason",
            "etl.batches WHERE rows_dropped > 0",
        )
        .await;
    assert_eq!(written, ["(f,t,tester,\"the source was wrong\")"]);
    let shown = pipeline.etl(&["status", "daily"]).await;
    assert!(
        shown
            .stdout
            .contains("of 1 batch by tester: the source was wrong"),
        "{}",
        shown.stdout
    );
    let shown = pipeline.etl(&["status", "daily", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(
        (&shown["state"], &shown["rows_dropped"], &shown["balanced"]),
        (&"completed".into(), &rows.into(), &true.into())
    );

    // The dead letter is resolved: it is not sent again, and nothing changes.
    let ledger = pipeline.ledger().await;
    let again = pipeline.etl(&["dead", "replay", &id]).await;
    assert_eq!((again.code, &*again.stdout), (Some(1), ""));
    assert_eq!(pipeline.ledger().await, ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_of_an_undecodable_message_resolves_only_the_dead_letter() {
    let pipeline = Pipeline::start().await;
    pipeline
        .vhost
        .publish("etl.raw", b"\xff\x00 not a message")
        .await;
    let dead_letters = "SELECT count(*) FROM etl.dead_letters WHERE resolved_at IS NULL";
    wait_until("a dead letter", TIMEOUT, async || {
        pipeline.number(dead_letters).await == 1
    })
    .await;
    let id = pipeline
        .number("SELECT id FROM etl.dead_letters")
        .await
        .to_string();
    let done = pipeline
        .etl(&["dead", "drop", &id, "--why", "a test"])
        .await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        done.stdout.contains("only the dead letter is resolved"),
        "{}",
        done.stdout
    );
    assert_eq!(pipeline.number(dead_letters).await, 0);
    assert_eq!(
        pipeline
            .etl(&["dead", "drop", "4711", "--why", "x"])
            .await
            .code,
        Some(2)
    );
    assert_eq!(pipeline.etl(&["dead", "show", &id]).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn all_dead_letters_of_a_run_are_dropped_despite_one_refusal() {
    let pipeline = blocked_by_a_trigger().await;
    pipeline
        .vhost
        .publish("etl.raw", b"\xff\x00 not a message")
        .await;
    let dead_letters = "SELECT count(*) FROM etl.dead_letters WHERE resolved_at IS NULL";
    wait_until("all messages to be dead letters", TIMEOUT, async || {
        pipeline.number(dead_letters).await == 4
    })
    .await;
    // The rows of a pruned dead letter cannot be counted.
    let pruned = sqlx::query(sqlx::AssertSqlSafe(format!(
        "UPDATE etl.dead_letters SET body = NULL WHERE message_id = {SECOND}"
    )));
    pruned.execute(&pipeline.database.pool).await.unwrap();

    let drop = async |which: &[&str]| {
        let why = ["--why", "the source was wrong"];
        pipeline
            .etl(&[&["dead", "drop"], which, &why[..]].concat())
            .await
    };
    let unknown = drop(&["1", "4711"]).await;
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
    let absent = drop(&["--run", "absent"]).await;
    assert_eq!(absent.code, Some(2), "{}", absent.stderr);
    assert!(absent.stderr.contains("absent"), "{}", absent.stderr);
    assert_eq!(pipeline.number(dead_letters).await, 4);

    let done = drop(&["--run", "daily"]).await;
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    assert_eq!(
        done.stdout.matches("rows of the batch from").count(),
        2,
        "{}",
        done.stdout
    );
    assert!(
        done.stdout
            .trim()
            .ends_with("2 dead letters dropped, 1 not")
            && done.stderr.contains("was not dropped")
            && done.stderr.contains("pruned"),
        "{}{}",
        done.stdout,
        done.stderr
    );
    assert_eq!(pipeline.number(dead_letters).await, 2);
    let written = pipeline
        .table(
            "first_row = 0, rows_extracted = rows_dropped, dropped_by, drop_reason",
            "etl.batches WHERE rows_dropped > 0",
        )
        .await;
    assert_eq!(
        written,
        [
            "(f,t,tester,\"the source was wrong\")",
            "(t,t,tester,\"the source was wrong\")"
        ]
    );

    let done = drop(&["--all", "--json"]).await;
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (
            said["dropped"].as_array().unwrap().len(),
            &said["dropped"][0]["rows_dropped"]
        ),
        (1, &0.into()),
        "{said}"
    );
    assert!(
        said["refused"][0]["why"]
            .as_str()
            .unwrap()
            .contains("pruned"),
        "{said}"
    );
    assert_eq!(pipeline.number(dead_letters).await, 1);
}

/// Only its headers say what it was, and nobody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_batch_of_a_complete_run_is_dropped() {
    let pipeline = Pipeline::archiving().await;
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(100),
    );
    pipeline.run("clicks", "daily").await;
    let batch = pipeline.vhost.read_stream("etl.archive", 1).await.remove(0);
    let half = &batch.body[..batch.body.len() / 2];
    pipeline
        .vhost
        .publish_with("etl.raw", half, batch.properties.clone())
        .await;
    wait_until("the dead letter", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await
            == 1
    })
    .await;
    let blocked = pipeline.etl(&["reconcile", "daily"]).await;
    assert_eq!(blocked.code, Some(1), "{}", blocked.stdout);
    let dropped = pipeline
        .etl(&["dead", "drop", "--run", "daily", "--why", "half of it"])
        .await;
    assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
    assert!(
        dropped.stdout.contains("the run is completed without it"),
        "{}",
        dropped.stdout
    );
    completes(&pipeline, "daily").await;
}
