//! What Athena's queries cost is in the ledger, whatever became of their run and in whatever order it is reported.

use common::job::Job;
use common::message::{EventKind, Limits, QueryEnd, RunEvent};
use ledger::{RunState, Store, Terms, event};

use crate::support::{execute, job_into_t, ledger, run_in, text};

async fn note(store: &Store, run: &str, kind: EventKind) {
    let event = RunEvent {
        run: run.parse().unwrap(),
        generation: 0,
        job: "job".into(),
        kind,
    };
    event::note(store, &event).await.unwrap();
}

fn started(query: &str, attempt: u32) -> EventKind {
    EventKind::Started {
        query_execution_id: query.into(),
        attempt,
        principal: Some("arn:aws:iam::123456789012:role/etl".into()),
        region: Some("eu-central-1".into()),
    }
}

fn ended(query: &str, end: QueryEnd, bytes_scanned: u64) -> EventKind {
    EventKind::QueryEnded {
        query_execution_id: query.into(),
        end,
        bytes_scanned,
        reused: false,
    }
}

#[tokio::test]
async fn every_query_of_a_run_counts_in_any_order_and_after_its_end() {
    let events = [
        started("q1", 1),
        ended("q1", QueryEnd::Failed, 5),
        started("q2", 2),
        ended("q2", QueryEnd::Stopped, 7),
    ];
    for (state, order) in [
        (RunState::Running, [0, 1, 2, 3]),
        (RunState::Cancelled, [3, 2, 1, 0]),
        (RunState::Failed, [2, 0, 3, 1]),
    ] {
        let (database, store) = ledger().await;
        let pool = &database.pool;
        run_in(pool, "r", state).await;
        for index in order.into_iter().chain(order) {
            note(&store, "r", events[index].clone()).await;
        }
        let queries = store.queries("r").await.unwrap();
        let seen: Vec<_> = queries
            .iter()
            .map(|q| {
                let principal = q.principal.as_deref().unwrap_or_default();
                (
                    q.query_execution_id.as_str(),
                    q.attempt,
                    q.state.as_str(),
                    q.bytes_scanned,
                    principal,
                )
            })
            .collect();
        let role = "arn:aws:iam::123456789012:role/etl";
        assert_eq!(
            seen,
            [("q1", 1, "failed", 5, role), ("q2", 2, "stopped", 7, role)],
            "{state}"
        );
        let total = text(pool, "SELECT bytes_scanned FROM etl.runs").await;
        assert_eq!(total, "12", "{state}");
        let ignored = text(pool, "SELECT ignored_messages FROM etl.runs").await;
        assert_eq!(ignored, "0", "{state}");
    }
}

#[tokio::test]
async fn bytes_scanned_so_far_only_grow_until_the_query_ends() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    run_in(pool, "r", RunState::Running).await;
    let scanned = |bytes_scanned| EventKind::Scanned {
        query_execution_id: "q".into(),
        bytes_scanned,
    };
    for (event, total) in [
        // The ledger does not know the query yet.
        (scanned(1), ""),
        (started("q", 1), ""),
        (scanned(5), "5"),
        (scanned(3), "5"),
        (scanned(7), "7"),
        (ended("q", QueryEnd::Succeeded, 9), "9"),
        (scanned(11), "9"),
    ] {
        note(&store, "r", event.clone()).await;
        let seen = text(pool, "SELECT bytes_scanned FROM etl.runs").await;
        assert_eq!(seen, total, "{event:?}");
    }
    let ignored = text(pool, "SELECT ignored_messages FROM etl.runs").await;
    assert_eq!(ignored, "0");
}

/// The job `job` with a limit of so many bytes.
fn limited(most: u64) -> Job {
    Job {
        max_scanned_per_month: Some(most),
        ..job_into_t("job")
    }
}

async fn ask(store: &Store, job: &Job, name: &str) -> Result<(), String> {
    let request = job.request(&[].into()).unwrap();
    let run = name.parse().unwrap();
    let again = Terms {
        again: true,
        ..Terms::default()
    };
    let asked = store.request(&run, job, &request, Limits::default(), again);
    asked.await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn request_is_refused_once_the_job_has_scanned_its_limit_of_the_month() {
    let (database, store) = ledger().await;
    let pool = &database.pool;
    // Of the month before, and of another job.
    for (run, job, bytes, when) in [
        (
            "old",
            "job",
            1_000,
            "date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '1 s'",
        ),
        ("other", "another", 1_000, "now()"),
        ("failed", "job", 60, "now()"),
        ("cancelled", "job", 39, "now()"),
    ] {
        run_in(pool, run, RunState::Failed).await;
        execute(
            pool,
            &format!("UPDATE etl.runs SET job = '{job}' WHERE run_id = '{run}'"),
        )
        .await;
        execute(pool, &format!("INSERT INTO etl.queries (run_id, query_execution_id, bytes_scanned, started_at) VALUES ('{run}', 'q', {bytes}, {when})")).await;
    }
    assert_eq!(ask(&store, &limited(100), "new").await, Ok(()));
    execute(
        pool,
        "UPDATE etl.queries SET bytes_scanned = 40 WHERE run_id = 'cancelled'",
    )
    .await;
    execute(pool, "UPDATE etl.runs SET state = 'failed', failure = '', finished_at = now() WHERE run_id = 'new'").await;
    let refused = ask(&store, &limited(100), "newer").await.unwrap_err();
    for part in [
        "have scanned 100 bytes",
        "max_scanned_per_month = 100",
        "nothing was sent",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    let next = text(pool, "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY-MM-DD')").await;
    assert!(
        refused.contains(&format!("until {next} (UTC)")),
        "{refused}"
    );
    assert_eq!(
        text(pool, "SELECT count(*) FROM etl.runs WHERE run_id = 'newer'").await,
        "0"
    );
    // A run that is known already is the same request, and a higher limit lets another one pass.
    assert_eq!(ask(&store, &limited(100), "new").await, Ok(()));
    assert_eq!(ask(&store, &limited(101), "newer").await, Ok(()));
    assert_eq!(
        ask(&store, &job_into_t("job"), "newest")
            .await
            .map_err(|_| ()),
        Ok(())
    );
}
