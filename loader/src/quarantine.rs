//! Rejected rows into `etl.rejected_rows`, in the transaction of their batch.

use std::borrow::Cow;

use common::message::{RejectedRow, ValidBatch};
use serde::Serializer as _;
use sqlx::PgConnection;

use crate::errors::LoadError;
use crate::ledger::{bigint, integer};

/// Writes rows of a batch into quarantine.
pub(crate) async fn write(
    tx: &mut PgConnection,
    batch: &ValidBatch,
    rows: &[RejectedRow],
) -> Result<(), LoadError> {
    if rows.is_empty() {
        return Ok(());
    }
    let numbers = rows
        .iter()
        .map(|row| bigint("the row number", row.row))
        .collect::<Result<Vec<_>, _>>()?;
    let columns: Vec<_> = rows
        .iter()
        .map(|row| row.reject.column.as_deref().map(storable))
        .collect();
    let rules: Vec<_> = rows.iter().map(|row| storable(&row.reject.rule)).collect();
    let reasons: Vec<_> = rows
        .iter()
        .map(|row| storable(&row.reject.reason))
        .collect();
    let values: Vec<String> = rows.iter().map(|row| json_object(&row.raw)).collect();
    sqlx::query(
        "INSERT INTO etl.rejected_rows (run_id, generation, seq, row_number, column_name, rule, reason, raw)
         SELECT $1, $2, $3, r.row_number, r.column_name, r.rule, r.reason, r.raw::json
         FROM unnest($4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[]) AS r (row_number, column_name, rule, reason, raw)",
    )
    .bind(batch.id.run.as_str())
    .bind(integer("the generation", batch.id.generation)?)
    .bind(integer("the seq", batch.id.seq)?)
    .bind(numbers)
    .bind(columns)
    .bind(rules)
    .bind(reasons)
    .bind(values)
    .execute(tx)
    .await
    .map(drop)
    .map_err(LoadError::books("given the rejected rows"))
}

/// A row's values by column, in their order, NUL as `\u0000`.
fn json_object(raw: &[(String, Option<String>)]) -> String {
    let mut json = Vec::new();
    let written = serde_json::Serializer::new(&mut json)
        .collect_map(raw.iter().map(|(name, value)| (name, value)));
    debug_assert!(written.is_ok(), "texts can be written as JSON");
    String::from_utf8(json).unwrap_or_default()
}

/// Text without the one character that Postgres does not take.
pub(crate) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        text.replace('\0', "\u{2400}").into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_values_keep_their_order_null_and_nul() {
        let raw = [
            ("z".to_owned(), Some("a\0\"b".to_owned())),
            ("a".to_owned(), None),
        ];
        assert_eq!(json_object(&raw), r#"{"z":"a\u0000\"b","a":null}"#);
        assert_eq!(storable("a\0b"), "a\u{2400}b");
    }
}
