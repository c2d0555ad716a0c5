//! The same request again: each row is in the target once, whatever became of the request before.

use common::job::Job;
use common::message::{EventKind, Limits, RunEvent, RunId};
use ledger::{
    Moment, NewDeadLetter, NewReplay, Requested, RowRanges, Rows, RunState, Store, Terms, event,
};

use crate::support::{execute, job_into_t, ledger, loaded, run_in, state_of, text};

/// Requests the job `job`, like the runs of the other tests.
async fn ask(store: &Store, name: &str, again: bool) -> Result<Requested, String> {
    let terms = Terms {
        again,
        retry: false,
    };
    ask_for(store, name, &job_into_t("job"), &[], terms).await
}

async fn retry(store: &Store, name: &str) -> Result<Requested, String> {
    let terms = Terms {
        again: false,
        retry: true,
    };
    ask_for(store, name, &job_into_t("job"), &[], terms).await
}

async fn ask_for(
    store: &Store,
    name: &str,
    job: &Job,
    set: &[(&str, &str)],
    terms: Terms,
) -> Result<Requested, String> {
    let set = set
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let request = job.request(&set.collect()).unwrap();
    let run = name.parse().unwrap();
    let asked = store.request(&run, job, &request, Limits::default(), terms);
    asked.await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn request_is_refused_while_an_ended_run_has_left_rows() {
    for state in [RunState::Failed, RunState::Cancelled] {
        let (database, store) = ledger().await;
        let pool = &database.pool;
        let run = run_in(pool, "first", state).await;
        loaded(pool, &run).await;
        let Ok(Requested::Conflicts(conflict)) = ask(&store, "second", false).await else {
            panic!("{state}: its rows would be there twice")
        };
        let sentence = conflict.sentence();
        assert!(
            sentence.contains("`etl run ... --run-id first --retry`")
                && sentence.contains("nothing was sent"),
            "{sentence}"
        );
        assert_eq!(text(pool, "SELECT count(*) FROM etl.runs").await, "1");
        // The advice, as a loader executes it.
        let undone = store.cancel(&run, true, None).await.unwrap();
        let Rows::Leave { removal, .. } = undone.rows else {
            panic!("{undone:?}")
        };
        assert!(matches!(
            ask(&store, "second", false).await,
            Ok(Requested::Conflicts(_))
        ));
        remove(&store, &run, removal).await;
        assert!(matches!(
            ask(&store, "second", false).await,
            Ok(Requested::New)
        ));
        // The failed run would add its rows to those of the second.
        if state == RunState::Failed {
            let refused = replay(&store, "first").await.unwrap_err();
            assert!(
                refused.contains("the run second, which was requested after first"),
                "{refused}"
            );
        }
    }
}

#[tokio::test]
async fn request_again_is_taken_where_nothing_was_left_or_by_name() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    run_in(pool, "nothing", RunState::Failed).await;
    assert!(matches!(
        ask(&store, "second", false).await,
        Ok(Requested::New)
    ));
    store
        .cancel(&"second".parse().unwrap(), false, None)
        .await
        .unwrap();
    // Its rows were staged, and never reached the target.
    let staged = run_in(pool, "staged", RunState::Failed).await;
    loaded(pool, &staged).await;
    execute(
        pool,
        "UPDATE etl.runs SET commit = 'run' WHERE run_id = 'staged'",
    )
    .await;
    assert!(matches!(
        ask(&store, "third", false).await,
        Ok(Requested::New)
    ));
    store
        .cancel(&"third".parse().unwrap(), false, None)
        .await
        .unwrap();
    let left = run_in(pool, "left", RunState::Cancelled).await;
    loaded(pool, &left).await;
    assert!(matches!(
        ask(&store, "fourth", false).await,
        Ok(Requested::Conflicts(_))
    ));
    assert!(matches!(
        ask(&store, "fourth", true).await,
        Ok(Requested::New)
    ));
}

/// What a loader does to the ledger when it removes the two rows of a run.
async fn remove(store: &Store, run: &RunId, removal: i64) {
    let work = async |tx: &mut sqlx::PgConnection| {
        let mut locked = ledger::LockedRun::lock(tx, run).await?;
        let begun = locked.begin_removal(removal).await?.unwrap();
        locked.finish_removal(&begun, 2).await
    };
    store.transaction("the removal", work).await.unwrap();
}

/// Nothing of the former attempt is left in the run's row.
async fn is_like_new(store: &Store, before: &Moment) {
    let now = store.exactly("r").await.unwrap();
    assert_eq!(
        (
            now.state,
            now.generation,
            now.first_generation,
            now.is_replay()
        ),
        (RunState::Requested, 1, 1, false)
    );
    assert_eq!(
        (now.query_execution_id, now.result_id, now.failure),
        (None, None, None)
    );
    assert_eq!(
        (now.decided_by, now.rows_expected, now.finished_at),
        (None, None, None)
    );
    assert!(now.run_no > before.run_no);
    // A cancellation of the former attempt is of another number.
    assert!(
        store
            .moment(&"r".parse().unwrap(), 1)
            .await
            .unwrap()
            .requested_at
            > before.requested_at
    );
}

#[tokio::test]
async fn a_retry_is_a_new_attempt_of_the_same_run() {
    for state in [RunState::Failed, RunState::Cancelled] {
        let (database, store) = ledger().await;
        let pool = &database.pool;
        let run = run_in(pool, "r", state).await;
        loaded(pool, &run).await;
        execute(
            pool,
            "UPDATE etl.runs SET query_execution_id = 'q', result_id = 'q:pages', decided_by = 'ann', decision = 'cancelled'",
        )
        .await;
        assert!(
            matches!(
                retry(&store, "r").await,
                Ok(Requested::LeftRows { rows: 2, .. })
            ),
            "{state}"
        );
        assert_eq!(text(pool, "SELECT count(*) FROM etl.attempts").await, "0");
        let Rows::Leave { removal, .. } = store.cancel(&run, true, None).await.unwrap().rows else {
            panic!("{state}: its rows are in the target");
        };
        let refused = retry(&store, "r").await.unwrap_err();
        assert!(refused.contains("are being removed"), "{refused}");
        remove(&store, &run, removal).await;
        let before = store.moment(&run, 0).await.unwrap();
        assert!(
            matches!(retry(&store, "r").await, Ok(Requested::New)),
            "{state}"
        );
        is_like_new(&store, &before).await;
        let attempts = store.attempts("r").await.unwrap();
        assert_eq!(attempts.len(), 1);
        let kept = (
            attempts[0].run_no,
            attempts[0].generation,
            attempts[0].state.as_str(),
        );
        assert_eq!(kept, (before.run_no, 0, state.name()));
        assert_eq!(attempts[0].result_id.as_deref(), Some("q:pages"));
        assert!(
            matches!(retry(&store, "r").await, Ok(Requested::Known(known)) if known.generation == 1),
            "asked again while it is under way, it is the same request"
        );
        // What still arrives of the former attempt changes nothing.
        fail(&store, "r", 0).await;
        assert_eq!(state_of(pool, &run).await, "requested");
        fail(&store, "r", 1).await;
        assert_eq!(state_of(pool, &run).await, "failed");
        assert!(matches!(retry(&store, "r").await, Ok(Requested::New)));
        assert_eq!(store.attempts("r").await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_retry_resolves_the_dead_letters_of_former_attempts_alone() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    run_in(pool, "r", RunState::Failed).await;
    execute(
        pool,
        "INSERT INTO etl.dead_letters (digest, message_id, stage, reason, run_id)
         VALUES ('1', 'r/0/3', 'loader', 'x', 'r'), ('2', 'r/0/read-4', 'extractor', 'x', 'r'), ('3', 'r/1/3', 'loader', 'x', 'r'),
                ('4', 'other/0/3', 'loader', 'x', 'other')",
    )
    .await;
    assert!(matches!(retry(&store, "r").await, Ok(Requested::New)));
    let left = "SELECT string_agg(message_id, ' ' ORDER BY id) FROM etl.dead_letters WHERE resolved_at IS NULL";
    assert_eq!(text(pool, left).await, "r/1/3 other/0/3");
    // One of a former attempt that arrives later is of no use, either.
    for id in ["r/0/9", "r/1/9"] {
        let letter = NewDeadLetter {
            message_id: id.into(),
            stage: "transformer".into(),
            reason: "x".into(),
            attempts: 1,
            run: Some("r".into()),
            job: Some("job".into()),
            kind: "raw-batch.v3".into(),
            queue: "etl.raw".into(),
            headers: serde_json::json!({}),
            body: id.as_bytes(),
            dead_at: None,
        };
        store.store_dead_letter(&letter).await.unwrap();
    }
    assert_eq!(text(pool, left).await, "r/1/3 other/0/3 r/1/9");
}

/// Of two that retry a run, the slower one does not end what the other has begun.
#[tokio::test]
async fn rows_are_not_taken_back_from_a_run_that_goes_on() {
    let (database, store) = ledger().await;
    let run = run_in(&database.pool, "r", RunState::Failed).await;
    assert!(matches!(retry(&store, "r").await, Ok(Requested::New)));
    let refused = store.take_back(&run, "again").await.unwrap_err();
    assert!(
        refused.to_string().contains("requested it again"),
        "{refused}"
    );
    assert_eq!(state_of(&database.pool, &run).await, "requested");
}

/// A completed run is the same request unless its meaning has changed, and then it is said what has.
#[tokio::test]
async fn a_changed_request_under_the_same_name_says_what_changed() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    let job = job_of("SELECT 1 AS one", "", "");
    let terms = Terms {
        again: false,
        retry: true,
    };
    let ask = async |job: &Job, set: &[(&str, &str)]| ask_for(&store, "r", job, set, terms).await;
    assert!(matches!(ask(&job, &[("p", "1")]).await, Ok(Requested::New)));
    execute(
        pool,
        "UPDATE etl.runs SET state = 'completed', finished_at = now(), batches_expected = 1, rows_expected = 0",
    )
    .await;
    let same = job_of("-- formatted\nSELECT   1\n  AS one", "", "");
    assert!(matches!(
        ask(&same, &[("p", "1")]).await,
        Ok(Requested::Known(_))
    ));
    for (changed, set, why) in [
        (job_of("SELECT 2 AS one", "", ""), "1", "its SQL"),
        (
            job_of("SELECT 1 AS one", "mode = \"replace\"", ""),
            "1",
            "[target] (commit, mode)",
        ),
        (
            job_of("SELECT 1 AS one", "", "[[columns]]\nsource = \"one\"\n"),
            "1",
            "[[columns]] (one)",
        ),
        (
            job_of("SELECT 1 AS one", "", "[source]\nworkgroup = \"etl\"\n"),
            "1",
            "[source]",
        ),
        (job.clone(), "2", "the parameter p was \"1\" and is \"2\""),
    ] {
        let refused = ask(&changed, &[("p", set)]).await.unwrap_err();
        assert!(
            refused.contains(why) && refused.contains("completed"),
            "{why}: {refused}"
        );
    }
    // A failed run is requested again by the job as it is now.
    execute(pool, "UPDATE etl.runs SET state = 'failed', failure = 'x'").await;
    let corrected = job_of("SELECT 2 AS one", "", "");
    let refused = ask(&corrected, &[("p", "2")]).await.unwrap_err();
    assert!(refused.contains("the parameter p"), "{refused}");
    assert!(matches!(
        ask(&corrected, &[("p", "1")]).await,
        Ok(Requested::New)
    ));
    let sql = "SELECT sql FROM etl.runs";
    assert!(text(pool, sql).await.contains("SELECT 2"));
}

/// The job `job` with a parameter that every SQL uses, and more settings.
fn job_of(sql: &str, target: &str, more: &str) -> Job {
    let jobs = tempfile::tempdir().unwrap();
    let (source, more) = match more.strip_prefix("[source]\n") {
        Some(source) => (source, ""),
        None => ("", more),
    };
    std::fs::write(jobs.path().join("all.sql"), format!("{sql} WHERE 1 = :p")).unwrap();
    let toml = format!(
        "[source]\ndatabase = \"d\"\nsql = \"all.sql\"\n{source}[parameters]\np = {{ type = \"integer\" }}\n[target]\ntable = \"t\"\n{target}\n{more}"
    );
    std::fs::write(jobs.path().join("job.toml"), toml).unwrap();
    Job::read(jobs.path(), "job").unwrap()
}

async fn replay(store: &Store, run: &str) -> Result<u32, String> {
    let subject = store.subject(run).await.unwrap();
    let replay = NewReplay {
        source: "athena",
        rows: RowRanges::first(1),
        partial: false,
        job_hash: "hash".into(),
        spec: subject.live_spec(),
    };
    let begun = store.begin_replay(&subject, &replay).await;
    begun.map_err(|error| error.to_string())
}

async fn fail(store: &Store, run: &str, generation: u32) {
    let event = RunEvent {
        run: run.parse().unwrap(),
        generation,
        job: "job".into(),
        kind: EventKind::Failed {
            reason: "the result is gone".into(),
        },
    };
    event::note(store, &event).await.unwrap();
}

/// Whatever generation it is that fails, the ledger says what is in the target, and an undo removes it.
#[tokio::test]
async fn rows_of_before_a_replay_that_failed_are_still_the_runs() {
    for commit in ["batch", "run"] {
        let (database, store) = ledger().await;
        let pool = &database.pool;
        let run = run_in(pool, "r", RunState::Completed).await;
        loaded(pool, &run).await;
        execute(
            pool,
            &format!(
                "UPDATE etl.runs SET commit = '{commit}', batches_expected = NULL, rows_expected = NULL, state = 'running', finished_at = NULL;
                 UPDATE etl.runs SET job_spec = jsonb_set(job_spec, '{{target,commit}}', '\"{commit}\"'), batches_expected = 1, rows_expected = 2,
                     state = 'completed', finished_at = now()"
            ),
        )
        .await;
        for generation in 1..=3 {
            // The extractor says that it cannot read the result before it knows how long it is.
            execute(
                pool,
                "UPDATE etl.runs SET batches_expected = 1, rows_expected = 2",
            )
            .await;
            assert_eq!(replay(&store, "r").await, Ok(generation));
            execute(
                pool,
                "UPDATE etl.runs SET batches_expected = NULL, rows_expected = NULL",
            )
            .await;
            fail(&store, "r", generation).await;
            let known = store.exactly("r").await.unwrap();
            assert_eq!(
                (known.state, known.rows_loaded),
                (RunState::Failed, 2),
                "{commit} {generation}"
            );
            assert!(matches!(
                ask(&store, "other", false).await,
                Ok(Requested::Conflicts(_))
            ));
        }
        let undone = store.cancel(&run, true, None).await.unwrap();
        assert!(
            matches!(undone.rows, Rows::Leave { rows: 2, .. }),
            "{undone:?}"
        );
    }
}
