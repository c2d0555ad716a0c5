//! Writes the rows of a batch one by one, within PostgreSQL, where it refuses some of them.

use sqlx::{FromRow, PgConnection};

use crate::error::ROW_FAULTS;

/// A row that PostgreSQL refused.
#[derive(Debug)]
pub struct RefusedRow {
    /// Its place among the rows, from 0.
    pub index: usize,
    /// PostgreSQL's words, with the SQLSTATE.
    pub reason: String,
    /// The name that PostgreSQL has for the column at fault.
    pub column: Option<String>,
    /// The place in the row, from 0, of a value that is none of its type.
    pub value: Option<usize>,
}

#[derive(FromRow)]
struct Returned {
    row_index: Option<i32>,
    stored: Option<i64>,
    reason: Option<String>,
    column_name: Option<String>,
    column_place: Option<i32>,
}

/// Writes rows with a statement that takes their values in `$1`, behind each other, and `batch_no` in `$2`; `casts` has one
/// expression a value, over the values `r` of a row. `fires_in`: the schema of the table, where triggers fire.
/// Returns the number of rows that were stored, and the refused ones.
pub async fn write_rows(
    tx: &mut PgConnection,
    statement: &str,
    casts: &[String],
    values: Vec<Option<&str>>,
    batch_no: i64,
    fires_in: Option<&str>,
) -> Result<(u64, Vec<RefusedRow>), sqlx::Error> {
    let returned: Vec<Returned> = sqlx::query_as(
        "SELECT row_index, stored, reason, column_name, column_place FROM etl.write_rows($1, $2, $3, $4, $5, $6)",
    )
    .bind(statement)
    .bind(casts)
    .bind(values)
    .bind(batch_no)
    .bind(ROW_FAULTS.as_slice())
    .bind(fires_in)
    .fetch_all(tx)
    .await?;
    let mut stored = 0;
    let mut refused = Vec::new();
    for row in returned {
        let Some(index) = row.row_index.and_then(|index| usize::try_from(index).ok()) else {
            stored = row.stored.unwrap_or_default().unsigned_abs();
            continue;
        };
        let place = row
            .column_place
            .and_then(|place| usize::try_from(place).ok());
        refused.push(RefusedRow {
            index,
            reason: row.reason.unwrap_or_default(),
            column: row.column_name.filter(|name| !name.is_empty()),
            value: place.and_then(|place| place.checked_sub(1)),
        });
    }
    Ok((stored, refused))
}
