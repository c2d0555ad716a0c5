//! What a person decides about a run: to give it up, with or without its rows, or to let one that is
//! held go. Each under the run's lock, so that no batch is between its rows and its ledger row.

use anyhow::{Context, anyhow};
use common::message::RunId;
use common::schema::{BATCH_COLUMN, quoted};
use common::settings::variable;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres, Transaction};

use super::Books;
use super::runs::no_such_run;
use crate::Failure;

/// A run's row, locked.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
struct Locked {
    run_no: i64,
    job: String,
    state: String,
    generation: i32,
    mode: String,
    publish: String,
    target_table: String,
    was_published: bool,
    /// As the ledger of the live generation has it.
    rows_loaded: i64,
}

/// What became of the rows of a run that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rows {
    /// None of them had reached the target.
    NeverThere,
    /// So many are in the target, and stay.
    Stay(i64),
    /// So many were removed from the target.
    Removed(i64),
}

/// A run that is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenUp {
    pub(crate) job: String,
    pub(crate) generation: u32,
    pub(crate) target_table: String,
    /// It had been given up before, or had failed; only its rows are dealt with now.
    pub(crate) was: Option<String>,
    pub(crate) rows: Rows,
}

/// What is to be done about a run that is to be cancelled. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// It is open, and ends now.
    ends: bool,
    /// Rows of it may be in the target, and go.
    removes: bool,
    /// The rows that the ledger calls loaded are not, or not any more, in the target.
    drops: bool,
}

impl Locked {
    /// Whether this generation's rows wait in staging until the run is complete.
    fn is_staged(&self) -> bool {
        self.publish == "run"
            || self.mode == "replace"
            || (self.generation > 0 && self.mode != "append")
    }

    /// Refuses to discard a replay while the rows of the generation before are in the target: the books would call them
    /// dropped.
    fn check_discard(&self, run: &str) -> Result<(), String> {
        if self.generation > 0 && (self.was_published || self.publish == "batch") {
            return Err(format!(
                "what is held is a replay of the run {run}, and the rows that it had loaded before are still in {}; nothing was changed: correct the job and run `etl replay {run}` again, or publish it as it is by `etl approve {run}`",
                self.target_table
            ));
        }
        Ok(())
    }

    fn plan_to_cancel(&self, run: &str, undo: bool) -> Result<Plan, String> {
        let state = self.state.as_str();
        let ends = matches!(state, "requested" | "running");
        match state {
            "requested" | "running" | "cancelled" => {}
            "failed" if undo => {}
            "failed" => {
                return Err(format!(
                    "the run {run} has failed, so that there is nothing to stop; --undo removes what it had loaded"
                ));
            }
            "held" => {
                return Err(format!(
                    "the run {run} is held; `etl discard {run} --why ...` gives it up, `etl approve {run}` publishes it"
                ));
            }
            state => {
                return Err(format!(
                    "the run {run} is {state}; only one that is not over can be cancelled"
                ));
            }
        }
        // An earlier generation's rows may be in the target, whatever waits in staging.
        let may_be_there = self.generation > 0 || (!self.is_staged() && self.rows_loaded > 0);
        if undo && may_be_there && matches!(self.mode.as_str(), "upsert" | "replace") {
            return Err(format!(
                "rows of the run {run} are in {}, and in mode {} they have taken the place of others, which nobody has any more; nothing was changed: cancel it without --undo, and load the rows anew",
                self.target_table, self.mode
            ));
        }
        let removes = undo && may_be_there;
        Ok(Plan {
            ends,
            removes,
            drops: removes || self.is_staged(),
        })
    }
}

impl Books {
    /// Gives a run up. `undo`: its rows leave the target, too.
    pub(crate) async fn cancel(
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
        if plan.ends {
            end(&mut tx, run, &decision).await.with_context(doing)?;
        }
        let removed = if plan.removes {
            remove(&mut tx, &locked).await.with_context(doing)?
        } else {
            0
        };
        if plan.drops {
            drop_loaded(&mut tx, run, locked.generation, &decision)
                .await
                .with_context(doing)?;
        }
        tx.commit().await.with_context(|| {
            format!("it is not known whether the run {run} was cancelled; ask again")
        })?;
        let rows = match (plan.removes, locked.rows_loaded) {
            (true, _) => Rows::Removed(removed),
            (false, stay @ 1..) if !plan.drops => Rows::Stay(stay),
            _ => Rows::NeverThere,
        };
        Ok(GivenUp {
            generation: locked.generation.try_into().unwrap_or_default(),
            was: (!plan.ends).then_some(locked.state),
            job: locked.job,
            target_table: locked.target_table,
            rows,
        })
    }

    /// Lets a held run be published: the loader does it, whatever it was held for.
    pub(crate) async fn approve(&self, run: &RunId, why: Option<&str>) -> Result<(), Failure> {
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

    /// Gives a held run up: what the ledger has of it is dropped, and never was in the target.
    pub(crate) async fn discard(&self, run: &RunId, why: &str) -> Result<i64, Failure> {
        let doing = || format!("cannot discard the run {run}; nothing was changed");
        let mut tx = self.pool.begin().await.with_context(doing)?;
        let locked = lock(&mut tx, run).await?;
        held(&locked, run)?;
        locked
            .check_discard(run.as_str())
            .map_err(|sentence| anyhow!(sentence))?;
        let decision = decision("discarded", Some(why));
        end(&mut tx, run, &decision).await.with_context(doing)?;
        drop_loaded(&mut tx, run, locked.generation, &decision)
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(|| {
            format!("it is not known whether the run {run} was discarded; ask again")
        })?;
        Ok(locked.rows_loaded)
    }
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
    let locked = sqlx::query_as(
        "SELECT run_no, job, state, generation, mode, publish, target_table, published_at IS NOT NULL AS was_published,
                (SELECT coalesce(sum(rows_loaded), 0)::bigint FROM etl.batches b
                 WHERE b.run_id = r.run_id AND b.generation = r.generation) AS rows_loaded
         FROM etl.runs r WHERE run_id = $1 FOR UPDATE",
    )
    .bind(run.as_str())
    .fetch_optional(&mut **tx)
    .await
    .with_context(doing)?;
    locked.ok_or_else(|| no_such_run(run.as_str()))
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

/// What the ledger calls loaded is dropped, by name.
async fn drop_loaded(
    tx: &mut PgConnection,
    run: &RunId,
    generation: i32,
    reason: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE etl.batches SET rows_dropped = rows_dropped + rows_loaded, rows_loaded = 0, rows_collapsed = 0,
             dropped_by = $3, drop_reason = $4
         WHERE run_id = $1 AND generation = $2 AND rows_loaded > 0",
    )
    .bind(run.as_str())
    .bind(generation)
    .bind(who())
    .bind(reason)
    .execute(tx)
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(state: &str, mode: &str, publish: &str, generation: i32, rows_loaded: i64) -> Locked {
        Locked {
            run_no: 1,
            job: "clicks".into(),
            state: state.into(),
            generation,
            mode: mode.into(),
            publish: publish.into(),
            target_table: "public.clicks".into(),
            was_published: false,
            rows_loaded,
        }
    }

    #[test]
    fn what_is_in_the_target_goes_only_where_it_took_nobodys_place() {
        let plan = |run: Locked, undo| run.plan_to_cancel("r", undo);
        for mode in ["append", "insert_only"] {
            let undone = plan(run("running", mode, "batch", 0, 5), true).unwrap();
            assert_eq!((undone.removes, undone.drops), (true, true), "{mode}");
            let stays = plan(run("running", mode, "batch", 0, 5), false).unwrap();
            assert_eq!((stays.removes, stays.drops), (false, false), "{mode}");
        }
        assert!(plan(run("running", "upsert", "batch", 0, 5), true).is_err());
        assert!(plan(run("running", "upsert", "batch", 0, 0), true).is_ok());
        assert!(plan(run("running", "upsert", "batch", 0, 5), false).is_ok());
    }

    #[test]
    fn what_waits_in_staging_never_was_in_the_target() {
        for mode in ["append", "upsert", "replace"] {
            for undo in [true, false] {
                let plan = run("running", mode, "run", 0, 5)
                    .plan_to_cancel("r", undo)
                    .unwrap();
                assert_eq!((plan.removes, plan.drops), (false, true), "{mode}");
            }
        }
        // A replay: what an earlier generation published may be there.
        let replayed = run("running", "upsert", "batch", 1, 5);
        assert!(replayed.plan_to_cancel("r", true).is_err());
        assert!(replayed.plan_to_cancel("r", false).unwrap().drops);
    }

    #[test]
    fn a_held_replay_is_not_discarded_while_the_rows_of_before_are_in_the_target() {
        assert!(
            run("held", "replace", "run", 0, 5)
                .check_discard("r")
                .is_ok()
        );
        // Held, corrected, replayed and held again: nothing of it was ever published.
        assert!(
            run("held", "replace", "run", 1, 5)
                .check_discard("r")
                .is_ok()
        );
        let published = Locked {
            was_published: true,
            ..run("held", "replace", "run", 1, 5)
        };
        assert!(published.check_discard("r").is_err());
        let by_batch = run("held", "upsert", "batch", 1, 5).check_discard("r");
        assert!(by_batch.unwrap_err().contains("etl replay r"));
    }

    #[test]
    fn only_what_is_not_over_can_be_cancelled() {
        for (state, undo, is_fine) in [
            ("requested", false, true),
            ("running", true, true),
            ("cancelled", false, true),
            ("cancelled", true, true),
            ("failed", false, false),
            ("failed", true, true),
            ("held", false, false),
            ("completed", true, false),
            ("superseded", false, false),
        ] {
            let plan = run(state, "append", "batch", 0, 5).plan_to_cancel("r", undo);
            assert_eq!(plan.is_ok(), is_fine, "{state} {undo}: {plan:?}");
        }
    }
}
