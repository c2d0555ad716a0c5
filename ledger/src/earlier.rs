//! What the generations before a replay have left in the target, and the way back to it when the replay is abandoned. Then the
//! ledger of the live generation says again what is in the target: no row is called dropped that is there, and none loaded that
//! is not.

use common::job::JobSpec;
use sqlx::{FromRow, PgConnection};

use crate::run::{RunRow, generation_no};
use crate::state::RunState;

/// What of a run is in its target, of the generations before the live one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Earlier {
    /// Those whose ledger is about rows in the target, as far as no later one has replaced them.
    generations: Vec<i32>,
    /// Batches that are there, and that the live generation has not replaced.
    pub(crate) batches: i64,
    /// Their rows.
    pub(crate) rows: i64,
}

/// A generation before the live one.
#[derive(FromRow)]
struct Generation {
    #[sqlx(rename = "generation")]
    number: i32,
    #[sqlx(json)]
    job_spec: JobSpec,
    /// The run's state when the next generation began.
    #[sqlx(try_from = "String")]
    end: RunState,
}

impl Generation {
    /// Whether its ledger is about rows in the target: what is staged gets there only when it is complete.
    fn is_in_target(&self) -> bool {
        !self.job_spec.target.is_staged(generation_no(self.number))
            || self.end == RunState::Completed
    }
}

impl Earlier {
    #[cfg(test)]
    pub(crate) fn left(batches: i64, rows: i64) -> Self {
        Self {
            generations: vec![0],
            batches,
            rows,
        }
    }

    /// What is there of a run whose row is locked. `is_staged`: nothing of the live generation has reached the target.
    pub(crate) async fn of(
        tx: &mut PgConnection,
        run: &RunRow,
        is_staged: bool,
    ) -> Result<Self, sqlx::Error> {
        let before: Vec<Generation> = sqlx::query_as(
            "SELECT g.generation, g.job_spec, next.state_before AS end
             FROM (SELECT 0 AS generation, job_spec FROM etl.runs WHERE run_id = $1
                   UNION ALL SELECT generation, job_spec FROM etl.replays WHERE run_id = $1) g
             JOIN etl.replays next ON next.run_id = $1 AND next.generation = g.generation + 1 WHERE g.generation < $2",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .fetch_all(&mut *tx)
        .await?;
        let in_target = before.iter().filter(|generation| generation.is_in_target());
        let generations: Vec<_> = in_target.map(|generation| generation.number).collect();
        let (batches, rows) = sqlx::query_as(
            "SELECT count(*), coalesce(sum(rows_loaded), 0)::bigint FROM (
                 SELECT DISTINCT ON (seq) seq, rows_loaded FROM etl.batches WHERE run_id = $1 AND generation = ANY ($2)
                 ORDER BY seq, generation DESC) f
             WHERE $4 OR NOT EXISTS (SELECT FROM etl.batches n WHERE n.run_id = $1 AND n.generation = $3 AND n.seq = f.seq)",
        )
        .bind(&run.run_id)
        .bind(&generations)
        .bind(run.generation)
        .bind(is_staged)
        .fetch_one(tx)
        .await?;
        Ok(Self {
            generations,
            batches,
            rows,
        })
    }

    /// Gives these batches their place in the ledger of the live generation. What is staged of that has not reached the target and
    /// is forgotten; what has replaced its earlier self batch by batch stays. Answers how many those are.
    pub(crate) async fn carry_back(
        &self,
        tx: &mut PgConnection,
        run: &RunRow,
        is_staged: bool,
    ) -> Result<i64, sqlx::Error> {
        if is_staged {
            for forget in [
                "DELETE FROM etl.rejected_rows WHERE run_id = $1 AND generation = $2",
                "DELETE FROM etl.batches WHERE run_id = $1 AND generation = $2",
            ] {
                let forget = sqlx::query(forget).bind(&run.run_id).bind(run.generation);
                forget.execute(&mut *tx).await?;
            }
        }
        let replaced = sqlx::query_scalar(
            "SELECT count(*) FROM etl.batches b JOIN etl.replays p USING (run_id, generation)
             WHERE run_id = $1 AND generation = $2 AND p.seqs @> b.seq",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .fetch_one(&mut *tx)
        .await?;
        // Rejected rows go with their batch.
        sqlx::query(
            "UPDATE etl.batches b SET generation = $3
             FROM (SELECT DISTINCT ON (seq) seq, generation FROM etl.batches WHERE run_id = $1 AND generation = ANY ($2)
                   ORDER BY seq, generation DESC) f
             WHERE b.run_id = $1 AND b.generation = f.generation AND b.seq = f.seq AND NOT EXISTS (
                 SELECT FROM etl.batches n WHERE n.run_id = $1 AND n.generation = $3 AND n.seq = b.seq)",
        )
        .bind(&run.run_id)
        .bind(&self.generations)
        .bind(run.generation)
        .execute(tx)
        .await?;
        Ok(replaced)
    }
}
