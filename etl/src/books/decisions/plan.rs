//! What giving a run up means for its rows, by what is known of it under its lock. Pure.

use sqlx::FromRow;

use crate::books::former::Former;

/// A run's row, locked.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(super) struct Locked {
    pub(super) run_no: i64,
    pub(super) job: String,
    pub(super) state: String,
    pub(super) generation: i32,
    mode: String,
    publish: String,
    pub(super) target_table: String,
    /// As the ledger of the live generation has it.
    pub(super) rows_loaded: i64,
    /// What the generations before have left in the target.
    #[sqlx(skip)]
    pub(super) former: Former,
}

/// What is to be done about a run that is to be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a step, done or not")]
pub(super) struct Plan {
    /// It is open, and ends now.
    pub(super) ends: bool,
    /// Rows of it may be in the target, and go.
    pub(super) removes: bool,
    /// It is a replay, and batches of before are in the target: the books say so again.
    pub(super) carries: bool,
    /// The rows that the ledger calls loaded are not, or not any more, in the target.
    pub(super) drops: bool,
}

impl Locked {
    /// Whether this generation's rows wait in staging until the run is complete.
    pub(super) fn is_staged(&self) -> bool {
        self.publish == "run"
            || self.mode == "replace"
            || (self.generation > 0 && self.mode != "append")
    }

    /// Whether nothing that the ledger of the live generation calls loaded is in the target.
    fn is_only_staged(&self) -> bool {
        match self.state.as_str() {
            // What was staged then was dropped, and what the ledger still calls loaded is in the target.
            "cancelled" => false,
            "failed" => self.generation == 0 && self.is_staged(),
            _ => self.is_staged(),
        }
    }

    pub(super) fn plan_to_discard(&self) -> Plan {
        let carries = self.former.batches > 0;
        Plan {
            ends: true,
            removes: false,
            carries,
            drops: !carries,
        }
    }

    pub(super) fn plan_to_cancel(&self, run: &str, undo: bool) -> Result<Plan, String> {
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
        let is_former_there = ends && self.former.rows > 0;
        let is_there = is_former_there || (!self.is_only_staged() && self.rows_loaded > 0);
        if undo && is_there && matches!(self.mode.as_str(), "upsert" | "replace") {
            let remedy = if is_former_there {
                "cancel it without --undo, which gives the replay up and leaves the rows of before"
            } else {
                "cancel it without --undo, and load the rows anew"
            };
            return Err(format!(
                "rows of the run {run} are in {}, and in mode {} they have taken the place of others, which nobody has any more; nothing was changed: {remedy}",
                self.target_table, self.mode
            ));
        }
        let removes = undo && is_there;
        let carries = ends && self.former.batches > 0;
        Ok(Plan {
            ends,
            removes,
            carries,
            drops: removes || (self.is_only_staged() && !carries),
        })
    }
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
            rows_loaded,
            former: Former::default(),
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
    }

    /// A replay of a run that has left so many batches in the target.
    fn replay(state: &str, mode: &str, publish: &str, batches: i64) -> Locked {
        Locked {
            former: Former::left(batches, batches * 10),
            ..run(state, mode, publish, 1, 5)
        }
    }

    #[test]
    fn what_was_there_before_a_replay_is_never_called_dropped_unless_it_goes() {
        for (mode, publish) in [
            ("append", "batch"),
            ("append", "run"),
            ("insert_only", "batch"),
            ("upsert", "batch"),
            ("replace", "run"),
        ] {
            let there = replay("running", mode, publish, 9);
            let plan = there.plan_to_cancel("r", false).unwrap();
            assert!(plan.carries && !plan.drops && !plan.removes, "{mode}");
            match there.plan_to_cancel("r", true) {
                Ok(plan) => assert!(plan.carries && plan.drops && plan.removes, "{mode}"),
                Err(why) => assert!(why.contains("without --undo"), "{mode}: {why}"),
            }
            // Held before, and so never there: what is staged is all that there is.
            let never = replay("running", mode, "run", 0);
            for undo in [false, true] {
                let plan = never.plan_to_cancel("r", undo).unwrap();
                assert!(!plan.carries && plan.drops && !plan.removes, "{mode}");
            }
        }
    }

    #[test]
    fn of_a_replay_that_was_given_up_the_ledger_is_about_the_target() {
        // What had been staged is gone from its books.
        let over = replay("cancelled", "append", "run", 0);
        assert!(!over.plan_to_cancel("r", false).unwrap().drops);
        let undone = over.plan_to_cancel("r", true).unwrap();
        assert!(undone.removes && undone.drops && !undone.carries);
        assert!(
            replay("cancelled", "upsert", "batch", 0)
                .plan_to_cancel("r", true)
                .is_err()
        );
    }

    #[test]
    fn a_held_replay_is_discarded_and_what_was_there_before_stays() {
        let plan = run("held", "replace", "run", 1, 5).plan_to_discard();
        assert!(plan.drops && !plan.carries);
        let plan = replay("held", "replace", "run", 9).plan_to_discard();
        assert!(!plan.drops && plan.carries);
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
