//! The channel between the reader of a result and the publisher of its batches. It is bounded by
//! bytes, so that both work at the same time and memory stays small.
//!
//! The reader encodes the messages: that takes the CPU time, while the publisher waits for the broker.

use std::sync::Arc;

use common::message::{Cursor, RawBatch, RunId};
use common::queue::{Outgoing, Unsendable};
use common::telemetry::trace;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::Span;

use crate::batching::Batch;

/// Bytes of messages that are waiting or unconfirmed.
const CAPACITY_BYTES: usize = 4 << 20;
/// Bytes of messages that are published together; the rest of the capacity is filled meanwhile.
const WINDOW_BYTES: usize = 2 << 20;

/// The reader's end.
#[derive(Debug)]
pub struct Outbox {
    template: RawBatch,
    archives: bool,
    capacity: Arc<Semaphore>,
    sender: mpsc::UnboundedSender<Ready>,
}

/// The publisher's end.
pub struct Inbox {
    run: RunId,
    /// The parent of the spans.
    trace: Option<String>,
    receiver: mpsc::UnboundedReceiver<Ready>,
    /// What was received and not taken yet.
    first: Option<Ready>,
}

/// Why a batch could not be put into the outbox.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    /// The publisher has ended.
    #[error("the publisher takes no more batches")]
    Closed,
}

/// A batch as the messages that carry it.
struct Ready {
    first_row: u64,
    rows: usize,
    messages: Vec<Outgoing>,
    bytes: usize,
    text_bytes: u64,
    next: Cursor,
    permit: OwnedSemaphorePermit,
}

/// Batches that are published together. Dropping a window frees its capacity and ends its spans.
#[derive(Default)]
pub struct Window {
    pub messages: Vec<Outgoing>,
    /// Where reading resumes once all of them are confirmed.
    pub next: Cursor,
    /// Bytes of the values.
    pub text_bytes: u64,
    permits: Vec<OwnedSemaphorePermit>,
    spans: Vec<Span>,
}

/// Makes both ends. All batches have what `template` has, apart from their place and their rows.
/// `archives` says whether each is archived, and `trace` is the parent of their spans.
pub fn channel(template: RawBatch, archives: bool, trace: Option<String>) -> (Outbox, Inbox) {
    // The semaphore bounds it.
    let (sender, receiver) = mpsc::unbounded_channel();
    let capacity = Arc::new(Semaphore::new(CAPACITY_BYTES));
    let inbox = Inbox {
        run: template.id.run.clone(),
        trace,
        receiver,
        first: None,
    };
    let outbox = Outbox {
        template,
        archives,
        capacity,
        sender,
    };
    (outbox, inbox)
}

impl Outbox {
    /// Puts a batch in, once there is capacity for it.
    pub async fn put(&self, batch: Batch, next: Cursor) -> Result<(), PutError> {
        let rows = batch.rows.len();
        let text_bytes = batch.rows.text_bytes() as u64;
        let mut full = RawBatch {
            is_bulk: batch.before >= Cursor::BULK_FROM,
            rows: batch.rows,
            ..self.template.clone()
        };
        full.id.first_row = batch.first_row;
        let raw = Outgoing::of(&full)?;
        drop(full);
        // The archive first, so that a batch that was loaded can be replayed.
        let archived = self.archives.then(|| raw.archived());
        let messages: Vec<_> = archived.into_iter().chain([raw]).collect();
        let bytes = messages.iter().map(Outgoing::bytes).sum::<usize>();
        let permits = u32::try_from(bytes.min(CAPACITY_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.capacity).acquire_many_owned(permits).await;
        let ready = Ready {
            first_row: batch.first_row,
            rows,
            messages,
            bytes,
            text_bytes,
            next,
            permit: permit.map_err(|_| PutError::Closed)?,
        };
        self.sender.send(ready).map_err(|_| PutError::Closed)
    }
}

impl Inbox {
    /// Whether another batch follows. Waits for it, or for the reader's end.
    pub async fn has_more(&mut self) -> bool {
        if self.first.is_none() {
            self.first = self.receiver.recv().await;
        }
        self.first.is_some()
    }

    /// The waiting batches, up to a window or to where bulk begins: these go to another queue, which may be full. Waits for the
    /// first one. None when the reader has ended, with or without an error.
    pub async fn next(&mut self) -> Option<Window> {
        let mut window = Window::default();
        let mut bytes = 0;
        let first = if self.has_more().await {
            self.first.take()
        } else {
            None
        };
        let mut ready = Some(first?);
        while let Some(batch) = ready {
            bytes += batch.bytes;
            window.text_bytes += batch.text_bytes;
            window.next = batch.next;
            let (span, traceparent) = self.span(batch.first_row, batch.rows);
            let messages = batch.messages.into_iter();
            let traced = messages.map(|message| message.traced(traceparent.as_deref()));
            window.messages.extend(traced);
            window.permits.push(batch.permit);
            window.spans.push(span);
            ready = (bytes < WINDOW_BYTES && window.next.batches != Cursor::BULK_FROM)
                .then(|| self.receiver.try_recv().ok())
                .flatten();
        }
        Some(window)
    }

    /// The span of a batch, which begins when it is taken: one that is read and not taken has none.
    fn span(&self, first_row: u64, rows: usize) -> (Span, Option<String>) {
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        let span = tracing::info_span!(target: trace::TARGET, "publish", run.id = %self.run, batch.first_row = first_row.cast_signed(), batch.rows = rows);
        let traceparent = trace::join(&span, self.trace.as_deref());
        (span, traceparent)
    }
}
