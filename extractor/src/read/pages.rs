//! Reads the pages of `GetQueryResults`.

use super::{ReadError, Reading};
use crate::athena::{Athena, Page};
use crate::aws::{AwsError, AwsErrorKind};
use crate::batching::Batcher;
use crate::outbox::Outbox;

/// The token of a page and the ordinal of its first row; none for the first page.
type Token = Option<(String, u64)>;

/// Reads from the cursor to the end of the result, and puts every batch into the outbox.
pub async fn read(athena: &Athena, reading: &Reading, outbox: &Outbox) -> Result<(), ReadError> {
    let mut batcher = reading.batcher();
    let (mut token, mut page) = first_page(athena, reading).await?;
    let rows = loop {
        let end = read_page(&page, &token, reading, &mut batcher, outbox).await?;
        let Some(next) = page.next.take() else {
            break end;
        };
        page = athena
            .page(&reading.query_execution_id, Some(&next))
            .await?;
        token = Some((next, end));
    };
    if rows < reading.cursor.row {
        return Err(ReadError::Shrunk {
            rows,
            read: reading.cursor.row,
        });
    }
    if let Some(batch) = batcher.finish() {
        let next = batch.next(0, token);
        outbox.put(batch, next).await?;
    }
    Ok(())
}

/// The page that the checkpoint names, or the first page where Athena refuses that token.
async fn first_page(athena: &Athena, reading: &Reading) -> Result<(Token, Page), AwsError> {
    let (id, cursor) = (&reading.query_execution_id, &reading.cursor);
    if let Some((token, first)) = &cursor.page
        && *first <= cursor.row
    {
        match athena.page(id, Some(token)).await {
            Ok(page) => return Ok((cursor.page.clone(), page)),
            Err(error) if error.kind == AwsErrorKind::Refused => {
                tracing::info!(
                    error = error.logged(),
                    "the page's token has expired; reading from the first page"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok((None, athena.page(id, None).await?))
}

/// Returns the ordinal behind the page's last row.
async fn read_page(
    page: &Page,
    token: &Token,
    reading: &Reading,
    batcher: &mut Batcher,
    outbox: &Outbox,
) -> Result<u64, ReadError> {
    let mut row = token.as_ref().map_or(0, |(_, first)| *first);
    let mut rows = page.rows();
    if token.is_none() {
        match rows.next() {
            Some(header) => reading.check_header(header)?,
            None => return Err(reading.no_header("nothing")),
        }
    }
    for values in rows {
        // Earlier rows are in batches that were published.
        if row >= batcher.row() {
            let (found, wanted) = (values.len(), reading.columns.len());
            if found != wanted {
                return Err(ReadError::Width { row, found, wanted });
            }
            let full = batcher.push(values);
            if let Some(batch) = full.map_err(|column| reading.row_too_large(row, column))? {
                let next = batch.next(0, token.clone());
                outbox.put(batch, next).await?;
            }
        }
        row += 1;
    }
    Ok(row)
}
