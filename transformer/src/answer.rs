//! The answer to one delivery: a ValidBatch, or a dead letter with the reason. Pure.

use std::collections::HashMap;

use common::message::{RawBatch, ValidBatch};
use common::queue::{Delivery, Outgoing, Unreadable, Unsendable};
use common::reason::Reason;
use common::telemetry::trace;

use crate::rules::PlanError;
use crate::transform::{Plans, transform};

/// The stage's name in a dead letter.
pub(crate) const STAGE: &str = "transformer";

/// Why a delivery becomes a dead letter. The broker's errors end the session instead: see
/// [`crate::session`].
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the job does not fit the rows: {0}; correct the job and run it again")]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
}

/// The metrics of one delivery; empty for a dead letter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) job: String,
    pub(crate) rows: usize,
    /// The number of rows that each rule rejected.
    pub(crate) rejected: HashMap<String, u64>,
}

/// Transforms the batch that a delivery carries, or dead-letters the delivery with the reason. The answer is published
/// before the delivery is acked.
pub(crate) fn answer(plans: &mut Plans, delivery: &Delivery<RawBatch>) -> (Outgoing, Counts) {
    transformed(plans, delivery).unwrap_or_else(|failure| {
        let reason = match failure {
            Failure::Unreadable(unreadable) => unreadable.into(),
            failure => Reason::from(failure.to_string()),
        };
        tracing::error!(
            message.id = delivery.id(),
            reason = reason.logged(),
            "message dead-lettered"
        );
        let outgoing = Outgoing::dead(delivery, STAGE, reason.text(), delivery.deliveries());
        (outgoing, Counts::default())
    })
}

fn transformed(
    plans: &mut Plans,
    delivery: &Delivery<RawBatch>,
) -> Result<(Outgoing, Counts), Failure> {
    let raw = delivery.read()?;
    let span = tracing::info_span!(target: trace::TARGET, "transform", run.id = %raw.id.run, batch.first_row = raw.id.first_row.cast_signed());
    let traceparent = trace::join(&span, delivery.traceparent().as_deref());
    span.in_scope(|| {
        let plan = plans.plan(&raw)?;
        let valid = transform(&plan, raw);
        let outgoing = Outgoing::of(&valid)?.traced(traceparent.as_deref());
        tracing::debug!(
            batch.rows = valid.rows.len(),
            batch.rejected = valid.rejected.len(),
            "batch transformed"
        );
        Ok((outgoing, Counts::new(&valid)))
    })
}

impl Counts {
    fn new(batch: &ValidBatch) -> Self {
        let mut rejected: HashMap<String, u64> = HashMap::new();
        for row in &batch.rejected {
            *rejected.entry(row.reject.rule.clone()).or_default() += 1;
        }
        Self {
            job: batch.job.clone(),
            rows: batch.rows_extracted(),
            rejected,
        }
    }

    /// Adds them to the metrics of the process.
    pub(crate) fn record(&self) {
        if self.job.is_empty() {
            return;
        }
        let add = |metric: &'static str, label: &'static str, value: String, count: u64| {
            metrics::counter!(metric, "job" => self.job.clone(), label => value).increment(count);
        };
        let bad: u64 = self.rejected.values().sum();
        add("etl_batches_total", "result", "transformed".to_owned(), 1);
        for (result, count) in [("valid", self.rows as u64 - bad), ("rejected", bad)] {
            add(
                "etl_rows_transformed_total",
                "result",
                result.to_owned(),
                count,
            );
        }
        for (rule, count) in &self.rejected {
            add("etl_rows_rejected_total", "rule", rule.clone(), *count);
        }
    }
}
