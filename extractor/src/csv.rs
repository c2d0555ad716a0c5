//! The result CSV as Athena writes it, read record by record from chunks of bytes.
//!
//! A general CSV reader cannot be used: it takes NULL (nothing between two commas) for the empty
//! string (`""`), and drops the blank line that is a NULL row of a one-column result. This one keeps
//! the two apart, holds one record at a time whatever the size of the chunks, and tells the byte at
//! which the next record begins, so that reading can go on from there.
//!
//! Form (Amazon Athena User Guide, "Working with query results", and RFC 4180): a value in double
//! quotes with `""` for a quote, or bare up to the next comma or line end; LF or CRLF after a record.

use memchr::{memchr, memchr2};

use common::message::Limits;

/// Text that is not such a CSV. Rows and columns count from 0, as they do in the ledger; the header
/// has no row number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place} of the result file, which begins at byte {begins}, {problem}")]
pub struct CsvError {
    pub place: Place,
    /// The byte at which the record begins.
    pub begins: u64,
    pub problem: Problem,
}

/// Which record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Header,
    Row(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Row(row) => write!(f, "row {row} (from 0)"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("has text behind the closing quote of column {column} (from 0)")]
    TextAfterQuote { column: usize },
    #[error("ends within the quotes of column {column} (from 0): the file is cut off")]
    Unterminated { column: usize },
    #[error("has bytes in column {column} (from 0) that are not UTF-8")]
    NotUtf8 { column: usize },
    #[error("has {found} columns where there are {wanted}")]
    Columns { found: usize, wanted: usize },
    #[error("has more than {wanted} columns")]
    TooManyColumns { wanted: usize },
    #[error("passes {} MiB in column {column} (from 0), more than a row may have", Limits::ROW_BYTES >> 20)]
    TooLong { column: usize },
}

/// One record.
#[derive(Debug, Default)]
pub struct Record {
    /// The texts of its values behind each other.
    text: String,
    /// The end of each value in `text`, and whether it is NULL.
    ends: Vec<(usize, bool)>,
}

impl Record {
    /// The record's values in order; `None` is NULL.
    pub fn values(&self) -> impl Iterator<Item = Option<&str>> + Clone {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(end, _)| *end));
        (self.ends.iter().zip(starts))
            .map(|((end, null), start)| (!null).then(|| &self.text[start..*end]))
    }
}

/// What the next byte is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first byte of a value.
    Start,
    Bare,
    Quoted,
    /// Behind a quote in a quoted value: its end, or the first half of `""`.
    Quote,
    /// Behind a quoted value and a CR.
    CarriageReturn,
}

/// Reads records. Feed it chunks with [`Tokenizer::read`], and [`Tokenizer::finish`] it.
#[derive(Debug)]
pub struct Tokenizer {
    columns: usize,
    state: State,
    /// The text of the record so far; it becomes `record.text` when the record is complete.
    text: Vec<u8>,
    record: Record,
    place: Place,
    /// Where the record that is being read, or read next, begins.
    begins: u64,
    /// The first byte that was not consumed.
    at: u64,
}

impl Tokenizer {
    /// For a file from its first byte on. The first record is the header.
    pub fn from_header(columns: usize) -> Self {
        Self::new(columns, Place::Header, 0)
    }

    /// For a file from the byte at which `row` begins.
    pub fn from_row(columns: usize, row: u64, offset: u64) -> Self {
        Self::new(columns, Place::Row(row), offset)
    }

    fn new(columns: usize, place: Place, at: u64) -> Self {
        let (state, text, record) = (State::Start, Vec::new(), Record::default());
        Self {
            columns,
            state,
            text,
            record,
            place,
            begins: at,
            at,
        }
    }

    /// The byte behind the record that was read last: where the next one begins.
    pub fn offset(&self) -> u64 {
        self.begins
    }

    /// Reads from `chunk` up to the end of a record and gives it, or all of the chunk and gives
    /// nothing. What was read is taken off the chunk.
    pub fn read(&mut self, chunk: &mut &[u8]) -> Result<Option<&Record>, CsvError> {
        self.clear();
        let all = chunk.len();
        let ended = self.advance(chunk);
        self.at += (all - chunk.len()) as u64;
        match ended {
            Ok(false) => Ok(None),
            Ok(true) => self.complete().map(Some),
            Err(problem) => Err(self.error(problem)),
        }
    }

    /// The end of the file: the last record, when the file does not end with a line end.
    pub fn finish(&mut self) -> Result<Option<&Record>, CsvError> {
        self.clear();
        let column = self.record.ends.len();
        match self.state {
            State::Start if column == 0 => return Ok(None),
            State::Start | State::Bare => self.end_bare(),
            State::Quote => self.end_value(false),
            State::Quoted => return Err(self.error(Problem::Unterminated { column })),
            State::CarriageReturn => return Err(self.error(Problem::TextAfterQuote { column })),
        }
        self.complete().map(Some)
    }

    fn error(&self, problem: Problem) -> CsvError {
        CsvError {
            place: self.place,
            begins: self.begins,
            problem,
        }
    }

    /// Takes the buffer back from a record that was given out.
    fn clear(&mut self) {
        if self.begins == self.at {
            if self.text.capacity() == 0 {
                self.text = std::mem::take(&mut self.record.text).into_bytes();
            }
            self.text.clear();
            self.record.ends.clear();
        }
    }

    /// Checks the record that has ended.
    fn complete(&mut self) -> Result<&Record, CsvError> {
        let (found, wanted) = (self.record.ends.len(), self.columns);
        if found != wanted {
            return Err(self.error(Problem::Columns { found, wanted }));
        }
        let ends = &self.record.ends;
        let text = String::from_utf8(std::mem::take(&mut self.text));
        let not_utf8 = match &text {
            Err(error) => {
                let byte = error.utf8_error().valid_up_to();
                ends.iter().position(|(end, _)| byte < *end)
            }
            // Two values may be UTF-8 only when taken together.
            Ok(text) => ends
                .iter()
                .position(|(end, _)| !text.is_char_boundary(*end)),
        };
        match (text, not_utf8) {
            (Ok(text), None) => self.record.text = text,
            (_, column) => {
                return Err(self.error(Problem::NotUtf8 {
                    column: column.unwrap_or_default(),
                }));
            }
        }
        self.begins = self.at;
        self.place = match self.place {
            Place::Header => Place::Row(0),
            Place::Row(row) => Place::Row(row + 1),
        };
        Ok(&self.record)
    }

    /// Where the value that is being read begins in the text.
    fn start(&self) -> usize {
        self.record.ends.last().map_or(0, |(end, _)| *end)
    }

    /// True when a record has ended.
    fn advance(&mut self, chunk: &mut &[u8]) -> Result<bool, Problem> {
        while let Some(byte) = chunk.first().copied() {
            match (self.state, byte) {
                (State::Quoted, _) => {
                    let end = memchr(b'"', chunk).unwrap_or(chunk.len());
                    self.append(&chunk[..end])?;
                    if end < chunk.len() {
                        self.state = State::Quote;
                    }
                    *chunk = &chunk[chunk.len().min(end + 1)..];
                    continue;
                }
                (State::Start, b'"') => self.state = State::Quoted,
                (State::Start | State::Bare, b',') => self.end_bare(),
                (State::Start | State::Bare, b'\n') => {
                    // A CRLF; a CR elsewhere is text.
                    if self.text.len() > self.start() && self.text.last() == Some(&b'\r') {
                        self.text.pop();
                    }
                    self.end_bare();
                    *chunk = &chunk[1..];
                    return Ok(true);
                }
                (State::Start | State::Bare, _) => {
                    self.state = State::Bare;
                    let end = memchr2(b',', b'\n', chunk).unwrap_or(chunk.len());
                    self.append(&chunk[..end])?;
                    *chunk = &chunk[end..];
                    continue;
                }
                (State::Quote, b'"') => {
                    self.append(b"\"")?;
                    self.state = State::Quoted;
                }
                (State::Quote, b',') => self.end_value(false),
                (State::Quote | State::CarriageReturn, b'\n') => {
                    self.end_value(false);
                    *chunk = &chunk[1..];
                    return Ok(true);
                }
                (State::Quote, b'\r') => self.state = State::CarriageReturn,
                (State::Quote | State::CarriageReturn, _) => {
                    return Err(Problem::TextAfterQuote {
                        column: self.record.ends.len(),
                    });
                }
            }
            if self.record.ends.len() >= self.columns && byte == b',' {
                return Err(Problem::TooManyColumns {
                    wanted: self.columns,
                });
            }
            *chunk = &chunk[1..];
        }
        Ok(false)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        if self.text.len() + bytes.len() > Limits::ROW_BYTES {
            return Err(Problem::TooLong {
                column: self.record.ends.len(),
            });
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    /// A bare value of no text is NULL.
    fn end_bare(&mut self) {
        self.end_value(self.text.len() == self.start());
    }

    fn end_value(&mut self, null: bool) {
        self.record.ends.push((self.text.len(), null));
        self.state = State::Start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Rows = Vec<Vec<Option<String>>>;

    /// Every record of `bytes`, fed in the given pieces, with the offsets behind them.
    fn read_pieces(
        mut tokenizer: Tokenizer,
        pieces: &[&[u8]],
    ) -> Result<(Rows, Vec<u64>), CsvError> {
        let (mut rows, mut offsets) = (Vec::new(), Vec::new());
        let owned = |record: &Record| -> Vec<_> {
            record
                .values()
                .map(|value| value.map(str::to_owned))
                .collect()
        };
        for piece in pieces {
            let mut rest = *piece;
            while let Some(row) = tokenizer.read(&mut rest)?.map(owned) {
                rows.push(row);
                offsets.push(tokenizer.offset());
            }
            assert!(rest.is_empty());
        }
        if let Some(row) = tokenizer.finish()?.map(owned) {
            rows.push(row);
            offsets.push(tokenizer.offset());
        }
        Ok((rows, offsets))
    }

    fn read(columns: usize, text: &[u8]) -> Result<Rows, CsvError> {
        let whole = read_pieces(Tokenizer::from_row(columns, 0, 0), &[text]).map(|read| read.0);
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        let single = read_pieces(Tokenizer::from_row(columns, 0, 0), &bytes).map(|read| read.0);
        assert_eq!(whole, single);
        whole
    }

    fn rows(rows: &[&[Option<&str>]]) -> Rows {
        rows.iter()
            .map(|row| row.iter().map(|value| value.map(str::to_owned)).collect())
            .collect()
    }

    fn problem(columns: usize, text: &[u8]) -> (Place, Problem) {
        let error = read(columns, text).unwrap_err();
        (error.place, error.problem)
    }

    #[test]
    fn null_and_the_empty_string_are_two_things() {
        let wanted = rows(&[&[None, Some(""), Some("a")], &[None, None, None]]);
        assert_eq!(read(3, b",\"\",\"a\"\n,,\n"), Ok(wanted));
    }

    #[test]
    fn a_blank_line_is_a_null_row_of_one_column() {
        let wanted = rows(&[&[Some("a")], &[None], &[Some("")], &[None], &[Some("b")]]);
        assert_eq!(read(1, b"\"a\"\n\n\"\"\n\r\nb"), Ok(wanted));
        assert_eq!(
            problem(2, b"a,b\n\nc,d\n").1,
            Problem::Columns {
                found: 1,
                wanted: 2
            }
        );
    }

    #[test]
    fn quotes_commas_and_line_ends_within_quotes_are_text() {
        let wanted = rows(&[
            &[Some("a\"b"), Some("c,\r\nd")],
            &[Some("\""), Some("\"\"")],
        ]);
        assert_eq!(
            read(2, b"\"a\"\"b\",\"c,\r\nd\"\r\n\"\"\"\",\"\"\"\"\"\""),
            Ok(wanted)
        );
    }

    #[test]
    fn bare_values_are_text() {
        let wanted = rows(&[&[Some("12"), Some(" a\"b ")], &[Some("c\rd"), None]]);
        assert_eq!(read(2, b"12, a\"b \r\nc\rd,\r\n"), Ok(wanted));
        assert_eq!(read(2, b"a,"), Ok(rows(&[&[Some("a"), None]])));
    }

    #[test]
    fn nothing_is_no_row() {
        assert_eq!(read(1, b""), Ok(vec![]));
    }

    #[test]
    fn what_is_no_csv_is_refused_and_says_where() {
        let (row_1, column) = (Place::Row(1), 1);
        assert_eq!(
            problem(2, b"a,b\nc,\"d\"e\n"),
            (row_1, Problem::TextAfterQuote { column })
        );
        assert_eq!(
            problem(2, b"a,b\nc,\"d\"\re\n"),
            (row_1, Problem::TextAfterQuote { column })
        );
        assert_eq!(
            problem(2, b"a,b\nc,\"d\n"),
            (row_1, Problem::Unterminated { column })
        );
        assert_eq!(
            problem(2, b"a,b\nc,\"\xff\"\n"),
            (row_1, Problem::NotUtf8 { column })
        );
        assert_eq!(
            problem(2, b"a,b\nc\n"),
            (
                row_1,
                Problem::Columns {
                    found: 1,
                    wanted: 2
                }
            )
        );
        assert_eq!(
            problem(2, b"a,b\nc"),
            (
                row_1,
                Problem::Columns {
                    found: 1,
                    wanted: 2
                }
            )
        );
        assert_eq!(
            problem(2, b"a,b\nc,d,e\n"),
            (row_1, Problem::TooManyColumns { wanted: 2 })
        );
        // A letter that is cut by a comma.
        assert_eq!(
            problem(2, b"\xc3,\xa9\n"),
            (Place::Row(0), Problem::NotUtf8 { column: 0 })
        );
        let error = read(2, b"a,b\nc,\"d\"e\n").unwrap_err().to_string();
        assert!(
            error.contains("row 1") && error.contains("byte 4"),
            "{error}"
        );
    }

    #[test]
    fn a_row_beyond_the_limit_is_refused_before_it_is_held() {
        let mut text = b"a,\"".to_vec();
        text.resize(text.len() + Limits::ROW_BYTES - 1, b'x');
        text.extend(b"\"\n");
        assert!(read_pieces(Tokenizer::from_row(2, 0, 0), &[&text]).is_ok());
        text.splice(3..3, *b"y");
        let error = read_pieces(Tokenizer::from_row(2, 0, 0), &[&text]).unwrap_err();
        assert_eq!(error.problem, Problem::TooLong { column: 1 });
    }

    #[test]
    fn the_header_counts_as_no_row() {
        let mut tokenizer = Tokenizer::from_header(1);
        let mut rest: &[u8] = b"\"n\"\n\"1\"\n\"2\"3";
        assert!(tokenizer.read(&mut rest).unwrap().is_some());
        assert_eq!(tokenizer.offset(), 4);
        assert!(tokenizer.read(&mut rest).unwrap().is_some());
        assert_eq!(tokenizer.read(&mut rest).unwrap_err().place, Place::Row(1));
    }

    /// The writer that the reader is measured against: quoted, or bare where that is the same.
    fn write(rows: &Rows, bare: bool, end: &str) -> Vec<u8> {
        let mut text = String::new();
        for row in rows {
            let fields: Vec<_> = row
                .iter()
                .map(|value| match value {
                    None => String::new(),
                    Some(v) if bare && !v.is_empty() && !v.contains(['"', ',', '\n', '\r']) => {
                        v.clone()
                    }
                    Some(v) => format!("\"{}\"", v.replace('"', "\"\"")),
                })
                .collect();
            text += &fields.join(",");
            text += end;
        }
        text.into_bytes()
    }

    fn any_rows() -> impl Strategy<Value = Rows> {
        let value = prop::option::of("[a\"\",\r\n\u{e9}\u{6f22} \\\\]{0,6}");
        (1..4_usize).prop_flat_map(move |width| {
            prop::collection::vec(prop::collection::vec(value.clone(), width), 1..8)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_wherever_the_chunks_end(
            rows in any_rows(), bare: bool, crlf: bool, cut in prop::collection::vec(0..400_usize, 0..6),
        ) {
            let bytes = write(&rows, bare, if crlf { "\r\n" } else { "\n" });
            let mut cuts: Vec<_> = cut.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let width = rows[0].len();
            let (seen, offsets) = read_pieces(Tokenizer::from_row(width, 0, 0), &pieces).unwrap();
            prop_assert_eq!(&seen, &rows);
            // Every chunk boundary, and going on from every record.
            for middle in 0..=bytes.len() {
                let (left, right) = bytes.split_at(middle);
                let (seen, _) = read_pieces(Tokenizer::from_row(width, 0, 0), &[left, right]).unwrap();
                prop_assert_eq!(&seen, &rows);
            }
            for (done, offset) in offsets.iter().enumerate() {
                let from = usize::try_from(*offset).unwrap();
                let tokenizer = Tokenizer::from_row(width, done as u64 + 1, *offset);
                let (rest, again) = read_pieces(tokenizer, &[&bytes[from..]]).unwrap();
                prop_assert_eq!(&rest[..], &rows[done + 1..]);
                prop_assert_eq!(&again[..], &offsets[done + 1..]);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(prop::sample::select(b"\",\r\na\xc3\xa9".to_vec()), 0..40), width in 1..4_usize) {
            let whole = read_pieces(Tokenizer::from_row(width, 0, 0), &[&bytes]);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(whole, read_pieces(Tokenizer::from_row(width, 0, 0), &single));
        }
    }
}
