//! Rows of text values in one buffer. NULL and the empty string stay different.
//!
//! A batch has a few thousand rows of a few values each, and a `String` a value would cost more than the
//! values. All text is in one buffer, with one end offset a value. The JSON form is an array of arrays of
//! strings and nulls.

mod binary;
pub(crate) mod block;

use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The highest bit of an end offset marks a NULL. Batches are a few MiB, far below 2 GiB.
const NULL: u32 = 1 << 31;

/// Rows that all have `width` values; a value is text or NULL.
#[derive(Clone, Default)]
pub struct Rows {
    width: usize,
    text: String,
    ends: Vec<u32>,
    /// The block that the rows were read from, until they change. A sender reuses it.
    block: Option<Arc<[u8]>>,
}

impl PartialEq for Rows {
    fn eq(&self, other: &Self) -> bool {
        (self.width, &self.text, &self.ends) == (other.width, &other.text, &other.ends)
    }
}

impl Eq for Rows {}

impl Rows {
    /// Empty rows of `width` values each.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            ..Self::default()
        }
    }

    /// [`new`](Self::new) with room for as many rows and as much text as `other` has.
    pub fn with_room_of(width: usize, other: &Self) -> Self {
        Self {
            width,
            text: String::with_capacity(other.text.len()),
            ends: Vec::with_capacity(other.len() * width),
            block: None,
        }
    }

    /// The first `count` rows alone, with room for the others.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        let mut rows = Self::with_room_of(self.width, self);
        let ends = &self.ends[..count * self.width];
        let text = ends.last().map_or(0, |end| end & !NULL) as usize;
        rows.text.push_str(&self.text[..text]);
        rows.ends.extend_from_slice(ends);
        rows
    }

    /// The number of values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ends.len().checked_div(self.width).unwrap_or(0)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The sum of the values' lengths in bytes of UTF-8; NULL counts 0.
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Appends a row.
    ///
    /// # Panics
    /// If the row does not have `width` values, or the text exceeds 2 GiB. Both are bugs of the caller,
    /// which bounds its batches.
    pub fn push<'a>(&mut self, row: impl IntoIterator<Item = Option<&'a str>>) {
        self.block = None;
        let before = self.ends.len();
        for value in row {
            self.push_value(value);
        }
        assert_eq!(
            self.ends.len() - before,
            self.width,
            "a row of another width"
        );
    }

    fn push_value(&mut self, value: Option<&str>) {
        self.text.push_str(value.unwrap_or_default());
        let end = u32::try_from(self.text.len())
            .ok()
            .filter(|end| end & NULL == 0);
        let end = end.expect("a batch's text is below 2 GiB");
        self.ends
            .push(if value.is_none() { end | NULL } else { end });
    }

    /// Row `index`, counted from 0.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> Row<'_> {
        assert!(index < self.len(), "row {index} of {}", self.len());
        Row {
            rows: self,
            first: index * self.width,
        }
    }

    /// All rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        (0..self.len()).map(|index| self.row(index))
    }

    /// All values, row by row.
    pub fn values(&self) -> impl Iterator<Item = Option<&str>> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let place = (end & !NULL) as usize;
            let text = &self.text[start..place];
            start = place;
            (end & NULL == 0).then_some(text)
        })
    }

    fn value(&self, index: usize) -> Option<&str> {
        let end = self.ends[index];
        let start = if index == 0 {
            0
        } else {
            self.ends[index - 1] & !NULL
        };
        (end & NULL == 0).then(|| &self.text[start as usize..end as usize])
    }
}

/// One row of [`Rows`].
#[derive(Clone, Copy)]
pub struct Row<'a> {
    rows: &'a Rows,
    first: usize,
}

impl<'a> Row<'a> {
    /// The value of a column, counted from 0; `None` is NULL.
    ///
    /// # Panics
    /// If there is no such column.
    pub fn get(&self, column: usize) -> Option<&'a str> {
        assert!(
            column < self.rows.width,
            "column {column} of {}",
            self.rows.width
        );
        self.rows.value(self.first + column)
    }

    /// All values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&'a str>> {
        let (rows, first) = (self.rows, self.first);
        (first..first + rows.width).map(move |index| rows.value(index))
    }

    /// The values, for a quarantine record.
    pub fn to_vec(&self) -> Vec<Option<String>> {
        self.iter().map(|value| value.map(str::to_owned)).collect()
    }
}

impl fmt::Debug for Rows {
    /// The shape only, so that logs contain no values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Rows({} x {}, {} bytes)",
            self.len(),
            self.width,
            self.text.len()
        )
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|row| row.iter().collect::<Vec<_>>()))
    }
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(RowsVisitor)
    }
}

/// Reads row by row: all rows as vectors of strings would take many times the memory of their JSON.
struct RowsVisitor;

impl<'de> Visitor<'de> for RowsVisitor {
    type Value = Rows;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rows of equal length")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rows, A::Error> {
        let mut rows = Rows::default();
        while let Some(row) = seq.next_element::<Vec<Option<Box<str>>>>()? {
            let width = row.len();
            let bytes: usize = row.iter().flatten().map(|text| text.len()).sum();
            if rows.is_empty() {
                rows.width = width;
            }
            if width == 0 || width != rows.width {
                let wanted = rows.width;
                let problem = format_args!("a row of {width} values among rows of {wanted}");
                return Err(A::Error::custom(problem));
            }
            if rows.text.len() + bytes >= NULL as usize {
                return Err(A::Error::custom("rows of more than 2 GiB"));
            }
            rows.push(row.iter().map(Option::as_deref));
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn null_and_empty_string_stay_different() {
        let mut rows = Rows::new(2);
        rows.push([None, Some("")]);
        rows.push([Some("a"), None]);
        let json = serde_json::to_string(&rows).unwrap();
        assert_eq!(json, r#"[[null,""],["a",null]]"#);
        assert_eq!(serde_json::from_str::<Rows>(&json).unwrap(), rows);
    }

    #[test]
    fn rows_of_unequal_length_are_refused() {
        for bad in [
            r#"[["a"],["b","c"]]"#,
            "[[]]",
            r#"[["a"],[]]"#,
            "[[1]]",
            "[[[]]]",
            "3",
        ] {
            assert!(serde_json::from_str::<Rows>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn first_rows_are_independent(values in prop::collection::vec(prop::array::uniform2(prop::option::of(".{0,3}")), 1..9), count in any::<prop::sample::Index>()) {
            let all = |values: &[[Option<String>; 2]]| {
                let mut rows = Rows::new(2);
                for row in values {
                    rows.push(row.iter().map(Option::as_deref));
                }
                rows
            };
            let (rows, count) = (all(&values), count.index(values.len() + 1));
            let mut first = rows.first(count);
            prop_assert_eq!(&first, &all(&values[..count]));
            for row in &values[count..] {
                first.push(row.iter().map(Option::as_deref));
            }
            prop_assert_eq!(first, rows);
        }

        #[test]
        fn rows_survive_json(values in prop::collection::vec(prop::array::uniform3(prop::option::of(".{0,9}")), 0..40)) {
            let mut rows = Rows::new(3);
            for row in &values {
                rows.push(row.iter().map(Option::as_deref));
            }
            let json = serde_json::to_string(&rows).unwrap();
            let read: Rows = serde_json::from_str(&json).unwrap();
            let seen: Vec<_> = read.iter().map(|row| row.to_vec()).collect();
            let wanted: Vec<_> = values.iter().map(|row| row.to_vec()).collect();
            prop_assert_eq!(seen, wanted);
        }
    }
}
