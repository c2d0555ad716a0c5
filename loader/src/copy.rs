//! Rows in the text format of `COPY ... FROM STDIN`. Pure.
//!
//! Each row is one line, and Postgres stores each value unchanged, whatever it contains. A lone `\.`
//! would end a COPY early with success: every backslash is therefore escaped, and the caller compares
//! the count that Postgres returns.
//!
//! Source: PostgreSQL documentation, COPY, "Text Format".

pub mod binary;

use std::fmt::Write as _;
use std::ops::Range;

use common::Rows;

/// The value at the end of each row.
#[derive(Debug, Clone, Copy)]
pub enum Last {
    /// The same number in each, a `bigint`.
    Batch(i64),
    /// The row's index, an `integer`.
    Index,
}

impl Last {
    /// The value of a row, as text.
    pub fn text(self, index: usize) -> String {
        match self {
            Self::Batch(number) => number.to_string(),
            Self::Index => index.to_string(),
        }
    }
}

/// Encoded rows; any range of lines can be sent.
pub struct CopyText {
    text: String,
    /// Where each line starts, and where the last one ends.
    starts: Vec<usize>,
}

impl CopyText {
    /// Encodes `rows` with one more value at the end of each line.
    pub fn encode(rows: &Rows, last: Last) -> Self {
        let mut text =
            String::with_capacity(rows.text_bytes() + rows.len() * (rows.width() * 2 + 12));
        let mut starts = Vec::with_capacity(rows.len() + 1);
        for (index, row) in rows.iter().enumerate() {
            starts.push(text.len());
            for value in row.iter() {
                match value {
                    Some(value) => escape(value, &mut text),
                    None => text.push_str("\\N"),
                }
                text.push('\t');
            }
            // Writing to a String cannot fail.
            match last {
                Last::Batch(number) => writeln!(text, "{number}").ok(),
                Last::Index => writeln!(text, "{index}").ok(),
            };
        }
        starts.push(text.len());
        Self { text, starts }
    }

    /// The lines of a range of rows.
    pub fn lines(&self, rows: Range<usize>) -> &[u8] {
        &self.text.as_bytes()[self.starts[rows.start]..self.starts[rows.end]]
    }
}

fn escape(value: &str, into: &mut String) {
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '\t', '\n', '\r']) {
        into.push_str(&rest[..at]);
        into.push_str(match rest.as_bytes()[at] {
            b'\t' => "\\t",
            b'\n' => "\\n",
            b'\r' => "\\r",
            _ => "\\\\",
        });
        rest = &rest[at + 1..];
    }
    into.push_str(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(values: &[Vec<Option<String>>]) -> Rows {
        let mut rows = Rows::new(values.first().map_or(1, Vec::len));
        for row in values {
            rows.push(row.iter().map(Option::as_deref));
        }
        rows
    }

    /// A reader of the text format, written from its documentation.
    fn decode(text: &[u8]) -> Vec<Vec<Option<String>>> {
        let text = std::str::from_utf8(text).unwrap();
        let lines = text.split_terminator('\n').map(|line| {
            assert_ne!(line, "\\.", "the end of the data");
            line.split('\t').map(unescape).collect()
        });
        lines.collect()
    }

    fn unescape(field: &str) -> Option<String> {
        if field == "\\N" {
            return None;
        }
        let mut out = String::new();
        let mut chars = field.chars();
        while let Some(c) = chars.next() {
            out.push(match c {
                '\\' => match chars.next().expect("a backslash escapes something") {
                    't' => '\t',
                    'n' => '\n',
                    'r' => '\r',
                    other => other,
                },
                '\r' => panic!("a bare carriage return"),
                other => other,
            });
        }
        Some(out)
    }

    #[test]
    fn end_of_data_marker_is_an_ordinary_value() {
        let lone = rows(&[
            vec![Some("\\.".to_owned())],
            vec![None],
            vec![Some("\\N".to_owned())],
            vec![Some(String::new())],
        ]);
        let copy = CopyText::encode(&lone, Last::Batch(7));
        assert_eq!(copy.lines(0..4), b"\\\\.\t7\n\\N\t7\n\\\\N\t7\n\t7\n");
        assert_eq!(copy.lines(1..3), b"\\N\t7\n\\\\N\t7\n");
        assert_eq!(copy.lines(2..2), b"");
    }

    proptest! {
        #[test]
        fn encoded_rows_decode_to_the_same_values(values in prop::collection::vec(prop::collection::vec(prop::option::of("(?s)[\\\\.NtnrX\t\n\r\u{b}\u{8}\"a-cäß😀]{0,8}|(?s).{0,8}"), 3), 0..20)) {
            let copy = CopyText::encode(&rows(&values), Last::Index);
            let wanted: Vec<Vec<_>> = values.iter().enumerate().map(|(index, row)| {
                row.iter().cloned().chain([Some(index.to_string())]).collect()
            }).collect();
            prop_assert_eq!(decode(copy.lines(0..values.len())), wanted.clone());
            let middle = values.len() / 2;
            prop_assert_eq!(decode(copy.lines(middle..values.len())), wanted[middle..].to_vec());
        }
    }
}
