//! Relative dates: resolved once, recorded in the ledger, and the same when the run is requested again.

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

const JOB: &str = "[parameters]\nday = { type = \"date\", default = \"yesterday\" }\n[target]\ntable = \"clicks\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn relative_date_is_that_of_the_first_request() {
    let pipeline = Pipeline::start().await;
    pipeline.job("clicks", JOB, sample::clicks(10));
    let sql = pipeline.jobs.path().join("clicks.sql");
    std::fs::write(sql, "SELECT * FROM clicks WHERE dt = :day").unwrap();
    let request = async |set: &[&str]| {
        let run = ["run", "clicks", "--run-id", "daily", "--follow"];
        pipeline.etl(&[&run[..], set].concat()).await
    };
    let first = request(&["--set", "day=yesterday"]).await;
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    // By the clock of the request, so that midnight may pass meanwhile.
    let recorded = "SELECT count(*) FROM etl.runs
        WHERE parameters->>'day' = ((requested_at AT TIME ZONE 'UTC')::date - 1)::text";
    assert_eq!(pipeline.number(recorded).await, 1);

    // As if it had been requested on another day.
    let moved = "UPDATE etl.runs SET parameters = '{\"day\": \"2018-04-02\"}'";
    let moved = sqlx::query(moved).execute(&pipeline.database.pool);
    moved.await.unwrap();
    for same in [
        &["--set", "day=yesterday"][..],
        &[],
        &["--set", "day=2018-04-02"],
    ] {
        let again = request(same).await;
        assert_eq!(again.code, Some(0), "{same:?}: {}", again.stderr);
        assert!(
            again.stderr.contains("the run daily was requested before"),
            "{same:?}: {}",
            again.stderr
        );
    }
    // What is not relative is another request.
    let other = request(&["--set", "day=2018-04-03"]).await;
    assert_ne!(other.code, Some(0), "{}", other.stdout);
    assert_eq!(pipeline.cloud.started().len(), 1, "one query");

    let wrong = request(&["--set", "day=yesterdya"]).await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.stdout);
    assert!(
        wrong.stderr.contains("start of hour, day"),
        "{}",
        wrong.stderr
    );
}
