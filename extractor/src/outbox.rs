//! Between the reader of a result and the publisher of its batches: a channel that is bounded by
//! bytes, so that the one works while the other waits and neither fills the memory.
//!
//! Batches become messages on the reader's side: that is the costly part, and the publisher waits
//! for the broker meanwhile.

use std::sync::Arc;

use common::job::JobSpec;
use common::message::{BatchId, Cursor, RawBatch, RunId};
use common::queue::Outgoing;
use common::schema::ResultColumn;
use common::telemetry::trace;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::Span;

use crate::batching::Batch;
use crate::read::ReadError;

/// Bytes of messages that are waiting or on their way, unconfirmed.
const ROOM: usize = 4 << 20;
/// Bytes of messages that are published at once; the rest of the room is read meanwhile.
const WINDOW: usize = 2 << 20;

/// What all batches of a run have in common.
#[derive(Debug, Clone)]
pub struct Labels {
    pub run: RunId,
    pub generation: u32,
    pub result_id: String,
    pub job: Arc<JobSpec>,
    pub columns: Arc<Vec<ResultColumn>>,
    /// The `traceparent` of the span that the spans of the batches are below.
    pub trace: Option<String>,
}

/// The reader's end.
#[derive(Debug)]
pub struct Outbox {
    labels: Labels,
    room: Arc<Semaphore>,
    sender: mpsc::UnboundedSender<Ready>,
}

/// The publisher's end.
#[derive(Debug)]
pub struct Inbox(mpsc::UnboundedReceiver<Ready>);

/// A batch as the messages that it is published as.
struct Ready {
    messages: [Outgoing; 2],
    bytes: usize,
    text_bytes: u64,
    next: Cursor,
    room: OwnedSemaphorePermit,
    span: Span,
}

/// Batches that are published together.
#[derive(Default)]
pub struct Window {
    pub messages: Vec<Outgoing>,
    /// Where reading goes on once all of them are confirmed.
    pub next: Cursor,
    /// Bytes of the values, for the checkpoint's distance.
    pub text_bytes: u64,
    /// Held until the window is dropped.
    room: Vec<OwnedSemaphorePermit>,
    /// They end when the window is dropped: once it is confirmed.
    spans: Vec<Span>,
}

pub fn channel(labels: Labels) -> (Outbox, Inbox) {
    // Bounded by the semaphore.
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        Outbox {
            labels,
            room: Arc::new(Semaphore::new(ROOM)),
            sender,
        },
        Inbox(receiver),
    )
}

impl Outbox {
    /// Hands a batch on, once there is room for it.
    pub async fn put(&self, batch: Batch, next: Cursor) -> Result<(), ReadError> {
        let Labels {
            run,
            generation,
            result_id,
            job,
            columns,
            trace,
        } = self.labels.clone();
        let rows = i64::try_from(batch.rows.len()).unwrap_or(i64::MAX);
        let span = tracing::info_span!(target: trace::TARGET, "publish", run.id = %run, batch.seq = i64::from(batch.seq), batch.rows = rows);
        let traceparent = trace::join(&span, trace.as_deref());
        let text_bytes = batch.rows.text_bytes() as u64;
        let batch = RawBatch {
            id: BatchId {
                run,
                generation,
                seq: batch.seq,
            },
            first_row: batch.first_row,
            result_id,
            job,
            columns,
            rows: batch.rows,
        };
        let raw = Outgoing::of(&batch)?.traced(traceparent.as_deref());
        let archived = Outgoing::archived(&batch, &raw);
        drop(batch);
        let bytes = raw.bytes() + archived.bytes();
        let permits = u32::try_from(bytes.min(ROOM)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
        let room = room.map_err(|_| ReadError::Closed)?;
        let messages = [archived, raw];
        let ready = Ready {
            messages,
            bytes,
            text_bytes,
            next,
            room,
            span,
        };
        self.sender.send(ready).map_err(|_| ReadError::Closed)
    }
}

impl Inbox {
    /// What is there, up to a window; waits for the first batch. None when the reader has ended,
    /// well or not.
    pub async fn next(&mut self) -> Option<Window> {
        let mut window = Window::default();
        let mut bytes = 0;
        let mut ready = Some(self.0.recv().await?);
        while let Some(batch) = ready {
            bytes += batch.bytes;
            window.text_bytes += batch.text_bytes;
            window.next = batch.next;
            window.messages.extend(batch.messages);
            window.room.push(batch.room);
            window.spans.push(batch.span);
            ready = if bytes < WINDOW {
                self.0.try_recv().ok()
            } else {
                None
            };
        }
        Some(window)
    }
}
