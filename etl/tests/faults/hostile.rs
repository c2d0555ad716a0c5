//! Hostile input through the whole line: names, values, result files, messages and requests that break programs which
//! trust them. Each ends loaded as it is, rejected row by row, or refused with a sentence; no service dies of it, and what
//! comes next works.

mod messages;
mod names;
mod requests;
mod results;
mod values;

use testkit::cloud::sample;
use testkit::pipeline::Pipeline;

/// A job without anything special; the query's columns are the table's.
fn plain(table: &str) -> String {
    format!("[target]\ntable = \"{table}\"\n")
}

/// The same, with the way on which the result is read.
fn through(way: &str, name: &str) -> String {
    let source = format!("[source]\ndatabase = \"d\"\nsql = \"{name}.sql\"\nresults = \"{way}\"\n");
    source + &plain(name)
}

/// Asks for a run that has to fail, is not complete by any account, and says why: the reason.
async fn failure(pipeline: &Pipeline, job: &str, run: &str) -> String {
    let arguments = ["run", job, "--run-id", run, "--follow", "--json"];
    let done = pipeline.etl(&arguments).await;
    assert_eq!(done.code, Some(1), "{}\n{}", done.stdout, done.stderr);
    let books: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(books["state"], "failed", "{books}");
    assert_eq!(books["balanced"], false, "{books}");
    assert_eq!(pipeline.etl(&["reconcile", run]).await.code, Some(1));
    books["failure"].as_str().unwrap().to_owned()
}

/// All services are the processes that they were, ready, and do a plain job; nothing is dead-lettered.
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
