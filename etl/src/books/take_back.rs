//! Taking a replay back: the ledger says again what the target holds, which is what the generations before made of it.
//!
//! A replay that replaces batch by batch has put some of them through, and the others are as the generation before left
//! them. One that is published as a whole has changed nothing in the target before it was complete.

use common::job::JobSpec;
use common::message::RunId;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

/// What a run was before a replay of it that was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// No generation before has a row in the target; the ledger is as it was.
    Nothing,
    /// Some had, and none was ever complete.
    Part,
    /// One was complete, and the ledger has every batch of it or of a later one.
    Complete,
}

/// A generation of a run, as far as its rows are concerned.
#[derive(Debug, FromRow)]
struct Generation {
    number: i32,
    spec: Json<JobSpec>,
    /// The run was complete with it.
    was_complete: bool,
}

impl Generation {
    fn is_staged(&self) -> bool {
        let number = u32::try_from(self.number).unwrap_or_default();
        self.spec.target.is_staged(number)
    }
}

/// The generations whose batches are in the target, the latest first, and whether one of them was complete: what came
/// before that one is not there any more. `all` begins with the live one, which is not complete. Pure.
fn in_target(all: &[Generation]) -> (Vec<i32>, bool) {
    let mut there = Vec::new();
    for generation in all.iter().skip(1) {
        if generation.was_complete {
            there.push(generation.number);
            return (there, true);
        }
        if !generation.is_staged() {
            there.push(generation.number);
        }
    }
    (there, false)
}

/// Takes the live generation back, under the run's lock. Only the ledger is changed: the state is the caller's.
pub(super) async fn take_back(
    tx: &mut PgConnection,
    run: &RunId,
    live: i32,
    reason: &str,
) -> Result<Before, sqlx::Error> {
    sqlx::query("UPDATE etl.replays SET given_up = $3 WHERE run_id = $1 AND generation = $2")
        .bind(run.as_str())
        .bind(live)
        .bind(reason)
        .execute(&mut *tx)
        .await?;
    let all: Vec<Generation> = sqlx::query_as(
        "SELECT g.number, g.spec, coalesce(next.state_before = 'completed', false) AS was_complete
         FROM (SELECT 0 AS number, job_spec AS spec FROM etl.runs WHERE run_id = $1
               UNION ALL SELECT generation, job_spec FROM etl.replays WHERE run_id = $1) g
         LEFT JOIN etl.replays next ON next.run_id = $1 AND next.generation = g.number + 1
         WHERE g.number <= $2 ORDER BY g.number DESC",
    )
    .bind(run.as_str())
    .bind(live)
    .fetch_all(&mut *tx)
    .await?;
    let (there, was_complete) = in_target(&all);
    let has_batches: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM etl.batches WHERE run_id = $1 AND generation = ANY ($2))",
    )
    .bind(run.as_str())
    .bind(&there)
    .fetch_one(&mut *tx)
    .await?;
    if !has_batches && !was_complete {
        return Ok(Before::Nothing);
    }
    if all.first().is_some_and(Generation::is_staged) {
        // What is in staging has not reached the target.
        for table in ["rejected_rows", "batches"] {
            let forget = format!("DELETE FROM etl.{table} WHERE run_id = $1 AND generation = $2");
            sqlx::query(sqlx::AssertSqlSafe(forget))
                .bind(run.as_str())
                .bind(live)
                .execute(&mut *tx)
                .await?;
        }
    }
    for generation in there {
        // The rejected rows follow.
        sqlx::query(
            "UPDATE etl.batches b SET generation = $2 WHERE run_id = $1 AND generation = $3 AND NOT EXISTS (
                 SELECT FROM etl.batches n WHERE n.run_id = $1 AND n.generation = $2 AND n.seq = b.seq)",
        )
        .bind(run.as_str())
        .bind(live)
        .bind(generation)
        .execute(&mut *tx)
        .await?;
    }
    Ok(if was_complete {
        Before::Complete
    } else {
        Before::Part
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::job::{Mode, Publish, Target};

    fn generation(number: i32, mode: Mode, publish: Publish, was_complete: bool) -> Generation {
        let target = Target {
            mode,
            publish,
            ..Target::default()
        };
        Generation {
            number,
            spec: Json(JobSpec {
                name: "clicks".into(),
                target,
                columns: Vec::new(),
            }),
            was_complete,
        }
    }

    #[test]
    fn what_the_target_holds_is_of_the_latest_that_was_complete_and_of_what_came_batch_by_batch_since()
     {
        use Mode::{Append, Upsert};
        use Publish::{Batch, Run};
        for (before, wanted) in [
            (vec![generation(0, Append, Batch, true)], (vec![0], true)),
            (vec![generation(0, Append, Batch, false)], (vec![0], false)),
            (vec![generation(0, Append, Run, false)], (vec![], false)),
            (vec![generation(0, Upsert, Batch, false)], (vec![0], false)),
            (
                vec![
                    generation(2, Append, Batch, false),
                    generation(1, Append, Run, false),
                    generation(0, Append, Batch, true),
                ],
                (vec![2, 0], true),
            ),
            (
                vec![
                    generation(1, Upsert, Batch, true),
                    generation(0, Upsert, Batch, true),
                ],
                (vec![1], true),
            ),
        ] {
            let live = generation(9, Append, Batch, false);
            let all: Vec<_> = std::iter::once(live).chain(before).collect();
            assert_eq!(in_target(&all), wanted, "{all:?}");
        }
    }
}
