//! RawBatch to ValidBatch: every row is either valid or rejected, and no row affects another one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use common::job::{JobSpec, ResolvedColumn, resolve};
use common::message::{ContentHash, RawBatch, Reject, RejectedRow, ValidBatch};
use common::schema::{ResultColumn, TargetColumn};
use common::{Row, Rows};

use crate::column::Column;
use crate::rules::{Inside, KeyColumns, Place, PlanError, Seen};
use crate::watermark::{Latest, Watched};

/// The most plans in memory. A process sees few jobs; a stream of new ones must not fill its memory.
const MAX_PLANS: usize = 64;

/// How to turn the rows of a result into rows of a target.
#[derive(Debug, Clone)]
pub struct Plan {
    columns: Vec<Column>,
    targets: Vec<TargetColumn>,
    inside: Inside,
    /// The key, if a second row with the same key in a batch is rejected.
    key: Option<KeyColumns>,
    watermark: Option<Watched>,
}

impl Plan {
    /// Resolves the job's columns against the result's and compiles their settings.
    pub fn new(job: &JobSpec, result: &[ResultColumn]) -> Result<Self, PlanError> {
        let resolved = resolve(&job.columns, result, &job.target.key)?;
        let place = |name: &str| {
            let named = |column: &ResolvedColumn| column.target.name == name;
            let position = resolved.iter().position(named)?;
            Some(Place {
                position,
                pg_type: resolved[position].target.pg_type,
                masked: resolved[position].spec.mask.is_some(),
            })
        };
        let inside = Inside::compile(job.target.replace_where.as_ref(), place)?;
        let columns = resolved.iter().map(Column::new).collect::<Result<_, _>>()?;
        let targets: Vec<_> = resolved.into_iter().map(|column| column.target).collect();
        Ok(Self {
            inside,
            columns,
            key: KeyColumns::new(&job.target, &targets),
            watermark: Watched::new(job, result)?,
            targets,
        })
    }

    /// The row for the quarantine, with the mask in place of each masked value.
    fn raw(&self, batch: &RawBatch, row: Row<'_>) -> Vec<(String, Option<String>)> {
        let mut values = row.to_vec();
        for (position, value) in self.columns.iter().filter_map(|column| column.hidden(row)) {
            values[position] = value;
        }
        let names = batch.columns.iter().map(|column| column.name.clone());
        names.zip(values).collect()
    }
}

/// The plans of recent jobs.
#[derive(Debug, Default)]
pub struct Plans(HashMap<PlanKey, Arc<Plan>>);

type PlanKey = (Arc<JobSpec>, Arc<Vec<ResultColumn>>);

impl Plans {
    /// The plan for a batch. Runs with equal jobs and columns share one.
    pub fn plan(&mut self, batch: &RawBatch) -> Result<Arc<Plan>, PlanError> {
        let key = (Arc::clone(&batch.job), Arc::clone(&batch.columns));
        if let Some(plan) = self.0.get(&key) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(Plan::new(&batch.job, &batch.columns)?);
        if self.0.len() >= MAX_PLANS {
            self.0.clear();
        }
        self.0.insert(key, Arc::clone(&plan));
        Ok(plan)
    }
}

/// Converts and checks every row. The result depends on the plan and the batch alone.
pub fn transform(plan: &Plan, batch: RawBatch) -> ValidBatch {
    let mut valid = Valid::new(plan, &batch.rows);
    let mut rejected = Vec::new();
    let mut values = Vec::with_capacity(plan.columns.len());
    let mut seen = Seen::default();
    let mut latest = Latest::default();
    for (offset, row) in (0..).zip(batch.rows.iter()) {
        let outside = plan
            .watermark
            .as_ref()
            .and_then(|watched| watched.look(row, &mut latest));
        let converted = outside.map_or_else(|| convert_row(plan, row, &mut seen, &mut values), Err);
        match converted {
            Ok(()) => valid.push(offset, row, &values),
            Err(reject) => {
                valid.copy();
                rejected.push(RejectedRow {
                    row: batch.id.first_row + u64::from(offset),
                    reject,
                    raw: plan.raw(&batch, row),
                });
            }
        }
    }
    let Valid { other, offsets, .. } = valid;
    let content_hash = ContentHash::of(&batch.columns, &batch.rows);
    let watermark = latest.text();
    ValidBatch {
        id: batch.id,
        is_bulk: batch.is_bulk,
        result_id: batch.result_id,
        content_hash,
        job: batch.job.name.clone(),
        target: batch.job.target.clone(),
        columns: plan.targets.clone(),
        rows: other.unwrap_or(batch.rows),
        row_offsets: if rejected.is_empty() {
            Vec::new()
        } else {
            offsets
        },
        rejected,
        watermark,
    }
}

/// The valid rows and their offsets. Nothing is copied while they equal the raw rows.
struct Valid<'a> {
    raw: &'a Rows,
    /// None while the first `offsets.len()` raw rows are the valid ones.
    other: Option<Rows>,
    offsets: Vec<u32>,
}

impl<'a> Valid<'a> {
    fn new(plan: &Plan, raw: &'a Rows) -> Self {
        let width = plan.targets.len();
        let other = (raw.width() != width).then(|| Rows::with_room_of(width, raw));
        Self {
            raw,
            other,
            offsets: Vec::with_capacity(raw.len()),
        }
    }

    fn push(&mut self, offset: u32, row: Row<'_>, values: &[Option<Cow<'_, str>>]) {
        if self.other.is_none() && !is_untouched(row, values) {
            self.copy();
        }
        if let Some(rows) = &mut self.other {
            rows.push(values.iter().map(Option::as_deref));
        }
        self.offsets.push(offset);
    }

    /// Copies the valid rows so far: from here on they differ from the raw ones.
    fn copy(&mut self) {
        if self.other.is_none() {
            self.other = Some(self.raw.first(self.offsets.len()));
        }
    }
}

/// Whether the values are the row's own texts, not equal ones.
fn is_untouched(row: Row<'_>, values: &[Option<Cow<'_, str>>]) -> bool {
    row.iter().zip(values).all(|pair| match pair {
        (None, None) => true,
        (Some(raw), Some(Cow::Borrowed(text))) => std::ptr::eq(raw, *text),
        _ => false,
    })
}

/// Fills `values` with the target's values of one row, or returns the reject.
fn convert_row<'a>(
    plan: &'a Plan,
    row: Row<'a>,
    seen: &mut Seen,
    values: &mut Vec<Option<Cow<'a, str>>>,
) -> Result<(), Reject> {
    values.clear();
    for column in &plan.columns {
        values.push(column.value(row)?);
    }
    let duplicate = || plan.key.as_ref()?.check(seen, values);
    match plan.inside.check(values).or_else(duplicate) {
        None => Ok(()),
        Some(reject) => Err(reject),
    }
}

#[cfg(test)]
mod tests;
