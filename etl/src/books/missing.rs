//! Which batches of a run the books lack, and how seqs are shown.

use anyhow::Context;

use super::{Books, Run};
use crate::Failure;

impl Books {
    /// The seqs of a run that the books lack, as inclusive ranges; none while the extractor has not
    /// said how many there are.
    pub async fn missing(&self, run: &Run) -> Result<Vec<(i32, i32)>, Failure> {
        let ranges = sqlx::query_as(
            "SELECT min(seq), max(seq) FROM (
                 SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island
                 FROM generate_series(0, $3::integer - 1) AS seq
                 WHERE NOT EXISTS (SELECT FROM etl.batches b WHERE b.run_id = $1 AND b.generation = $2 AND b.seq = seq.seq)
             ) AS gaps GROUP BY island ORDER BY 1",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .bind(run.batches_expected.unwrap_or(0))
        .fetch_all(&self.pool)
        .await
        .context("cannot look for missing batches")?;
        Ok(ranges)
    }
}

/// The first twenty ranges as text.
pub fn shown(ranges: &[(i32, i32)]) -> String {
    let mut text: Vec<_> = ranges
        .iter()
        .take(20)
        .map(|(from, to)| {
            if from == to {
                from.to_string()
            } else {
                format!("{from}..{to}")
            }
        })
        .collect();
    if ranges.len() > text.len() {
        text.push(format!("and {} ranges more", ranges.len() - text.len()));
    }
    text.join(", ")
}
