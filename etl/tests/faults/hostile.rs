//! Hostile input through the whole pipeline: names, values, result files, messages and requests. Each is loaded
//! unchanged, rejected row by row, or refused with one sentence. No service exits because of it, and the next run
//! works.

mod messages;
mod names;
mod requests;
mod results;
mod strangers;
mod values;

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

/// A job without special settings: the query's columns are the table's.
fn plain(table: &str) -> String {
    format!("[target]\ntable = \"{table}\"\n")
}

/// The same, with the source of the result.
fn through(results: &str, name: &str) -> String {
    let source =
        format!("[source]\ndatabase = \"d\"\nsql = \"{name}.sql\"\nresults = \"{results}\"\n");
    source + &plain(name)
}

/// Requests a run that must fail, checks that it is not complete, and returns the reason.
async fn failure(pipeline: &Pipeline, job: &str, run: &str) -> String {
    let arguments = ["run", job, "--run-id", run, "--follow", "--json"];
    let done = pipeline.etl(&arguments).await;
    assert_eq!(done.code, Some(1), "{}\n{}", done.stdout, done.stderr);
    let status: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(status["state"], "failed", "{status}");
    assert_eq!(status["balanced"], false, "{status}");
    assert_eq!(pipeline.etl(&["reconcile", run]).await.code, Some(1));
    status["failure"].as_str().unwrap().to_owned()
}

/// Checks that all services are still the same processes and ready, load a plain job, and dead-letter nothing.
async fn assert_unharmed(pipeline: &mut Pipeline) {
    assert_works(pipeline).await;
    assert_eq!(
        pipeline
            .number("SELECT count(*) FROM etl.dead_letters")
            .await,
        0
    );
}

async fn assert_works(pipeline: &mut Pipeline) {
    for service in &mut pipeline.services {
        assert!(service.is_running(), "{service:?} has ended");
        service.await_ready().await;
    }
    pipeline.job("afterwards", &plain("afterwards"), sample::clicks(2_000));
    let run = pipeline.run("afterwards", "afterwards").await;
    assert_eq!(run["rows_loaded"], 2_000, "{run}");
    pipeline.assert_reconciled("afterwards").await;
}
