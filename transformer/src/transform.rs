//! RawBatch to ValidBatch: every row is either valid or rejected, and no row touches its neighbours.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use common::job::JobSpec;
use common::message::{ContentHash, RawBatch, Reject, RejectedRow, ValidBatch};
use common::schema::{AthenaType, PgType, ResultColumn, TargetColumn, resolve};
use common::{Row, Rows};

use crate::convert::convert;
use crate::rules::{Checks, PlanError};

/// The rule's name of a value that is not one of its column's type.
const TYPE_RULE: &str = "type";

/// A reason is a sentence, and a batch may have thousands of them. A job's pattern in it may be long.
const REASON_CHARS: usize = 300;

/// A process meets a few jobs; a stream of ever new ones must not fill its memory.
const KEPT_PLANS: usize = 64;

/// How the rows of one result are made those of one target.
#[derive(Debug, Clone)]
pub struct Plan {
    columns: Vec<Column>,
    targets: Vec<TargetColumn>,
}

#[derive(Debug, Clone)]
struct Column {
    /// The position among the result's columns.
    source: usize,
    name: String,
    from: AthenaType,
    to: PgType,
    checks: Checks,
}

impl Plan {
    /// Resolves the job's columns against the result's and compiles their rules.
    pub fn new(job: &JobSpec, result: &[ResultColumn]) -> Result<Self, PlanError> {
        let resolved = resolve(&job.columns, result, &job.target.key)?;
        let mut plan = Self {
            columns: Vec::with_capacity(resolved.len()),
            targets: Vec::with_capacity(resolved.len()),
        };
        for column in resolved {
            let (name, to) = (column.target.name.clone(), column.target.pg_type);
            let checks = Checks::compile(&name, to, &column.rules)?;
            plan.columns.push(Column {
                source: column.source,
                name,
                from: column.athena_type,
                to,
                checks,
            });
            plan.targets.push(column.target);
        }
        Ok(plan)
    }
}

/// The plans of the jobs that came by lately.
#[derive(Debug, Default)]
pub struct Plans(HashMap<PlanKey, Arc<Plan>>);

type PlanKey = (Arc<JobSpec>, Arc<Vec<ResultColumn>>);

impl Plans {
    /// The plan for a batch. Equal jobs and columns share one, whichever run they came with.
    pub fn of(&mut self, batch: &RawBatch) -> Result<Arc<Plan>, PlanError> {
        let key = (Arc::clone(&batch.job), Arc::clone(&batch.columns));
        if let Some(plan) = self.0.get(&key) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(Plan::new(&batch.job, &batch.columns)?);
        if self.0.len() >= KEPT_PLANS {
            self.0.clear();
        }
        self.0.insert(key, Arc::clone(&plan));
        Ok(plan)
    }
}

/// Converts and checks every row. The same batch and plan always give the same result.
pub fn transform(plan: &Plan, batch: &RawBatch) -> ValidBatch {
    let mut rows = Rows::new(plan.targets.len());
    let mut row_offsets = Vec::with_capacity(batch.rows.len());
    let mut rejected = Vec::new();
    let mut values = Vec::with_capacity(plan.columns.len());
    for (offset, row) in (0..).zip(batch.rows.iter()) {
        match convert_row(plan, row, &mut values) {
            Ok(()) => {
                rows.push(values.iter().map(Option::as_deref));
                row_offsets.push(offset);
            }
            Err(reject) => {
                let raw = batch
                    .columns
                    .iter()
                    .map(|column| column.name.clone())
                    .zip(row.to_vec())
                    .collect();
                rejected.push(RejectedRow {
                    row: batch.first_row + u64::from(offset),
                    reject,
                    raw,
                });
            }
        }
    }
    ValidBatch {
        id: batch.id.clone(),
        first_row: batch.first_row,
        result_id: batch.result_id.clone(),
        content_hash: ContentHash::of(&batch.columns, &batch.rows),
        job: batch.job.name.clone(),
        target: batch.job.target.clone(),
        columns: plan.targets.clone(),
        rows,
        row_offsets,
        rejected,
    }
}

/// Fills `values` with the target's values of one row, or says why there are none.
fn convert_row<'a>(
    plan: &Plan,
    row: Row<'a>,
    values: &mut Vec<Option<Cow<'a, str>>>,
) -> Result<(), Reject> {
    values.clear();
    for column in &plan.columns {
        let reject = |rule: &str, reason: String| Reject {
            column: Some(column.name.clone()),
            rule: rule.to_owned(),
            reason: reason.chars().take(REASON_CHARS).collect(),
        };
        let value = match row
            .get(column.source)
            .map(|text| convert(column.from, column.to, text))
        {
            None => None,
            Some(Ok(value)) => Some(value),
            Some(Err(problem)) => {
                return Err(reject(
                    TYPE_RULE,
                    format!("{problem}; the column is {}", column.to),
                ));
            }
        };
        if let Some(broken) = column.checks.first_broken(value.as_deref()) {
            return Err(reject(broken.rule, broken.reason));
        }
        values.push(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
