//! From values of `_batch` back to the ledger.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::state::RunState;

/// What the ledger says of a value of `_batch`.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Origin {
    pub batch: i64,
    pub run_id: String,
    pub run_no: i64,
    /// The first row of the batch in the result, from 0.
    pub first_row: i64,
    pub generation: i32,
    pub job: String,
    #[sqlx(try_from = "String")]
    pub state: RunState,
    pub requested_by: Option<String>,
    pub requested_at: String,
    /// Of the batch; none while it is not in the ledger of the live generation.
    pub rows_extracted: Option<i64>,
    pub loaded_at: Option<String>,
    pub query_execution_id: Option<String>,
    pub result_id: Option<String>,
    pub result_location: Option<String>,
    #[sqlx(json)]
    pub parameters: BTreeMap<String, String>,
    pub sql: String,
}

impl Store {
    /// What the ledger says of each of these values of `_batch`; nothing of those that it does not know.
    pub async fn origins(&self, batch_nos: &[i64]) -> Result<Vec<Origin>, Error> {
        self.read("cannot read the ledger", async |tx: &mut PgConnection| {
            let origins = sqlx::query_as(
                r#"SELECT n.batch, r.run_id, r.run_no, etl.first_row(n.batch) AS first_row, r.generation, r.job, r.state, r.requested_by,
                          to_char(r.requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS requested_at,
                          b.rows_extracted,
                          to_char(b.loaded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS loaded_at,
                          coalesce(r.query_execution_id, split_part(r.result_id, ':', 1)) AS query_execution_id,
                          r.result_id, r.result_location, r.parameters, r.sql
                   FROM unnest($1::bigint[]) AS n (batch) JOIN etl.runs r ON r.run_no = etl.run_no(n.batch)
                   LEFT JOIN etl.batches b ON b.run_id = r.run_id AND b.generation = r.generation AND b.first_row = etl.first_row(n.batch)
                   ORDER BY n.batch"#,
            );
            Ok(origins.bind(batch_nos).fetch_all(tx).await?)
        })
        .await
    }
}
