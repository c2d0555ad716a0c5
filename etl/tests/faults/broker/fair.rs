//! Short runs beside a long one that has filled every queue: neither waits for the other.

use testkit::cloud::{Answer, sample};
use testkit::pipeline::Pipeline;
use testkit::process::Process;
use testkit::{TIMEOUT, wait_until};

use super::{MANY, Run, bound, service};
use crate::postgres::execute;

/// The limit of each queue of batches, in messages.
const LIMIT: u32 = 40;

const SHORT_JOB: &str = "[parameters]\nday = { type = \"date\" }\n[target]\ntable = \"short\"\n";

/// Each batch of the long run takes a while.
const SLOW: &str = "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
    CREATE TRIGGER slow BEFORE INSERT ON public.clicks EXECUTE FUNCTION public.slow();";

async fn refused(service: &Process) -> bool {
    service.metric("etl_publishes_refused_total").await > Some(0.0)
}

/// A pipeline whose queues are full of a long run, with a job of 1,000 rows for another table.
async fn filled(id: &'static str) -> (Pipeline, Run) {
    let mut pipeline = Pipeline::start().await;
    for queue in ["etl.raw", "etl.raw.bulk", "etl.valid", "etl.valid.bulk"] {
        bound(&pipeline, queue, LIMIT).await;
    }
    let run = Run::start(&pipeline, id, MANY);
    run.until_loaded(&pipeline, 1).await;
    execute(&pipeline, SLOW).await;
    pipeline.write_job("short", SHORT_JOB);
    let short = Answer::rows(sample::clicks(1_000));
    pipeline.cloud.answer("FROM short", short);
    for name in ["transformer", "extractor"] {
        let service = service(&mut pipeline, name);
        let what = format!("a full queue to refuse what the {name} publishes");
        wait_until(&what, TIMEOUT, async || refused(service).await).await;
    }
    run.assert_open(&pipeline).await;
    (pipeline, run)
}

/// The batches of the long run in the ledger.
async fn loaded(pipeline: &Pipeline, run: &Run) -> i64 {
    let batches = "SELECT count(*) FROM etl.batches WHERE run_id";
    pipeline.number(&format!("{batches} = '{}'", run.id)).await
}

async fn finish(pipeline: &Pipeline, run: Run) {
    execute(pipeline, "DROP TRIGGER slow ON public.clicks").await;
    run.assert_complete(pipeline).await;
}

/// Two full queues would be loaded before a batch at their end.
#[tokio::test(flavor = "multi_thread")]
async fn short_run_does_not_wait_behind_full_queues() {
    let (pipeline, run) = filled("long").await;
    for day in ["2018-04-01", "2018-04-02", "2018-04-03"] {
        let (before, name) = (loaded(&pipeline, &run).await, format!("short-{day}"));
        let day = format!("day={day}");
        let arguments = ["run", "short", "--run-id", &name, "--set", &day, "--follow"];
        let done = pipeline.etl(&arguments).await;
        assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
        let meanwhile = loaded(&pipeline, &run).await - before;
        assert!(
            meanwhile < LIMIT.into(),
            "{meanwhile} batches of the long run were loaded while the short one waited"
        );
        run.assert_open(&pipeline).await;
        pipeline.assert_reconciled(&name).await;
    }
    finish(&pipeline, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_run_goes_on_beside_many_short_ones() {
    let (pipeline, run) = filled("steady").await;
    let before = loaded(&pipeline, &run).await;
    let arguments = "backfill short --from 2018-01-01 --to 2018-04-01 --every 1d --parallel 30 --param-names day";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let done = pipeline.etl(&arguments).await;
    assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
    let meanwhile = loaded(&pipeline, &run).await - before;
    run.assert_open(&pipeline).await;
    assert!(
        meanwhile >= 4,
        "{meanwhile} batches of the long run were loaded beside 90 short runs"
    );
    finish(&pipeline, run).await;
}
