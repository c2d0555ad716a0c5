//! Without an archive: runs load as always, and replays read the result in S3 again.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::{TIMEOUT, wait_until};

const JOB: &str = "[target]\ntable = \"clicks\"\n";

async fn without_archive() -> Pipeline {
    let mut pipeline = Pipeline::without_services().await;
    pipeline.archive = Some("off");
    pipeline.started(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_reads_the_result_again_by_itself() {
    let pipeline = without_archive().await;
    let strict =
        format!("{JOB}[[columns]]\nsource = \"country\"\nrules = [{{ required = true }}]\n");
    pipeline.job("clicks", &strict, sample::clicks(20_000));
    let run = pipeline.run("clicks", "daily").await;
    assert!(run["rows_rejected"].as_i64() > Some(0), "{run}");
    assert!(!pipeline.vhost.exists("etl.archive").await);
    pipeline.write_job("clicks", JOB);
    let again = pipeline
        .etl(&["replay", "daily", "--rejected-only", "--follow"])
        .await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    for said in [
        "no batch is archived (ETL_ARCHIVE is off)",
        "in S3 again, all of it; no query is started",
    ] {
        assert!(again.stderr.contains(said), "{}", again.stderr);
    }
    pipeline.assert_reconciled("daily").await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
    assert_eq!(pipeline.cloud.started().len(), 1, "one query");
    // Now no batch has a rejected row.
    let nothing = pipeline.etl(&["replay", "daily", "--rejected-only"]).await;
    assert!(
        nothing.stdout.contains("nothing was sent"),
        "{}",
        nothing.stdout
    );
    let doctor = pipeline.etl(&["doctor"]).await;
    for said in [
        "no batch is archived, since ETL_ARCHIVE is off",
        "get-bucket-lifecycle-configuration --bucket",
    ] {
        assert!(doctor.stdout.contains(said), "{}", doctor.stdout);
    }
    assert!(
        !doctor.stdout.contains("etl.archive does not exist"),
        "{}",
        doctor.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_batches_are_refused_with_the_command_that_reads_them_again() {
    let mut pipeline = without_archive().await;
    pipeline.job("clicks", JOB, sample::clicks(20_000));
    pipeline.services[0].kill9().await;
    let asked = pipeline.etl(&["run", "clicks", "--run-id", "daily"]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    wait_until("every batch to wait for a loader", TIMEOUT, async || {
        pipeline.vhost.ready_with_bulk("etl.valid").await == 9
    })
    .await;
    pipeline.vhost.purge_with_bulk("etl.valid").await;
    pipeline.services[0] = pipeline.service("loader").start().await;
    let known = "SELECT count(*) FROM etl.runs WHERE batches_expected = 9";
    wait_until("the number of batches", TIMEOUT, async || {
        pipeline.number(known).await == 1
    })
    .await;
    let refused = pipeline.etl(&["replay", "daily", "--missing"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    let command = "`etl replay daily --from-athena --force` reads the query's result again";
    assert!(refused.stderr.contains(command), "{}", refused.stderr);
    let forced = ["replay", "daily", "--from-athena", "--force", "--follow"];
    let again = pipeline.etl(&forced).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    pipeline.assert_reconciled("daily").await;
    assert_eq!(pipeline.number("SELECT count(*) FROM clicks").await, 20_000);
}

/// Each program decides for itself, and no combination loses anything.
#[tokio::test(flavor = "multi_thread")]
async fn programs_with_different_settings_lose_nothing() {
    // The extractor archives, and the command does not read it.
    let mut pipeline = Pipeline::archiving().await;
    pipeline.job("clicks", JOB, sample::clicks(20_000));
    pipeline.run("clicks", "first").await;
    pipeline.archive = Some("off");
    let again = pipeline.etl(&["replay", "first", "--follow"]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stderr.contains("in S3 again"), "{}", again.stderr);
    // The extractor does not, and the command looks for the batches.
    pipeline.services[2] = pipeline.service("extractor").start().await;
    pipeline.run("clicks", "second").await;
    pipeline.archive = Some("stream");
    let before = pipeline.ledger().await;
    let refused = pipeline.etl(&["replay", "second"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("--from-athena"),
        "{}",
        refused.stderr
    );
    assert_eq!(pipeline.ledger().await, before);
}
