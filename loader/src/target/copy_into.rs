//! Copies a batch's rows into a table within the batch's transaction, and finds the rows that PostgreSQL refuses: by
//! the line in the error of COPY, otherwise by halving. A row counts as refused only after it was refused alone.

use std::ops::Range;

use common::failpoint;
use common::message::{Reject, RejectedRow, ValidBatch};
use common::schema::PgType;
use ledger::database::savepoint;
use ledger::{Class, classify};
use sqlx::PgConnection;
use sqlx::postgres::PgDatabaseError;

use super::Written;
use crate::copy::{CopyText, Last, binary};
use crate::ddl::list;
use crate::errors::{LoadError, Refused};

/// The COPY statements for one table.
#[derive(Debug)]
pub(crate) struct CopyInto {
    /// The table, for errors.
    table: String,
    /// `COPY ... FROM STDIN` in text format. [`Last`] determines the last value of a line.
    text: String,
    /// The same in the binary format.
    binary: String,
    /// The name that PostgreSQL's error context has for the table that is copied into.
    copied_table: String,
    /// The columns' names in that context, in the batch's order.
    copied_columns: Vec<String>,
    /// The types of these columns, some wider than the batch's. In the binary format, bytes of another type may be read
    /// as a wrong value.
    copied_types: Vec<PgType>,
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
        (into, copied_table): (&str, &str),
        (columns, types): (Vec<String>, Vec<PgType>),
        last: &str,
    ) -> Self {
        let copy = format!("COPY {into} ({}, {last}) FROM STDIN", list(&columns));
        Self {
            table: table.to_owned(),
            binary: format!("{copy} WITH (FORMAT binary)"),
            text: format!("{copy} WITH (FORMAT text, ENCODING 'UTF8')"),
            copied_table: copied_table.to_owned(),
            copied_columns: columns,
            copied_types: types,
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
        let failed = LoadError::target(|| format!("cannot copy rows into {}", self.table));
        let mut refused = Vec::new();
        let copied = async {
            match self.as_binary(tx, batch, last).await? {
                Some(stored) => Ok(Some((stored, batch.rows.len() as u64))),
                None => self.as_text(tx, batch, last, &mut refused).await,
            }
        };
        match copied.await.map_err(failed)? {
            Some((stored, sent)) if stored != sent => Err(vanished(&self.table, sent, stored)),
            _ => Ok(refused),
        }
    }

    /// Copies all rows in the binary format, in a savepoint, and returns their number. None when a type or a value has
    /// no binary form here, or PostgreSQL refused a row: the text format shows which one and why.
    async fn as_binary(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        last: Last,
    ) -> Result<Option<u64>, sqlx::Error> {
        // Encoded before the COPY starts: nothing may wait while a COPY is open.
        let Some(bytes) = binary::encode(&batch.rows, &self.copied_types, last) else {
            return Ok(None);
        };
        let copied = savepoint(tx, async |tx: &mut PgConnection| {
            copy(tx, &self.binary, &bytes).await
        });
        match copied.await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if classify(&error) == Class::Row => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Copies the rows as text, in parts where PostgreSQL refuses one. Returns the first part whose stored count
    /// differs from the sent one.
    async fn as_text(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        last: Last,
        refused: &mut Vec<RefusedRow>,
    ) -> Result<Option<(u64, u64)>, sqlx::Error> {
        let text = CopyText::encode(&batch.rows, last);
        in_parts(tx, batch, self, refused, async |tx, rows| {
            let stored = copy(tx, &self.text, text.lines(rows.clone())).await?;
            Ok((stored, rows.len() as u64))
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

/// Runs `work` on all rows of the batch at once, or on parts of them where a row fails, each in a savepoint. `work`
/// returns two counts; the first difference ends it.
pub(super) async fn in_parts(
    tx: &mut PgConnection,
    batch: &ValidBatch,
    into: &CopyInto,
    refused: &mut Vec<RefusedRow>,
    mut work: impl AsyncFnMut(&mut PgConnection, Range<usize>) -> Result<(u64, u64), sqlx::Error>,
) -> Result<Option<(u64, u64)>, sqlx::Error> {
    let mut parts = vec![Range {
        start: 0,
        end: batch.rows.len(),
    }];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match savepoint(tx, async |tx: &mut PgConnection| {
            work(tx, part.clone()).await
        })
        .await
        {
            Ok((stored, sent)) if stored == sent => {}
            Ok(counts) => return Ok(Some(counts)),
            Err(error) if classify(&error) != Class::Row => return Err(error),
            Err(error) if part.len() == 1 => refused.push(RefusedRow {
                index: part.start,
                row: rejected(batch, part.start, &error, into),
            }),
            Err(error) => parts.extend(split(&part, named_line(&error, into)).into_iter().rev()),
        }
    }
    Ok(None)
}

/// The parts of a range, in order: the rows before the line of the error (from 1), that line, and the rows after it; or
/// two halves.
fn split(part: &Range<usize>, line: Option<usize>) -> Vec<Range<usize>> {
    if let Some(at) = line
        .map(|line| part.start + line - 1)
        .filter(|at| part.contains(at))
    {
        return vec![part.start..at, at..at + 1, at + 1..part.end];
    }
    let middle = part.start + part.len() / 2;
    vec![part.start..middle, middle..part.end]
}

/// The line (from 1) in the context of COPY's error. A wrong line only costs time.
fn named_line(error: &sqlx::Error, into: &CopyInto) -> Option<usize> {
    let context = postgres_error(error)?.r#where()?;
    line_in(context, &into.copied_table)
}

fn line_in(context: &str, table: &str) -> Option<usize> {
    let start = format!("COPY {table}, line ");
    let rest = context
        .lines()
        .find_map(|line| line.strip_prefix(start.as_str()))?;
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..digits].parse().ok().filter(|line| *line > 0)
}

fn postgres_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// The position of the column in the context of COPY's error, as in `COPY t, line 1, column a: "x"`.
fn column_in(context: &str, into: &CopyInto) -> Option<usize> {
    let start = format!("COPY {}, line ", into.copied_table);
    let rest = context
        .lines()
        .find_map(|line| line.strip_prefix(start.as_str()))?;
    let (_, named) = rest.split_once(", column ")?;
    let columns = into.copied_columns.iter().enumerate();
    let matching = columns.filter(|(_, name)| {
        named
            .strip_prefix(name.as_str())
            .is_some_and(|rest| rest.starts_with(": "))
    });
    matching
        .max_by_key(|(_, name)| name.len())
        .map(|(index, _)| index)
}

/// A refused row for the quarantine: its number in the result, PostgreSQL's own reason, and the values
/// that it refused.
fn rejected(batch: &ValidBatch, index: usize, error: &sqlx::Error, into: &CopyInto) -> RejectedRow {
    let postgres = postgres_error(error);
    let reason = postgres.map_or_else(
        || error.to_string(),
        |error| {
            let detail = error
                .detail()
                .map(|detail| format!(": {detail}"))
                .unwrap_or_default();
            format!("{}{detail} ({})", error.message(), error.code())
        },
    );
    let column = postgres.and_then(|error| match (error.column(), error.r#where()) {
        (Some(column), _) => Some(column.to_owned()),
        (None, Some(context)) => {
            column_in(context, into).map(|position| batch.columns[position].name.clone())
        }
        (None, None) => None,
    });
    let names = batch.columns.iter().map(|column| column.name.clone());
    RejectedRow {
        row: batch.ordinal(index),
        reject: Reject {
            column,
            rule: "postgres".to_owned(),
            reason,
        },
        raw: names.zip(batch.rows.row(index).to_vec()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_split_at_the_named_line_or_halved() {
        assert_eq!(split(&(10..20), Some(3)), [10..12, 12..13, 13..20]);
        assert_eq!(split(&(10..20), Some(1)), [10..10, 10..11, 11..20]);
        assert_eq!(split(&(10..20), None), [10..15, 15..20]);
        // An impossible line: halving continues.
        assert_eq!(split(&(10..20), Some(11)), [10..15, 15..20]);
        assert_eq!(split(&(10..12), None), [10..11, 11..12]);
    }

    #[test]
    fn line_is_read_from_the_context_of_the_copy() {
        assert_eq!(line_in("COPY t, line 12, column a: \"x\"", "t"), Some(12));
        assert_eq!(
            line_in(
                "PL/pgSQL function f() line 3 at RAISE\nCOPY a, line 1, line 7",
                "a, line 1"
            ),
            Some(7)
        );
        assert_eq!(line_in("SQL statement \"SELECT 1\"", "t"), None);
        assert_eq!(line_in("COPY u, line 3", "t"), None);
        assert_eq!(line_in("COPY t, line 0", "t"), None);
    }
}
