//! What the services tell of themselves: the documented metrics and no others, and one trace from the
//! request for a run to the commit of its batches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use common::telemetry::{Kind, METRICS};
use serde_json::Value;
use testkit::PATIENCE;
use testkit::cloud::{Column, ResultSet, sample};
use testkit::line::Line;
use testkit::wait_until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The services in the order in which a line starts them.
const SERVICES: [&str; 3] = ["loader", "transformer", "extractor"];

const JOB: &str = r#"
[target]
table = "clicks"

[[columns]]
source = "country"
type = "char(2)"
"#;

/// The metrics of a page and their types, each of which has to be explained.
fn exported(page: &str) -> BTreeMap<String, String> {
    let types = page.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let help = format!("# HELP {name} ");
        assert!(page.contains(&help), "{name} is not described");
        Some((name.to_owned(), kind.to_owned()))
    });
    types.collect()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn every_service_exports_the_documented_metrics_and_no_others() {
    let line = Line::start().await;
    let rows: &[&[Option<&str>]] = &[&[Some("DE")], &[Some("France")]];
    let result = ResultSet::table(&[("country", "varchar")], rows);
    line.job("clicks", JOB, result);
    line.run("clicks", "a-run-of-its-own").await;
    for (service, name) in line.services.iter().zip(SERVICES) {
        let documented: BTreeMap<_, _> = METRICS
            .iter()
            .filter(|metric| metric.services.contains(&name))
            .map(|metric| {
                let kind = match metric.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram(_) => "histogram",
                };
                (metric.name.to_owned(), kind.to_owned())
            })
            .collect();
        let mut page = String::new();
        // Except the loader's confirms: it publishes only what it gives up.
        let lacks = |page: &str| -> Vec<String> {
            let seen = exported(page);
            let all = documented.keys().filter(|name| !seen.contains_key(*name));
            all.filter(|metric| !(name == "loader" && *metric == "etl_confirm_seconds"))
                .cloned()
                .collect()
        };
        wait_until(
            &format!("all metrics of the {name}"),
            PATIENCE,
            async || {
                (_, page) = service.get("/metrics").await.unwrap();
                lacks(&page).is_empty()
            },
        )
        .await;
        for (metric, kind) in exported(&page) {
            assert_eq!(
                documented.get(&metric),
                Some(&kind),
                "{metric} of the {name}"
            );
        }
        assert!(!page.contains("a-run-of-its-own"), "a run is a label");
        assert!(
            page.contains(&format!("etl_ready{{service=\"{name}\"}} 1")),
            "{page}"
        );
    }
    let [loader, transformer, extractor] = &line.services[..] else {
        panic!()
    };
    for (service, metric, wanted) in [
        (extractor, "etl_rows_extracted_total", 2.0),
        (extractor, "etl_bytes_extracted_total", 8.0),
        (transformer, "etl_rows_transformed_total", 2.0),
        (transformer, "etl_rows_rejected_total", 1.0),
        (loader, "etl_rows_loaded_total", 1.0),
        (loader, "etl_rows_rejected_total", 1.0),
        (loader, "etl_runs_total", 1.0),
        (loader, "etl_load_seconds_count", 1.0),
    ] {
        assert_eq!(service.metric(metric).await, Some(wanted), "{metric}");
    }
    let commit = loader.metric("etl_last_commit_timestamp_seconds").await;
    assert!(commit > Some(1.0e9), "{commit:?}");
}

/// A collector of traces that takes everything: each request's path and body.
struct Collector {
    endpoint: String,
    taken: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let taken = Arc::<Mutex<Vec<_>>>::default();
        let taking = Arc::clone(&taken);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let request = take(stream).await;
                taking.lock().unwrap().push(request);
            }
        });
        Self { endpoint, taken }
    }

    /// Every span so far, with the service that it is of.
    fn spans(&self) -> Vec<(String, Value)> {
        let mut spans = Vec::new();
        for (path, body) in self.taken.lock().unwrap().iter() {
            assert_eq!(path, "/v1/traces");
            for resource in body["resourceSpans"].as_array().unwrap() {
                let name = &resource["resource"]["attributes"][0];
                assert_eq!(name["key"], "service.name");
                let name = name["value"]["stringValue"].as_str().unwrap();
                let of_scope = &resource["scopeSpans"][0]["spans"];
                let of_scope = of_scope.as_array().unwrap().iter();
                spans.extend(of_scope.map(|span| (name.to_owned(), span.clone())));
            }
        }
        spans
    }
}

async fn take(mut stream: TcpStream) -> (String, Value) {
    let mut bytes = Vec::new();
    let head = loop {
        stream.read_buf(&mut bytes).await.unwrap();
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec())
        .unwrap()
        .to_lowercase();
    assert!(text.contains("content-type: application/json"), "{text}");
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.unwrap().parse().unwrap();
    while bytes.len() < head + 4 + length {
        stream.read_buf(&mut bytes).await.unwrap();
    }
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    stream.write_all(answer.as_bytes()).await.unwrap();
    let path = text.split(' ').nth(1).unwrap().to_owned();
    (path, serde_json::from_slice(&bytes[head + 4..]).unwrap())
}

#[tokio::test]
async fn one_trace_leads_from_the_request_to_each_commit() {
    let collector = Collector::start().await;
    let mut line = Line::without_services().await;
    let with_traces = |service: testkit::process::Service| {
        service.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
    };
    for name in SERVICES {
        let service = with_traces(line.service(name)).start().await;
        line.services.push(service);
    }
    line.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(12_000),
    );
    let etl = with_traces(line.service("etl"));
    let arguments = ["run", "clicks", "--run-id", "traced", "--follow"];
    let etl = arguments.iter().fold(etl, |it, one| it.arg(one));
    let done = etl.run().await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let batches = line.number("SELECT count(*) FROM etl.batches").await;
    let batches = usize::try_from(batches).unwrap();
    assert!(batches > 1, "{batches}");
    let of = |name: &str| -> Vec<(String, Value)> {
        let spans = collector.spans().into_iter();
        spans.filter(|(_, span)| span["name"] == name).collect()
    };
    wait_until("the spans of every stage", PATIENCE, async || {
        of("run").len() == 1
            && of("query").len() == 1
            && ["publish", "transform", "load"]
                .iter()
                .all(|name| of(name).len() == batches)
    })
    .await;
    let run = of("run")[0].1.clone();
    assert_eq!(run["parentSpanId"], "");
    for (name, service, above) in [
        ("run", "etl", None),
        ("query", "extractor", Some("run")),
        ("publish", "extractor", Some("run")),
        ("transform", "transformer", Some("publish")),
        ("load", "loader", Some("transform")),
    ] {
        for (by, span) in of(name) {
            assert_eq!(
                (by.as_str(), &span["traceId"]),
                (service, &run["traceId"]),
                "{name}"
            );
            let nanos = |key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
            assert!(nanos("startTimeUnixNano") <= nanos("endTimeUnixNano"));
            let Some(above) = above else { continue };
            let above = of(above)
                .into_iter()
                .map(|(_, span)| span["spanId"].clone());
            let mut ids: Vec<_> = above.collect();
            ids.retain(|id| *id == span["parentSpanId"]);
            assert_eq!(ids.len(), 1, "{name} hangs in the air");
        }
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_but_spans_and_a_wrong_one_is_refused() {
    let line = Line::without_services().await;
    let away = "http://127.0.0.1:1";
    let mut services = Vec::new();
    for name in SERVICES {
        let service = line.service(name).env("OTEL_EXPORTER_OTLP_ENDPOINT", away);
        services.push(service.start().await);
    }
    let result = ResultSet::generated(vec![Column::new("n", "bigint")], 5, |n| {
        vec![Some(n.to_string())]
    });
    line.job("numbers", "[target]\ntable = \"numbers\"\n", result);
    line.run("numbers", "r").await;
    line.assert_reconciled("r").await;
    wait_until("the loss to be told once", PATIENCE, async || {
        services[0].log().matches("traces are not exported").count() == 1
    })
    .await;
    let wrong = line.service("loader");
    let wrong = wrong.env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318");
    let wrong = wrong.run().await;
    assert_eq!(wrong.code, Some(1));
    assert!(
        wrong.stderr.contains("only http:// is spoken here"),
        "{}",
        wrong.stderr
    );
}
