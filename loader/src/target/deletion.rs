//! Deletes rows from a target, all of them or none, and nothing else. PostgreSQL reports a deletion as a success although a
//! trigger or a rule kept the rows; a foreign key may delete rows of other tables with them; and rows that a run wrote are
//! not found by their batch once somebody has made the column `_batch` anew.

use std::ops::Range;

use common::schema::{BATCH_COLUMN, quoted};
use ledger::search_path;
use sqlx::{AssertSqlSafe, PgConnection};

use super::catalog;
use crate::ddl::{RowChange, TableName, cascades_refusal};
use crate::errors::Refused;

/// A target, for deletions.
#[derive(Debug)]
pub(crate) struct Deletion {
    name: TableName,
    /// Whether the job allows other tables to change with this one.
    allows_cascades: bool,
}

/// How many rows a run has written and may still be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) fewest: i64,
    pub(crate) most: i64,
}

impl Deletion {
    pub(crate) fn new(name: &TableName, allows_cascades: bool) -> Self {
        Self {
            name: name.clone(),
            allows_cascades,
        }
    }

    /// Deletes the rows for which a condition holds, and returns their number. The condition names everything with its
    /// schema.
    pub(crate) async fn delete(
        &self,
        tx: &mut PgConnection,
        condition: &str,
    ) -> Result<Result<i64, Refused>, sqlx::Error> {
        let table = self.name.sql();
        if !self.allows_cascades
            && let Some(cascade) = catalog::cascade_of_deletes(tx, &self.name).await?
        {
            let refusal = cascades_refusal(&table, &cascade, RowChange::Delete);
            return Ok(Err(refusal.into()));
        }
        let delete = format!("DELETE FROM {table} WHERE {condition}");
        let schema = &self.name.schema;
        let deleted = search_path::as_triggers_expect(tx, schema, async |tx: &mut PgConnection| {
            sqlx::query(AssertSqlSafe(delete)).execute(tx).await
        });
        let deleted = deleted.await?;
        let left = format!("SELECT EXISTS (SELECT FROM {table} WHERE {condition})");
        if sqlx::query_scalar(AssertSqlSafe(left))
            .fetch_one(tx)
            .await?
        {
            return Ok(Err(Refused::RowsKept { table }));
        }
        Ok(Ok(
            i64::try_from(deleted.rows_affected()).unwrap_or(i64::MAX)
        ))
    }

    /// Deletes the rows with these values of `_batch`, which are so many by the ledger, and returns their number.
    pub(crate) async fn delete_batches(
        &self,
        tx: &mut PgConnection,
        batches: Range<i64>,
        expected: Expected,
    ) -> Result<Result<i64, Refused>, sqlx::Error> {
        let deleted = match self.delete(tx, &within(&batches)).await? {
            Ok(deleted) => deleted,
            refused => return Ok(refused),
        };
        let table = self.name.sql();
        if deleted > expected.most {
            return Ok(Err(Refused::MoreRows {
                table,
                found: deleted,
                known: expected.most,
            }));
        }
        if deleted < expected.fewest && self.has_unknown_rows(tx).await? {
            return Ok(Err(Refused::RowsNotFound {
                table,
                found: deleted,
                known: expected.fewest,
            }));
        }
        Ok(Ok(deleted))
    }

    /// Whether the table has rows of which the ledger does not know the batch. 0 stands for rows of other programs.
    async fn has_unknown_rows(&self, tx: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let (table, batch) = (self.name.sql(), quoted(BATCH_COLUMN));
        let unknown = format!(
            "SELECT EXISTS (SELECT FROM {table} WHERE {batch} IS NULL) OR EXISTS (
                 SELECT FROM (SELECT DISTINCT {batch} AS no FROM {table}) t WHERE no <> 0 AND NOT EXISTS (
                     SELECT FROM etl.runs r JOIN etl.batches b USING (run_id) WHERE r.run_no = etl.run_no(no) AND b.first_row = etl.first_row(no)))"
        );
        sqlx::query_scalar(AssertSqlSafe(unknown))
            .fetch_one(tx)
            .await
    }
}

/// The rows of these batches, as a condition.
pub(super) fn within(batches: &Range<i64>) -> String {
    let batch = quoted(BATCH_COLUMN);
    format!(
        "{batch} OPERATOR(pg_catalog.>=) {} AND {batch} OPERATOR(pg_catalog.<) {}",
        batches.start, batches.end
    )
}
