//! A batch's rows into its target, within the batch's transaction. Rows that Postgres refuses are
//! told from the others: the line that a COPY's error names, else halving, says where to look, and
//! a row counts as refused only when it was refused alone.

use std::ops::Range;

use common::failpoint;
use common::message::{Reject, RejectedRow, ValidBatch};
use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _};

use crate::copy::CopyText;
use crate::copy::binary::{self, Last};
use crate::database::savepoint;
use crate::errors::{Class, LoadError, Refused, classify};
use crate::ledger::{self, Run};
use crate::statements::{Merge, Statements};

/// What became of the rows.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Rows that Postgres refused.
    pub(crate) refused: Vec<RejectedRow>,
    /// Accepted rows that lost to another row of the same key.
    pub(crate) collapsed: i64,
}

/// A row that Postgres refused.
struct RefusedRow {
    /// Its index among the batch's valid rows.
    index: usize,
    row: RejectedRow,
}

/// Whether the target still is the table that the statements were made for; it stays so until the
/// transaction ends.
pub(crate) async fn is_as_checked(
    tx: &mut PgConnection,
    statements: &Statements,
    table: &str,
) -> Result<bool, LoadError> {
    let lock = sqlx::raw_sql(AssertSqlSafe(statements.lock.clone()));
    match lock.fetch_one(&mut *tx).await {
        Ok(row) => row
            .try_get::<String, _>(0)
            .map(|found| found == statements.fingerprint)
            .map_err(LoadError::books("read")),
        // There is no such table, or it is something else by now.
        Err(sqlx::Error::Database(error))
            if matches!(error.code().as_deref(), Some("42P01" | "42809" | "3F000")) =>
        {
            Ok(false)
        }
        Err(error) => Err(LoadError::target(table, "locked", error)),
    }
}

/// Writes the rows.
pub(crate) async fn write(
    tx: &mut PgConnection,
    statements: &Statements,
    batch: &ValidBatch,
    run: &Run,
) -> Result<Written, LoadError> {
    let number = run.batch_number(batch.id.seq);
    let target = Target {
        table: &batch.target.table,
    };
    if batch.id.generation > 0
        && let Some(supersede) = &statements.supersede
    {
        let deleted = sqlx::query(AssertSqlSafe(supersede.clone())).bind(number);
        let deleted = deleted.execute(&mut *tx).await;
        deleted
            .map_err(|error| target.failed("rid of the rows of an earlier generation", error))?;
    }
    if batch.rows.is_empty() {
        return Ok(Written::default());
    }
    if let Some(merge) = &statements.merge {
        let created = tx.execute(AssertSqlSafe(merge.create_stage.clone())).await;
        created.map_err(|error| target.failed("given a staging table", error))?;
    }
    let mut refused = Vec::new();
    let last = match &statements.merge {
        Some(_) => Last::Index,
        None => Last::Batch(number),
    };
    let copied = async {
        if let Some(stored) = copy_as_binary(tx, statements, batch, last).await? {
            return Ok(Some((stored, batch.rows.len() as u64)));
        }
        copy_as_text(tx, statements, batch, last, &mut refused).await
    };
    let copied = copied
        .await
        .map_err(|error| target.failed("copied into", error))?;
    if let Some((stored, sent)) = copied.filter(|(stored, sent)| stored != sent) {
        return Err(target.vanished(sent, stored).into());
    }
    let collapsed = match &statements.merge {
        None => 0,
        Some(merge) => {
            merge_staged(tx, merge, statements, batch, run, &mut refused, target).await?
        }
    };
    let refused = refused.into_iter().map(|refused| refused.row).collect();
    Ok(Written { refused, collapsed })
}

/// Copies all rows in the binary format, in a savepoint: so many. None when that cannot be: not all types have such a form
/// here, or not all values are in their canonical one, or Postgres refused a row. Text tells which one and why.
async fn copy_as_binary(
    tx: &mut PgConnection,
    statements: &Statements,
    batch: &ValidBatch,
    last: Last,
) -> Result<Option<u64>, sqlx::Error> {
    // Encoded before the COPY begins: nothing else is waited for while one is open.
    let Some(bytes) = binary::encode(&batch.rows, &statements.copied_types, last) else {
        return Ok(None);
    };
    let copied = savepoint(tx, async |tx: &mut PgConnection| {
        copy(tx, &statements.copy_binary, &bytes).await
    });
    match copied.await {
        Ok(stored) => Ok(Some(stored)),
        Err(error) if classify(&error) == Class::Row => Ok(None),
        Err(error) => Err(error),
    }
}

/// Copies the rows as text, in parts where Postgres refuses one. The first part of which it did not store what was sent.
async fn copy_as_text(
    tx: &mut PgConnection,
    statements: &Statements,
    batch: &ValidBatch,
    last: Last,
    refused: &mut Vec<RefusedRow>,
) -> Result<Option<(u64, u64)>, sqlx::Error> {
    let text = CopyText::encode(&batch.rows, |index| match last {
        Last::Index => index as u64,
        Last::Batch(number) => number.unsigned_abs(),
    });
    in_parts(tx, batch, statements, refused, async |tx, rows| {
        let stored = copy(tx, &statements.copy, text.lines(rows.clone())).await?;
        Ok((stored, rows.len() as u64))
    })
    .await
}

/// Merges what was staged, and answers how many of the accepted rows collapsed: those that lost
/// within the batch or to another one, and those of this run's other batches that it replaced. So
/// the sum over a run does not depend on the order in which its batches commit. A row of an upsert
/// may only lose to a batch that the books know.
async fn merge_staged(
    tx: &mut PgConnection,
    merge: &Merge,
    statements: &Statements,
    batch: &ValidBatch,
    run: &Run,
    refused: &mut Vec<RefusedRow>,
    target: Target<'_>,
) -> Result<i64, LoadError> {
    let number = run.batch_number(batch.id.seq);
    let failed = |error| target.failed("merged into", error);
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(merge.lock_key)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let beaten_before = count_beaten(tx, merge, run, number).await.map_err(failed)?;
    let (mut affected, mut statements_done) = (0, 0);
    let merged = in_parts(tx, batch, statements, refused, async |tx, rows| {
        let bounds = |bound: usize| i32::try_from(bound).unwrap_or(i32::MAX);
        let done = sqlx::query(AssertSqlSafe(merge.merge.clone()))
            .bind(number)
            .bind(bounds(rows.start))
            .bind(bounds(rows.end))
            .execute(tx)
            .await?;
        affected += done.rows_affected();
        statements_done += 1;
        Ok((0, 0))
    });
    merged.await.map_err(failed)?;
    let accepted = batch.rows.len() - refused.len();
    // The usual case: all at once, and no key twice.
    if refused.is_empty() && statements_done == 1 && affected == accepted as u64 {
        return Ok(beaten_before);
    }
    let beaten_after = count_beaten(tx, merge, run, number).await.map_err(failed)?;
    let left_out: Vec<i32> = refused
        .iter()
        .filter_map(|row| i32::try_from(row.index).ok())
        .collect();
    let (keys, own, later, winners): (i64, i64, i64, Vec<i64>) =
        sqlx::query_as(AssertSqlSafe(merge.count_winners.clone()))
            .bind(number)
            .bind(left_out)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
    if own + later != keys {
        return Err(target
            .vanished(keys.unsigned_abs(), (own + later).unsigned_abs())
            .into());
    }
    if let Some(number) = ledger::first_unknown(tx, &winners).await? {
        let table = merge.table.clone();
        return Err(Refused::UnknownWinner { table, number }.into());
    }
    let accepted = i64::try_from(accepted).unwrap_or(i64::MAX);
    Ok(accepted - own + beaten_before - beaten_after)
}

async fn count_beaten(
    tx: &mut PgConnection,
    merge: &Merge,
    run: &Run,
    number: i64,
) -> Result<i64, sqlx::Error> {
    let (from, to) = merge.beaten(run, number);
    sqlx::query_scalar(AssertSqlSafe(merge.count_beaten.clone()))
        .bind(from)
        .bind(to)
        .fetch_one(tx)
        .await
}

/// Bytes that are handed to the connection at once: it copies them, and keeps the room.
const PIECE: usize = 128 << 10;

async fn copy(tx: &mut PgConnection, statement: &str, lines: &[u8]) -> Result<u64, sqlx::Error> {
    let mut copy = tx.copy_in_raw(statement).await?;
    for piece in lines.chunks(PIECE) {
        copy.send(piece).await?;
    }
    failpoint::reach("mid_copy").await;
    copy.finish().await
}

/// Does `work` on all rows of the batch at once, or on parts of them where that fails for a row's
/// fault, each in a savepoint. `work` answers two counts; the first two that differ end it.
async fn in_parts(
    tx: &mut PgConnection,
    batch: &ValidBatch,
    statements: &Statements,
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
                row: rejected(batch, part.start, &error, statements),
            }),
            Err(error) => parts.extend(
                split(&part, named_line(&error, statements))
                    .into_iter()
                    .rev(),
            ),
        }
    }
    Ok(None)
}

/// The parts of a range, in its order: what is before the line that an error names (from 1), that
/// line, and what follows; or two halves.
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

/// The line (from 1) that the context of a COPY's error names. A wrong one would cost time only.
fn named_line(error: &sqlx::Error, statements: &Statements) -> Option<usize> {
    let context = postgres_error(error)?.r#where()?;
    line_in(context, &statements.copied_table)
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

/// The position of the column that the context of a COPY's error names, as in
/// `COPY t, line 1, column a: "x"`.
fn column_in(context: &str, statements: &Statements) -> Option<usize> {
    let start = format!("COPY {}, line ", statements.copied_table);
    let rest = context
        .lines()
        .find_map(|line| line.strip_prefix(start.as_str()))?;
    let (_, named) = rest.split_once(", column ")?;
    let columns = statements.copied_columns.iter().enumerate();
    let matching = columns.filter(|(_, name)| {
        named
            .strip_prefix(name.as_str())
            .is_some_and(|rest| rest.starts_with(": "))
    });
    matching
        .max_by_key(|(_, name)| name.len())
        .map(|(index, _)| index)
}

/// A refused row for the quarantine: its number in the result, Postgres' own reason, and the values
/// that it refused.
fn rejected(
    batch: &ValidBatch,
    index: usize,
    error: &sqlx::Error,
    statements: &Statements,
) -> RejectedRow {
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
            column_in(context, statements).map(|position| batch.columns[position].name.clone())
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

/// The target's name, for errors.
#[derive(Clone, Copy)]
struct Target<'a> {
    table: &'a str,
}

impl Target<'_> {
    fn failed(self, doing: &'static str, error: sqlx::Error) -> LoadError {
        LoadError::target(self.table, doing, error)
    }

    fn vanished(self, sent: u64, stored: u64) -> Refused {
        Refused::RowsVanished {
            table: self.table.to_owned(),
            sent,
            stored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_line_is_cut_out_and_without_one_the_range_is_halved() {
        assert_eq!(split(&(10..20), Some(3)), [10..12, 12..13, 13..20]);
        assert_eq!(split(&(10..20), Some(1)), [10..10, 10..11, 11..20]);
        assert_eq!(split(&(10..20), None), [10..15, 15..20]);
        // A line that cannot be: halving goes on all the same.
        assert_eq!(split(&(10..20), Some(11)), [10..15, 15..20]);
        assert_eq!(split(&(10..12), None), [10..11, 11..12]);
    }

    #[test]
    fn the_line_is_read_from_the_copys_own_context() {
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
