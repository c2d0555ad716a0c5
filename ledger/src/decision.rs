//! What a person decides about a run: to end it, with or without its rows, or to let one that is held be committed. Each under
//! the run's lock, so that no batch is between its rows and its ledger row.

use common::command::user;
use common::message::RunId;
use sqlx::PgConnection;

use crate::conflict;
use crate::database::Store;
use crate::earlier::Earlier;
use crate::error::Error;
use crate::request::lock_requests;
use crate::run::{LockedRun, Meant, RunRow};
use crate::state::{RunState, Transition};

/// What became of the rows of a run that a person ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// None of them had reached the target.
    NeverThere,
    /// So many are in the target, and stay.
    Stay(i64),
    /// So many are to be removed from the target by a loader: [`Store::removed`] tells when it has.
    Leave { rows: i64, removal: i64 },
    /// It was a replay that is abandoned, and the run is complete again with so many rows in the target. So many of its batches
    /// had replaced their earlier selves by then, and stay so.
    AsBefore { rows: i64, replaced: i64 },
}

/// A run that a person ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub job: String,
    pub generation: u32,
    pub target_table: String,
    /// The state that it had ended in before; only its rows are dealt with now.
    pub was: Option<RunState>,
    pub rows: Rows,
    /// Rows that the ledger had called loaded, and that are dropped, now or by the removal.
    pub dropped: i64,
}

impl Store {
    /// Ends a run. `undo`: its rows leave the target, too.
    pub async fn cancel(
        &self,
        run: impl Into<Meant>,
        undo: bool,
        why: Option<&str>,
    ) -> Result<Ended, Error> {
        let meant = run.into();
        self.transaction(
            format!("cannot cancel the run {}", meant.run),
            async |tx: &mut PgConnection| {
                if undo {
                    lock_requests(tx, &meant.run).await?;
                }
                let run = LockedRun::lock_meant(tx, &meant).await?;
                let transition = if undo {
                    Transition::Undo
                } else {
                    Transition::Cancel
                };
                run.end_by_person(transition, &decision("cancelled", why))
                    .await
            },
        )
        .await
    }

    /// Removes the rows of a run that has ended, as an undo does. Refused for one that was requested again meanwhile.
    pub async fn take_back(&self, run: &RunId, why: &str) -> Result<Ended, Error> {
        self.transaction(
            format!("cannot remove the rows of the run {run}"),
            async |tx: &mut PgConnection| {
                lock_requests(tx, run).await?;
                let run = LockedRun::lock_for_person(tx, run).await?;
                let state = run.row.state;
                if !state.is_over() {
                    let why = format!(
                        "the run {} is {state} now: somebody requested it again",
                        run.id
                    );
                    return Err(Error::NotAllowed(why));
                }
                run.end_by_person(Transition::Undo, &decision("cancelled", Some(why)))
                    .await
            },
        )
        .await
    }

    /// Lets a held run be committed, whatever it was held for; the loader's sweep does it.
    pub async fn approve(&self, run: impl Into<Meant>, why: Option<&str>) -> Result<(), Error> {
        let meant = run.into();
        self.transaction(
            format!("cannot approve the run {}", meant.run),
            async |tx: &mut PgConnection| {
                let run = LockedRun::lock_meant(tx, &meant).await?;
                run.approve(&decision("approved", why)).await
            },
        )
        .await
    }

    /// Ends a held run: what the ledger has of it is dropped, and never was in the target. A held replay is abandoned, and the run
    /// is what it was before.
    pub async fn discard(&self, run: impl Into<Meant>, why: &str) -> Result<Ended, Error> {
        let meant = run.into();
        self.transaction(
            format!("cannot discard the run {}", meant.run),
            async |tx: &mut PgConnection| {
                let run = LockedRun::lock_meant(tx, &meant).await?;
                run.end_by_person(Transition::Discard, &decision("discarded", Some(why)))
                    .await
            },
        )
        .await
    }
}

/// `discarded: why`.
fn decision(what: &str, why: Option<&str>) -> String {
    why.map_or_else(|| what.to_owned(), |why| format!("{what}: {why}"))
}

/// The steps of ending a run, by what is known under its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a step, done or not")]
struct Plan {
    /// It has not ended, and ends now.
    ends: bool,
    /// Rows of it may be in the target, and go.
    removes: bool,
    /// It is a replay, and batches of earlier generations are in the target: the ledger says so again.
    carries: bool,
    /// The rows that the ledger calls loaded are not, or not any more, in the target.
    drops: bool,
}

impl RunRow {
    /// Whether no row that the ledger of the live generation calls loaded is in the target.
    pub(crate) fn is_only_staged(&self) -> bool {
        match self.state {
            // What was staged then was dropped, and what the ledger still calls loaded is in the target.
            RunState::Cancelled => false,
            RunState::Failed => !self.is_replay() && self.is_staged(),
            _ => self.is_staged(),
        }
    }

    /// How to end it. `rows_loaded`: of the live generation, by the ledger. The transition is allowed.
    fn plan(
        &self,
        transition: Transition,
        rows_loaded: i64,
        earlier: &Earlier,
    ) -> Result<Plan, String> {
        if transition == Transition::Discard {
            let carries = earlier.batches > 0;
            return Ok(Plan {
                ends: true,
                removes: false,
                carries,
                drops: !carries,
            });
        }
        let ends = self.state.takes_batches();
        let is_earlier_there = ends && earlier.rows > 0;
        let is_there = is_earlier_there || (!self.is_only_staged() && rows_loaded > 0);
        let removes = transition == Transition::Undo && is_there;
        if removes && self.mode.replaces() {
            return Err(format!(
                "rows of the run {} are in {}, and in mode {} they have replaced rows of other runs, which cannot be restored: cancel it without --undo, which abandons the replay and leaves the rows of before",
                self.run_id, self.target_table, self.mode
            ));
        }
        let carries = ends && earlier.batches > 0;
        Ok(Plan {
            ends,
            removes,
            carries,
            drops: removes || (self.is_only_staged() && !carries),
        })
    }
}

impl LockedRun<'_> {
    async fn approve(self, decision: &str) -> Result<(), Error> {
        let state = self.to(Transition::Approve)?;
        sqlx::query("UPDATE etl.runs SET state = $2, approved_at = now(), decided_by = $3, decision = $4 WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(state.name())
            .bind(user())
            .bind(decision)
            .execute(self.tx)
            .await?;
        Ok(())
    }

    async fn end_by_person(
        mut self,
        transition: Transition,
        decision: &str,
    ) -> Result<Ended, Error> {
        let by = user();
        if transition == Transition::Cancel && self.withdraw_removal(&by).await? {
            return self.keep_rows().await;
        }
        let state = self.to(transition)?;
        let earlier = Earlier::of(self.tx, &self.row).await?;
        let loaded = self.rows_loaded().await?;
        let plan = self
            .row
            .plan(transition, loaded, &earlier)
            .map_err(Error::NotAllowed)?;
        if plan.removes {
            self.check_undo().await?;
        } else if plan.carries {
            self.check_return().await?;
        }
        let reason = format!("abandoned by {by}: {decision}");
        let mut replaced = 0;
        if plan.carries {
            replaced = self.carry_back().await?;
        }
        if plan.ends {
            self.abandon_replay(&reason).await?;
        }
        let is_as_before = plan.carries && !plan.removes && self.is_balanced().await?;
        if is_as_before {
            self.restore(&reason).await?;
        } else if plan.ends {
            self.end_as(state, &by, decision).await?;
        }
        let loaded = self.rows_loaded().await?;
        let rows = match loaded {
            rows if is_as_before => Rows::AsBefore { rows, replaced },
            rows if plan.removes => Rows::Leave {
                rows,
                removal: self.request_removal(None, &by, decision).await?,
            },
            stay @ 1.. if !plan.drops => Rows::Stay(stay),
            _ => Rows::NeverThere,
        };
        if plan.drops && !plan.removes {
            self.drop_loaded(&by, decision).await?;
        }
        Ok(Ended {
            generation: self.row.generation_no(),
            was: (!plan.ends).then_some(self.row.state),
            job: self.row.job,
            target_table: self.row.target_table,
            rows,
            dropped: if plan.drops { loaded } else { 0 },
        })
    }

    /// Refuses to make the run what it was before its replay once an older run has overwritten rows of it.
    async fn check_return(&mut self) -> Result<(), Error> {
        let run = &self.id.clone();
        self.overwritten_by_older().await?.map_or(Ok(()), |older| {
            Err(Error::NotAllowed(format!(
                "the run {older}, which is older, was replayed meanwhile and has overwritten rows of the run {run}; `etl approve {run}` or `etl replay {run}` brings them back"
            )))
        })
    }

    /// Refuses to remove the rows of the run while rows of other runs would be lost with them.
    pub(crate) async fn check_undo(&mut self) -> Result<(), Error> {
        self.check_watermark_undo().await?;
        let run = self.id.as_str();
        let first = if self.row.state.is_over() {
            String::new()
        } else {
            format!("`etl cancel {run}`, ")
        };
        let then = format!("`etl cancel {run} --undo`");
        let dependents = self.dependents().await?;
        match conflict::refusal(self.id.as_str(), &dependents, &first, &then) {
            None => Ok(()),
            Some(why) => Err(Error::NotAllowed(why)),
        }
    }

    /// The run ended before, and its rows stay although they were to be removed.
    async fn keep_rows(mut self) -> Result<Ended, Error> {
        let state = self.to(Transition::Withdraw)?;
        let rows = Rows::Stay(self.rows_loaded().await?);
        Ok(Ended {
            generation: self.row.generation_no(),
            was: Some(state),
            job: self.row.job,
            target_table: self.row.target_table,
            rows,
            dropped: 0,
        })
    }

    async fn end_as(
        &mut self,
        state: RunState,
        by: &str,
        decision: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE etl.runs SET state = $2, finished_at = now(), decided_by = $3, decision = $4 WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(state.name())
            .bind(by)
            .bind(decision)
            .execute(&mut *self.tx)
            .await?;
        self.tell_end(state).await
    }

    /// What the ledger of the live generation calls loaded.
    pub(crate) async fn rows_loaded(&mut self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT coalesce(sum(rows_loaded), 0)::bigint FROM etl.batches WHERE run_id = $1 AND generation = $2",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .fetch_one(&mut *self.tx)
        .await
    }

    /// Whether every row of the run's result is accounted for in the live generation.
    pub(crate) async fn is_balanced(&mut self) -> Result<bool, sqlx::Error> {
        let balanced: Option<bool> =
            sqlx::query_scalar("SELECT balanced FROM etl.run_balance WHERE run_id = $1")
                .bind(self.id.as_str())
                .fetch_one(&mut *self.tx)
                .await?;
        Ok(balanced == Some(true))
    }

    /// Abandons the live generation's replay, unless it is none or was abandoned before: the ledger says again what is in the
    /// target.
    pub(crate) async fn give_replay_up(&mut self, reason: &str) -> Result<(), sqlx::Error> {
        let is_under_way: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM etl.replays WHERE run_id = $1 AND generation = $2 AND abandoned IS NULL)",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .fetch_one(&mut *self.tx)
        .await?;
        if is_under_way {
            self.carry_back().await?;
            self.abandon_replay(reason).await?;
        }
        Ok(())
    }

    /// Records that the live generation's replay, if it is one, was abandoned, and why.
    pub(crate) async fn abandon_replay(&mut self, reason: &str) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE etl.replays SET abandoned = $3 WHERE run_id = $1 AND generation = $2")
            .bind(self.id.as_str())
            .bind(self.row.generation)
            .bind(reason)
            .execute(&mut *self.tx)
            .await
            .map(drop)
    }

    /// The run is complete, as it was before the replay; the replay's dead letters are of no use any more.
    pub(crate) async fn restore(&mut self, reason: &str) -> Result<(), Error> {
        let state = self.to(Transition::Restore)?;
        self.advance_watermark().await?;
        sqlx::query("UPDATE etl.runs SET state = $2, finished_at = now(), completed_at = coalesce(completed_at, now()), held_because = NULL WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(state.name())
            .execute(&mut *self.tx)
            .await?;
        sqlx::query(
            "UPDATE etl.dead_letters SET resolved_at = now(), resolution = $3
             WHERE run_id = $1 AND resolved_at IS NULL AND starts_with(message_id, $2)",
        )
        .bind(self.id.as_str())
        .bind(format!("{}/{}/", self.id, self.row.generation))
        .bind(format!("its replay was {reason}"))
        .execute(&mut *self.tx)
        .await?;
        Ok(self.tell_abandoned().await?)
    }

    /// The rows of the live generation that the ledger calls loaded are dropped, by name.
    pub(crate) async fn drop_loaded(&mut self, by: &str, reason: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE etl.batches SET rows_dropped = rows_dropped + rows_loaded, rows_loaded = 0, rows_deduplicated = 0,
                 dropped_by = $3, drop_reason = $4
             WHERE run_id = $1 AND generation = $2 AND rows_loaded > 0",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .bind(by)
        .bind(reason)
        .execute(&mut *self.tx)
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::run_in;

    fn plan(run: &RunRow, undo: bool, earlier: &Earlier) -> Result<Plan, String> {
        let transition = if undo {
            Transition::Undo
        } else {
            Transition::Cancel
        };
        run.plan(transition, 5, earlier)
    }

    #[test]
    fn undo_removes_what_is_in_the_target() {
        let none = Earlier::default();
        for mode in ["append", "insert_only", "upsert"] {
            let running = run_in(RunState::Running, mode, "batch", 0);
            let undone = plan(&running, true, &none).unwrap();
            assert_eq!((undone.removes, undone.drops), (true, true), "{mode}");
            let stays = plan(&running, false, &none).unwrap();
            assert_eq!((stays.removes, stays.drops), (false, false), "{mode}");
        }
    }

    #[test]
    fn staged_rows_are_dropped_and_not_removed() {
        for mode in ["append", "upsert", "replace"] {
            for undo in [true, false] {
                let staged = run_in(RunState::Running, mode, "run", 0);
                let plan = plan(&staged, undo, &Earlier::default()).unwrap();
                assert_eq!((plan.removes, plan.drops), (false, true), "{mode}");
            }
        }
    }

    #[test]
    fn rows_of_before_a_replay_are_dropped_only_when_they_are_removed() {
        let before = Earlier::left(9, 90);
        for (mode, commit) in [
            ("append", "batch"),
            ("append", "run"),
            ("insert_only", "batch"),
            ("upsert", "batch"),
            ("replace", "run"),
        ] {
            let there = run_in(RunState::Running, mode, commit, 1);
            let kept = plan(&there, false, &before).unwrap();
            assert!(kept.carries && !kept.drops && !kept.removes, "{mode}");
            match plan(&there, true, &before) {
                Ok(plan) => assert!(plan.carries && plan.drops && plan.removes, "{mode}"),
                Err(why) => assert!(why.contains("without --undo"), "{mode}: {why}"),
            }
            // Held before, and so never there: what is staged is all that there is.
            let never = run_in(RunState::Running, mode, "run", 1);
            for undo in [false, true] {
                let plan = plan(&never, undo, &Earlier::default()).unwrap();
                assert!(!plan.carries && plan.drops && !plan.removes, "{mode}");
            }
        }
    }

    #[test]
    fn the_ledger_of_an_abandoned_replay_is_about_the_target() {
        // What had been staged is gone from its ledger.
        let over = run_in(RunState::Cancelled, "append", "run", 1);
        let none = Earlier::default();
        assert!(!plan(&over, false, &none).unwrap().drops);
        let undone = plan(&over, true, &none).unwrap();
        assert!(undone.removes && undone.drops && !undone.carries);
    }

    #[test]
    fn a_discarded_replay_leaves_the_rows_of_before() {
        let discard = |generation, earlier: &Earlier| {
            let held = run_in(RunState::Held, "replace", "run", generation);
            held.plan(Transition::Discard, 5, earlier).unwrap()
        };
        let plan = discard(1, &Earlier::default());
        assert!(plan.drops && !plan.carries);
        let plan = discard(1, &Earlier::left(9, 90));
        assert!(!plan.drops && plan.carries);
    }
}
