//! Telemetry of the services: exactly the documented metrics, and one trace from the request of a run to the commits of
//! its batches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use common::telemetry::{Kind, METRICS};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use testkit::TIMEOUT;
use testkit::cloud::{Column, ResultSet, sample};
use testkit::pipeline::Pipeline;
use testkit::wait_until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The services in the order in which a pipeline starts them.
const SERVICES: [&str; 3] = ["loader", "transformer", "extractor"];

const JOB: &str = r#"
[target]
table = "clicks"

[[columns]]
source = "country"
type = "char(2)"
"#;

/// The metrics of a page and their types. Each metric must have a description.
fn exposed(page: &str) -> BTreeMap<String, String> {
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
    let mut pipeline = Pipeline::without_services().await;
    for name in SERVICES {
        let service = pipeline.service(name);
        let service = service.env("ETL_NOTIFY_ONCALL_COMMAND", "cat");
        pipeline.services.push(service.start().await);
    }
    let rows: &[&[Option<&str>]] = &[&[Some("DE")], &[Some("France")]];
    let result = ResultSet::table(&[("country", "varchar")], rows);
    pipeline.job("clicks", JOB, result);
    pipeline.run("clicks", "a-run-of-its-own").await;
    for (service, name) in pipeline.services.iter().zip(SERVICES) {
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
        // Except the loader's confirms: it publishes only dead letters.
        let lacks = |page: &str| -> Vec<String> {
            let seen = exposed(page);
            let all = documented.keys().filter(|name| !seen.contains_key(*name));
            all.filter(|metric| !(name == "loader" && *metric == "etl_confirm_seconds"))
                .cloned()
                .collect()
        };
        wait_until(&format!("all metrics of the {name}"), TIMEOUT, async || {
            (_, page) = service.get("/metrics").await.unwrap();
            lacks(&page).is_empty()
        })
        .await;
        for (metric, kind) in exposed(&page) {
            assert_eq!(
                documented.get(&metric),
                Some(&kind),
                "{metric} of the {name}"
            );
        }
        assert!(
            !page.contains("a-run-of-its-own"),
            "a metric has the label run"
        );
        assert!(
            page.contains(&format!("etl_ready{{service=\"{name}\"}} 1")),
            "{page}"
        );
    }
    let [loader, transformer, extractor] = &pipeline.services[..] else {
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

/// A span as received by the collector, with its service.
#[derive(Debug, Clone)]
struct Exported {
    service: String,
    span: Span,
}

/// A collector of traces that accepts everything.
struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Exported>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let spans = Arc::<Mutex<Vec<_>>>::default();
        let taking = Arc::clone(&spans);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let request = take(stream).await;
                taking.lock().unwrap().extend(exported(request));
            }
        });
        Self { endpoint, spans }
    }

    /// The spans with this name so far.
    fn named(&self, name: &str) -> Vec<Exported> {
        let spans = self.spans.lock().unwrap();
        let named = spans.iter().filter(|exported| exported.span.name == name);
        named.cloned().collect()
    }
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn exported(request: ExportTraceServiceRequest) -> Vec<Exported> {
    let mut exported = Vec::new();
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap().attributes;
        let service = attributes.iter().find(|one| one.key == "service.name");
        let service = text(service.unwrap().value.as_ref());
        let spans = resource.scope_spans.into_iter().flat_map(|of| of.spans);
        exported.extend(spans.map(|span| Exported {
            service: service.clone(),
            span,
        }));
    }
    exported
}

async fn take(mut stream: TcpStream) -> ExportTraceServiceRequest {
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
    for part in [
        "post /v1/traces http/1.1",
        "content-type: application/x-protobuf",
        "x-tenant: clicks",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.unwrap().parse().unwrap();
    while bytes.len() < head + 4 + length {
        stream.read_buf(&mut bytes).await.unwrap();
    }
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(answer.as_bytes()).await.unwrap();
    ExportTraceServiceRequest::decode(&bytes[head + 4..]).unwrap()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story from end to end")]
async fn one_trace_leads_from_the_request_to_each_commit() {
    let collector = Collector::start().await;
    let mut pipeline = Pipeline::without_services().await;
    let with_traces = |service: testkit::process::Service| {
        service
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
            .env("OTEL_EXPORTER_OTLP_HEADERS", "X-Tenant=clicks")
    };
    for name in SERVICES {
        let service = with_traces(pipeline.service(name)).start().await;
        pipeline.services.push(service);
    }
    pipeline.job(
        "clicks",
        "[target]\ntable = \"clicks\"\n",
        sample::clicks(12_000),
    );
    let etl = with_traces(pipeline.service("etl"));
    let arguments = ["run", "clicks", "--run-id", "traced", "--follow"];
    let etl = arguments.iter().fold(etl, |it, one| it.arg(one));
    let done = etl.run().await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let batches = pipeline.number("SELECT count(*) FROM etl.batches").await;
    let batches = usize::try_from(batches).unwrap();
    assert!(batches > 1, "{batches}");
    let of = |name: &str| collector.named(name);
    wait_until("the spans of every stage", TIMEOUT, async || {
        of("run").len() == 1
            && of("query").len() == 1
            && ["publish", "transform", "load"]
                .iter()
                .all(|name| of(name).len() == batches)
    })
    .await;
    let run = of("run")[0].span.clone();
    assert_eq!(run.parent_span_id, [0_u8; 0]);
    let keys = "delivery.count, batch.first_row, batch.result, run.id";
    for (name, service, above, keys) in [
        ("run", "etl", None, "run.id"),
        (
            "query",
            "extractor",
            Some("run"),
            "run.id, query.id, query.bytes_scanned",
        ),
        (
            "publish",
            "extractor",
            Some("run"),
            "run.id, batch.first_row, batch.rows",
        ),
        (
            "transform",
            "transformer",
            Some("publish"),
            "run.id, batch.first_row",
        ),
        ("load", "loader", Some("transform"), keys),
    ] {
        let above: Vec<_> = above.into_iter().flat_map(of).collect();
        for Exported { service: by, span } in of(name) {
            assert_eq!((by.as_str(), &span.trace_id), (service, &run.trace_id));
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
            let mut found: Vec<_> = span.attributes.iter().map(|one| one.key.as_str()).collect();
            let mut keys: Vec<_> = keys.split(", ").collect();
            found.sort_unstable();
            keys.sort_unstable();
            assert_eq!(found, keys, "{name}");
            let id = span.attributes.iter().find(|one| one.key == "run.id");
            assert_eq!(text(id.unwrap().value.as_ref()), "traced");
            if name == "run" {
                continue;
            }
            let parents = above
                .iter()
                .filter(|above| above.span.span_id == span.parent_span_id);
            assert_eq!(parents.count(), 1, "{name} has no parent");
        }
    }
}

#[tokio::test]
async fn absent_collector_costs_only_spans_and_unusable_endpoint_is_refused() {
    let pipeline = Pipeline::without_services().await;
    let away = "http://127.0.0.1:1";
    let mut services = Vec::new();
    for name in SERVICES {
        let service = pipeline
            .service(name)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", away);
        services.push(service.start().await);
    }
    let result = ResultSet::generated(vec![Column::new("n", "bigint")], 5, |n| {
        vec![Some(n.to_string())]
    });
    pipeline.job("numbers", "[target]\ntable = \"numbers\"\n", result);
    pipeline.run("numbers", "r").await;
    pipeline.assert_reconciled("r").await;
    wait_until("one warning about the collector", TIMEOUT, async || {
        services[0].log().matches("traces are not exported").count() == 1
    })
    .await;
    let token = "https://collector:4318/hunter#2";
    for wrong in ["collector:4318", "ftp://etl:hunter2@collector:4318", token] {
        let loader = pipeline.service("loader");
        let loader = loader.env("OTEL_EXPORTER_OTLP_ENDPOINT", wrong);
        let loader = loader.run().await;
        assert_eq!(loader.code, Some(1));
        for part in ["cannot export traces", "https://collector:4318"] {
            assert!(loader.stderr.contains(part), "{}", loader.stderr);
        }
        assert!(!loader.stderr.contains("hunter"), "{}", loader.stderr);
    }
}
