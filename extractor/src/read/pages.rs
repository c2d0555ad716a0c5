//! The way through the pages of `GetQueryResults`.

use common::message::Cursor;

use super::{ReadError, Reading};
use crate::athena::{Athena, Page, PageRow};
use crate::aws::{AwsError, AwsErrorKind};
use crate::batching::Batcher;
use crate::outbox::Outbox;

/// The token of a page and the ordinal of its first row; none for the first page.
type Here = Option<(String, u64)>;

pub(super) async fn read(
    athena: &Athena,
    reading: &Reading,
    outbox: &Outbox,
) -> Result<(), ReadError> {
    let id = &reading.query_execution_id;
    let mut batcher = reading.batcher();
    let (mut here, mut page) = first_page(athena, reading).await?;
    let rows = loop {
        let end = read_page(&page, &here, reading, &mut batcher, outbox).await?;
        let Some(token) = page.next.take() else {
            break end;
        };
        page = athena.page(id, Some(&token)).await?;
        here = Some((token, end));
    };
    if rows < reading.cursor.row {
        return Err(ReadError::Shrunk {
            rows,
            read: reading.cursor.row,
        });
    }
    if let Some(batch) = batcher.finish() {
        let next = Cursor {
            offset: 0,
            row: batch.end(),
            seq: batch.seq + 1,
            page: here,
        };
        outbox.put(batch, next).await?;
    }
    Ok(())
}

/// The page that the checkpoint names, or the result's first one where that token is no longer good.
async fn first_page(athena: &Athena, reading: &Reading) -> Result<(Here, Page), AwsError> {
    let id = &reading.query_execution_id;
    if let Some((token, first)) = reading
        .cursor
        .page
        .clone()
        .filter(|(_, first)| *first <= reading.cursor.row)
    {
        match athena.page(id, Some(&token)).await {
            Ok(page) => return Ok((Some((token, first)), page)),
            Err(error) if error.kind == AwsErrorKind::Refused => {
                tracing::info!(%error, "the page's token is not good any more; reading from the first page");
            }
            Err(error) => return Err(error),
        }
    }
    Ok((None, athena.page(id, None).await?))
}

/// Gives the ordinal behind the page's last row.
async fn read_page(
    page: &Page,
    here: &Here,
    reading: &Reading,
    batcher: &mut Batcher,
    outbox: &Outbox,
) -> Result<u64, ReadError> {
    let mut row = here.as_ref().map_or(0, |(_, first)| *first);
    let mut rows = page.rows();
    if here.is_none() {
        match rows.next() {
            Some(header) => reading.check_header(header.values())?,
            None => return Err(reading.no_header("nothing")),
        }
    }
    for values in rows.map(PageRow::values) {
        // The rows before are in batches that were published.
        if row >= batcher.row() {
            let (found, wanted) = (values.len(), reading.columns.len());
            if found != wanted {
                return Err(ReadError::Width { row, found, wanted });
            }
            let full = batcher.push(values);
            if let Some(batch) = full.map_err(|column| reading.row_too_large(row, column))? {
                let (row, seq) = (batch.end(), batch.seq + 1);
                let next = Cursor {
                    offset: 0,
                    row,
                    seq,
                    page: here.clone(),
                };
                outbox.put(batch, next).await?;
            }
        }
        row += 1;
    }
    Ok(row)
}
