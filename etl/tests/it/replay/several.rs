//! Replays of all runs of a job that were requested in a time range.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;
use testkit::{TIMEOUT, wait_until};

use super::{refuses, succeeds};

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn runs_of_a_job_in_a_time_range_are_replayed_and_others_are_not() {
    let mut pipeline = Pipeline::archiving().await;
    let strict = "[target]\ntable = \"clicks\"\n[[columns]]\nsource = \"country\"\nrules = [{ required = true }]\n";
    pipeline.job("clicks", strict, sample::clicks(5_000));
    pipeline.job(
        "others",
        "[target]\ntable = \"others\"\n",
        sample::clicks(10),
    );
    for (job, run) in [
        ("clicks", "one"),
        ("clicks", "two"),
        ("others", "other"),
        ("clicks", "three"),
        ("clicks", "four"),
    ] {
        let again = ["run", job, "--run-id", run, "--again", "--follow"];
        let asked = pipeline.etl(&again).await;
        if asked.code == Some(2) {
            pipeline.run(job, run).await;
        }
    }
    for (run, day) in [
        ("one", 1),
        ("two", 2),
        ("other", 2),
        ("three", 3),
        ("four", 4),
    ] {
        let moved = format!(
            "UPDATE etl.runs SET requested_at = '2018-04-0{day} 00:00Z' WHERE run_id = '{run}'"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(moved))
            .execute(&pipeline.database.pool)
            .await
            .unwrap();
    }
    sqlx::raw_sql("UPDATE etl.runs SET state = 'cancelled' WHERE run_id = 'three'")
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let rejected =
        "SELECT coalesce(sum(rows_rejected), 0)::bigint FROM etl.run_balance WHERE run_id = ";
    assert!(pipeline.number(&format!("{rejected}'two'")).await > 0);

    pipeline.write_job("clicks", "[target]\ntable = \"clicks\"\n");
    let job = ["replay", "--job", "clicks"];
    let ask = |rest: &[&'static str]| [&job[..], rest, &["--yes"]].concat();
    refuses(&pipeline, &job, 2, &["replay two (", "add --yes"]).await;
    refuses(
        &pipeline,
        &ask(&["--since", "yesterday"]),
        2,
        &["2018-04-02"],
    )
    .await;
    refuses(
        &pipeline,
        &ask(&["--since", "2018-04-02", "--until", "2018-04-02"]),
        2,
        &["--until"],
    )
    .await;
    refuses(
        &pipeline,
        &ask(&["--since", "2018-04-02", "--rows", "1"]),
        2,
        &["--rows"],
    )
    .await;
    let none = succeeds(&pipeline, &ask(&["--since", "2019-01-01"])).await;
    assert!(
        none.stdout.contains("there is no such run"),
        "{}",
        none.stdout
    );

    let sent = succeeds(
        &pipeline,
        &ask(&["--since", "2018-04-02", "--until", "2018-04-04", "--follow"]),
    )
    .await;
    assert!(
        sent.stdout.contains("batches of two sent again"),
        "{}",
        sent.stdout
    );
    // Since the request of the replay, not of the run.
    let seconds = sent.stdout.split_once("run two completed in ");
    let seconds = seconds.and_then(|(_, rest)| rest.split_once(" s\n")?.0.parse::<f64>().ok());
    assert!(
        seconds.is_some_and(|seconds| seconds < 600.0),
        "{}",
        sent.stdout
    );
    assert!(
        sent.stderr.contains("three is cancelled and is left out"),
        "{}",
        sent.stderr
    );
    let generations = pipeline.table("run_id, generation", "etl.runs").await;
    assert_eq!(
        generations,
        ["(four,0)", "(one,0)", "(other,0)", "(three,0)", "(two,1)"]
    );
    assert_eq!(pipeline.number(&format!("{rejected}'two'")).await, 0);
    pipeline.assert_reconciled("two").await;
    assert_eq!(
        pipeline.number("SELECT count(*) FROM clicks JOIN etl.runs ON run_no = etl.run_no(_batch) WHERE run_id = 'two'").await,
        5_000
    );

    // One run cannot be replayed, so none is. The loader is stopped: its next sweep would complete the run.
    pipeline.services.clear();
    sqlx::raw_sql(
        "UPDATE etl.runs SET state = 'running', finished_at = NULL WHERE run_id = 'four'",
    )
    .execute(&pipeline.database.pool)
    .await
    .unwrap();
    refuses(
        &pipeline,
        &ask(&["--since", "2018-04-01"]),
        1,
        &["the run four is running"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_says_what_it_leaves_out() {
    let pipeline = Pipeline::archiving().await;
    let job = "[target]\ntable = \"clicks\"\n";
    pipeline.job("clicks", job, sample::clicks(100));
    pipeline.run("clicks", "one").await;
    pipeline.run("clicks", "two").await;
    let failed = "UPDATE etl.runs SET state = 'failed', failure = 'x', batches_expected = NULL, rows_expected = NULL, extracted_at = NULL WHERE run_id = 'two'";
    sqlx::raw_sql(failed)
        .execute(&pipeline.database.pool)
        .await
        .unwrap();
    let all = ["replay", "--job", "clicks", "--yes", "--since"];
    let done = pipeline
        .etl(&[&all[..], &["2018-01-01", "--follow"]].concat())
        .await;
    assert!(
        done.stderr.contains("two is failed and is left out"),
        "{}",
        done.stderr
    );
    assert_eq!(done.code, Some(1), "{}", done.stderr);

    let none = ["2018-01-01", "--until", "2018-01-02", "--json"];
    let done = pipeline.etl(&[&all[..], &none].concat()).await;
    assert_eq!((done.code, &*done.stdout), (Some(0), ""));
    assert!(
        done.stderr.contains("there is no such run"),
        "{}",
        done.stderr
    );

    let mut headers = lapin::types::FieldTable::default();
    let run = lapin::types::AMQPValue::LongString("one".into());
    headers.insert("run".into(), run);
    let properties = lapin::BasicProperties::default().with_headers(headers);
    pipeline
        .vhost
        .publish_with("etl.dead", b"x", properties)
        .await;
    let open = "SELECT count(*) FROM etl.dead_letters WHERE run_id = 'one'";
    wait_until("the dead letter", TIMEOUT, async || {
        pipeline.number(open).await == 1
    })
    .await;
    let done = succeeds(&pipeline, &["replay", "one"]).await;
    assert!(
        done.stderr.contains("one has 1 dead letter"),
        "{}",
        done.stderr
    );
}
