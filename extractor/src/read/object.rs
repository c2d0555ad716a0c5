//! Reads the CSV object in S3.

use super::{ReadError, Reading};
use crate::batching::Batcher;
use crate::csv::{CsvError, Place, Problem, Tokenizer};
use crate::outbox::Outbox;
use crate::s3::ObjectReader;

/// Reads to the end of the object, which begins at the cursor's byte, and puts every batch into the outbox.
pub async fn read(
    mut object: ObjectReader,
    reading: &Reading,
    outbox: &Outbox,
) -> Result<(), ReadError> {
    let mut rows = Rows::new(reading, outbox);
    while let Some(chunk) = object.next().await? {
        rows.take(Some(&chunk)).await?;
    }
    rows.take(None).await?;
    rows.finish().await
}

/// Turns the bytes of the object into batches.
struct Rows<'a> {
    reading: &'a Reading,
    outbox: &'a Outbox,
    tokenizer: Tokenizer,
    batcher: Batcher,
    in_header: bool,
}

impl<'a> Rows<'a> {
    fn new(reading: &'a Reading, outbox: &'a Outbox) -> Self {
        let (columns, cursor) = (reading.columns.len(), &reading.cursor);
        let in_header = cursor.offset == 0;
        let place = if in_header {
            Place::Header
        } else {
            Place::Row(cursor.row)
        };
        Self {
            reading,
            outbox,
            tokenizer: Tokenizer::new(columns, place, cursor.offset),
            batcher: reading.batcher(),
            in_header,
        }
    }

    /// Takes the next bytes; none at the end.
    async fn take(&mut self, chunk: Option<&[u8]>) -> Result<(), ReadError> {
        let mut rest = chunk.unwrap_or_default();
        loop {
            let offset = self.tokenizer.offset();
            let record = match chunk {
                Some(_) => self.tokenizer.read(&mut rest),
                None => self.tokenizer.finish(),
            };
            let Some(record) = record.map_err(|error| row_error(self.reading, error))? else {
                return Ok(());
            };
            if self.in_header {
                self.reading.check_header(record.values())?;
                self.in_header = false;
                continue;
            }
            let row = self.batcher.row();
            let full = self.batcher.push(record.values());
            let full = full.map_err(|column| self.reading.row_too_large(row, column))?;
            if let Some(batch) = full {
                let next = batch.next(offset, None);
                self.outbox.put(batch, next).await?;
            }
        }
    }

    async fn finish(self) -> Result<(), ReadError> {
        if self.in_header {
            return Err(self.reading.no_header("nothing"));
        }
        if let Some(batch) = self.batcher.finish() {
            let next = batch.next(self.tokenizer.offset(), None);
            self.outbox.put(batch, next).await?;
        }
        Ok(())
    }
}

/// Reports a row that is too long as [`super::pages`] does.
fn row_error(reading: &Reading, error: CsvError) -> ReadError {
    match (error.place, error.problem) {
        (Place::Row(row), Problem::TooLong { column }) => reading.row_too_large(row, column),
        (Place::Header | Place::Row(_), _) => error.into(),
    }
}
