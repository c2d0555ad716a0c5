//! Copies a batch's rows into a table within the batch's transaction: all at once, and one by one within PostgreSQL where it
//! refuses a row. A row counts as refused only after it was refused alone.

use common::failpoint;
use common::message::{RejectedRow, ValidBatch};
use common::schema::PgType;
use ledger::database::savepoint;
use ledger::{Class, classify, search_path};
use sqlx::PgConnection;

use super::Written;
use super::one_by_one::OneByOne;
use crate::copy::{CopyText, Last, binary};
use crate::ddl::{ColumnType, TableName, list};
use crate::errors::{LoadError, Refused};

/// The statements that copy into one table.
#[derive(Debug)]
pub(crate) struct CopyInto {
    /// The table, for errors.
    table: String,
    /// `COPY ... FROM STDIN` in text format. [`Last`] determines the last value of a line.
    text: String,
    /// The same in the binary format.
    binary: String,
    one_by_one: OneByOne,
    /// The types of the columns, some wider than the batch's. In the binary format, bytes of another type may be read
    /// as a wrong value.
    copied_types: Vec<PgType>,
    /// The schema of the table, where its triggers fire.
    fires_in: Option<String>,
}

/// A row that PostgreSQL refused.
pub(crate) struct RefusedRow {
    /// Its index among the batch's valid rows.
    pub(crate) index: usize,
    pub(crate) row: RejectedRow,
}

impl CopyInto {
    /// COPY into the relation `into` (quoted), with these columns and, quoted, this last one. `table` is the target, for
    /// errors.
    pub(crate) fn new(
        table: &str,
        into: &str,
        (columns, types): (Vec<String>, Vec<ColumnType>),
        last: &str,
    ) -> Self {
        let columns = format!("{into} ({}, {last})", list(&columns));
        let copy = format!("COPY {columns} FROM STDIN");
        Self {
            table: table.to_owned(),
            binary: format!("{copy} WITH (FORMAT binary)"),
            text: format!("{copy} WITH (FORMAT text, ENCODING 'UTF8')"),
            one_by_one: OneByOne::new(&types, |rows| format!("INSERT INTO {columns} {rows}")),
            copied_types: types.into_iter().map(|one| one.pg_type).collect(),
            fires_in: None,
        }
    }

    /// The same into a target, whose triggers fire.
    pub(crate) fn firing(self, target: &TableName) -> Self {
        Self {
            one_by_one: self.one_by_one.firing(target),
            fires_in: Some(target.schema.clone()),
            ..self
        }
    }

    /// Copies the batch's rows, if it has any, to stay as they are.
    pub(crate) async fn write(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        batch_no: i64,
    ) -> Result<Written, LoadError> {
        if batch.rows.is_empty() {
            return Ok(Written::default());
        }
        let refused = self.copy(tx, batch, Last::Batch(batch_no)).await?;
        Ok(Written::new(refused, 0))
    }

    /// Copies the batch's rows, each with a last value, and returns the refused ones.
    pub(crate) async fn copy(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        last: Last,
    ) -> Result<Vec<RefusedRow>, LoadError> {
        let failed =
            |error| LoadError::target(|| format!("cannot copy rows into {}", self.table))(error);
        let mut refused = Vec::new();
        let at_once = self.at_once(tx, batch, last).await.map_err(failed)?;
        let stored = if let Some(stored) = at_once {
            stored
        } else {
            let write = self.one_by_one.write(tx, batch, (last, 0), &mut refused);
            write.await.map_err(failed)?
        };
        let sent = (batch.rows.len() - refused.len()) as u64;
        if stored == sent {
            Ok(refused)
        } else {
            Err(vanished(&self.table, sent, stored))
        }
    }

    /// Copies all rows, in a savepoint, and returns how many were stored: in the binary format, where every type and value has
    /// one here, and else as text. None when PostgreSQL refused a row.
    async fn at_once(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        last: Last,
    ) -> Result<Option<u64>, sqlx::Error> {
        // Encoded before the COPY starts: nothing may wait while a COPY is open.
        if let Some(bytes) = binary::encode(&batch.rows, &self.copied_types, last) {
            return self.copy_all(tx, &self.binary, &bytes).await;
        }
        let text = CopyText::encode(&batch.rows, last);
        let lines = text.lines(0..batch.rows.len());
        self.copy_all(tx, &self.text, lines).await
    }

    async fn copy_all(
        &self,
        tx: &mut PgConnection,
        statement: &str,
        bytes: &[u8],
    ) -> Result<Option<u64>, sqlx::Error> {
        let work = async |tx: &mut PgConnection| copy(tx, statement, bytes).await;
        unless_refused(tx, async |tx: &mut PgConnection| match &self.fires_in {
            Some(schema) => search_path::as_triggers_expect(tx, schema, work).await,
            None => work(tx).await,
        })
        .await
    }
}

/// PostgreSQL stored another number of rows than were sent: a trigger or a rule drops some.
pub(super) fn vanished(table: &str, sent: u64, stored: u64) -> LoadError {
    Refused::RowsVanished {
        table: table.to_owned(),
        sent,
        stored,
    }
    .into()
}

/// Does `work` on all rows at once, in a savepoint. None when PostgreSQL refused a row.
pub(super) async fn unless_refused<T>(
    tx: &mut PgConnection,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<Option<T>, sqlx::Error> {
    match savepoint(tx, work).await {
        Ok(done) => Ok(Some(done)),
        Err(error) if classify(&error) == Class::Row => Ok(None),
        Err(error) => Err(error),
    }
}

/// The bytes of one write to the connection, whose buffer keeps the size of the largest write.
const PIECE: usize = 128 << 10;

async fn copy(tx: &mut PgConnection, statement: &str, lines: &[u8]) -> Result<u64, sqlx::Error> {
    let mut copy = tx.copy_in_raw(statement).await?;
    for piece in lines.chunks(PIECE) {
        copy.send(piece).await?;
    }
    failpoint::reach("mid_copy").await;
    copy.finish().await
}
