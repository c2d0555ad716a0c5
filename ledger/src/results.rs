//! Where the results are that runs were loaded from: what a replay without an archive reads.

use sqlx::PgConnection;

use crate::database::Store;
use crate::error::Error;

/// The results of completed runs.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// Each bucket, with its number of runs and the day of the first one.
    pub buckets: Vec<(String, i64, String)>,
    /// Runs whose result is no object.
    pub pages: i64,
    /// Runs that have rejected rows, and the day of the first one.
    pub with_rejects: Option<(i64, String)>,
}

impl Store {
    /// Where the results of completed runs are.
    pub async fn results(&self) -> Result<Results, Error> {
        let failure = "cannot read where the results are";
        self.read(failure, async |tx: &mut PgConnection| {
            let buckets = sqlx::query_as(
                "SELECT split_part(result_location, '/', 3), count(*), to_char(min(requested_at), 'YYYY-MM-DD')
                 FROM etl.runs WHERE state = 'completed' AND result_location LIKE 's3://%' GROUP BY 1 ORDER BY 1",
            );
            let buckets = buckets.fetch_all(&mut *tx).await?;
            let pages = sqlx::query_scalar(
                "SELECT count(*) FROM etl.runs WHERE state = 'completed' AND result_location IS NULL",
            );
            let pages = pages.fetch_one(&mut *tx).await?;
            let (runs, since): (i64, Option<String>) = sqlx::query_as(
                "SELECT count(*), to_char(min(requested_at), 'YYYY-MM-DD') FROM etl.runs AS run
                 WHERE state = 'completed' AND EXISTS (SELECT FROM etl.rejected_rows AS row WHERE row.run_id = run.run_id)",
            )
            .fetch_one(tx)
            .await?;
            Ok(Results {
                buckets,
                pages,
                with_rejects: since.map(|since| (runs, since)),
            })
        })
        .await
    }
}
