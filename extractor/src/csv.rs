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
mod tests;
