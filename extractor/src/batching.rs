//! Cuts a result's rows into batches.
//!
//! The rows and the task's limits alone decide where a batch ends; time and the order in which bytes
//! arrive do not. Every reader of the result therefore cuts the same batches, from the end of any
//! batch on, and a redelivered task is harmless.

use common::Rows;
use common::message::{Cursor, Limits};
use common::schema::ResultColumn;

/// The most bytes of column names in a batch, if each row carried them: rejected rows do, and all
/// rows may be rejected. With the values and the reasons a message stays below RabbitMQ's maximum.
/// At the default of 10,000 rows, only results of more than a hundred columns reach it.
const MAX_NAME_BYTES: usize = 6 << 20;

/// The most bytes of a row's values as JSON, where a control character takes six.
const MAX_ROW_JSON_BYTES: usize = 12 << 20;

/// Rows that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The batches of the result before it.
    pub before: u32,
    /// The ordinal of the first row, from 0.
    pub first_row: u64,
    pub rows: Rows,
}

impl Batch {
    /// The ordinal of the row behind the batch.
    pub fn end(&self) -> u64 {
        self.first_row + self.rows.len() as u64
    }

    /// The position behind the batch: see [`Cursor`] for `offset` and `page`.
    pub fn next(&self, offset: u64, page: Option<(String, u64)>) -> Cursor {
        Cursor {
            offset,
            row: self.end(),
            batches: self.before + 1,
            page,
        }
    }
}

/// A row that is too large for any table. It fails the run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "row {row} (from 0) of the result is too large: its values exceed {} MiB, or {} MiB as JSON, in column {column:?}; shorten that column in the SELECT",
    Limits::ROW_BYTES >> 20,
    MAX_ROW_JSON_BYTES >> 20
)]
pub struct RowTooLarge {
    pub row: u64,
    pub column: String,
}

/// Takes rows in order and returns batches.
#[derive(Debug)]
pub struct Batcher {
    batch_rows: usize,
    batch_bytes: usize,
    width: usize,
    batch: Batch,
}

/// The limits for a result of these columns. They are computed before the first batch and travel in
/// the task, so that an extractor of another version cuts the same batches.
pub fn fitted(limits: Limits, columns: &[ResultColumn]) -> Limits {
    // Besides the name: quotes, comma, brackets and null.
    let names = columns.iter().map(|column| json_bytes(&column.name) + 10);
    let max_rows = MAX_NAME_BYTES / names.sum::<usize>().max(1);
    let max_rows = u32::try_from(max_rows).unwrap_or(u32::MAX).max(1);
    Limits {
        batch_rows: limits.batch_rows.min(max_rows),
        ..limits
    }
}

impl Batcher {
    /// Begins with row `row`, behind `before` batches. The limits are [`fitted`].
    pub fn new(limits: Limits, width: usize, before: u32, row: u64) -> Self {
        let batch = Batch {
            before,
            first_row: row,
            rows: Rows::new(width),
        };
        Self {
            batch_rows: limits.batch_rows as usize,
            batch_bytes: limits.batch_bytes as usize,
            width,
            batch,
        }
    }

    /// Adds a row. Returns the batch before it when the row does not fit and begins the next one.
    ///
    /// The error is the column, from 0, in which the row exceeds the maximum.
    pub fn push<'a>(
        &mut self,
        row: impl Iterator<Item = Option<&'a str>> + Clone,
    ) -> Result<Option<Batch>, usize> {
        let bytes = bounded(row.clone(), Limits::ROW_BYTES, str::len)?;
        // Smaller rows cannot exceed it.
        if bytes > MAX_ROW_JSON_BYTES / 6 {
            bounded(row.clone(), MAX_ROW_JSON_BYTES, json_bytes)?;
        }
        let rows = &self.batch.rows;
        let is_full = rows.len() >= self.batch_rows || rows.text_bytes() + bytes > self.batch_bytes;
        let full = (is_full && !rows.is_empty()).then(|| self.next());
        self.batch.rows.push(row);
        Ok(full)
    }

    /// The end of the result: the last batch. A result without rows is one empty batch, so that
    /// every run has one.
    pub fn finish(mut self) -> Option<Batch> {
        (!self.batch.rows.is_empty() || self.batch.before == 0).then(|| self.next())
    }

    /// The ordinal of the row that is pushed next.
    pub fn row(&self) -> u64 {
        self.batch.end()
    }

    fn next(&mut self) -> Batch {
        let next = Batch {
            before: self.batch.before + 1,
            first_row: self.batch.end(),
            // The next batch will be about as large.
            rows: Rows::with_room_of(self.width, &self.batch.rows),
        };
        std::mem::replace(&mut self.batch, next)
    }
}

/// The sum of the values' measures, or the column in which it exceeds `max`.
fn bounded<'a>(
    row: impl Iterator<Item = Option<&'a str>>,
    max: usize,
    measure: impl Fn(&str) -> usize,
) -> Result<usize, usize> {
    let mut sum = 0;
    for (column, value) in row.enumerate() {
        sum += value.map_or(0, &measure);
        if sum > max {
            return Err(column);
        }
    }
    Ok(sum)
}

/// The bytes of a text in JSON, at most.
fn json_bytes(text: &str) -> usize {
    let escaped = text.bytes().map(|byte| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    });
    escaped.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(batch_rows: u32, batch_bytes: u32) -> Limits {
        Limits {
            batch_rows,
            batch_bytes,
        }
    }

    fn columns(count: usize, name: &str) -> Vec<ResultColumn> {
        let column = ResultColumn {
            name: name.into(),
            type_name: "varchar".into(),
        };
        vec![column; count]
    }

    fn cut(limits: Limits, rows: &[Vec<Option<String>>], before: u32, from: u64) -> Vec<Batch> {
        let mut batcher = Batcher::new(limits, 2, before, from);
        let mut all = Vec::new();
        for row in &rows[usize::try_from(from).unwrap()..] {
            all.extend(batcher.push(row.iter().map(Option::as_deref)).unwrap());
        }
        all.extend(batcher.finish());
        all
    }

    fn sized(sizes: &[usize]) -> Vec<Vec<Option<String>>> {
        sizes
            .iter()
            .map(|size| vec![Some("x".repeat(*size)), None])
            .collect()
    }

    fn lengths(batches: &[Batch]) -> Vec<usize> {
        batches.iter().map(|batch| batch.rows.len()).collect()
    }

    #[test]
    fn empty_result_is_one_empty_batch() {
        assert_eq!(lengths(&cut(limits(10, 10), &[], 0, 0)), [0]);
        // Reading behind the last batch of a result gives none.
        assert_eq!(lengths(&cut(limits(10, 10), &sized(&[1, 1]), 1, 2)), [0; 0]);
    }

    #[test]
    fn rows_and_bytes_limit_a_batch() {
        assert_eq!(
            lengths(&cut(limits(2, 100), &sized(&[1; 5]), 0, 0)),
            [2, 2, 1]
        );
        assert_eq!(lengths(&cut(limits(2, 100), &sized(&[1; 4]), 0, 0)), [2, 2]);
        assert_eq!(
            lengths(&cut(limits(9, 10), &sized(&[5, 5, 0, 1]), 0, 0)),
            [3, 1]
        );
        // A row larger than a batch is a batch of its own.
        assert_eq!(
            lengths(&cut(limits(9, 10), &sized(&[3, 50, 3, 3]), 0, 0)),
            [1, 1, 2]
        );
        assert_eq!(
            lengths(&cut(limits(9, 10), &sized(&[0, 50, 3]), 0, 0)),
            [1, 1, 1]
        );
    }

    #[test]
    fn wide_result_has_fewer_rows_per_batch() {
        let wide = columns(1_000, &"n".repeat(38));
        let mut batcher = Batcher::new(fitted(limits(5_000, 1 << 20), &wide), wide.len(), 0, 0);
        let row = vec![None; 1_000];
        let first = (0..3_000).find_map(|_| batcher.push(row.iter().copied()).unwrap());
        assert_eq!(first.unwrap().rows.len(), (6 << 20) / 48_000);
    }

    #[test]
    fn row_over_four_mebibytes_is_refused_naming_the_column() {
        let mut batcher = Batcher::new(Limits::default(), 2, 0, 0);
        let half = "x".repeat(Limits::ROW_BYTES / 2);
        let row = [Some(half.as_str()), Some(half.as_str())];
        assert_eq!(batcher.push(row.into_iter()), Ok(None));
        let more = format!("{half}y");
        assert_eq!(
            batcher.push([Some(half.as_str()), Some(&more)].into_iter()),
            Err(1)
        );
    }

    #[test]
    fn row_over_twelve_mebibytes_of_json_is_refused() {
        let mut batcher = Batcher::new(Limits::default(), 2, 0, 0);
        let (fits, passes) = ("\u{1}".repeat(2 << 20), "\u{1}".repeat((2 << 20) + 1));
        assert_eq!(batcher.push([None, Some(&*fits)].into_iter()), Ok(None));
        assert_eq!(batcher.push([None, Some(&*passes)].into_iter()), Err(1));
        let quarter = "\u{1}".repeat(1 << 20);
        let mut batcher = Batcher::new(Limits::default(), 4, 0, 0);
        assert_eq!(batcher.push([Some(&*quarter); 4].into_iter()), Err(2));
    }

    proptest! {
        #[test]
        fn same_batches_from_any_checkpoint(
            sizes in prop::collection::vec(0..30_usize, 0..60), batch_rows in 1..8_u32, batch_bytes in 1..60_u32,
        ) {
            let (rows, limits) = (sized(&sizes), limits(batch_rows, batch_bytes));
            let all = cut(limits, &rows, 0, 0);
            let sum: usize = lengths(&all).iter().sum();
            prop_assert_eq!(sum, rows.len());
            for (index, batch) in all.iter().enumerate() {
                prop_assert_eq!(batch.before as usize, index);
                let rest = cut(limits, &rows, batch.before, batch.first_row);
                prop_assert_eq!(&rest[..], &all[index..]);
                let behind = cut(limits, &rows, batch.before + 1, batch.end());
                prop_assert_eq!(&behind[..], &all[index + 1..]);
                prop_assert!(batch.rows.len() <= batch_rows as usize);
                prop_assert!(batch.rows.len() == 1 || batch.rows.text_bytes() <= batch_bytes as usize);
            }
        }
    }
}
