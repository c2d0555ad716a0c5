//! A replay that is given up, since the result that it was to read again is not there any more: the run
//! is then what it was before somebody asked for it, and nothing that had been loaded is lost.

use anyhow::Context;
use common::message::RunId;
use sqlx::PgConnection;

use super::Books;
use super::letters::{Letter, resolve};
use super::take_back::{Before, take_back};
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
    let asked: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM etl.replays WHERE run_id = $1 AND generation = $2 AND source = 'athena')",
    )
    .bind(run.as_str())
    .bind(generation)
    .fetch_one(&mut *tx)
    .await?;
    if live.is_none() || !asked {
        return Ok(ReplayGivenUp::NotNeeded);
    }
    let (given_up, state, failure) = match take_back(&mut *tx, run, generation, reason).await? {
        Before::Complete => (ReplayGivenUp::Restored, "completed", None),
        Before::Part | Before::Nothing => {
            let failure = format!("its replay was {reason}");
            (ReplayGivenUp::Failed, "failed", Some(failure))
        }
    };
    sqlx::query(
        "UPDATE etl.runs SET state = $2, failure = $3, finished_at = now() WHERE run_id = $1",
    )
    .bind(run.as_str())
    .bind(state)
    .bind(failure)
    .execute(tx)
    .await?;
    Ok(given_up)
}
