//! A replay that is given up, since the result that it was to read again is not there any more: the run
//! is then what it was before somebody asked for it, and nothing that had been loaded is lost.

use anyhow::Context;
use common::message::RunId;
use sqlx::PgConnection;

use super::Books;
use super::letters::{Letter, resolve};
use crate::Failure;

/// What giving up a replay came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReplayGivenUp {
    /// The run was complete before, and is so again.
    Restored,
    /// It was not, and has failed now.
    Failed,
    /// There is no such replay, or it is not the live one: nothing but the letter was settled.
    NotNeeded,
}

impl Books {
    /// Drops the dead letter of a task that was to read a result again, and with it the replay that
    /// sent the task. One transaction, under the run's lock.
    pub(crate) async fn give_up_replay(
        &self,
        letter: &Letter,
        run: &RunId,
        generation: u32,
        by: &str,
        why: &str,
    ) -> Result<ReplayGivenUp, Failure> {
        let doing = || {
            format!(
                "cannot drop the dead letter {}; nothing was changed",
                letter.id
            )
        };
        let generation = i32::try_from(generation).with_context(doing)?;
        let mut tx = self.pool.begin().await.with_context(doing)?;
        let reason = format!("given up by {by}: {why}");
        let given_up = give_up(&mut tx, run, generation, &reason)
            .await
            .with_context(doing)?;
        resolve(&mut tx, letter, &format!("dropped by {by}: {why}"))
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(doing)?;
        Ok(given_up)
    }
}

async fn give_up(
    tx: &mut PgConnection,
    run: &RunId,
    generation: i32,
    reason: &str,
) -> Result<ReplayGivenUp, sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(loader::ledger::turn_key(run))
        .execute(&mut *tx)
        .await?;
    let live: Option<(String,)> = sqlx::query_as(
        "SELECT state FROM etl.runs WHERE run_id = $1 AND generation = $2 AND state = 'running' FOR UPDATE",
    )
    .bind(run.as_str())
    .bind(generation)
    .fetch_optional(&mut *tx)
    .await?;
    let replay: Option<(String, bool)> = sqlx::query_as(
        "UPDATE etl.replays SET given_up = $3 WHERE run_id = $1 AND generation = $2 AND source = 'athena' AND $4
         RETURNING state_before, EXISTS (SELECT FROM etl.staging s WHERE s.run_id = $1 AND s.generation = $2)",
    )
    .bind(run.as_str())
    .bind(generation)
    .bind(reason)
    .bind(live.is_some())
    .fetch_optional(&mut *tx)
    .await?;
    let Some((before, is_staged)) = replay else {
        return Ok(ReplayGivenUp::NotNeeded);
    };
    if before != "completed" {
        sqlx::query("UPDATE etl.runs SET state = 'failed', failure = $2, finished_at = now() WHERE run_id = $1")
            .bind(run.as_str())
            .bind(format!("its replay was {reason}"))
            .execute(&mut *tx)
            .await?;
        return Ok(ReplayGivenUp::Failed);
    }
    carry_back(tx, run, generation, is_staged).await?;
    Ok(ReplayGivenUp::Restored)
}

/// The batches that the replay has not put through keep what the generation before made of them, in
/// the target, where they are, and in the ledger.
async fn carry_back(
    tx: &mut PgConnection,
    run: &RunId,
    generation: i32,
    is_staged: bool,
) -> Result<(), sqlx::Error> {
    let forget_staged: &[&'static str] = if is_staged {
        // What is in staging has not reached the target.
        &[
            "DELETE FROM etl.rejected_rows WHERE run_id = $1 AND generation = $2",
            "DELETE FROM etl.batches WHERE run_id = $1 AND generation = $2",
        ]
    } else {
        &[]
    };
    let settle = [
        "UPDATE etl.batches b SET generation = $2 WHERE run_id = $1 AND generation = $2 - 1 AND NOT EXISTS (
             SELECT FROM etl.batches n WHERE n.run_id = $1 AND n.generation = $2 AND n.seq = b.seq)",
        "UPDATE etl.runs SET state = 'completed', finished_at = now() WHERE run_id = $1 AND generation = $2",
    ];
    for statement in forget_staged.iter().chain(&settle) {
        sqlx::query(*statement)
            .bind(run.as_str())
            .bind(generation)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}
