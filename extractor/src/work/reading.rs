//! From a checkpoint in a result to the next one, or to its end.

use std::sync::Arc;
use std::time::Duration;

use common::Rows;
use common::failpoint;
use common::message::{BatchId, EventKind, ExtractTask, RawBatch, ResultLocation, TaskState};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Next, OUTAGE_TIMEOUT, Worker, outgoing, run_event};
use crate::error_policy::StepError;
use crate::outbox::{self, Inbox, PutError};
use crate::read::{ReadError, Reading, object, pages};

/// Bytes of values from one checkpoint to the next.
const CHECKPOINT_BYTES: u64 = 64 << 20;
/// The pace of progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

impl Worker<'_, '_> {
    /// Reads and publishes until the result's end or until a checkpoint is due: after some time or bytes, and where bulk
    /// begins. The task's cursor advances with each confirmed window.
    pub(super) async fn read(&mut self, task: &mut ExtractTask) -> Result<Next, StepError> {
        if self.controls.is_paused(task) {
            return Ok(Next::Pause);
        }
        let (begun, was_bulk) = (Instant::now(), task.is_bulk());
        let (mut told, mut bytes) = (begun, 0);
        let Some((mut reader, mut inbox)) = self.open(task).await else {
            return Ok(Next::Step);
        };
        loop {
            // Without progress the delivery is held for longer: the next one would begin the same
            // wait anew.
            let interval = if bytes > 0 {
                self.checkpoint_interval()
            } else {
                OUTAGE_TIMEOUT
            };
            let Ok(has_more) = timeout_at(begun + interval, inbox.has_more()).await else {
                return Ok(Next::Checkpoint);
            };
            if has_more && task.is_bulk() && !was_bulk {
                return Ok(Next::Checkpoint);
            }
            let Some(mut window) = inbox.next().await else {
                break;
            };
            let next = window.next.clone();
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                let (batches, rows) = (next.batches, next.row);
                let progress = run_event(task, EventKind::Progress { batches, rows });
                let progress = outgoing(&progress).traced(self.trace.as_deref());
                window.messages.push(progress);
            }
            self.publisher.publish(&window.messages).await?;
            failpoint::reach("after_window").await;
            if let TaskState::Reading { cursor, .. } = &mut task.state {
                let (rows, batches) = (next.row - cursor.row, next.batches - cursor.batches);
                count(&task.job.name, rows, batches, window.text_bytes);
                *cursor = next;
            }
            bytes += window.text_bytes;
            drop(window);
            if self.controls.is_paused(task) {
                return Ok(Next::Pause);
            }
            if bytes >= CHECKPOINT_BYTES || begun.elapsed() >= self.checkpoint_interval() {
                return Ok(Next::Checkpoint);
            }
        }
        match reader.join_next().await {
            Some(Ok(ended)) => ended?,
            Some(Err(crash)) if crash.is_panic() => std::panic::resume_unwind(crash.into_panic()),
            Some(Err(_)) | None => return Err(ReadError::from(PutError::Closed).into()),
        }
        self.complete(task).await
    }

    /// Starts reading in a task of its own, which ends when its handle is dropped.
    async fn open(&self, task: &ExtractTask) -> Option<(JoinSet<Result<(), ReadError>>, Inbox)> {
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
        let template = RawBatch {
            id: BatchId {
                run: task.run.clone(),
                generation: task.generation,
                first_row: 0,
            },
            is_bulk: false,
            result_id,
            job: Arc::clone(&task.job),
            rows: Rows::new(columns.len()),
            columns: Arc::clone(&columns),
        };
        let (outbox, inbox) = outbox::channel(template, self.archives, self.trace.clone());
        let reading = Reading {
            query_execution_id,
            columns,
            limits: task.limits,
            cursor,
        };
        let clients = self.replica.clients(&task.source).await;
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            match location {
                ResultLocation::S3(found) => {
                    let bytes = clients.s3.read(found, reading.cursor.offset);
                    object::read(bytes, &reading, &outbox).await
                }
                ResultLocation::Pages => pages::read(&clients.athena, &reading, &outbox).await,
            }
        });
        Some((reader, inbox))
    }

    /// Publishes the run's totals once every batch is confirmed.
    async fn complete(&mut self, task: &ExtractTask) -> Result<Next, StepError> {
        let (
            TaskState::Reading {
                cursor,
                bytes_scanned,
                location,
                columns,
                ..
            },
            Some(result_id),
        ) = (&task.state, task.state.result_id())
        else {
            return Ok(Next::Step);
        };
        let (batches, rows) = (cursor.batches, cursor.row);
        let event = run_event(
            task,
            EventKind::Extracted {
                result_id,
                batches,
                rows,
                bytes_scanned: *bytes_scanned,
                result_location: location.object(),
                columns: columns.to_vec(),
            },
        );
        let sent = outgoing(&event).traced(self.trace.as_deref());
        // To the archive as well: a ledger that is restored to an earlier time lacks the totals as
        // it lacks the batches.
        let archived = self.archives.then(|| sent.archived());
        let messages: Vec<_> = archived.into_iter().chain([sent]).collect();
        self.publisher.publish(&messages).await?;
        tracing::info!(batches, rows, "result extracted");
        Ok(Next::Done)
    }
}

/// Adds what was confirmed to the metrics.
fn count(job: &str, rows: u64, batches: u32, bytes: u64) {
    let add = |name, count| metrics::counter!(name, "job" => job.to_owned()).increment(count);
    add("etl_rows_extracted_total", rows);
    add("etl_batches_extracted_total", batches.into());
    add("etl_bytes_extracted_total", bytes);
}
