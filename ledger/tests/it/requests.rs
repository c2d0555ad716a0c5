//! The same request again: each row is in the target once, whatever became of the request before.

use std::collections::BTreeMap;

use common::message::{EventKind, Limits, RunEvent};
use ledger::{NewReplay, Requested, Rows, RunState, Seqs, Store, event};

use crate::support::{execute, job_into_t, ledger, loaded, run_in, text};

/// Requests the job `job`, like the runs of the other tests.
async fn ask(store: &Store, name: &str, again: bool) -> Result<Requested, String> {
    let job = job_into_t("job");
    let request = job.request(&BTreeMap::new()).unwrap();
    let run = name.parse().unwrap();
    let asked = store.request(&run, &job, &request, Limits::default(), again);
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
            sentence.contains("`etl cancel first --undo`") && sentence.contains("nothing was sent"),
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
        store
            .transaction("the removal", async |tx: &mut sqlx::PgConnection| {
                let mut locked = ledger::LockedRun::lock(tx, &run).await?;
                let begun = locked.begin_removal(removal).await?.unwrap();
                locked.finish_removal(&begun, 2).await
            })
            .await
            .unwrap();
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

async fn replay(store: &Store, run: &str) -> Result<u32, String> {
    let subject = store.subject(run).await.unwrap();
    let replay = NewReplay {
        source: "athena",
        seqs: Seqs::first(1),
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
