//! One target is at fault: a trigger fails or is slow, a privilege is missing, somebody holds a lock. The runs of other targets go
//! on, `etl` says what waits and why, and the runs of that target complete by themselves once the fault is gone.

use std::time::Duration;

use serde_json::Value;
use sqlx::AssertSqlSafe;
use testkit::TIMEOUT;
use testkit::cloud::{Fault, Op, sample};
use testkit::pipeline::Pipeline;
use testkit::wait_until;
use tokio::time::Instant;

use crate::postgres::{execute, lose_privilege, pipeline};

/// Four batches.
const ROWS: u64 = 20_000;

const OTHER_JOBS: [&str; 3] = ["one", "two", "three"];

/// How much later the other jobs are loaded at most.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// What a trigger may raise that is neither a row's fault nor its own retry's: of every class, one at least.
const STATES: [&str; 24] = [
    "08006", "0A000", "0L000", "21000", "25006", "28000", "2F002", "38000", "39000", "40001",
    "40P01", "42501", "42P01", "53100", "53200", "53300", "55P03", "57014", "57P01", "58030",
    "58P01", "F0000", "HV000", "XX000",
];

/// Faults that are no SQLSTATE of a trigger.
const OTHERS: [&str; 5] = ["slow", "revoked", "locked", "cancelled", "committed"];

fn bad_runs() -> impl Iterator<Item = String> {
    let names = STATES.iter().chain(&OTHERS);
    names.map(|name| format!("bad_{}", name.to_lowercase()))
}

/// A target with the trigger of its fault, which is there as long as the table `fault`.
fn target(run: &str) -> String {
    let state = run.trim_start_matches("bad_").to_uppercase();
    let table = format!("CREATE TABLE public.{run} (LIKE public.one);");
    if !STATES.contains(&state.as_str()) && run != "bad_slow" {
        return table;
    }
    format!(
        "{table} CREATE TRIGGER fault BEFORE INSERT ON public.{run} EXECUTE FUNCTION public.fails('{state}');"
    )
}

const FAILS: &str = "CREATE FUNCTION public.fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_ARGV[0] = 'SLOW' THEN
            WHILE to_regclass('public.fault') IS NOT NULL LOOP PERFORM pg_sleep(0.1); END LOOP;
        ELSIF to_regclass('public.fault') IS NOT NULL THEN
            RAISE EXCEPTION 'the trigger fails' USING ERRCODE = TG_ARGV[0];
        END IF;
        RETURN NULL; END $$;";

/// Runs of three other jobs, at the same time. Returns how long they took.
async fn load_others(pipeline: &Pipeline, round: &str) -> Duration {
    pipeline.run_all(&OTHER_JOBS, round, 2_000).await
}

async fn parked(pipeline: &Pipeline, run: &str) -> Value {
    let done = pipeline.etl(&["status", run, "--json"]).await;
    let status: Value = serde_json::from_str(&done.stdout).unwrap();
    status["parked"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_of_a_target_stops_no_other_job_and_ends_by_itself() {
    let (pipeline, loader, role) = pipeline().await;
    execute(&pipeline, FAILS).await;
    for job in OTHER_JOBS {
        pipeline.job(
            job,
            &format!("[target]\ntable = \"{job}\"\n"),
            sample::clicks(2_000),
        );
    }
    load_others(&pipeline, "first").await;
    for run in bad_runs() {
        execute(&pipeline, &target(&run)).await;
        execute(
            &pipeline,
            &format!("ALTER TABLE public.{run} OWNER TO {role}"),
        )
        .await;
        let commit = if run == "bad_committed" {
            "run"
        } else {
            "batch"
        };
        let job = format!("[target]\ntable = \"{run}\"\ncommit = \"{commit}\"\n");
        pipeline.job(&run, &job, sample::clicks(ROWS));
    }
    // The same runs, while nothing is wrong.
    request_bad_runs(&pipeline, "good").await;
    let undisturbed = load_others(&pipeline, "before").await;
    assert_all_complete(&pipeline, "good").await;
    execute(&pipeline, "CREATE TABLE public.fault ()").await;
    lose_privilege(&pipeline, &role, "bad_revoked", "bad_revoked").await;
    let mut holder = pipeline.database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE public.bad_locked, public.bad_cancelled, public.bad_committed")
        .execute(&mut *holder)
        .await
        .unwrap();
    request_bad_runs(&pipeline, "bad").await;
    let disturbed = load_others(&pipeline, "meanwhile").await;
    assert!(
        disturbed < undisturbed + MAX_DELAY,
        "the other jobs took {disturbed:?}, and {undisturbed:?} without the faults"
    );
    assert_cancelled_within_seconds(&pipeline).await;
    assert_says_what_waits(&pipeline).await;
    load_others(&pipeline, "later").await;
    let (ready, why) = loader.readiness().await.unwrap();
    assert!(ready, "{why}");
    // The faults end.
    holder.rollback().await.unwrap();
    execute(
        &pipeline,
        &format!(
            "GRANT SELECT, INSERT, UPDATE ON public.bad_revoked TO {role}; DROP TABLE public.fault"
        ),
    )
    .await;
    assert_all_complete(&pipeline, "bad").await;
    assert_nothing_is_left(&pipeline).await;
}

/// The name of a run of a job: the one with the fault has the job's.
fn run_of(job: &str, round: &str) -> String {
    job.replacen("bad", round, 1)
}

async fn request_bad_runs(pipeline: &Pipeline, round: &str) {
    for job in bad_runs() {
        let run = run_of(&job, round);
        let done = pipeline
            .etl(&["run", &job, "--run-id", &run, "--again"])
            .await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
}

/// The command waits for no lock on the target.
async fn assert_cancelled_within_seconds(pipeline: &Pipeline) {
    let started = Instant::now();
    let done = pipeline.etl(&["cancel", "bad_cancelled"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}

async fn assert_says_what_waits(pipeline: &Pipeline) {
    for run in bad_runs().filter(|run| run != "bad_cancelled") {
        wait_until(
            &format!("batches of {run} to be parked"),
            TIMEOUT,
            async || {
                let parked = parked(pipeline, &run).await;
                let waits = if run == "bad_committed" {
                    "commits"
                } else {
                    "batches"
                };
                parked[waits].as_i64() > Some(0) && parked["reason"].as_str() > Some("")
            },
        )
        .await;
    }
    let locked = parked(pipeline, "bad_locked").await;
    assert_eq!(locked["target_table"], "public.bad_locked", "{locked}");
    let reason = locked["reason"].as_str().unwrap();
    assert!(reason.contains("another session holds a lock"), "{reason}");
    let doctor = pipeline.etl(&["doctor"]).await;
    assert!(
        doctor.stdout.contains("wait for public.bad_locked"),
        "{}",
        doctor.stdout
    );
}

async fn assert_all_complete(pipeline: &Pipeline, round: &str) {
    for job in bad_runs().filter(|job| run_of(job, round) != "bad_cancelled") {
        let run = run_of(&job, round);
        let state =
            format!("SELECT count(*) FROM etl.runs WHERE run_id = '{run}' AND state = 'completed'");
        wait_until(&format!("{run} to complete"), TIMEOUT, async || {
            pipeline.number(&state).await == 1
        })
        .await;
        let rows = pipeline
            .number(&format!(
                "SELECT count(*) FROM public.{job} WHERE etl.run_no(_batch) = (SELECT run_no FROM etl.runs WHERE run_id = '{run}')"
            ))
            .await;
        assert_eq!(rows, i64::try_from(ROWS).unwrap(), "{run}");
    }
}

async fn assert_nothing_is_left(pipeline: &Pipeline) {
    pipeline.assert_reconciled("bad_locked").await;
    let cancelled = pipeline.number(
        "SELECT count(*) FROM public.bad_cancelled WHERE etl.run_no(_batch) = (SELECT run_no FROM etl.runs WHERE run_id = 'bad_cancelled')",
    );
    assert_eq!(cancelled.await, 0);
    wait_until("etl.parked to be empty", TIMEOUT, async || {
        pipeline.vhost.ready("etl.parked").await == 0
    })
    .await;
    for none in ["etl.dead_letters", "etl.parked WHERE first_row >= 0"] {
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {none}")))
            .fetch_one(&pipeline.database.pool)
            .await
            .unwrap();
        assert_eq!(count, 0, "{none}");
    }
}

/// The emulator serves a thousand rows after each pause: the extraction takes half a minute.
const SLOW_ROWS: u64 = 200_000;
const SLOW_PAGE: Duration = Duration::from_millis(150);

#[tokio::test(flavor = "multi_thread")]
async fn extraction_for_a_target_that_takes_nothing_is_paused_and_resumed() {
    let mut pipeline = Pipeline::without_services().await;
    for name in ["loader", "transformer", "extractor"] {
        let service = pipeline.service(name).env("ETL_PARKED_BYTES", "400000");
        pipeline.services.push(service.start().await);
    }
    pipeline.job("one", "[target]\ntable = \"one\"\n", sample::clicks(2_000));
    pipeline.run("one", "before").await;
    execute(&pipeline, FAILS).await;
    execute(
        &pipeline,
        "CREATE TABLE public.big (LIKE public.one);
         CREATE TABLE public.fault (); CREATE TRIGGER fault BEFORE INSERT ON public.big EXECUTE FUNCTION public.fails('58030')",
    )
    .await;
    let pages = Op::GetQueryResults;
    pipeline.cloud.always(pages, Fault::Delay(SLOW_PAGE));
    for run in ["big", "gone"] {
        let job = format!(
            "[source]\ndatabase = \"d\"\nsql = \"{run}.sql\"\nresults = \"api\"\n[target]\ntable = \"big\"\n"
        );
        pipeline.job(run, &job, sample::clicks(SLOW_ROWS));
        let done = pipeline.etl(&["run", run, "--run-id", run]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        wait_until(&format!("{run} to be paused"), TIMEOUT, async || {
            parked(&pipeline, run).await["paused"] == 1
        })
        .await;
    }
    let extractor = &pipeline.services[2];
    wait_until("the extractor to pause both", TIMEOUT, async || {
        let log = extractor.log();
        log.matches("extraction paused: too much waits").count() == 2
    })
    .await;
    let done = pipeline.etl(&["status", "big"]).await;
    assert!(
        done.stdout.contains("the extraction is paused"),
        "{}",
        done.stdout
    );
    pipeline.run("one", "meanwhile").await;
    // Neither ended, nor is anything of it taken up again.
    let extracted = "SELECT sum(coalesce(batches_expected, 0)) FROM etl.runs WHERE job <> 'one'";
    assert_eq!(pipeline.number(extracted).await, 0);
    assert_eq!(pipeline.etl(&["cancel", "gone"]).await.code, Some(0));
    pipeline.cloud.always(pages, Fault::Pass);
    execute(&pipeline, "DROP TABLE public.fault").await;
    let state = "SELECT count(*) FROM etl.runs WHERE run_id = 'big' AND state = 'completed'";
    wait_until("the run to complete", TIMEOUT, async || {
        pipeline.number(state).await == 1
    })
    .await;
    pipeline.assert_reconciled("big").await;
    let rows = pipeline.number("SELECT count(*) FROM public.big").await;
    assert_eq!(rows, i64::try_from(SLOW_ROWS).unwrap());
    wait_until("etl.parked to be empty", TIMEOUT, async || {
        pipeline.vhost.ready("etl.parked").await == 0
    })
    .await;
    let nothing = "SELECT (SELECT count(*) FROM etl.dead_letters) + (SELECT count(*) FROM etl.parked WHERE first_row = -2)";
    assert_eq!(pipeline.number(nothing).await, 0);
}
