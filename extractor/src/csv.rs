//! The result CSV as Athena writes it, read record by record from chunks of bytes.
//!
//! The crate `csv` does not fit: it reads NULL (nothing between two commas) as the empty string
//! (`""`), and drops the blank line that is a NULL row of a one-column result. This tokenizer keeps
//! the two apart, holds one record at a time whatever the size of the chunks, and reports the byte
//! where the next record begins, so that reading can resume there.
//!
//! Format (Amazon Athena User Guide, "Working with query results", and RFC 4180): a value in double
//! quotes with `""` for a quote, or bare up to the next comma or line end; LF or CRLF after a record.

use memchr::{memchr, memchr2};

use common::message::Limits;

/// Text that is not in this format. Rows and columns count from 0, as in the ledger; the header has
/// no row number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place} of the result file, at byte {begins}, {problem}")]
pub struct CsvError {
    pub place: Place,
    /// The byte at which the record begins.
    pub begins: u64,
    pub problem: Problem,
}

/// The position of a record.
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
    #[error("has text after the closing quote of column {column} (from 0)")]
    TextAfterQuote { column: usize },
    #[error("ends inside the quotes of column {column} (from 0): the file is truncated")]
    Unterminated { column: usize },
    #[error("is not UTF-8 in column {column} (from 0)")]
    NotUtf8 { column: usize },
    #[error("has {found} columns instead of {wanted}")]
    Columns { found: usize, wanted: usize },
    #[error("has more than {wanted} columns")]
    TooManyColumns { wanted: usize },
    #[error("exceeds {} MiB, the maximum of a row, in column {column} (from 0)", Limits::ROW_BYTES >> 20)]
    TooLong { column: usize },
}

/// One record.
#[derive(Debug, Default)]
pub struct Record {
    /// The concatenated texts of its values.
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

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first byte of a value.
    Start,
    Bare,
    Quoted,
    /// After a quote in a quoted value: its end, or the first half of `""`.
    Quote,
    /// After a quoted value and a CR.
    CarriageReturn,
}

/// Reads records from chunks: [`Tokenizer::read`] until the last chunk, then [`Tokenizer::finish`].
#[derive(Debug)]
pub struct Tokenizer {
    columns: usize,
    state: State,
    /// The text of the record so far; a complete record takes it as `record.text`.
    text: Vec<u8>,
    record: Record,
    place: Place,
    /// The byte where the current or next record begins.
    begins: u64,
    /// The first byte that is not consumed.
    at: u64,
}

impl Tokenizer {
    /// Reads a file from the byte `at`, where the record at `place` begins.
    pub fn new(columns: usize, place: Place, at: u64) -> Self {
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

    /// The byte where the next record begins.
    pub fn offset(&self) -> u64 {
        self.begins
    }

    /// Reads `chunk` up to the end of a record and returns it, or reads all of it and returns None.
    /// Removes what was read from `chunk`.
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

    /// The last record, when the file does not end with a line end.
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

    /// Takes the buffer back from the record that was returned.
    fn clear(&mut self) {
        if self.begins == self.at {
            if self.text.capacity() == 0 {
                self.text = std::mem::take(&mut self.record.text).into_bytes();
            }
            self.text.clear();
            self.record.ends.clear();
        }
    }

    /// Checks the record that has just ended.
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
            // Two values may be valid UTF-8 only when joined.
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

    /// Where the current value begins in the text.
    fn start(&self) -> usize {
        self.record.ends.last().map_or(0, |(end, _)| *end)
    }

    /// Returns true when a record has ended.
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
                    // CRLF ends a record; a CR elsewhere is text.
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

    /// A bare value without text is NULL.
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
