//! Paused extractions: while much waits for a target, its runs are not read on, so that they fill neither `etl.parked` nor the
//! queues that all jobs share. The extractor moves the task to `etl.parked`, and the drain sends it on once the batches before
//! it are loaded.

use common::message::{Command, Control, ExtractTask, ValidBatch};
use common::queue::{Outgoing, Publisher, QueueError, RawDelivery};
use common::reason::Reason;
use common::service::Fault;
use ledger::{Error, Paused};

use super::deliveries::Deliveries;
use crate::parking;

/// What becomes of the delivery of a task.
pub(super) enum Fate {
    /// It is to be acked.
    Settled,
    Waits,
    /// It is to be dead-lettered.
    Refused(Reason),
}

impl Deliveries<'_> {
    /// Pauses the extraction of a batch's run when too much waits for its target. A failure is logged alone: a run that is not
    /// paused costs room and no row.
    pub(super) async fn pause(
        &self,
        publisher: &mut Publisher<'_>,
        batch: &ValidBatch,
        target: &str,
    ) -> Result<(), QueueError> {
        if !self.loader.parking.may_pause(&batch.id.run) {
            return Ok(());
        }
        let store = &self.loader.store;
        let moment = match store.pause(&batch.id, target, self.parked_bytes).await {
            Ok(Some(moment)) => moment,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::debug!(run.id = %batch.id.run, %error, "the extraction is not paused");
                return Ok(());
            }
        };
        let pause = Control {
            run: batch.id.run.clone(),
            run_no: moment.run_no,
            generation: batch.id.generation,
            at: moment.now,
            job: batch.job.clone(),
            command: Command::Pause,
        };
        tracing::warn!(run.id = %batch.id.run, target.table = target, "the extraction is paused: too much waits for its target");
        if let Ok(message) = Outgoing::of(&pause) {
            publisher.try_publish(&message).await?;
        }
        Ok(())
    }

    /// Sends the task of a paused run on, or drops it when its run is over.
    pub(super) async fn resume(
        &self,
        publisher: &mut Publisher<'_>,
        delivery: &RawDelivery,
        task: ExtractTask,
    ) -> Result<Fate, Fault> {
        let target = parking::name(&task.job.target);
        // Not at the limit itself: every pause costs a reading of the result from its middle.
        let limit = self.parked_bytes / 2;
        let resumed_at = match self.loader.store.resume(&task, &target, limit).await {
            Ok(Paused::Waits) => return Ok(Fate::Waits),
            Ok(Paused::Over) => {
                tracing::info!(run.id = %task.run, "the run is over; its paused extraction is dropped");
                return Ok(Fate::Settled);
            }
            Ok(Paused::Resumed(at)) => Some(at),
            Err(Error::Refused(refused)) => return Ok(Fate::Refused(refused.to_string().into())),
            Err(error) => {
                tracing::debug!(run.id = %task.run, %error, "the extraction stays paused");
                return Ok(Fate::Waits);
            }
        };
        tracing::info!(run.id = %task.run, target.table = target, "the extraction goes on");
        let Ok(message) = Outgoing::of(&ExtractTask { resumed_at, ..task }) else {
            return Ok(Fate::Waits);
        };
        let message = message.traced(delivery.traceparent().as_deref());
        Ok(if publisher.try_publish(&message).await? {
            Fate::Settled
        } else {
            Fate::Waits
        })
    }
}
