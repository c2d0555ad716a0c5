//! Traces: one from the request for a run to the commit of its last batch. A span's context travels
//! in the header `traceparent` (W3C Trace Context), and finished spans go to a collector by OTLP over
//! HTTP, as JSON, when `OTEL_EXPORTER_OTLP_ENDPOINT` names one.
//!
//! Without an endpoint no span begins; a context that came with a message travels on. A collector
//! that is away or slow costs spans, and never a row: what does not fit the buffer is dropped.

mod export;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde_json::{Value, json};

pub use export::{Exporter, start};

/// Where finished spans go; nowhere unless an endpoint is set.
static SINK: OnceLock<export::Sink> = OnceLock::new();

/// Which span of which trace: what travels with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    trace: u128,
    span: u64,
    flags: u8,
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct NoContext;

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace, self.span, self.flags
        )
    }
}

impl FromStr for Context {
    type Err = NoContext;

    /// Of any version: those to come begin with the same four fields (Trace Context, section 4.3).
    fn from_str(text: &str) -> Result<Self, NoContext> {
        let mut fields = text.split('-');
        let mut field = |length: usize| {
            let field = fields.next().filter(|field| field.len() == length);
            let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            field
                .filter(|field| field.chars().all(hex))
                .ok_or(NoContext)
        };
        let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        let context = Self {
            trace: u128::from_str_radix(trace, 16).map_err(|_| NoContext)?,
            span: u64::from_str_radix(span, 16).map_err(|_| NoContext)?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| NoContext)?,
        };
        let valid = version != "ff" && context.trace != 0 && context.span != 0;
        valid.then_some(context).ok_or(NoContext)
    }
}

/// A piece of work that is under way; it is told of when it is dropped or [`Span::end`]ed.
#[derive(Debug)]
pub struct Span(Option<Box<Open>>, Option<Context>);

#[derive(Debug)]
struct Open {
    context: Context,
    parent: Option<Context>,
    name: &'static str,
    started: SystemTime,
    attributes: Vec<Value>,
}

impl Span {
    /// Begins a span below `parent`, or a new trace. Costs nothing when nobody collects spans.
    pub fn begin(name: &'static str, parent: Option<Context>) -> Self {
        Self::begin_at(name, parent, None)
    }

    /// As [`Self::begin`], for work that began earlier.
    pub fn begin_at(
        name: &'static str,
        parent: Option<Context>,
        started: Option<SystemTime>,
    ) -> Self {
        // A trace that its root does not record is not recorded further down.
        let unrecorded = parent.is_some_and(|parent| parent.flags & 1 == 0);
        if SINK.get().is_none() || unrecorded {
            return Self(None, parent);
        }
        let context = Context {
            trace: parent.map_or_else(|| rand::random_range(1..u128::MAX), |parent| parent.trace),
            span: rand::random_range(1..u64::MAX),
            flags: 1,
        };
        let open = Open {
            context,
            parent,
            name,
            started: started.unwrap_or_else(SystemTime::now),
            attributes: Vec::new(),
        };
        Self(Some(Box::new(open)), Some(context))
    }

    /// What goes along with a message that this work leads to.
    pub fn context(&self) -> Option<Context> {
        self.1
    }

    /// Adds a text; never a value of a row.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: &str) -> Self {
        if let Some(open) = &mut self.0 {
            let value = json!({ "stringValue": value });
            open.attributes.push(json!({ "key": key, "value": value }));
        }
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn with_number(mut self, key: &'static str, value: u64) -> Self {
        if let Some(open) = &mut self.0 {
            // 64-bit integers are text in the JSON form of OTLP.
            let value = json!({ "intValue": value.to_string() });
            open.attributes.push(json!({ "key": key, "value": value }));
        }
        self
    }

    /// The work is done.
    pub fn end(self) {
        drop(self);
    }

    /// It came to nothing after all: nothing is told.
    pub fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(open), Some(sink)) = (self.0.take(), SINK.get()) {
            sink.take(open.finished(SystemTime::now()));
        }
    }
}

impl Open {
    /// A span in the JSON form of OTLP.
    fn finished(self, ended: SystemTime) -> Value {
        let nanos = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_nanos().to_string()
        };
        let parent = self.parent.map(|parent| format!("{:016x}", parent.span));
        json!({
            "traceId": format!("{:032x}", self.context.trace),
            "spanId": format!("{:016x}", self.context.span),
            "parentSpanId": parent.unwrap_or_default(),
            "name": self.name,
            "kind": 1,
            "startTimeUnixNano": nanos(self.started),
            "endTimeUnixNano": nanos(ended),
            "attributes": self.attributes,
            "status": {},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_it_is_written_and_nothing_else_is() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context: Context = text.parse().unwrap();
        assert_eq!(context.to_string(), text);
        // A version to come has more fields.
        assert!(format!("01{}-more", &text[2..]).parse::<Context>().is_ok());
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(bad.parse::<Context>(), Err(NoContext), "{bad}");
        }
    }

    #[test]
    fn nothing_begins_without_a_collector_and_a_context_travels_on() {
        let parent: Context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            .parse()
            .unwrap();
        assert_eq!(Span::begin("x", Some(parent)).context(), Some(parent));
        assert_eq!(Span::begin("x", None).context(), None);
    }
}
