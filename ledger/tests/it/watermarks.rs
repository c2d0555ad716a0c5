//! Watermarks in the ledger: who may move them, and when.

use std::collections::BTreeMap;

use common::job::{Job, ReadOn};
use common::message::{Limits, RunId};
use ledger::completion::End;
use ledger::{LockedRun, NewReplay, Requested, Rows, Seqs, Store, Terms};
use sqlx::{PgConnection, PgPool};

use crate::support::{execute, ledger, loaded, text};

const APPEND: &str = "since = { type = \"date\", watermark = \"day\", initial = \"2018-04-01\", lag = \"0s\" }\nuntil = { type = \"date\", end_of = \"since\" }\n[target]\ntable = \"t\"\n";

const UPSERT: &str = "since = { type = \"date\", watermark = \"day\", initial = \"2018-04-01\" }\n[target]\ntable = \"t\"\nmode = \"upsert\"\nkey = [\"k\"]\n";

fn job(rest: &str) -> Job {
    let jobs = tempfile::tempdir().unwrap();
    let end = if rest.contains("until") {
        " AND :until IS NOT NULL"
    } else {
        ""
    };
    let sql = format!("SELECT 1 WHERE :since IS NOT NULL{end}");
    std::fs::write(jobs.path().join("new.sql"), sql).unwrap();
    let toml = format!("[source]\ndatabase = \"d\"\nsql = \"new.sql\"\n[parameters]\n{rest}");
    std::fs::write(jobs.path().join("new.toml"), toml).unwrap();
    Job::read(jobs.path(), "new").unwrap()
}

/// Requests a run that reads on from the watermark, on a day.
async fn ask(store: &Store, job: &Job, run: &str, day: &str) -> Result<Requested, String> {
    let now = format!("{day}T00:00:00Z").parse().unwrap();
    let set = BTreeMap::new();
    let mut values = job.resolve(&set, None, now);
    let watermark = store.watermark("new").await.unwrap();
    let read_on = job.read_on(&set, &mut values, watermark.as_deref(), false, now);
    let read_on: Option<ReadOn> = read_on.unwrap();
    let request = job.request(&values).unwrap().reading_on(read_on);
    let run = run.parse().unwrap();
    let asked = store.request(&run, job, &request, Limits::default(), Terms::default());
    asked.await.map_err(|error| error.to_string())
}

/// A run that is requested, and has its only batch in the ledger.
async fn begun(store: &Store, pool: &PgPool, job: &Job, run: &str, day: &str) -> RunId {
    assert!(
        matches!(ask(store, job, run, day).await, Ok(Requested::New)),
        "{run}"
    );
    let run: RunId = run.parse().unwrap();
    loaded(pool, &run).await;
    let counted = format!(
        "UPDATE etl.runs SET batches_expected = 1, rows_expected = 2, result_id = 'q:pages' WHERE run_id = '{run}'"
    );
    execute(pool, &counted).await;
    run
}

async fn end(store: &Store, run: &RunId, end: &End) {
    let work =
        async |tx: &mut PgConnection| LockedRun::lock(tx, run).await?.end(end).await.map(drop);
    store.transaction("the end", work).await.unwrap();
}

async fn replay(store: &Store, run: &RunId) -> Result<u32, String> {
    let subject = store.subject(run.as_str()).await.unwrap();
    let new = NewReplay {
        source: "archive",
        seqs: Seqs::first(1),
        partial: false,
        job_hash: "hash".into(),
        spec: subject.live_spec(),
    };
    let begun = store.begin_replay(&subject, &new).await;
    begun.map_err(|error| error.to_string())
}

async fn watermark(store: &Store) -> Option<String> {
    store.watermark("new").await.unwrap()
}

#[tokio::test]
async fn a_complete_run_moves_the_watermark_once_and_a_failed_one_does_not() {
    let (database, store) = ledger().await;
    let (pool, job) = (&database.pool, job(APPEND));
    let failed = begun(&store, pool, &job, "failed", "2018-04-05").await;
    assert!(
        ask(&store, &job, "second", "2018-04-05")
            .await
            .unwrap_err()
            .contains("the run failed")
    );
    end(&store, &failed, &End::Failed("because".into())).await;
    assert_eq!(watermark(&store).await, None);
    // What it has loaded is removed before its range is read again.
    let left = ask(&store, &job, "next", "2018-04-06").await;
    assert!(
        matches!(&left, Ok(Requested::LeftRows { run, rows: 2 }) if *run == failed),
        "{left:?}"
    );
    execute(
        pool,
        "UPDATE etl.batches SET rows_loaded = 0, rows_dropped = 2",
    )
    .await;
    let next = begun(&store, pool, &job, "next", "2018-04-06").await;
    end(&store, &next, &End::Completed).await;
    assert_eq!(watermark(&store).await.as_deref(), Some("2018-04-06"));
    // Its range was read: a replay of the failed run would add its rows to them.
    let refused = replay(&store, &failed).await.unwrap_err();
    assert!(
        refused.contains("the watermark of the job new is 2018-04-06"),
        "{refused}"
    );
    // A replay of the complete one moves nothing.
    assert_eq!(replay(&store, &next).await, Ok(1));
    execute(
        pool,
        "UPDATE etl.batches SET generation = 1 WHERE run_id = 'next'",
    )
    .await;
    end(&store, &next, &End::Completed).await;
    assert_eq!(text(pool, "SELECT count(*) FROM etl.watermarks").await, "1");
}

#[tokio::test]
async fn rows_that_a_later_run_reads_on_from_are_not_removed() {
    for (rest, mode) in [(APPEND, "append"), (UPSERT, "upsert")] {
        let (database, store) = ledger().await;
        let (pool, job) = (&database.pool, job(rest));
        let first = begun(&store, pool, &job, "first", "2018-04-05").await;
        execute(pool, "UPDATE etl.batches SET watermark = '2018-04-04'").await;
        end(&store, &first, &End::Completed).await;
        assert!(watermark(&store).await.is_some(), "{mode}");
        assert_eq!(replay(&store, &first).await, Ok(1));
        end(&store, &first, &End::Failed("because".into())).await;
        let second = begun(&store, pool, &job, "second", "2018-04-06").await;
        let refused = store
            .cancel(&first, true, None)
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("the run second"), "{mode}: {refused}");
        end(&store, &second, &End::Failed("because".into())).await;
        // Without a reader they go, and the next run reads them again.
        let undone = store.cancel(&first, true, None).await.unwrap();
        let Rows::Leave { removal, .. } = undone.rows else {
            panic!("{mode}: {undone:?}");
        };
        let work = async |tx: &mut PgConnection| {
            let mut locked = LockedRun::lock(tx, &first).await?;
            let begun = locked.begin_removal(removal).await?.unwrap();
            locked.finish_removal(&begun, 2).await
        };
        store.transaction("the removal", work).await.unwrap();
        assert_eq!(
            watermark(&store).await.as_deref(),
            Some("2018-04-01"),
            "{mode}"
        );
    }
}

/// Whatever a person has set, a run that does not reach back to there moves nothing.
#[tokio::test]
async fn a_run_of_before_a_reset_moves_nothing() {
    let (database, store) = ledger().await;
    let (pool, job) = (&database.pool, job(UPSERT));
    let first = begun(&store, pool, &job, "first", "2018-04-05").await;
    execute(pool, "UPDATE etl.batches SET watermark = '2018-04-04'").await;
    end(&store, &first, &End::Completed).await;
    let second = begun(&store, pool, &job, "second", "2018-04-10").await;
    execute(
        pool,
        "UPDATE etl.batches SET watermark = '2018-04-09' WHERE run_id = 'second'",
    )
    .await;
    let refused = store
        .set_watermark("new", "2018-04-01", "emptied")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("the run second"), "{refused}");
    end(&store, &second, &End::Failed("because".into())).await;
    store
        .set_watermark("new", "2018-04-01", "emptied")
        .await
        .unwrap();
    assert_eq!(replay(&store, &second).await, Ok(1));
    execute(
        pool,
        "UPDATE etl.batches SET generation = 1 WHERE run_id = 'second'",
    )
    .await;
    end(&store, &second, &End::Completed).await;
    assert_eq!(watermark(&store).await.as_deref(), Some("2018-04-01"));
}
