//! The ledger rows of batches. Whether a batch may be loaded is decided here, by plain data read under the run's lock.

use common::message::{BatchId, RunId, ValidBatch};
use sqlx::PgConnection;

use crate::database::Store;
use crate::error::{Error, Refused};
use crate::run::{bigint, integer};

/// The rows of a batch, as its ledger row counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub loaded: i64,
    pub deduplicated: i64,
    pub rejected: i64,
}

/// Claims a batch's place in the ledger. False when it is taken; waits for a transaction that is about to take it.
pub async fn claim(tx: &mut PgConnection, batch: &ValidBatch) -> Result<bool, Error> {
    let (loaded, rejected) = (batch.rows.len() as u64, batch.rejected.len() as u64);
    let claimed = sqlx::query(
        "INSERT INTO etl.batches (run_id, generation, first_row, content_hash, result_id, rows_extracted, rows_loaded, rows_rejected, watermark)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (run_id, generation, first_row) DO NOTHING",
    )
    .bind(batch.id.run.as_str())
    .bind(integer("the generation", batch.id.generation)?)
    .bind(bigint("the first row", batch.id.first_row)?)
    .bind(batch.content_hash.as_str())
    .bind(&batch.result_id)
    .bind(bigint("the number of rows", loaded + rejected)?)
    .bind(bigint("the number of rows", loaded)?)
    .bind(bigint("the number of rows", rejected)?)
    .bind(&batch.watermark)
    .execute(tx)
    .await?;
    Ok(claimed.rows_affected() == 1)
}

/// Refuses a batch that has rows of another one. Those that are not in the ledger yet look at this one when they arrive; of two
/// that are being loaded at the same time neither may see the other, and the completion of the run does.
pub async fn check_neighbours(tx: &mut PgConnection, id: &BatchId, rows: u64) -> Result<(), Error> {
    let neighbours: Vec<(i64, i64)> = sqlx::query_as(
        "(SELECT first_row, first_row + rows_extracted FROM etl.batches
          WHERE run_id = $1 AND generation = $2 AND first_row < $3 ORDER BY first_row DESC LIMIT 1)
         UNION ALL
         (SELECT first_row, first_row + rows_extracted FROM etl.batches
          WHERE run_id = $1 AND generation = $2 AND first_row > $3 ORDER BY first_row LIMIT 1)",
    )
    .bind(id.run.as_str())
    .bind(integer("the generation", id.generation)?)
    .bind(bigint("the first row", id.first_row)?)
    .fetch_all(tx)
    .await?;
    let end = id.first_row + rows;
    let (from, to) = (
        bigint("the first row", id.first_row)?,
        bigint("the row behind the last one", end)?,
    );
    match contradiction(from, to, &neighbours) {
        None => Ok(()),
        Some(contradiction) => Err(Refused::OutOfLine {
            id: id.to_string(),
            first_row: id.first_row,
            end,
            contradiction,
        }
        .into()),
    }
}

/// What speaks against a batch of the rows from `first_row` to before `end`. `neighbours` have the same.
fn contradiction(first_row: i64, end: i64, neighbours: &[(i64, i64)]) -> Option<String> {
    if first_row == end && first_row != 0 {
        return Some("are none, and only an empty result has a batch without a row".to_owned());
    }
    neighbours
        .iter()
        .find(|(begins, ends)| *begins < end && first_row < *ends)
        .map(|(begins, ends)| {
            format!("overlap those from {begins} to {ends} (excluded), which the ledger has")
        })
}

/// One of these values of `_batch` that no batch in the ledger has written.
pub async fn first_unknown(
    tx: &mut PgConnection,
    batch_nos: &[i64],
) -> Result<Option<i64>, sqlx::Error> {
    if batch_nos.is_empty() {
        return Ok(None);
    }
    sqlx::query_scalar(
        "SELECT no FROM unnest($1::bigint[]) AS n (no) WHERE NOT EXISTS (
             SELECT FROM etl.runs r JOIN etl.batches b USING (run_id) WHERE r.run_no = etl.run_no(no) AND b.first_row = etl.first_row(no)) LIMIT 1",
    )
    .bind(batch_nos)
    .fetch_optional(tx)
    .await
}

/// Corrects a claimed row once it is known what became of the rows.
pub async fn settle(tx: &mut PgConnection, id: &BatchId, counts: Counts) -> Result<(), Error> {
    sqlx::query("UPDATE etl.batches SET rows_loaded = $4, rows_deduplicated = $5, rows_rejected = $6 WHERE run_id = $1 AND generation = $2 AND first_row = $3")
        .bind(id.run.as_str())
        .bind(integer("the generation", id.generation)?)
        .bind(bigint("the first row", id.first_row)?)
        .bind(counts.loaded)
        .bind(counts.deduplicated)
        .bind(counts.rejected)
        .execute(tx)
        .await?;
    Ok(())
}

/// Whether the ledger has this batch. Other contents under the same identity are refused.
pub async fn is_recorded(tx: &mut PgConnection, batch: &ValidBatch) -> Result<bool, Error> {
    let found: Option<String> = sqlx::query_scalar(
        "SELECT content_hash FROM etl.batches WHERE run_id = $1 AND generation = $2 AND first_row = $3",
    )
    .bind(batch.id.run.as_str())
    .bind(integer("the generation", batch.id.generation)?)
    .bind(bigint("the first row", batch.id.first_row)?)
    .fetch_optional(tx)
    .await?;
    match found {
        None => Ok(false),
        Some(hash) if hash == batch.content_hash.as_str() => Ok(true),
        Some(ledger) => Err(Refused::OtherContent {
            id: batch.id.to_string(),
            ledger,
            found: batch.content_hash.to_string(),
        }
        .into()),
    }
}

/// Counts a message that arrived after its run had ended.
pub async fn count_ignored(store: &Store, run: &RunId) -> Result<(), Error> {
    let failure = "cannot count a message that arrived after the end of its run";
    store
        .transaction(failure, async |tx: &mut PgConnection| {
            sqlx::query(
                "UPDATE etl.runs SET ignored_messages = ignored_messages + 1 WHERE run_id = $1",
            )
            .bind(run.as_str())
            .execute(tx)
            .await?;
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_do_not_overlap() {
        assert_eq!(contradiction(0, 5, &[(5, 9)]), None);
        assert_eq!(contradiction(5, 9, &[(0, 5), (9, 12)]), None);
        assert_eq!(contradiction(5, 9, &[(0, 3), (11, 12)]), None);
        assert_eq!(contradiction(0, 0, &[]), None);
        assert!(contradiction(7, 7, &[]).is_some());
        for neighbours in [&[(0, 6)][..], &[(0, 5), (8, 12)], &[(0, 20)]] {
            assert!(contradiction(5, 9, neighbours).is_some(), "{neighbours:?}");
        }
    }
}
