//! `append`, batch by batch: rows are copied directly into the target.

use common::message::ValidBatch;
use common::schema::{BATCH_COLUMN, quoted};
use ledger::earlier;
use sqlx::PgConnection;

use super::Written;
use super::copy_into::CopyInto;
use super::deletion::{Deletion, Expected};
use crate::ddl::{ColumnType, TableName};
use crate::errors::LoadError;

/// Appends batches to one target.
#[derive(Debug)]
pub(crate) struct Append {
    table: String,
    copy: CopyInto,
    deletion: Deletion,
}

impl Append {
    /// The writer for a table in which these columns have these types.
    pub(crate) fn new(
        name: &TableName,
        (columns, types): (Vec<String>, Vec<ColumnType>),
        allows_cascades: bool,
    ) -> Self {
        let (table, batch) = (name.sql(), quoted(BATCH_COLUMN));
        Self {
            copy: CopyInto::new(&table, &table, (columns, types), &batch).firing(name),
            deletion: Deletion::new(name, allows_cascades),
            table,
        }
    }

    /// Writes a batch. A batch of a replay replaces its earlier generation.
    pub(crate) async fn write(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        batch_no: i64,
    ) -> Result<Written, LoadError> {
        if let Some(rows) = earlier::rows_of_batch(tx, &batch.id).await? {
            let expected = Expected {
                fewest: rows,
                most: rows,
            };
            let deleted = self
                .deletion
                .delete_batches(tx, batch_no..batch_no + 1, expected);
            let deleted = deleted.await.map_err(LoadError::target(|| {
                format!("cannot delete the replaced rows from {}", self.table)
            }))?;
            deleted?;
        }
        self.copy.write(tx, batch, batch_no).await
    }
}
