//! Sets of a run's batches. A run may have millions of batches: a set is a few ranges, and a search has a bit for each.

use std::fmt;
use std::str::FromStr;

use common::message::BatchId;

/// Batches of one run, as inclusive ranges in order that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seqs(Vec<(u32, u32)>);

/// A text that is not a range of batches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a range of batches: A..B with A not above B, the last one included, or one number; batches count from 0"
)]
pub struct NotARange(String);

impl Seqs {
    /// The first `count` batches.
    pub fn first(count: u32) -> Self {
        Self::from_ranges((count > 0).then(|| (0, count - 1)))
    }

    /// From inclusive ranges in any order.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|(from, to)| from <= to).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::new();
        for (from, to) in sorted {
            match merged.last_mut() {
                Some((_, last)) if from <= last.saturating_add(1) => *last = (*last).max(to),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    /// From ranges as the ledger has them.
    pub fn from_ledger(ranges: impl IntoIterator<Item = (i32, i32)>) -> Self {
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

    /// Whether there is no batch in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many batches are in it.
    pub fn count(&self) -> u64 {
        self.0
            .iter()
            .map(|(from, to)| u64::from(to - from) + 1)
            .sum()
    }

    /// The last batch.
    pub fn last(&self) -> Option<u32> {
        self.0.last().map(|(_, to)| *to)
    }

    /// Whether a batch is in it.
    pub fn contains(&self, seq: u32) -> bool {
        let after = self.0.partition_point(|(from, _)| *from <= seq);
        after > 0 && seq <= self.0[after - 1].1
    }

    /// Whether every one of `other` is in this set.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(from, to)| {
            let after = self.0.partition_point(|(begin, _)| begin <= from);
            after > 0 && *to <= self.0[after - 1].1
        })
    }

    /// As Postgres writes an `int4multirange`.
    pub fn multirange(&self) -> String {
        let ranges: Vec<_> = self
            .0
            .iter()
            .map(|(from, to)| format!("[{from},{to}]"))
            .collect();
        format!("{{{}}}", ranges.join(","))
    }

    /// As `--seq` takes it, where it is one range.
    pub fn as_argument(&self) -> Option<String> {
        (self.0.len() == 1).then(|| self.to_string())
    }
}

impl FromStr for Seqs {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.parse().ok().filter(|seq| *seq < BatchId::MAX_SEQ);
        match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => Ok(Self::from_ranges([(from, to)])),
            _ => Err(NotARange(text.chars().take(60).collect())),
        }
    }
}

/// `0..3, 7`, the first twenty ranges.
impl fmt::Display for Seqs {
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

/// A search for batches, each of which counts once.
#[derive(Debug)]
pub struct Search {
    wanted: Seqs,
    seen: Vec<u64>,
    left: u64,
}

impl Search {
    /// A search for these batches.
    pub fn new(wanted: Seqs) -> Self {
        let words = wanted.last().map_or(0, |last| last as usize / 64 + 1);
        Self {
            left: wanted.count(),
            seen: vec![0; words],
            wanted,
        }
    }

    /// Whether this batch is searched for and was not found yet.
    pub fn wants(&self, seq: u32) -> bool {
        self.wanted.contains(seq) && !self.has(seq)
    }

    /// Notes that a batch was found.
    pub fn found(&mut self, seq: u32) {
        if self.wants(seq) {
            self.seen[seq as usize / 64] |= 1 << (seq % 64);
            self.left -= 1;
        }
    }

    /// Whether every batch was found.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// The batches that were not found.
    pub fn missing(&self) -> Seqs {
        let wanted = self.wanted.0.iter().flat_map(|(from, to)| *from..=*to);
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for seq in wanted.filter(|seq| !self.has(*seq)) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == seq => *last = seq,
                _ => ranges.push((seq, seq)),
            }
        }
        Seqs(ranges)
    }

    fn has(&self, seq: u32) -> bool {
        self.seen
            .get(seq as usize / 64)
            .is_some_and(|word| word >> (seq % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_merged_and_shown() {
        assert_eq!("3..7".parse(), Ok(Seqs::from_ranges([(3, 7)])));
        assert_eq!("5".parse(), Ok(Seqs::from_ranges([(5, 5)])));
        for bad in ["", "..", "7..3", "-1", "1..16777216", "a", "1...3"] {
            assert!(bad.parse::<Seqs>().is_err(), "{bad}");
        }
        let seqs = Seqs::from_ranges([(7, 9), (0, 2), (3, 4), (9, 9), (5, 1)]);
        assert_eq!(seqs.to_string(), "0..4, 7..9");
        assert_eq!(seqs.multirange(), "{[0,4],[7,9]}");
        assert_eq!((seqs.count(), seqs.last()), (8, Some(9)));
        assert_eq!(Seqs::first(0), Seqs::default());
        assert_eq!(Seqs::first(3).as_argument().as_deref(), Some("0..2"));
        let many = Seqs::from_ranges((0..100).map(|n| (n * 2, n * 2)));
        assert!(
            many.to_string().ends_with("38 and 80 more ranges"),
            "{many}"
        );
    }

    #[test]
    fn a_set_knows_its_members_and_its_subsets() {
        let seqs = Seqs::from_ranges([(2, 4), (8, 8)]);
        let members: Vec<_> = (0..10).filter(|seq| seqs.contains(*seq)).collect();
        assert_eq!(members, [2, 3, 4, 8]);
        assert!(seqs.covers(&Seqs::from_ranges([(3, 4), (8, 8)])) && seqs.covers(&Seqs::default()));
        assert!(
            !seqs.covers(&Seqs::from_ranges([(4, 5)]))
                && !seqs.covers(&Seqs::from_ranges([(1, 2)]))
        );
    }

    #[test]
    fn batch_is_found_once() {
        let mut search = Search::new(Seqs::from_ranges([(1, 3), (70, 71)]));
        for seq in [3, 70, 3, 5] {
            search.found(seq);
        }
        assert!(!search.wants(3) && !search.wants(5) && search.wants(1));
        assert_eq!(search.missing(), Seqs::from_ranges([(1, 2), (71, 71)]));
        for seq in [1, 2, 71] {
            search.found(seq);
        }
        assert!(search.is_over() && search.missing().is_empty());
    }
}
