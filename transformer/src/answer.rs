//! The answer to one delivery: a ValidBatch, or a dead letter with the reason. Pure.

use common::message::{RawBatch, ValidBatch};
use common::queue::{Delivery, Outgoing, QueueError, Unreadable, Unsendable};
use common::service::Fault;
use common::telemetry::trace::Span;

use crate::rules::PlanError;
use crate::transform::{Plans, transform};

/// The stage's name in a dead letter.
const STAGE: &str = "transformer";

/// Why a delivery was not transformed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the job does not fit the rows: {0}; correct the job and run it again")]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    #[error(
        "the batch was delivered {0} times and never acked, so it crashes the transformer; it is not tried again"
    )]
    OverLimit(u32),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// What follows from a failure.
#[derive(Debug)]
enum Consequence {
    /// The message is dead-lettered with this reason; other deliveries are not affected.
    DeadLetter(String),
    /// The session ends: the broker or the configuration is at fault. The broker delivers the message
    /// again.
    EndSession(Fault),
}

impl From<Failure> for Consequence {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Queue(error) => Self::EndSession(error.into()),
            failure @ (Failure::Unreadable(_)
            | Failure::Plan(_)
            | Failure::Unsendable(_)
            | Failure::OverLimit(_)) => Self::DeadLetter(failure.to_string()),
        }
    }
}

/// The answer to a delivery. It is published before the delivery is acked.
pub(crate) struct Answer {
    pub(crate) outgoing: Outgoing,
    pub(crate) counts: Counts,
}

/// The metrics of one delivery; empty for a dead letter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) job: String,
    pub(crate) rows: usize,
    /// The number of rows that each rule rejected.
    pub(crate) rejected: Vec<(String, u64)>,
}

/// Transforms the batch that a delivery carries.
pub(crate) fn answer(plans: &mut Plans, delivery: &Delivery<RawBatch>) -> Result<Answer, Fault> {
    match transformed(plans, delivery) {
        Ok(answer) => Ok(answer),
        Err(failure) => match Consequence::from(failure) {
            Consequence::EndSession(fault) => Err(fault),
            Consequence::DeadLetter(reason) => {
                tracing::error!(
                    message.id = delivery.id(),
                    reason,
                    "message moved to etl.dead"
                );
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
    if delivery.is_hopeless() {
        return Err(Failure::OverLimit(delivery.deliveries() - 1));
    }
    let raw = delivery.read()?;
    let trace = Span::begin("transform", delivery.trace())
        .with("run.id", raw.id.run.as_str())
        .with_number("batch.seq", raw.id.seq.into());
    let span = tracing::info_span!("batch", run.id = %raw.id.run, batch.seq = raw.id.seq);
    span.in_scope(|| {
        let plan = plans.plan(&raw)?;
        let valid = transform(&plan, raw);
        let outgoing = Outgoing::of(&valid)?.traced(trace.context());
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

    /// Adds them to the metrics of the process.
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
