//! Traces: one from the request for a run to the commit of its last batch.
//!
//! A traced span is a tracing span with the target [`TARGET`]. [`join`] places it below the span that
//! its message came from, and gives the `traceparent` (W3C Trace Context) of the messages that follow
//! from it. Finished spans go to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names, by OTLP over
//! HTTP with protobuf.
//!
//! Without an endpoint nothing is exported, and a `traceparent` that came with a message travels on.
//! A collector that is away or slow costs spans and nothing else.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use anyhow::{anyhow, ensure};
pub use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span as _, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, global};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::collector::Collector;
use crate::secret::SecretUrl;
use crate::settings::variable;

/// The target of spans that are exported. Other spans serve the log alone.
pub const TARGET: &str = "etl::trace";

/// The scope of the spans.
const SCOPE: &str = "etl";

/// The header that carries a trace's context.
const TRACEPARENT: &str = "traceparent";

/// The form of an endpoint, for errors.
const EXAMPLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT looks like http://collector:4318 or https://collector:4318, and OTEL_EXPORTER_OTLP_HEADERS like name=value";

/// How long the end of a process waits for the collector to take the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Places a span that has not been entered below the span that `parent` names, or begins a trace.
/// Returns the `traceparent` of the messages that the span's work leads to.
pub fn join(span: &Span, parent: Option<&str>) -> Option<String> {
    let parent = context(parent);
    let own = match span.set_parent(parent.clone()) {
        Ok(()) => span.context(),
        // Nothing is exported.
        Err(_) => Context::new(),
    };
    if own.span().span_context().is_valid() {
        traceparent(&own)
    } else {
        traceparent(&parent)
    }
}

/// Exports a span that ends now and began at `since`, possibly in another process: a tracing span
/// cannot begin in the past.
pub fn record(
    name: &'static str,
    parent: Option<&str>,
    since: SystemTime,
    attributes: impl IntoIterator<Item = KeyValue>,
) {
    let tracer = global::tracer(SCOPE);
    let builder = tracer
        .span_builder(name)
        .with_start_time(since)
        .with_attributes(attributes);
    tracer.build_with_context(builder, &context(parent)).end();
}

fn context(traceparent: Option<&str>) -> Context {
    let carrier = traceparent.map(|text| (TRACEPARENT.to_owned(), text.to_owned()));
    let carrier: HashMap<_, _> = carrier.into_iter().collect();
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

fn traceparent(context: &Context) -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(context, &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// The exporter of a process; none without an endpoint.
#[derive(Debug, Default)]
pub struct Exporter(Option<SdkTracerProvider>);

impl Exporter {
    /// Reads the standard variables `OTEL_EXPORTER_OTLP_*`. Must be called inside a Tokio runtime.
    pub(super) fn from_env(service: &'static str) -> anyhow::Result<Self> {
        let endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let Some(endpoint) = endpoint else {
            return Ok(Self::default());
        };
        // No error of a library: it may quote the endpoint, whose user or path may be a secret.
        let url: SecretUrl = endpoint
            .parse()
            .map_err(|error| anyhow!("cannot export traces: {error}; {EXAMPLE}"))?;
        let cannot = |why: &str| anyhow!("cannot export traces to {}: {why}", url.origin());
        let is_http = matches!(url.expose().scheme(), "http" | "https");
        ensure!(is_http, cannot(EXAMPLE));
        let collector = Collector::new(&url)
            .map_err(|_| cannot("the certificates of this machine cannot be used for TLS"))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .build()
            .map_err(|_| cannot(EXAMPLE))?;
        let resource = Resource::builder().with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.namespace", "etl"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Self(Some(provider)))
    }

    /// What makes traced spans spans of OpenTelemetry, with the same attributes and no others.
    pub(super) fn layer<S>(&self) -> Option<impl Layer<S> + Send + Sync + use<S>>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let provider = self.0.as_ref()?;
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(SCOPE))
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        Some(layer.with_filter(filter_fn(|metadata| {
            metadata.is_span() && metadata.target() == TARGET
        })))
    }

    /// Exports the spans that are left, within a bound.
    pub async fn finish(self) {
        let Some(provider) = self.0 else { return };
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if !matches!(flushed.await, Ok(Ok(()))) {
            tracing::debug!("the collector did not take the last spans in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn without_exporter_valid_traceparent_travels_on() {
        let span = tracing::info_span!(target: TARGET, "x");
        assert_eq!(join(&span, Some(PARENT)).as_deref(), Some(PARENT));
        assert_eq!(join(&span, None), None);
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert_eq!(join(&span, Some(bad)), None, "{bad}");
        }
    }

    #[test]
    fn exported_span_continues_the_trace_of_its_message() {
        use tracing_subscriber::layer::SubscriberExt;

        let exporter = Exporter(Some(SdkTracerProvider::builder().build()));
        let subscriber = tracing_subscriber::registry().with(exporter.layer());
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!(target: TARGET, "x");
            let joined = join(&span, Some(PARENT)).unwrap();
            assert_eq!(joined[..36], PARENT[..36]);
            assert_ne!(joined[36..52], PARENT[36..52]);
            let unrecorded = PARENT.replace("-01", "-00");
            let span = tracing::info_span!(target: TARGET, "x");
            assert!(join(&span, Some(&unrecorded)).unwrap().ends_with("-00"));
        });
    }
}
