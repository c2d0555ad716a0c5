//! A cancelled run: its query is stopped, its later batches are ignored, and its loaded rows stay or are removed.

mod replay;

use testkit::TIMEOUT;
use testkit::cloud::{Answer, Op, QueryState, sample};
use testkit::pipeline::Pipeline;
use testkit::wait_until;

const APPEND: &str = "[target]\ntable = \"clicks\"\n";

async fn state(pipeline: &Pipeline, run: &str) -> String {
    let select = sqlx::query_scalar("SELECT state FROM etl.runs WHERE run_id = $1");
    select
        .bind(run)
        .fetch_one(&pipeline.database.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn query_of_a_cancelled_run_is_stopped() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", APPEND, sample::clicks(10));
    pipeline
        .cloud
        .answer_once("FROM clicks", Answer::queued_for_ever());
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until("Athena to have the query", TIMEOUT, async || {
        state(&pipeline, "daily").await == "running"
    })
    .await;
    let cancelled = pipeline
        .etl(&["cancel", "daily", "--undo", "--why", "the wrong week"])
        .await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    assert!(
        cancelled
            .stdout
            .contains("is cancelled; none of its rows is in public.clicks"),
        "{}",
        cancelled.stdout
    );
    wait_until("the query to be stopped", TIMEOUT, async || {
        pipeline.cloud.states() == [QueryState::Cancelled]
    })
    .await;
    assert_eq!(pipeline.cloud.count(Op::StopQueryExecution), 1);
    wait_until("the task to be deleted", TIMEOUT, async || {
        let depth = pipeline.vhost.depth("etl.extract").await;
        depth.ready + depth.unacked == 0
    })
    .await;
    assert_eq!(state(&pipeline, "daily").await, "cancelled");
    let decided = pipeline
        .table("decision, finished_at IS NOT NULL, failure", "etl.runs")
        .await;
    assert_eq!(decided, ["(\"cancelled: the wrong week\",t,)"]);
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await,
        0
    );
    // A second cancel sends the control message again; the ledger is unchanged.
    let ledger = pipeline.ledger().await;
    let again = pipeline.etl(&["cancel", "daily"]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(
        again.stdout.contains("was cancelled before"),
        "{}",
        again.stdout
    );
    assert_eq!(pipeline.ledger().await, ledger);
    assert_eq!(pipeline.etl(&["reconcile", "daily"]).await.code, Some(1));
    assert_eq!(pipeline.etl(&["reconcile"]).await.code, Some(0));
    pipeline.run("clicks", "next").await;
}

/// A run with some batches loaded and the others waiting for the transformer.
async fn half_loaded(pipeline: &mut Pipeline, job: &str) -> i64 {
    pipeline.job("clicks", job, sample::clicks(60_000));
    pipeline.services[1].kill9().await;
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until("the whole result to be read", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.runs WHERE batches_expected > 20")
            .await
            == 1
    })
    .await;
    let brief = pipeline.service("transformer");
    let mut brief = brief.env("ETL_FAILPOINT", "transform@12=exit").spawn();
    assert_eq!(brief.wait(TIMEOUT).await.code(), Some(99));
    wait_until("some batches to be loaded", TIMEOUT, async || {
        pipeline.number("SELECT count(*) FROM etl.batches").await > 2
    })
    .await;
    pipeline.number("SELECT run_no FROM etl.runs").await
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn cancel_removes_loaded_rows_and_later_batches_are_ignored() {
    let mut pipeline = Pipeline::start().await;
    let run_no = half_loaded(&mut pipeline, APPEND).await;
    wait_until(
        "the transformed batches to be loaded",
        TIMEOUT,
        async || {
            let mut unacked = 0;
            for queue in ["etl.valid", "etl.valid.bulk"] {
                unacked += pipeline.vhost.depth(queue).await.unacked;
            }
            unacked + pipeline.vhost.ready_with_bulk("etl.valid").await == 0
        },
    )
    .await;
    assert_eq!(state(&pipeline, "daily").await, "running");
    // Rows of other runs.
    let others = format!(
        "INSERT INTO clicks (url, _batch) VALUES ('before', {}), ('after', {})",
        ledger::BatchNo::of_run(run_no).start - 1,
        ledger::BatchNo::of_run(run_no).end
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(others))
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let cancelled = pipeline.etl(&["cancel", "daily", "--undo", "--json"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    let json: serde_json::Value = serde_json::from_str(&cancelled.stdout).unwrap();
    let dropped = "SELECT sum(rows_dropped)::bigint FROM etl.batches WHERE rows_loaded = 0 AND dropped_by <> '' AND drop_reason = 'cancelled'";
    let loaded = pipeline.number(dropped).await;
    assert!(loaded > 5_000, "{loaded}");
    assert_eq!(json["rows_removed"], loaded, "{json}");
    assert_eq!(
        pipeline.number("SELECT count(*) FROM clicks").await,
        2,
        "the rows of other runs"
    );
    pipeline.services[1] = pipeline.service("transformer").start().await;
    wait_until(
        "later batches to be consumed and ignored",
        TIMEOUT,
        async || {
            let mut left = 0;
            for queue in ["etl.raw", "etl.raw.bulk", "etl.valid", "etl.valid.bulk"] {
                let depth = pipeline.vhost.depth(queue).await;
                left += depth.ready + depth.unacked;
            }
            left == 0
                && pipeline
                    .number("SELECT ignored_messages FROM etl.runs")
                    .await
                    > 5
        },
    )
    .await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 2);
    assert_eq!(
        pipeline.number(dropped).await,
        loaded,
        "loaded rows count as dropped"
    );
    assert_eq!(state(&pipeline, "daily").await, "cancelled");
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await,
        0
    );
    pipeline.run("clicks", "next").await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 60_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_keeps_rows_by_default_and_removes_those_of_an_upsert_on_demand() {
    let mut pipeline = Pipeline::start().await;
    let upsert = "[target]\ntable = \"clicks\"\nmode = \"upsert\"\nkey = [\"url\"]\n";
    half_loaded(&mut pipeline, upsert).await;
    let cancelled = pipeline.etl(&["cancel", "daily"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    assert!(
        cancelled.stdout.contains("and stay there"),
        "{}",
        cancelled.stdout
    );
    assert!(pipeline.number("SELECT count(*) FROM clicks").await > 0);
    let status = pipeline.etl(&["status", "daily"]).await;
    assert!(status.stdout.contains("cancelled in"), "{}", status.stdout);
    let undone = pipeline.etl(&["cancel", "daily", "--undo"]).await;
    assert_eq!(undone.code, Some(0), "{}", undone.stderr);
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn undo_that_is_withdrawn_meanwhile_fails() {
    let mut pipeline = Pipeline::start().await;
    half_loaded(&mut pipeline, APPEND).await;
    pipeline.services[0].kill9().await;
    let withdraw = async {
        wait_until("the removal to be requested", TIMEOUT, async || {
            pipeline.number("SELECT count(*) FROM etl.removals").await == 1
        })
        .await;
        pipeline.etl(&["cancel", "daily"]).await
    };
    let undo = pipeline.etl(&["cancel", "daily", "--undo"]);
    let (undone, withdrawn) = tokio::join!(undo, withdraw);
    assert_eq!(withdrawn.code, Some(0), "{}", withdrawn.stderr);
    assert!(
        withdrawn.stdout.contains("and stay there"),
        "{}",
        withdrawn.stdout
    );
    assert_eq!((undone.code, undone.stdout.as_str()), (Some(1), ""));
    assert!(
        undone.stderr.contains("were not removed: withdrawn by"),
        "{}",
        undone.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_of_an_ended_or_unknown_run_is_refused() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", APPEND, sample::clicks(10));
    pipeline.run("clicks", "daily").await;
    pipeline
        .cloud
        .answer_once("FROM clicks", Answer::failed_by_user("no"));
    let failed = pipeline
        .etl(&["run", "clicks", "--again", "--run-id", "failed", "--follow"])
        .await;
    assert_eq!(failed.code, Some(1));
    let ledger = pipeline.ledger().await;
    for (arguments, code, word) in [
        (&["cancel", "daily"][..], 1, "is completed"),
        (&["cancel", "daily", "--undo"], 1, "is completed"),
        (&["cancel", "failed"], 1, "has failed"),
        (&["cancel", "dail"], 2, "no run \"dail\""),
        (&["cancel", "a/b"], 2, "not a run id"),
        (&["approve", "daily"], 1, "not held"),
        (&["discard", "daily", "--why", "no"], 1, "not held"),
        (&["discard", "daily"], 2, "--why"),
        (&["approve", "absent"], 2, "no run"),
        (&["status", "absent"], 2, "no run"),
        (&["dead", "replay", "--run", "absent"], 2, "no run"),
        (
            &["dead", "drop", "--run", "dail", "--why", "no"],
            2,
            "no run",
        ),
        (&["dead", "list", "--run", "absent"], 2, "no run"),
        (&["runs", "--state", "sleeping"], 2, "sleeping"),
        (&["runs", "--limit", "0"], 2, "limit"),
        (&["prune"], 2, "--older-than"),
        (&["prune", "--older-than", "soon"], 2, "older-than"),
        (&["completion", "cmd"], 2, "cmd"),
    ] {
        let refused = pipeline.etl(arguments).await;
        assert_eq!(
            refused.code,
            Some(code),
            "{arguments:?}: {}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains(word),
            "{arguments:?}: {}",
            refused.stderr
        );
        assert_eq!(refused.stdout, "", "{arguments:?}");
    }
    assert_eq!(pipeline.ledger().await, ledger, "nothing was changed");
}

/// The broker is not restored with PostgreSQL, and keeps the cancellation.
#[tokio::test(flavor = "multi_thread")]
async fn run_requested_again_in_a_restored_ledger_is_not_cancelled() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", APPEND, sample::clicks(10));
    pipeline
        .cloud
        .answer_once("FROM clicks", Answer::queued_for_ever());
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until("Athena to have the query", TIMEOUT, async || {
        state(&pipeline, "daily").await == "running"
    })
    .await;
    let cancelled = pipeline.etl(&["cancel", "daily"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    wait_until("the query to be stopped", TIMEOUT, async || {
        pipeline.cloud.states() == [QueryState::Cancelled]
    })
    .await;
    // What it cost is the last event of the run.
    wait_until("the end of the query in the ledger", TIMEOUT, async || {
        let stopped = "SELECT count(*) FROM etl.queries WHERE state = 'stopped'";
        pipeline.number(stopped).await == 1
    })
    .await;
    for statement in [
        "DELETE FROM etl.queries",
        "DELETE FROM etl.runs",
        "SELECT setval(pg_get_serial_sequence('etl.runs', 'run_no'), 1, false)",
    ] {
        let restored = sqlx::query(statement).execute(&pipeline.database.pool);
        restored.await.unwrap();
    }
    let run = pipeline.run("clicks", "daily").await;
    assert_eq!(run["run_no"], 1, "{run}");
    pipeline.assert_reconciled("daily").await;
}
