//! The answer to one delivery: a `ValidBatch`, or a dead letter with the reason. Pure.

use common::message::{RawBatch, ValidBatch};
use common::queue::{Delivery, Outgoing, QueueError, Unreadable, Unsendable};
use common::service::Fault;
use common::telemetry::trace;

use crate::rules::PlanError;
use crate::transform::{Plans, transform};

/// The stage's name in a dead letter.
pub(crate) const STAGE: &str = "transformer";

/// Why a delivery has no valid batch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the job does not fit the rows: {0}; correct the job and run it again")]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// What a failure leads to.
#[derive(Debug)]
pub(crate) enum Blame {
    /// The message is dead-lettered with this reason. Other deliveries are not affected.
    Message(String),
    /// The session ends because of the broker or the configuration. The message is redelivered.
    Session(Fault),
}

impl From<Failure> for Blame {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Queue(error) => Self::Session(error.into()),
            failure @ (Failure::Unreadable(_) | Failure::Plan(_) | Failure::Unsendable(_)) => {
                Self::Message(failure.to_string())
            }
        }
    }
}

/// The answer to a delivery, which is published before the delivery is acked.
pub(crate) struct Answer {
    pub(crate) outgoing: Outgoing,
    pub(crate) counts: Counts,
}

/// The counts of one delivery for the metrics; empty for a dead letter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) job: String,
    pub(crate) rows: usize,
    /// Rejected rows by rule.
    pub(crate) rejected: Vec<(String, u64)>,
}

/// Transforms the batch that a delivery carries.
pub(crate) fn answer(plans: &mut Plans, delivery: &Delivery<RawBatch>) -> Result<Answer, Fault> {
    match transformed(plans, delivery) {
        Ok(answer) => Ok(answer),
        Err(failure) => match Blame::from(failure) {
            Blame::Session(fault) => Err(fault),
            Blame::Message(reason) => {
                tracing::error!(message.id = delivery.id(), reason, "message dead-lettered");
                let outgoing = Outgoing::dead(delivery, STAGE, &reason, delivery.deliveries());
                Ok(Answer {
                    outgoing,
                    counts: Counts::default(),
                })
            }
        },
    }
}

fn transformed(plans: &mut Plans, delivery: &Delivery<RawBatch>) -> Result<Answer, Failure> {
    let raw = delivery.read()?;
    let span = tracing::info_span!(target: trace::TARGET, "transform", run.id = %raw.id.run, batch.seq = i64::from(raw.id.seq));
    let traceparent = trace::join(&span, delivery.traceparent().as_deref());
    span.in_scope(|| {
        let plan = plans.of(&raw)?;
        let valid = transform(&plan, raw);
        let outgoing = Outgoing::of(&valid)?.traced(traceparent.as_deref());
        tracing::debug!(
            batch.rows = valid.rows.len(),
            batch.rejected = valid.rejected.len(),
            "batch transformed"
        );
        Ok(Answer {
            outgoing,
            counts: Counts::of(&valid),
        })
    })
}

impl Counts {
    fn of(batch: &ValidBatch) -> Self {
        let mut rejected: Vec<(String, u64)> = Vec::new();
        for row in &batch.rejected {
            match rejected
                .iter_mut()
                .find(|(rule, _)| *rule == row.reject.rule)
            {
                Some((_, count)) => *count += 1,
                None => rejected.push((row.reject.rule.clone(), 1)),
            }
        }
        Self {
            job: batch.job.clone(),
            rows: batch.rows_extracted(),
            rejected,
        }
    }

    /// Adds to the process' metrics.
    pub(crate) fn record(self) {
        let Self {
            job,
            rows,
            rejected,
        } = self;
        if job.is_empty() {
            return;
        }
        let bad: u64 = rejected.iter().map(|(_, count)| count).sum();
        metrics::counter!("etl_batches_total", "job" => job.clone(), "result" => "transformed")
            .increment(1);
        for (result, count) in [("valid", rows as u64 - bad), ("rejected", bad)] {
            metrics::counter!("etl_rows_transformed_total", "job" => job.clone(), "result" => result)
                .increment(count);
        }
        for (rule, count) in rejected {
            metrics::counter!("etl_rows_rejected_total", "job" => job.clone(), "rule" => rule)
                .increment(count);
        }
    }
}
