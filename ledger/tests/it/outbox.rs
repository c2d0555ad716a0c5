//! What is told of runs and jobs, and the outbox that it waits in.

use std::time::Duration;

use common::job::Job;
use common::message::{EventKind, Limits, RunEvent, RunId};
use ledger::completion::End;
use ledger::outbox::{Claimed, NewMessage, post};
use ledger::{LINEAGE_CHANNEL, LockedRun, Prune, RunState, Store, Terms, Transition, event};
use serde_json::json;
use sqlx::{PgConnection, PgPool};

use crate::support::{execute, ledger, loaded, run_in, text};
use crate::transitions::carry_out;

/// Stands for a value of a row.
const MARKER: &str = "m4rker";

/// What waits, by channel and event.
const WAITING: &str = "SELECT string_agg(concat_ws(' ', channel, event, run_id), ', ' ORDER BY run_id, channel) FROM etl.outbox";

/// The job `job` says this, as its latest request had it.
async fn says(pool: &PgPool, columns: &str, values: &str) {
    let statement = format!(
        "INSERT INTO etl.jobs (job, warn_rejected, {columns}) VALUES ('job', '5%', {values})"
    );
    execute(pool, &statement).await;
}

fn failed(run: &RunId) -> RunEvent {
    RunEvent {
        run: run.clone(),
        generation: 0,
        job: "job".into(),
        kind: EventKind::Failed {
            reason: format!("Cannot cast '{MARKER}' to BIGINT"),
        },
    }
}

async fn end(store: &Store, run: &RunId, end: End) {
    let ended = store.transaction("cannot end", async |tx: &mut PgConnection| {
        LockedRun::lock(tx, run).await?.end(&end).await
    });
    ended.await.unwrap();
}

#[tokio::test]
async fn end_of_a_run_is_told_once_to_each_channel_of_its_job_and_without_values() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    let unheard = run_in(pool, "unheard", RunState::Running).await;
    event::note(&store, &failed(&unheard)).await.unwrap();
    assert_eq!(text(pool, WAITING).await, "");
    says(pool, "notify", "'{data,oncall}'").await;
    let run = run_in(pool, "fails", RunState::Running).await;
    for _ in 0..2 {
        event::note(&store, &failed(&run)).await.unwrap();
    }
    assert_eq!(
        text(pool, WAITING).await,
        "data failed fails, oncall failed fails"
    );
    execute(
        pool,
        "DELETE FROM etl.outbox; UPDATE etl.jobs SET notify = '{oncall}'",
    )
    .await;
    for (name, rejected, how) in [
        ("held", 0, End::Held(MARKER.to_owned())),
        ("superseded", 2, End::Superseded(MARKER.to_owned())),
        ("few", 0, End::Completed),
        ("many", 1, End::Completed),
    ] {
        let run = run_in(pool, name, RunState::Running).await;
        loaded(pool, &run).await;
        let rejects = format!(
            "UPDATE etl.runs SET batches_expected = 1, rows_expected = 2 WHERE run_id = '{name}';
             UPDATE etl.batches SET rows_loaded = 2 - {rejected}, rows_rejected = {rejected} WHERE run_id = '{name}'"
        );
        execute(pool, &rejects).await;
        end(&store, &run, how).await;
    }
    assert_eq!(
        text(pool, WAITING).await,
        "oncall held held, oncall rejected many"
    );
    let all = text(pool, "SELECT string_agg(body::text, ' ') FROM etl.outbox").await;
    assert!(!all.contains(MARKER), "{all}");
    let said = text(
        pool,
        "SELECT body ->> 'text' FROM etl.outbox WHERE run_id = 'many'",
    )
    .await;
    assert_eq!(
        said,
        "The run many of the job job is completed, with 1 of 2 rows rejected. `etl rejects many` shows which and why."
    );
}

#[tokio::test]
async fn end_that_is_rolled_back_is_not_told() {
    let (database, store) = ledger().await;
    says(&database.pool, "notify", "'{oncall}'").await;
    let run = run_in(&database.pool, "r", RunState::Running).await;
    let undone = store.transaction("cannot end", async |tx: &mut PgConnection| {
        let locked = LockedRun::lock(tx, &run).await?;
        locked.end(&End::Failed("because".to_owned())).await?;
        Err::<(), _>(ledger::Error::NotAllowed(
            "the connection breaks".to_owned(),
        ))
    });
    undone.await.unwrap_err();
    assert_eq!(text(&database.pool, WAITING).await, "");
}

/// Posts a message and returns when it is in the outbox.
async fn posted(store: &Store) {
    let posting = store.transaction("cannot post", async |tx: &mut PgConnection| {
        let message = NewMessage {
            event: "failed",
            job: "job",
            run: None,
            body: &json!({ "text": "x" }),
        };
        Ok(post(tx, &["oncall".to_owned()], message).await?)
    });
    posting.await.unwrap();
}

async fn claimed(store: &Store, lease: u64) -> Option<Claimed> {
    let lease = Duration::from_secs(lease);
    store.claim("oncall", lease).await.unwrap()
}

#[tokio::test]
async fn message_belongs_to_one_loader_until_its_lease_is_over() {
    let (database, store) = ledger().await;
    posted(&store).await;
    assert!(store.claim("data", Duration::ZERO).await.unwrap().is_none());
    let first = claimed(&store, 60).await.unwrap();
    assert!(claimed(&store, 60).await.is_none());
    // It died, or its process was stopped for long.
    execute(
        &database.pool,
        "UPDATE etl.outbox SET next_attempt_at = now()",
    )
    .await;
    let second = claimed(&store, 60).await.unwrap();
    assert_eq!((first.id.clone(), 2), (second.id.clone(), second.attempts));
    // What the first one says now does not give the message to a third.
    store
        .not_sent(&first, "late", Duration::ZERO)
        .await
        .unwrap();
    assert!(claimed(&store, 60).await.is_none());
    store
        .not_sent(&second, "no\0 answer", Duration::ZERO)
        .await
        .unwrap();
    let waiting = store.outbox(None).await.unwrap().remove(0);
    assert_eq!((waiting.messages, waiting.attempts), (1, 2));
    assert_eq!(waiting.last_error.as_deref(), Some("no\u{2400} answer"));
    let third = claimed(&store, 60).await.unwrap();
    store.sent(&third).await.unwrap();
    assert!(store.outbox(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn two_claims_at_the_same_time_get_different_messages() {
    let (_database, store) = ledger().await;
    for _ in 0..8 {
        posted(&store).await;
    }
    let claims = futures::future::join_all((0..12).map(|_| claimed(&store, 60)));
    let mut ids: Vec<_> = claims
        .await
        .into_iter()
        .flatten()
        .map(|one| one.id)
        .collect();
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "no message was given twice");
    assert!(count > 0);
}

#[tokio::test]
async fn only_old_messages_are_given_up_and_only_on_demand() {
    let (database, store) = ledger().await;
    posted(&store).await;
    posted(&store).await;
    let older = "UPDATE etl.outbox SET created_at = now() - interval '8 days' WHERE id = (SELECT min(id::text)::uuid FROM etl.outbox)";
    execute(&database.pool, older).await;
    for (unsent, dry_run, gone, left) in [
        (false, false, 0, "2"),
        (true, true, 1, "2"),
        (true, false, 1, "1"),
    ] {
        let prune = Prune {
            older_than: Duration::from_hours(7 * 24),
            unresolved: false,
            unsent,
            dry_run,
        };
        assert_eq!(store.prune(prune).await.unwrap().unsent, gone);
        assert_eq!(
            text(&database.pool, "SELECT count(*) FROM etl.outbox").await,
            left
        );
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn late_job_is_told_once_for_each_time() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    says(
        pool,
        "notify, expected_every, expected_since",
        "'{oncall}', '1 hour', now() - interval '65 minutes'",
    )
    .await;
    let late = async || store.known_jobs().await.unwrap().remove(0).seconds_late;
    let tell = async || {
        // Two loaders look at the same time, again and again.
        for _ in 0..2 {
            let (one, other) = futures::join!(store.tell_late(), store.tell_late());
            one.and(other).unwrap();
        }
        text(pool, "SELECT count(*) FROM etl.outbox").await
    };
    assert_eq!(late().await, None, "a tenth of the time is added");
    assert_eq!(tell().await, "0");
    execute(
        pool,
        "UPDATE etl.jobs SET expected_since = now() - interval '70 minutes'",
    )
    .await;
    assert!(
        late()
            .await
            .is_some_and(|seconds| (600.0..700.0).contains(&seconds))
    );
    assert_eq!(tell().await, "1");
    // A run that fails, or is only requested, changes nothing.
    run_in(pool, "fails", RunState::Failed).await;
    assert_eq!((late().await.is_some(), tell().await.as_str()), (true, "1"));
    run_in(pool, "works", RunState::Completed).await;
    assert_eq!((late().await, tell().await.as_str()), (None, "1"));
    // A replay of the newest run makes the job neither late nor less late.
    execute(
        pool,
        "UPDATE etl.jobs SET expected_since = now() - interval '3 hours'; UPDATE etl.runs SET completed_at = now() - interval '30 minutes' WHERE run_id = 'works'",
    )
    .await;
    let works: RunId = "works".parse().unwrap();
    carry_out(&store, Transition::Replay, &works).await.unwrap();
    assert_eq!((late().await, tell().await.as_str()), (None, "1"));
    execute(
        pool,
        "UPDATE etl.runs SET completed_at = now() - interval '2 hours' WHERE run_id = 'works'",
    )
    .await;
    end(&store, &works, End::Completed).await;
    assert!(late().await.is_some());
    // Another time, and the replay of an older run is no newer one.
    execute(
        pool,
        "UPDATE etl.runs SET state = 'completed', failure = NULL, batches_expected = 1, rows_expected = 2, finished_at = now(), completed_at = now() WHERE run_id = 'fails'",
    )
    .await;
    assert_eq!(tell().await, "2");
    let said = text(
        pool,
        "SELECT body ->> 'text' FROM etl.outbox ORDER BY created_at DESC LIMIT 1",
    )
    .await;
    assert!(
        said.starts_with(
            "The job job is late: it is expected every 1h, and no run of it has completed since 20"
        ) && said.contains(" Its latest run works is completed."),
        "{said}"
    );
}

#[tokio::test]
async fn request_records_what_the_job_says() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    let said = "SELECT concat_ws(' ', notify, warn_rejected, expected_every, expected_since = requested_at) FROM etl.jobs";
    let job = |settings: &str| {
        let jobs = tempfile::tempdir().unwrap();
        std::fs::write(jobs.path().join("all.sql"), "SELECT 1").unwrap();
        let toml = format!(
            "{settings}\n[source]\ndatabase = \"d\"\nsql = \"all.sql\"\n[target]\ntable = \"t\"\nmode = \"upsert\"\nkey = [\"a\"]\n"
        );
        std::fs::write(jobs.path().join("job.toml"), toml).unwrap();
        Job::read(jobs.path(), "job").unwrap()
    };
    let mut runs = 0;
    let mut request = async |settings: &str| {
        runs += 1;
        let job = job(settings);
        let run: RunId = format!("r{runs}").parse().unwrap();
        let request = job.request(&std::collections::BTreeMap::new()).unwrap();
        let requested = store.request(&run, &job, &request, Limits::default(), Terms::default());
        assert!(matches!(requested.await.unwrap(), ledger::Requested::New));
        let end = format!(
            "UPDATE etl.runs SET state = 'failed', failure = 'x', finished_at = now() WHERE run_id = '{run}'"
        );
        execute(pool, &end).await;
        text(pool, said).await
    };
    assert_eq!(request("").await, "{} 5% t");
    assert_eq!(
        request("notify = [\"oncall\", \"data\"]\nwarn_rejected = 7\nexpected_every = \"1d\"")
            .await,
        "{oncall,data} 7 24:00:00 t"
    );
    assert_eq!(request("expected_every = \"1d\"").await, "{} 5% 24:00:00 f");
    assert_eq!(
        request("expected_every = \"15m\"").await,
        "{} 5% 00:15:00 t"
    );
}

/// To OpenLineage a run must not begin after its end.
#[tokio::test]
async fn lineage_of_a_run_is_claimed_in_order() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    execute(
        pool,
        &format!("INSERT INTO etl.outbox (channel, event, job, run_id, body) SELECT '{LINEAGE_CHANNEL}', event, 'job', run, '{{}}'
                  FROM (VALUES ('start', 'one'), ('complete', 'one'), ('start', 'other')) AS m (event, run)"),
    )
    .await;
    let claim = async || {
        let claimed = store.claim(LINEAGE_CHANNEL, Duration::from_mins(1)).await;
        claimed.unwrap()
    };
    let said =
        |claimed: &Claimed| format!("{} {}", claimed.event, claimed.run_id.as_ref().unwrap());
    let first = claim().await.unwrap();
    assert_eq!(said(&first), "start one");
    assert_eq!(said(&claim().await.unwrap()), "start other");
    // While the first is being sent, or after it was refused.
    assert!(claim().await.is_none());
    let pause = Duration::from_mins(1);
    store.not_sent(&first, "503", pause).await.unwrap();
    assert!(claim().await.is_none());
    store.sent(&first).await.unwrap();
    assert_eq!(said(&claim().await.unwrap()), "complete one");
}
