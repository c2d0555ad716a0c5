//! OpenLineage: a server learns of each run what it reads and writes, although it is away at first, and learns no value of a row.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use testkit::TIMEOUT;
use testkit::cloud::{Answer, ResultSet};
use testkit::endpoint::{Asked, Endpoint, Reply};
use testkit::pipeline::Pipeline;
use testkit::wait_until;

/// In a row that is loaded, in one that is rejected, and in an error of Athena.
const MARKER: &str = "a-value-of-a-row";

const JOB: &str = "description = \"Visits\"\n[source]\ndatabase = \"d\"\nsql = \"visits.sql\"\n[target]\ntable = \"visits\"\n[[columns]]\nsource = \"n\"\nname = \"number\"\nrules = [{ max = 1 }]\n";

/// A server that fails at first, and a pipeline whose loader tells it.
async fn pipeline() -> (Endpoint, Pipeline) {
    let refusals = AtomicU32::new(2);
    let is_refused = move || {
        refusals
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    };
    let server =
        Endpoint::start(move |_| Reply::text(if is_refused() { 500 } else { 201 }, MARKER)).await;
    let mut pipeline = Pipeline::without_services().await;
    pipeline.archive = Some("stream");
    for name in ["loader", "transformer", "extractor"] {
        let service = pipeline.service(name).env("OPENLINEAGE_URL", &server.url());
        let service = service
            .env("OPENLINEAGE_API_KEY", "the-key")
            .env("OPENLINEAGE_NAMESPACE", "warehouse");
        pipeline.services.push(service.start().await);
    }
    wait_until(
        "the loader to say that it sends lineage",
        TIMEOUT,
        async || {
            pipeline
                .number("SELECT count(*) FROM etl.loaders WHERE 'OpenLineage' = ANY (channels)")
                .await
                == 1
        },
    )
    .await;
    let row = |n: &str| vec![Some(n.to_owned()), Some(MARKER.to_owned())];
    let columns = ResultSet::table(&[("n", "bigint"), ("name", "varchar")], &[])
        .columns()
        .to_vec();
    pipeline.job(
        "visits",
        JOB,
        ResultSet::new(columns, vec![row("1"), row("2")]),
    );
    (server, pipeline)
}

/// The events that the server has taken.
fn taken(server: &Endpoint) -> Vec<(Asked, Value)> {
    let asked = server.asked().into_iter().skip(2);
    asked
        .map(|asked| {
            let event = serde_json::from_str(&asked.body).unwrap();
            (asked, event)
        })
        .collect()
}

/// Waits until nothing is left to be sent; the types of the events in their order, without repetitions.
async fn types(server: &Endpoint, pipeline: &Pipeline) -> Vec<String> {
    wait_until("the outbox to be empty", TIMEOUT, async || {
        pipeline.number("SELECT count(*) FROM etl.outbox").await == 0
    })
    .await;
    let mut events: Vec<_> = taken(server).into_iter().map(|(_, event)| event).collect();
    events.sort_by_key(|event| {
        (
            event["eventTime"].to_string(),
            event["eventType"] != "START",
        )
    });
    events.dedup();
    events
        .iter()
        .map(|event| event["eventType"].as_str().unwrap().to_owned())
        .collect()
}

/// What the server has taken of a run that was completed.
fn check_complete(server: &Endpoint) {
    for (asked, event) in taken(server) {
        assert_eq!(
            (asked.method.as_str(), asked.path.as_str()),
            ("POST", "/api/v1/lineage")
        );
        assert_eq!(asked.header("authorization"), Some("Bearer the-key"));
        assert_eq!(event["job"]["namespace"], "warehouse");
        assert_eq!(event["job"]["name"], "visits");
        assert_eq!(
            event["job"]["facets"]["documentation"]["description"],
            "Visits"
        );
        assert_eq!(event["inputs"][0]["name"], "AwsDataCatalog.d.visits");
        assert_eq!(
            event["inputs"][0]["namespace"],
            "awsathena://athena.eu-central-1.amazonaws.com"
        );
    }
    let (_, complete) = taken(server)
        .into_iter()
        .find(|(_, event)| event["eventType"] == "COMPLETE")
        .unwrap();
    let output = &complete["outputs"][0];
    assert!(
        output["name"].as_str().unwrap().ends_with(".public.visits"),
        "{output}"
    );
    let names = |index: usize| output["facets"]["schema"]["fields"][index]["name"].as_str();
    assert_eq!((names(0), names(1)), (Some("number"), Some("name")));
    assert_eq!(
        output["facets"]["columnLineage"]["fields"]["number"]["inputFields"][0]["field"],
        "n"
    );
    assert_eq!(output["outputFacets"]["outputStatistics"]["rowCount"], 1);
    assert_eq!(complete["run"]["facets"]["etl_ledger"]["rowsRejected"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_run_begins_and_ends_at_the_server() {
    let (server, pipeline) = pipeline().await;
    pipeline.run("visits", "daily").await;
    assert_eq!(types(&server, &pipeline).await, ["START", "COMPLETE"]);
    check_complete(&server);
    // A replay, a failure, its retry, and a run that is cancelled are runs of their own.
    let replayed = pipeline.etl(&["replay", "daily", "--follow"]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    let error = format!("Cannot cast '{MARKER}' to BIGINT");
    pipeline
        .cloud
        .answer_once("FROM visits", Answer::failed_by_user(&error));
    let again = [
        "run", "visits", "--run-id", "nightly", "--again", "--follow", "--retry",
    ];
    let failed = pipeline.etl(&again).await;
    assert!(
        failed.stdout.contains(MARKER),
        "a person is told: {}",
        failed.stdout
    );
    let retried = pipeline.etl(&again).await;
    assert_eq!(retried.code, Some(0), "{}", retried.stderr);
    pipeline
        .cloud
        .answer_once("FROM visits", Answer::running_for_ever());
    pipeline
        .etl(&["run", "visits", "--run-id", "hourly", "--again"])
        .await;
    wait_until("the query to run", TIMEOUT, async || {
        pipeline
            .number("SELECT count(*) FROM etl.runs WHERE run_id = 'hourly' AND state = 'running'")
            .await
            == 1
    })
    .await;
    let cancelled = pipeline.etl(&["cancel", "hourly"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    let expected = [
        "START", "COMPLETE", "START", "COMPLETE", "START", "FAIL", "START", "COMPLETE", "START",
        "ABORT",
    ];
    assert_eq!(types(&server, &pipeline).await, expected);
    let runs: BTreeSet<_> = taken(&server)
        .iter()
        .map(|(_, event)| event["run"]["runId"].to_string())
        .collect();
    assert_eq!(runs.len(), 5, "{runs:?}");
    for (asked, _) in taken(&server) {
        assert!(!asked.body.contains(MARKER), "{}", asked.body);
    }
    let log = pipeline.services[0].log();
    assert!(log.contains("cannot send a notification"), "{log}");
    assert!(!log.contains("the-key") && !log.contains(MARKER), "{log}");
    assert_eq!(pipeline.number("SELECT count(*) FROM visits").await, 2);
}
