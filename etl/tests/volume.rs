//! Much data for one target: which takes none of it for a while, and which is loaded while other jobs run.
#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use testkit::cloud::{Column, ResultSet, sample};
use testkit::pipeline::Pipeline;
use testkit::process::{Process, Service};
use testkit::{TIMEOUT, wait_until};

/// The other jobs.
const JOBS: [&str; 3] = ["one", "two", "three"];

/// How much later these are loaded at most; and how long they take beside a backfill.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Three GiB, in rows of 8 KiB.
const MUCH: u64 = 3 << 30;
const WIDE: u64 = 8 << 10;

/// Characters that look like chance, cut from such a supply: what waits is counted as it is in the queue, compressed.
fn wide(supply: &str, n: u64) -> String {
    let wide = usize::try_from(WIDE).unwrap();
    let begin = usize::try_from(n).unwrap().wrapping_mul(1_000_003) % (supply.len() - wide);
    supply[begin..begin + wide].to_owned()
}

fn supply() -> String {
    let mut random = StdRng::seed_from_u64(1);
    let characters = (0..8 << 20).map(|_| char::from(random.random_range(b'0'..=b'z')));
    characters.collect()
}

/// What may wait at most, of what is extracted until the extractor learns of the pause.
const MAX_PARKED: i64 = 512 << 20;

/// A service or a command with the settings that people have.
fn with_defaults(pipeline: &Pipeline, name: &str) -> Service {
    let service = pipeline.service(name);
    service.without("ETL_BATCH_ROWS").without("ETL_BATCH_BYTES")
}

/// A pipeline whose other jobs have run once, and its services: loader, transformer, extractor.
async fn start() -> (Pipeline, Vec<Process>) {
    let pipeline = Pipeline::without_services().await;
    let mut services = Vec::new();
    for name in ["loader", "transformer", "extractor"] {
        services.push(with_defaults(&pipeline, name).start().await);
    }
    for job in JOBS {
        let toml = format!("[target]\ntable = \"{job}\"\n");
        pipeline.job(job, &toml, sample::clicks(2_000));
    }
    pipeline.run_all(&JOBS, "first", 2_000).await;
    (pipeline, services)
}

/// So many bytes in wide rows.
fn much(bytes: u64) -> ResultSet {
    let columns = vec![Column::new("n", "bigint"), Column::new("wide", "varchar")];
    let supply = supply();
    ResultSet::generated(columns, bytes / WIDE, move |n| {
        vec![Some(n.to_string()), Some(wide(&supply, n))]
    })
}

/// Some minutes, and as much space on disk three times: in the archive, in the target and in its log.
#[tokio::test(flavor = "multi_thread")]
async fn three_gib_for_a_locked_target_harm_no_other() {
    let (pipeline, services) = start().await;
    let undisturbed = pipeline.run_all(&JOBS, "before", 2_000).await;
    pipeline.job("much", "[target]\ntable = \"much\"\n", much(MUCH));
    let create = "CREATE TABLE public.much (n bigint, wide text, _batch bigint)";
    let pool = &pipeline.database.pool;
    sqlx::query(create).execute(pool).await.unwrap();
    let mut holder = pool.begin().await.unwrap();
    let lock = "LOCK TABLE public.much IN SHARE MODE";
    sqlx::query(lock).execute(&mut *holder).await.unwrap();
    let asked = with_defaults(&pipeline, "etl").arg("run").arg("much");
    let asked = asked.arg("--run-id").arg("much").run().await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let extractor = &services[2];
    wait_until("the extraction to be paused", TIMEOUT, async || {
        extractor
            .log()
            .contains("extraction paused: too much waits")
    })
    .await;
    for round in ["meanwhile", "later"] {
        let disturbed = pipeline.run_all(&JOBS, round, 2_000).await;
        assert!(
            disturbed < undisturbed + MAX_DELAY,
            "the other jobs took {disturbed:?}, and {undisturbed:?} before"
        );
    }
    let status = pipeline.etl(&["status", "much", "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    let waits = status["parked"][0]["bytes"].as_i64();
    assert!(waits.is_some_and(|bytes| bytes < MAX_PARKED), "{status}");
    holder.rollback().await.unwrap();
    let state = "SELECT count(*) FROM etl.runs WHERE run_id = 'much' AND state = 'completed'";
    wait_until("the run to complete", 3 * TIMEOUT, async || {
        pipeline.number(state).await == 1
    })
    .await;
    let rows = "SELECT count(DISTINCT n) FROM public.much HAVING count(*) = count(DISTINCT n)";
    let rows = pipeline.number(rows).await;
    assert_eq!(rows, i64::try_from(MUCH / WIDE).unwrap());
    pipeline.assert_reconciled("much").await;
}

/// The windows of a backfill, and the bytes of each: 10 GiB.
const WINDOWS: i64 = 4;
const OF_WINDOW: u64 = 10 << 28;

/// Some minutes, and up to 40 GiB of space on disk.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_beside_a_backfill_of_ten_gib_take_seconds() {
    let (pipeline, _services) = start().await;
    let toml = "[parameters]\nday = { type = \"date\" }\n[target]\ntable = \"much\"\n";
    pipeline.job("much", toml, much(OF_WINDOW));
    let sql = pipeline.jobs.path().join("much.sql");
    std::fs::write(sql, "SELECT * FROM much WHERE day = :day").unwrap();
    let arguments =
        "backfill much --from 2018-04-01 --to 2018-04-05 --every 1d --parallel 4 --param-names day";
    let backfill = with_defaults(&pipeline, "etl");
    let backfill = arguments.split(' ').fold(backfill, Service::arg);
    let mut backfill = backfill.spawn();
    let batches =
        "SELECT count(*) FROM etl.batches JOIN etl.runs USING (run_id) WHERE job = 'much'";
    wait_until("much to be on its way", TIMEOUT, async || {
        pipeline.number(batches).await > 200
    })
    .await;
    let done = "SELECT count(*) FROM etl.runs WHERE job = 'much' AND state = 'completed'";
    let mut took = Vec::new();
    loop {
        let round = format!("round{}", took.len());
        let taken = pipeline.run_all(&JOBS, &round, 2_000).await;
        if pipeline.number(done).await == WINDOWS {
            break;
        }
        took.push(taken);
    }
    let slowest = took.iter().max();
    println!(
        "{} rounds beside the backfill, the slowest took {slowest:?}: {took:?}",
        took.len()
    );
    assert!(took.len() >= 5, "{took:?}");
    assert!(slowest < Some(&MAX_DELAY), "{took:?}");
    let status = backfill.wait(TIMEOUT).await;
    assert_eq!(status.code(), Some(0), "{}", backfill.log());
    let rows = "SELECT count(*) FROM public.much";
    let all = i64::try_from(OF_WINDOW / WIDE).unwrap() * WINDOWS;
    assert_eq!(pipeline.number(rows).await, all);
    let reconciled = pipeline.etl(&["reconcile"]).await;
    assert_eq!(reconciled.code, Some(0), "{}", reconciled.stdout);
}
