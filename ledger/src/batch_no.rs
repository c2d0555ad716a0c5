//! What a row of a target carries in its column `_batch`: the run and the batch that it came with. The one place, beside
//! the functions `etl.batch_no`, `etl.run_no` and `etl.first_row` of the schema, that knows the layout.

use std::ops::Range;

use common::message::BatchId;

/// The bits of `_batch` that hold the ordinal of a batch's first row.
const ROW_BITS: u32 = BatchId::MAX_ROWS.trailing_zeros();

/// A value of `_batch`: the number of the run, then the first row of the batch. Values of a run are in the order of its
/// result, and values of a later request are above those of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchNo(i64);

impl BatchNo {
    /// Of a batch of the run with this number.
    pub fn new(run_no: i64, first_row: u64) -> Self {
        // A message with a row beyond the last one is refused when it is read.
        Self(run_no << ROW_BITS | (first_row & (BatchId::MAX_ROWS - 1)).cast_signed())
    }

    /// The values of all batches of a run.
    pub fn of_run(run_no: i64) -> Range<i64> {
        run_no << ROW_BITS..(run_no + 1) << ROW_BITS
    }

    /// The number of the run in a value of the column.
    pub fn run_of(value: i64) -> i64 {
        value >> ROW_BITS
    }

    /// As it stands in the column.
    pub fn get(self) -> i64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_ordered_within_a_run_and_after_earlier_runs() {
        assert!(BatchNo::new(3, 5) < BatchNo::new(3, 6));
        assert!(BatchNo::new(3, BatchId::MAX_ROWS - 1) < BatchNo::new(4, 0));
        let run = BatchNo::of_run(3);
        assert!(run.contains(&BatchNo::new(3, 0).get()));
        assert!(run.contains(&BatchNo::new(3, BatchId::MAX_ROWS - 1).get()));
        assert!(!run.contains(&BatchNo::new(4, 0).get()));
    }
}
