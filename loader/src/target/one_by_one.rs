//! Writes a batch's rows one by one, within PostgreSQL, where it refuses some of them: in a constant number of round trips,
//! however many they are.

use common::message::{Reject, RejectedRow, ValidBatch};
use common::schema::PgType;
use sqlx::PgConnection;

use super::copy_into::RefusedRow;
use crate::copy::Last;
use crate::ddl::{ColumnType, TableName};

/// The statement that writes rows which are given as an array of texts, for one table.
#[derive(Debug)]
pub(super) struct OneByOne {
    statement: String,
    /// Converts each value of a row `r`, and its last one.
    casts: Vec<String>,
    /// The schema of the table, where its triggers fire.
    fires_in: Option<String>,
}

impl OneByOne {
    /// `write` makes the statement of a query that has the values, converted, as columns `c0`, `c1` ... and the last one as `n`,
    /// in the order of the rows. Its `$2` is the value of `_batch`.
    pub(super) fn new(types: &[ColumnType], write: impl FnOnce(&str) -> String) -> Self {
        let casts = types.iter().enumerate();
        let mut casts: Vec<_> = casts
            .map(|(index, one)| cast(one, &format!("r[{}]", index + 1)))
            .collect();
        let width = casts.len() + 1;
        casts.push(format!("r[{width}]::bigint"));
        let named = casts.iter().enumerate().map(|(index, cast)| {
            if index + 1 == width {
                format!("{cast} AS n")
            } else {
                format!("{cast} AS c{index}")
            }
        });
        let rows = format!(
            "SELECT {} FROM (SELECT (place OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog./) {width} AS place, pg_catalog.array_agg(value ORDER BY place) AS r \
             FROM pg_catalog.unnest($1) WITH ORDINALITY AS v (value, place) GROUP BY 1 ORDER BY 1) AS one",
            named.collect::<Vec<_>>().join(", ")
        );
        Self {
            statement: write(&rows),
            casts,
            fires_in: None,
        }
    }

    /// The same into a target, whose triggers fire. The statement names everything with its schema.
    pub(super) fn firing(self, target: &TableName) -> Self {
        Self {
            fires_in: Some(target.schema.clone()),
            ..self
        }
    }

    /// Writes the rows that were not refused before, and adds to `refused` those that PostgreSQL refuses now. Returns how many
    /// were stored.
    pub(super) async fn write(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        (last, batch_no): (Last, i64),
        refused: &mut Vec<RefusedRow>,
    ) -> Result<u64, sqlx::Error> {
        let mut left_out: Vec<usize> = refused.iter().map(|row| row.index).collect();
        left_out.sort_unstable();
        let mut rows = Vec::with_capacity(batch.rows.len());
        for index in (0..batch.rows.len()).filter(|index| left_out.binary_search(index).is_err()) {
            // No text of PostgreSQL has a NUL, so that it could not even be asked.
            let values = batch.rows.row(index);
            match values
                .iter()
                .position(|value| value.is_some_and(|text| text.contains('\0')))
            {
                Some(place) => {
                    let column = Some(batch.columns[place].name.clone());
                    let reason = "invalid byte sequence for encoding \"UTF8\": 0x00 (22021)";
                    refused.push(rejected(batch, index, reason.to_owned(), column));
                }
                None => rows.push((index, last.text(index))),
            }
        }
        let mut values = Vec::with_capacity(rows.len() * self.casts.len());
        for (index, last) in &rows {
            values.extend(batch.rows.row(*index).iter());
            values.push(Some(last.as_str()));
        }
        let (stored, found) = ledger::write_rows(
            tx,
            &self.statement,
            &self.casts,
            values,
            batch_no,
            self.fires_in.as_deref(),
        )
        .await?;
        refused.extend(found.into_iter().filter_map(|found| {
            let (index, _) = rows.get(found.index)?;
            let of_value = found.value.and_then(|place| batch.columns.get(place));
            let column = found.column.or(of_value.map(|column| column.name.clone()));
            Some(rejected(batch, *index, found.reason, column))
        }));
        refused.sort_unstable_by_key(|row| row.index);
        Ok(stored)
    }
}

/// The value of a text, as COPY reads it: an explicit cast would cut a text that is too long without a word.
fn cast(column: &ColumnType, value: &str) -> String {
    if let Some(cast) = &column.cast {
        return format!("{value}::{cast}");
    }
    // The modifier of the type is the length and four.
    match column.pg_type {
        PgType::Text | PgType::Varchar(None) => value.to_owned(),
        PgType::Varchar(Some(length)) => {
            format!(
                "pg_catalog.\"varchar\"({value}::varchar, {}, false)",
                length + 4
            )
        }
        PgType::Char(length) => {
            format!(
                "pg_catalog.bpchar({value}::pg_catalog.bpchar, {}, false)",
                length + 4
            )
        }
        other => format!("{value}::{}", other.qualified()),
    }
}

/// A refused row for the quarantine: its number in the result, PostgreSQL's own reason, and the values that it refused.
fn rejected(
    batch: &ValidBatch,
    index: usize,
    reason: String,
    column: Option<String>,
) -> RefusedRow {
    let names = batch.columns.iter().map(|column| column.name.clone());
    RefusedRow {
        index,
        row: RejectedRow {
            row: batch.ordinal(index),
            reject: Reject {
                column,
                rule: "postgres".to_owned(),
                reason,
            },
            raw: names.zip(batch.rows.row(index).to_vec()).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_converted_without_being_cut() {
        let types = [
            "varchar(4)",
            "char(2)",
            "text",
            "numeric(10,2)",
            "timestamptz",
        ];
        let types = types.map(|name| name.parse::<PgType>().unwrap().into());
        let writer = OneByOne::new(&types, str::to_owned);
        assert_eq!(
            writer.casts,
            [
                "pg_catalog.\"varchar\"(r[1]::varchar, 8, false)",
                "pg_catalog.bpchar(r[2]::pg_catalog.bpchar, 6, false)",
                "r[3]",
                "r[4]::numeric(10,2)",
                "r[5]::timestamp with time zone",
                "r[6]::bigint",
            ]
        );
        assert!(
            writer.statement.contains("r[3] AS c2, "),
            "{}",
            writer.statement
        );
        assert!(
            writer.statement.contains("r[6]::bigint AS n FROM"),
            "{}",
            writer.statement
        );
    }
}
