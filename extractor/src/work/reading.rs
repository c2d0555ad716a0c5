//! From a checkpoint in a result to the next one, or to its end.

use std::sync::Arc;
use std::time::Duration;

use common::failpoint;
use common::message::{EventKind, ExtractTask, TaskState};
use common::queue::Outgoing;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Next, PATIENCE, Worker, event, outgoing, run_event};
use crate::outbox::{self, Inbox, Labels};
use crate::read::{ReadError, Reading};
use crate::trouble::Trouble;

/// Bytes of values from one checkpoint to the next.
const DISTANCE: u64 = 64 << 20;
/// How often those who look on are told.
const PROGRESS: Duration = Duration::from_secs(1);

impl Worker<'_> {
    /// Reads and publishes until the result's end or until it is time for a checkpoint. The task's
    /// cursor follows what is confirmed.
    pub(super) async fn read(&mut self, task: &mut ExtractTask) -> Result<Next, Trouble> {
        let begun = Instant::now();
        let (mut told, mut bytes) = (begun, 0);
        let Some((mut reader, mut inbox)) = self.open(task) else {
            return Ok(Next::GoOn);
        };
        loop {
            // A delivery that has not come forward waits for longer: whoever received it next would
            // begin the same wait again.
            let turn = if bytes > 0 { self.turn } else { PATIENCE };
            let Ok(window) = timeout_at(begun + turn, inbox.next()).await else {
                return Ok(Next::HandOn);
            };
            let Some(mut window) = window else { break };
            let next = window.next.clone();
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let progress = EventKind::Progress {
                    batches: next.seq,
                    rows: next.row,
                };
                window
                    .messages
                    .push(event(task, progress).traced(self.trace.as_deref()));
            }
            self.publisher.publish(&window.messages).await?;
            failpoint::reach("after_window").await;
            if let TaskState::Reading { cursor, .. } = &mut task.state {
                let (rows, batches) = (next.row - cursor.row, next.seq - cursor.seq);
                count(&task.job.name, rows, batches, window.text_bytes);
                *cursor = next;
            }
            bytes += window.text_bytes;
            drop(window);
            if bytes >= DISTANCE || begun.elapsed() >= self.turn {
                return Ok(Next::HandOn);
            }
        }
        match reader.join_next().await {
            Some(Ok(ended)) => ended?,
            Some(Err(crash)) if crash.is_panic() => std::panic::resume_unwind(crash.into_panic()),
            Some(Err(_)) | None => return Err(ReadError::Closed.into()),
        }
        self.complete(task).await
    }

    /// Starts reading in a task of its own, which ends when its handle is dropped.
    fn open(&self, task: &ExtractTask) -> Option<(JoinSet<Result<(), ReadError>>, Inbox)> {
        let result_id = task.state.result_id()?;
        let TaskState::Reading {
            query_execution_id,
            location,
            columns,
            cursor,
            ..
        } = task.state.clone()
        else {
            return None;
        };
        let (outbox, inbox) = outbox::channel(Labels {
            run: task.run.clone(),
            generation: task.generation,
            result_id,
            job: Arc::clone(&task.job),
            columns: Arc::clone(&columns),
            trace: self.trace.clone(),
        });
        let reading = Reading {
            query_execution_id,
            location,
            columns,
            limits: task.limits,
            cursor,
        };
        let clients = self.clients.clone();
        let mut reader = JoinSet::new();
        reader.spawn(async move { reading.run(&clients.athena, &clients.s3, &outbox).await });
        Some((reader, inbox))
    }

    /// Every batch is confirmed: tells what the run is measured against.
    async fn complete(&mut self, task: &ExtractTask) -> Result<Next, Trouble> {
        let (
            TaskState::Reading {
                cursor,
                bytes_scanned,
                location,
                ..
            },
            Some(result_id),
        ) = (&task.state, task.state.result_id())
        else {
            return Ok(Next::GoOn);
        };
        let (batches, rows, bytes_scanned) = (cursor.seq, cursor.row, *bytes_scanned);
        let event = run_event(
            task,
            EventKind::Extracted {
                result_id,
                batches,
                rows,
                bytes_scanned,
                result_location: location.object(),
            },
        );
        let sent = outgoing(&event).traced(self.trace.as_deref());
        // Also to the archive: books that were restored to an earlier time lack it like the batches.
        let archived = Outgoing::archived(&event, &sent);
        self.publisher.publish(&[archived, sent]).await?;
        tracing::info!(batches, rows, "result extracted");
        Ok(Next::Done)
    }
}

/// What was confirmed, in metrics.
fn count(job: &str, rows: u64, batches: u32, bytes: u64) {
    for (name, count) in [
        ("etl_rows_extracted_total", rows),
        ("etl_batches_extracted_total", batches.into()),
        ("etl_bytes_extracted_total", bytes),
    ] {
        metrics::counter!(name, "job" => job.to_owned()).increment(count);
    }
}
