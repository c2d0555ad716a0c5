//! Sets of a run's batches, as ranges of the rows of its result. A run may have millions of batches: a set is a few ranges.
//! A replay sends whole batches: a caller that takes rows from a person adds the other rows of their batches.
//!
//! An empty result is one batch without a row. It stands for one row here, so that it can be missing and be found.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use common::message::BatchId;

/// Rows of one result, as inclusive ranges in order that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowRanges(Vec<(u64, u64)>);

/// A text that is not a range of rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a range of rows: A..B with A not above B, the last one included, or one number; rows count from 0"
)]
pub struct NotARange(String);

impl RowRanges {
    /// The first `count` rows; those of an empty result are one.
    pub fn first(count: u64) -> Self {
        Self(vec![(0, count.max(1) - 1)])
    }

    /// From inclusive ranges in any order.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|(from, to)| from <= to).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (from, to) in sorted {
            match merged.last_mut() {
                Some((_, last)) if from <= last.saturating_add(1) => *last = (*last).max(to),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    /// From ranges as the ledger has them.
    pub fn from_ledger(ranges: impl IntoIterator<Item = (i64, i64)>) -> Self {
        Self::from_ranges(
            ranges
                .into_iter()
                .filter_map(|(from, to)| Some((from.try_into().ok()?, to.try_into().ok()?))),
        )
    }

    /// Those of both sets.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self::from_ranges(self.0.into_iter().chain(other.0))
    }

    /// Those that are in both sets.
    #[must_use]
    pub fn within(self, other: &Self) -> Self {
        let clipped = self.0.iter().flat_map(|(from, to)| {
            let both = other
                .0
                .iter()
                .map(|(first, last)| (*from.max(first), *to.min(last)));
            both.collect::<Vec<_>>()
        });
        Self::from_ranges(clipped)
    }

    /// Whether there is no row in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many rows are in it.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from + 1).sum()
    }

    /// The last row.
    pub fn last(&self) -> Option<u64> {
        self.0.last().map(|(_, to)| *to)
    }

    /// Whether a row is in it.
    pub fn contains(&self, row: u64) -> bool {
        let after = self.0.partition_point(|(from, _)| *from <= row);
        after > 0 && row <= self.0[after - 1].1
    }

    /// How many rows from one to another, the last one included, are in it.
    fn overlap(&self, from: u64, to: u64) -> u64 {
        let first = self.0.partition_point(|(_, last)| *last < from);
        let ranges = self.0[first..].iter().take_while(|(begin, _)| *begin <= to);
        ranges
            .map(|(begin, last)| to.min(*last) - from.max(*begin) + 1)
            .sum()
    }

    /// Whether every one of `other` is in this set.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(from, to)| {
            let after = self.0.partition_point(|(begin, _)| begin <= from);
            after > 0 && *to <= self.0[after - 1].1
        })
    }

    /// As Postgres writes an `int8multirange`.
    pub fn multirange(&self) -> String {
        let ranges: Vec<_> = self
            .0
            .iter()
            .map(|(from, to)| format!("[{from},{to}]"))
            .collect();
        format!("{{{}}}", ranges.join(","))
    }

    /// As `--rows` takes it, where it is one range.
    pub fn as_argument(&self) -> Option<String> {
        (self.0.len() == 1).then(|| self.to_string())
    }
}

impl FromStr for RowRanges {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.parse().ok().filter(|row| *row < BatchId::MAX_ROWS);
        match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => Ok(Self::from_ranges([(from, to)])),
            _ => Err(NotARange(text.chars().take(60).collect())),
        }
    }
}

/// `0..3, 7`, the first twenty ranges.
impl fmt::Display for RowRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (from, to)) in self.0.iter().take(20).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            if from == to {
                write!(f, "{comma}{from}")?;
            } else {
                write!(f, "{comma}{from}..{to}")?;
            }
        }
        match self.0.len().checked_sub(20) {
            Some(more) if more > 0 => write!(f, " and {more} more ranges"),
            _ => Ok(()),
        }
    }
}

/// A search for the batches that have the wanted rows, each of which counts once.
#[derive(Debug)]
pub struct Search {
    wanted: RowRanges,
    /// The rows that were found: the first and the last one of each range. Ranges that touch are one.
    found: BTreeMap<u64, u64>,
    /// Rows that were not found yet.
    left: u64,
    batches: u64,
}

impl Search {
    /// A search for these rows.
    pub fn new(wanted: RowRanges) -> Self {
        Self {
            left: wanted.count(),
            found: BTreeMap::new(),
            batches: 0,
            wanted,
        }
    }

    /// Whether the batch that begins with this row is searched for and was not found yet.
    pub fn wants(&self, first_row: u64) -> bool {
        self.wanted.contains(first_row) && !self.has(first_row)
    }

    /// Notes that a batch was found.
    pub fn found(&mut self, first_row: u64, rows: usize) {
        if !self.wants(first_row) {
            return;
        }
        let rows = (rows as u64).max(1);
        self.batches += 1;
        self.left -= self.wanted.overlap(first_row, first_row + rows - 1);
        let (mut from, mut to) = (first_row, first_row + rows - 1);
        if let Some((before, last)) = self.found.range(..first_row).next_back()
            && last + 1 == from
        {
            from = *before;
        }
        if let Some(last) = self.found.remove(&(to + 1)) {
            to = last;
        }
        self.found.insert(from, to);
    }

    /// How many batches were found.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// Whether every row was found.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// The rows that were not found.
    pub fn missing(&self) -> RowRanges {
        let mut missing = Vec::new();
        for &(from, to) in &self.wanted.0 {
            let mut next = from;
            let before = self.found.range(..from).next_back();
            for (begin, end) in before.into_iter().chain(self.found.range(from..=to)) {
                if next < *begin {
                    missing.push((next, begin - 1));
                }
                next = next.max(end + 1);
            }
            if next <= to {
                missing.push((next, to));
            }
        }
        RowRanges(missing)
    }

    fn has(&self, row: u64) -> bool {
        (self.found.range(..=row).next_back()).is_some_and(|(_, last)| row <= *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_merged_and_shown() {
        assert_eq!("3..7".parse(), Ok(RowRanges::from_ranges([(3, 7)])));
        assert_eq!("5".parse(), Ok(RowRanges::from_ranges([(5, 5)])));
        for bad in ["", "..", "7..3", "-1", "1..68719476736", "a", "1...3"] {
            assert!(bad.parse::<RowRanges>().is_err(), "{bad}");
        }
        let rows = RowRanges::from_ranges([(7, 9), (0, 2), (3, 4), (9, 9), (5, 1)]);
        assert_eq!(rows.to_string(), "0..4, 7..9");
        assert_eq!(rows.multirange(), "{[0,4],[7,9]}");
        assert_eq!((rows.count(), rows.last()), (8, Some(9)));
        let some = rows.within(&RowRanges::from_ranges([(2, 3), (8, 20)]));
        assert_eq!(some.to_string(), "2..3, 8..9");
        assert_eq!(RowRanges::first(3).as_argument().as_deref(), Some("0..2"));
        let many = RowRanges::from_ranges((0..100).map(|n| (n * 2, n * 2)));
        assert!(
            many.to_string().ends_with("38 and 80 more ranges"),
            "{many}"
        );
    }

    #[test]
    fn a_set_knows_its_members_and_its_subsets() {
        let rows = RowRanges::from_ranges([(2, 4), (8, 8)]);
        let members: Vec<_> = (0..10).filter(|row| rows.contains(*row)).collect();
        assert_eq!(members, [2, 3, 4, 8]);
        assert!(
            rows.covers(&RowRanges::from_ranges([(3, 4), (8, 8)]))
                && rows.covers(&RowRanges::default())
        );
        assert!(
            !rows.covers(&RowRanges::from_ranges([(4, 5)]))
                && !rows.covers(&RowRanges::from_ranges([(1, 2)]))
        );
    }

    #[test]
    fn batch_is_found_once() {
        let mut search = Search::new(RowRanges::from_ranges([(10, 39), (700, 719)]));
        for (first_row, rows) in [(30, 10), (700, 10), (30, 10), (50, 10)] {
            search.found(first_row, rows);
        }
        assert!(!search.wants(30) && !search.wants(50) && search.wants(10));
        assert_eq!(
            search.missing(),
            RowRanges::from_ranges([(10, 29), (710, 719)])
        );
        for first_row in [20, 10] {
            search.found(first_row, 10);
        }
        assert_eq!(search.missing(), RowRanges::from_ranges([(710, 719)]));
        assert!(!search.is_over());
        search.found(710, 10);
        assert!(search.is_over() && search.missing().is_empty());
        assert_eq!(search.batches(), 5);
    }

    #[test]
    fn rows_beside_the_wanted_ones_do_not_count() {
        let mut search = Search::new(RowRanges::from_ranges([(9, 30)]));
        search.found(20, 20);
        assert!(!search.is_over());
        assert_eq!(search.missing(), RowRanges::from_ranges([(9, 19)]));
        search.found(9, 11);
        assert!(search.is_over());
    }

    #[test]
    fn batch_of_an_empty_result_is_found() {
        let mut search = Search::new(RowRanges::first(0));
        assert!(!search.is_over() && search.wants(0));
        search.found(0, 0);
        assert!(search.is_over() && search.missing().is_empty());
    }
}
