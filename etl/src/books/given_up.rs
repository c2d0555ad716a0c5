//! A replay that is given up, since the result that it was to read again is not there any more: the run
//! is then what it was before somebody asked for it, and nothing that had been loaded is lost.

use anyhow::Context;
use common::job::JobSpec;
use common::message::RunId;
use sqlx::{FromRow, PgConnection};

use super::Books;
use super::former::{Former, complete_again, drop_loaded, is_whole, note_given_up};
use super::letters::{Letter, resolve};
use crate::Failure;

/// What giving up a replay came to.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplayGivenUp {
    /// The run was complete before, and is so again.
    Restored,
    /// It was not, and has failed now.
    Failed,
    /// There is no such replay, or it is not the live one: nothing but the letter was settled.
    NotNeeded,
}

#[derive(FromRow)]
struct Replay {
    #[sqlx(json)]
    job_spec: JobSpec,
}

impl Books {
    /// Drops the dead letter of a task that was to read a result again, and with it the replay that
    /// sent the task. One transaction, under the run's lock.
    pub async fn give_up_replay(
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
        resolve(&mut tx, letter, &format!("dropped by {by}: {why}"))
            .await
            .with_context(doing)?;
        let given_up = give_up(&mut tx, run, generation, by, why)
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(doing)?;
        Ok(given_up)
    }
}

async fn give_up(
    tx: &mut PgConnection,
    run: &RunId,
    live: i32,
    by: &str,
    why: &str,
) -> Result<ReplayGivenUp, sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(loader::ledger::turn_key(run))
        .execute(&mut *tx)
        .await?;
    let run = run.as_str();
    let replay: Option<Replay> = sqlx::query_as(
        "SELECT p.job_spec FROM etl.runs r JOIN etl.replays p USING (run_id, generation)
         WHERE run_id = $1 AND generation = $2 AND r.state = 'running' AND p.source = 'athena' FOR UPDATE OF r",
    )
    .bind(run)
    .bind(live)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(replay) = replay else {
        return Ok(ReplayGivenUp::NotNeeded);
    };
    let reason = format!("given up by {by}: {why}");
    note_given_up(tx, run, live, &reason).await?;
    let number = u32::try_from(live).unwrap_or_default();
    let is_staged = replay.job_spec.target.is_staged(number);
    let former = Former::of(tx, run, live, is_staged).await?;
    if former.batches > 0 {
        former.carry_back(tx, run, live, is_staged).await?;
    } else if is_staged {
        drop_loaded(tx, run, live, by, &reason).await?;
    }
    if is_whole(tx, run).await? && (former.batches > 0 || !is_staged) {
        complete_again(tx, run, live, &reason).await?;
        return Ok(ReplayGivenUp::Restored);
    }
    sqlx::query(
        "UPDATE etl.runs SET state = 'failed', failure = $2, finished_at = now() WHERE run_id = $1",
    )
    .bind(run)
    .bind(format!("its replay was {reason}"))
    .execute(tx)
    .await?;
    Ok(ReplayGivenUp::Failed)
}
