//! Watermarks in the ledger: who may move them, and when.

use std::collections::BTreeMap;

use common::job::{Job, ReadOn};
use common::message::{Limits, RunId};
use ledger::completion::End;
use ledger::{LockedRun, NewReplay, Requested, RowRanges, Rows, Store, Terms};
use sqlx::{PgConnection, PgPool};

use crate::support::{execute, ledger, loaded, text};

const APPEND: &str = "since = { type = \"date\", watermark = \"day\", initial = \"2018-04-01\", lag = \"0s\" }\nuntil = { type = \"date\", end_of = \"since\" }\n[target]\ntable = \"t\"\n";

const UPSERT: &str = "since = { type = \"date\", watermark = \"day\", initial = \"2018-04-01\" }\n[target]\ntable = \"t\"\nmode = \"upsert\"\nkey = [\"k\"]\n";

fn job(rest: &str) -> Job {
    let jobs = tempfile::tempdir().unwrap();
    let names = ["since", "until", "begins", "ends", "region"].into_iter();
    let used = names.filter(|name| rest.contains(&format!("{name} = ")));
    let used: Vec<_> = used.map(|name| format!(":{name} IS NOT NULL")).collect();
    let sql = format!("SELECT 1 WHERE {}", used.join(" AND "));
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

/// Requests a run with a range that a person sets.
async fn by_hand(
    store: &Store,
    job: &Job,
    run: &str,
    set: &[(&str, &str)],
    again: bool,
) -> Requested {
    let set = set
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let now = "2018-04-20T00:00:00Z".parse().unwrap();
    let values = job.resolve(&set.collect(), None, now);
    let request = job.request(&values).unwrap();
    let terms = Terms {
        again,
        retry: false,
    };
    let run = run.parse().unwrap();
    let asked = store.request(&run, job, &request, Limits::default(), terms);
    asked.await.unwrap()
}

/// The run that is in the way, and why.
fn conflict(requested: Requested) -> (String, String) {
    match requested {
        Requested::Conflicts(conflict) => (conflict.run_id.clone(), conflict.sentence()),
        other => panic!("{other:?}"),
    }
}

/// A run that is requested, and has its only batch in the ledger.
async fn begun(store: &Store, pool: &PgPool, job: &Job, run: &str, day: &str) -> RunId {
    assert!(
        matches!(ask(store, job, run, day).await, Ok(Requested::New)),
        "{run}"
    );
    has_loaded(pool, run).await
}

/// A run of which the only batch is in the ledger.
async fn has_loaded(pool: &PgPool, run: &str) -> RunId {
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
        rows: RowRanges::first(1),
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
        refused.contains("the run next, which was requested after failed and reads the same rows"),
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
        .set_watermark(&job, "2018-04-01", "emptied")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("the run second"), "{refused}");
    end(&store, &second, &End::Failed("because".into())).await;
    store
        .set_watermark(&job, "2018-04-01", "emptied")
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

/// Nothing in the target tells rows apart that two runs append.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn a_range_that_overlaps_with_an_appended_one_is_refused() {
    let (database, store) = ledger().await;
    let region = "region = { type = \"text\", default = \"eu\" }\n";
    let (pool, job) = (&database.pool, job(&format!("{region}{APPEND}")));
    let range = |since, until| [("since", since), ("until", until)];
    let first = range("2018-04-03", "2018-04-05");
    assert!(matches!(
        by_hand(&store, &job, "first", &first, false).await,
        Requested::New
    ));
    for (since, until) in [
        ("2018-04-01", "2018-04-04"),
        ("2018-04-04", "2018-04-06"),
        ("2018-04-01", "2018-04-09"),
    ] {
        let asked = by_hand(&store, &job, "other", &range(since, until), false).await;
        let (run, why) = conflict(asked);
        assert_eq!(run, "first", "{since}");
        assert!(why.contains("is requested; wait for it"), "{why}");
    }
    let first = has_loaded(pool, "first").await;
    end(&store, &first, &End::Completed).await;
    // So is a run that reads on from the watermark.
    let (run, why) = conflict(ask(&store, &job, "other", "2018-04-10").await.unwrap());
    assert_eq!(run, "first");
    assert!(
        why.contains("has loaded day from 2018-04-03 and before 2018-04-05"),
        "{why}"
    );
    // Ranges beside it, other rows of the same range, and a request for the rows twice.
    let us = [
        ("since", "2018-04-03"),
        ("until", "2018-04-05"),
        ("region", "us"),
    ];
    let beside = [
        ("before", &range("2018-04-02", "2018-04-03")[..], false),
        ("after", &range("2018-04-05", "2018-04-06"), false),
        ("us", &us, false),
        ("twice", &range("2018-04-04", "2018-04-05"), true),
    ];
    for (run, set, again) in beside {
        let asked = by_hand(&store, &job, run, set, again).await;
        assert!(matches!(asked, Requested::New), "{run}: {asked:?}");
        let run = has_loaded(pool, run).await;
        end(&store, &run, &End::Failed("because".into())).await;
    }
    // What a failed run has left is in the way, too, and a later range in that of its replay.
    let asked = by_hand(
        &store,
        &job,
        "other",
        &range("2018-04-01", "2018-04-03"),
        false,
    )
    .await;
    let (run, why) = conflict(asked);
    assert_eq!(run, "before");
    assert!(
        why.contains("`etl cancel before --undo` removes them"),
        "{why}"
    );
    let asked = by_hand(
        &store,
        &job,
        "wide",
        &range("2018-04-05", "2018-04-09"),
        true,
    )
    .await;
    assert!(matches!(asked, Requested::New), "{asked:?}");
    let refused = replay(&store, &"after".parse().unwrap()).await.unwrap_err();
    assert!(refused.contains("the run wide, which was"), "{refused}");
    assert_eq!(replay(&store, &"us".parse().unwrap()).await, Ok(1));
}

/// Neither a parameter that the job did not have once nor another name of a bound makes other rows of them.
#[tokio::test]
async fn a_range_overlaps_also_once_its_parameters_are_others() {
    let (database, store) = ledger().await;
    let (pool, append) = (&database.pool, job(APPEND));
    let first = begun(&store, pool, &append, "first", "2018-04-05").await;
    end(&store, &first, &End::Completed).await;
    let region = format!("region = {{ type = \"text\", default = \"all\" }}\n{APPEND}");
    let renamed = APPEND.replace("since", "begins").replace("until", "ends");
    for (other, from, to) in [
        (job(&region), "since", "until"),
        (job(&renamed), "begins", "ends"),
    ] {
        let set = [(from, "2018-04-02"), (to, "2018-04-03")];
        let (run, _) = conflict(by_hand(&store, &other, "other", &set, false).await);
        assert_eq!(run, "first", "{from}");
    }
}

/// Rows before the watermark that have another value of a parameter were not read.
#[tokio::test]
async fn a_run_with_other_values_does_not_read_on() {
    let (database, store) = ledger().await;
    let rest = format!("region = {{ type = \"text\", default = \"eu\" }}\n{APPEND}");
    let (pool, eu) = (&database.pool, job(&rest));
    let first = begun(&store, pool, &eu, "first", "2018-04-05").await;
    end(&store, &first, &End::Completed).await;
    let us = job(&rest.replace("\"eu\"", "\"us\""));
    let refused = ask(&store, &us, "second", "2018-04-06").await.unwrap_err();
    assert!(
        refused.contains(
            "was read with region = \"eu\", by the run first, and this request has \"us\""
        ),
        "{refused}"
    );
    // The advice.
    store
        .set_watermark(&us, "2018-04-05", "from here")
        .await
        .unwrap();
    let asked = ask(&store, &us, "second", "2018-04-06").await;
    assert!(matches!(asked, Ok(Requested::New)), "{asked:?}");
}

/// The next run would remove them, and read on behind them.
#[tokio::test]
async fn a_watermark_is_not_set_behind_what_a_run_has_left() {
    let (database, store) = ledger().await;
    let (pool, append) = (&database.pool, job(APPEND));
    let left = begun(&store, pool, &append, "left", "2018-04-05").await;
    end(&store, &left, &End::Failed("because".into())).await;
    let refused = store.set_watermark(&append, "2018-04-03", "x").await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("`etl cancel left --undo` removes them"),
        "{refused}"
    );
    store
        .set_watermark(&append, "2018-03-01", "x")
        .await
        .unwrap();
    store.cancel(&left, true, None).await.unwrap();
}

/// In an empty table nothing is what a watermark says to be there.
#[tokio::test]
async fn a_watermark_is_of_one_table() {
    let (database, store) = ledger().await;
    let (pool, append) = (&database.pool, job(APPEND));
    let first = begun(&store, pool, &append, "first", "2018-04-05").await;
    end(&store, &first, &End::Completed).await;
    let elsewhere = job(&APPEND.replace("\"t\"", "\"elsewhere\""));
    for (other, word) in [
        (
            &elsewhere,
            "the target is public.elsewhere (mode append) now",
        ),
        (&job(UPSERT), "the target is public.t (mode upsert) now"),
    ] {
        let refused = ask(&store, other, "second", "2018-04-06")
            .await
            .unwrap_err();
        assert!(refused.contains(word), "{refused}");
        assert!(
            refused.contains("says what is in public.t (mode append)"),
            "{refused}"
        );
    }
    // The advice.
    let initial = "2018-04-01";
    store
        .set_watermark(&elsewhere, initial, "moved")
        .await
        .unwrap();
    let second = begun(&store, pool, &elsewhere, "second", "2018-04-06").await;
    // What becomes of a run of the former table is not of this one.
    assert_eq!(replay(&store, &first).await, Ok(1));
    end(&store, &second, &End::Failed("because".into())).await;
    end(&store, &first, &End::Failed("because".into())).await;
    assert_eq!(watermark(&store).await.as_deref(), Some(initial));
}
