//! What a person decides about a run: to give it up, with or without its rows, or to let one that is
//! held go. Each under the run's lock, so that no batch is between its rows and its ledger row.

mod plan;

use anyhow::{Context, anyhow};
use common::message::RunId;
use common::schema::{BATCH_COLUMN, quoted};
use common::settings::variable;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};

use self::plan::{Locked, Plan};
use super::Books;
use super::former::{Former, complete_again, drop_loaded, is_whole, note_given_up};
use super::runs::no_such_run;
use crate::Failure;

/// What became of the rows of a run that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// None of them had reached the target.
    NeverThere,
    /// So many are in the target, and stay.
    Stay(i64),
    /// So many were removed from the target.
    Removed(i64),
    /// It was a replay that is given up, and the run is complete again with so many rows in the target. So many of its
    /// batches had replaced their former selves by then, and stay so.
    AsBefore { rows: i64, replaced: i64 },
}

/// A run that is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    pub job: String,
    pub generation: u32,
    pub target_table: String,
    /// It had been given up before, or had failed; only its rows are dealt with now.
    pub was: Option<String>,
    pub rows: Rows,
    /// Rows that the ledger had called loaded, and that are dropped now.
    pub dropped: i64,
}

impl Books {
    /// Gives a run up. `undo`: its rows leave the target, too.
    pub async fn cancel(
        &self,
        run: &RunId,
        undo: bool,
        why: Option<&str>,
    ) -> Result<GivenUp, Failure> {
        let doing = || format!("cannot cancel the run {run}; nothing was changed");
        let mut tx = self.pool.begin().await.with_context(doing)?;
        let locked = lock(&mut tx, run).await?;
        let plan = locked
            .plan_to_cancel(run.as_str(), undo)
            .map_err(|sentence| anyhow!(sentence))?;
        let decision = decision("cancelled", why);
        let given_up = give_up(&mut tx, run, locked, plan, &decision)
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(|| {
            format!("it is not known whether the run {run} was cancelled; ask again")
        })?;
        Ok(given_up)
    }

    /// Lets a held run be published: the loader does it, whatever it was held for.
    pub async fn approve(&self, run: &RunId, why: Option<&str>) -> Result<(), Failure> {
        let doing = || format!("cannot approve the run {run}; nothing was changed");
        let mut tx = self.pool.begin().await.with_context(doing)?;
        held(&lock(&mut tx, run).await?, run)?;
        sqlx::query("UPDATE etl.runs SET state = 'running', approved_at = now(), decided_by = $2, decision = $3 WHERE run_id = $1")
            .bind(run.as_str())
            .bind(who())
            .bind(decision("approved", why))
            .execute(&mut *tx)
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(|| {
            format!("it is not known whether the run {run} was approved; ask again")
        })?;
        Ok(())
    }

    /// Gives a held run up: what the ledger has of it is dropped, and never was in the target. A held replay is given up,
    /// and the run is what it was before.
    pub async fn discard(&self, run: &RunId, why: &str) -> Result<GivenUp, Failure> {
        let doing = || format!("cannot discard the run {run}; nothing was changed");
        let mut tx = self.pool.begin().await.with_context(doing)?;
        let locked = lock(&mut tx, run).await?;
        held(&locked, run)?;
        let plan = locked.plan_to_discard();
        let decision = decision("discarded", Some(why));
        let given_up = give_up(&mut tx, run, locked, plan, &decision)
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(|| {
            format!("it is not known whether the run {run} was discarded; ask again")
        })?;
        Ok(given_up)
    }
}

/// Does what was planned.
async fn give_up(
    tx: &mut PgConnection,
    run: &RunId,
    locked: Locked,
    plan: Plan,
    decision: &str,
) -> Result<GivenUp, sqlx::Error> {
    let (id, live, who) = (run.as_str(), locked.generation, who());
    let mut replaced = 0;
    if plan.carries {
        let former = &locked.former;
        replaced = former.carry_back(tx, id, live, locked.is_staged()).await?;
    }
    let reason = format!("given up by {who}: {decision}");
    if plan.ends {
        note_given_up(tx, id, live, &reason).await?;
    }
    let is_as_before = plan.carries && !plan.removes && is_whole(tx, id).await?;
    if is_as_before {
        complete_again(tx, id, live, &reason).await?;
    } else if plan.ends {
        end(tx, run, decision).await?;
    }
    let removed = if plan.removes {
        remove(tx, &locked).await?
    } else {
        0
    };
    let loaded = loaded(tx, id, live).await?;
    if plan.drops {
        drop_loaded(tx, id, live, &who, decision).await?;
    }
    let rows = match loaded {
        rows if is_as_before => Rows::AsBefore { rows, replaced },
        _ if plan.removes => Rows::Removed(removed),
        stay @ 1.. if !plan.drops => Rows::Stay(stay),
        _ => Rows::NeverThere,
    };
    Ok(GivenUp {
        generation: live.try_into().unwrap_or_default(),
        was: (!plan.ends).then_some(locked.state),
        job: locked.job,
        target_table: locked.target_table,
        rows,
        dropped: if plan.drops { loaded } else { 0 },
    })
}

/// What the ledger of a generation calls loaded.
async fn loaded(tx: &mut PgConnection, run: &str, generation: i32) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT coalesce(sum(rows_loaded), 0)::bigint FROM etl.batches WHERE run_id = $1 AND generation = $2",
    )
    .bind(run)
    .bind(generation)
    .fetch_one(tx)
    .await
}

fn held(locked: &Locked, run: &RunId) -> Result<(), Failure> {
    if locked.state == "held" {
        return Ok(());
    }
    Err(anyhow!(
        "the run {run} is {}, not held; nothing was changed",
        locked.state
    )
    .into())
}

/// `discarded: why`.
fn decision(what: &str, why: Option<&str>) -> String {
    why.map_or_else(|| what.to_owned(), |why| format!("{what}: {why}"))
}

fn who() -> String {
    variable("USER").unwrap_or_else(|| "somebody".to_owned())
}

/// The run's row, which nobody else changes until the transaction ends. Loaders that are about to
/// commit a batch of it are waited for, as the loader itself does.
async fn lock(tx: &mut Transaction<'_, Postgres>, run: &RunId) -> Result<Locked, Failure> {
    let doing =
        || format!("cannot lock the run {run}; is somebody holding it? nothing was changed");
    sqlx::query("SET LOCAL lock_timeout = '60s'")
        .execute(&mut **tx)
        .await
        .with_context(doing)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(loader::ledger::turn_key(run))
        .execute(&mut **tx)
        .await
        .with_context(doing)?;
    let locked: Option<Locked> = sqlx::query_as(
        "SELECT run_no, job, state, generation, mode, publish, target_table,
                (SELECT coalesce(sum(rows_loaded), 0)::bigint FROM etl.batches b
                 WHERE b.run_id = r.run_id AND b.generation = r.generation) AS rows_loaded
         FROM etl.runs r WHERE run_id = $1 FOR UPDATE",
    )
    .bind(run.as_str())
    .fetch_optional(&mut **tx)
    .await
    .with_context(doing)?;
    let mut locked = locked.ok_or_else(|| no_such_run(run.as_str()))?;
    let (live, is_staged) = (locked.generation, locked.is_staged());
    locked.former = Former::of(tx, run.as_str(), live, is_staged)
        .await
        .with_context(doing)?;
    Ok(locked)
}

async fn end(tx: &mut PgConnection, run: &RunId, decision: &str) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE etl.runs SET state = 'cancelled', finished_at = now(), decided_by = $2, decision = $3 WHERE run_id = $1")
        .bind(run.as_str())
        .bind(who())
        .bind(decision)
        .execute(tx)
        .await
        .map(drop)
}

/// Removes the run's rows from its target, if there is such a table.
async fn remove(tx: &mut PgConnection, run: &Locked) -> Result<i64, sqlx::Error> {
    let (schema, table) = run
        .target_table
        .split_once('.')
        .unwrap_or(("public", &run.target_table));
    let name = format!("{}.{}", quoted(schema), quoted(table));
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&name)
        .fetch_one(&mut *tx)
        .await?;
    if !is_there {
        return Ok(0);
    }
    let batch = quoted(BATCH_COLUMN);
    let delete = format!("DELETE FROM {name} WHERE {batch} >= $1 AND {batch} < $2");
    let deleted = sqlx::query(AssertSqlSafe(delete))
        .bind(run.run_no << 24)
        .bind((run.run_no + 1) << 24)
        .execute(tx)
        .await?;
    Ok(deleted.rows_affected().try_into().unwrap_or(i64::MAX))
}
