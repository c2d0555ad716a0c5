//! Requests the runs of a backfill, a number of them at a time, and waits for them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, anyhow};
use ledger::{Requested, Run, RunState, Store, Terms};
use tokio::time::sleep;

use super::{Arguments, Plan, WindowReport, listed, moves};
use crate::Failure;
use crate::broker::Broker;
use crate::follow::patiently;
use crate::jobs::{checkable, filled_in};
use crate::request::request;
use crate::target;

/// The time between two looks at the ledger.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// What happens while a backfill works.
pub enum Event<'a> {
    /// The runs as they are now.
    Progress(&'a BTreeMap<String, Run>),
    Note(String),
}

/// Requests the runs that are missing, and waits until no run can continue by itself. One process at a time may work on
/// the same backfill.
pub async fn act(
    store: &Store,
    broker: &Broker,
    schemas: &[String],
    plan: Plan,
    arguments: &Arguments,
    look: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<WindowReport>, Failure> {
    let mut alone = store.session_lock().await?;
    if !alone.take("backfill", &plan.identity.key()).await? {
        return Err(
            anyhow!("another `etl backfill` works on the same backfill; nothing was sent").into(),
        );
    }
    if let Some(slot) = plan.slots.first() {
        for text in target::check(store, &checkable(&slot.request), None, None, schemas).await? {
            look(Event::Note(text));
        }
    }
    let mut backfill = Backfill {
        store,
        broker,
        plan,
        look,
    };
    let runs = backfill.work(arguments).await;
    drop(alone);
    let mut runs = runs.context(
        "the backfill stopped; its runs go on, and the same command continues from here",
    )?;
    let slots = backfill.plan.slots.into_iter();
    let windows = slots.map(|slot| WindowReport {
        window: slot.window,
        run: slot.run.and_then(|name| runs.remove(&name)),
    });
    Ok(windows.collect())
}

/// A backfill at work.
struct Backfill<'a> {
    store: &'a Store,
    broker: &'a Broker,
    plan: Plan,
    look: &'a mut dyn FnMut(Event<'_>),
}

impl Backfill<'_> {
    async fn work(
        &mut self,
        arguments: &Arguments,
    ) -> Result<BTreeMap<String, Run>, anyhow::Error> {
        let terms = Terms {
            again: arguments.again,
            retry: arguments.retry,
        };
        self.find_runs(arguments).await?;
        loop {
            let runs = self.runs().await?;
            let mut moving = runs.values().filter(|run| moves(run)).count();
            let may_request = arguments.keep_going || !runs.values().any(Run::has_failed);
            while may_request && moving < arguments.parallel as usize {
                let Some(index) = self.plan.slots.iter().position(|slot| slot.run.is_none()) else {
                    break;
                };
                self.request(index, terms).await?;
                moving += 1;
            }
            let runs = self.runs().await?;
            (self.look)(Event::Progress(&runs));
            let is_pending = may_request && self.plan.slots.iter().any(|slot| slot.run.is_none());
            if !is_pending && !runs.values().any(moves) {
                return Ok(runs);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Finds the last run of each window, and takes it from the windows that are to be requested again.
    async fn find_runs(&mut self, arguments: &Arguments) -> Result<(), anyhow::Error> {
        let mut open: Vec<usize> = (0..self.plan.slots.len()).collect();
        for attempt in 1.. {
            let name = |index: &usize| self.plan.name(*index, attempt);
            let names: Vec<_> = open.iter().map(name).collect();
            let found = self.store.named(&names).await?;
            open.retain(|index| found.contains_key(&self.plan.name(*index, attempt)));
            if open.is_empty() {
                break;
            }
            for index in &open {
                let name = self.plan.name(*index, attempt);
                let slot = &mut self.plan.slots[*index];
                (slot.attempt, slot.run) = (attempt, Some(name));
            }
        }
        let runs = self.runs().await?;
        // What is relative is as it was when the window was requested first.
        for slot in &mut self.plan.slots {
            if let Some(run) = slot.run.as_ref().and_then(|name| runs.get(name)) {
                slot.request = filled_in(&self.plan.job, &slot.set, Some(&run.parameters))?;
            }
        }
        self.note_older(&runs, arguments);
        for index in 0..self.plan.slots.len() {
            let hash = self.plan.job.hash();
            let slot = &mut self.plan.slots[index];
            let Some(run) = slot.run.as_ref().and_then(|name| runs.get(name)) else {
                continue;
            };
            let is_over = run.state == RunState::Completed || run.state == RunState::Superseded;
            if run.state == RunState::Requested {
                self.send_again(index, run).await?;
            } else if arguments.retry && run.has_failed() {
                slot.run = None;
            } else if is_over && (arguments.again || arguments.all && run.job_hash != hash) {
                (slot.attempt, slot.run) = (slot.attempt + 1, None);
            }
        }
        Ok(())
    }

    /// Says which windows were loaded by another version of the job, and stay so.
    fn note_older(&mut self, runs: &BTreeMap<String, Run>, arguments: &Arguments) {
        let hash = self.plan.job.hash();
        let is_older = |run: &Run| run.state == RunState::Completed && run.job_hash != hash;
        let slots = self.plan.slots.iter();
        let older = slots.filter(|slot| {
            slot.run
                .as_ref()
                .and_then(|name| runs.get(name))
                .is_some_and(is_older)
        });
        let older: Vec<_> = older.map(|slot| slot.window.from.to_string()).collect();
        if older.is_empty() || arguments.all || arguments.again {
            return;
        }
        let remedy = if self.plan.job.spec.target.mode.adds() {
            "`etl replay RUN` loads the rows of each by the job as it is now"
        } else {
            "--all requests them again"
        };
        (self.look)(Event::Note(format!(
            "the job has changed since {} loaded, and they stay as they are ({}); {remedy}",
            if let [_] = older.as_slice() {
                "one window was".to_owned()
            } else {
                format!("{} windows were", older.len())
            },
            listed(&older)
        )));
    }

    /// The process that requested the run may have died before it sent the task.
    async fn send_again(&mut self, index: usize, run: &Run) -> Result<(), anyhow::Error> {
        if run.job_hash == self.plan.job.hash() {
            return self.request(index, Terms::default()).await;
        }
        let id = &run.run_id;
        (self.look)(Event::Note(format!(
            "the run {id} was requested with an older version of the job and has not started yet; if it does not start, `etl cancel {id}` and --retry"
        )));
        Ok(())
    }

    async fn request(&mut self, index: usize, terms: Terms) -> Result<(), anyhow::Error> {
        let Plan {
            job,
            identity,
            slots,
            ..
        } = &mut self.plan;
        let slot = &mut slots[index];
        let run = identity.run(slot.window, slot.attempt);
        let look = &mut |text| (self.look)(Event::Note(text));
        let requested = request(
            self.store,
            self.broker,
            &run,
            job,
            &slot.request,
            terms,
            look,
        );
        slot.run = Some(match requested.await? {
            // It has loaded, or loads, the window's rows.
            Requested::Conflicts(conflict) if conflict.loads_the_same() => conflict.run_id,
            Requested::Conflicts(conflict) => return Err(anyhow!(conflict.sentence())),
            Requested::New | Requested::Known(_) | Requested::LeftRows { .. } => run.to_string(),
        });
        Ok(())
    }

    async fn runs(&mut self) -> Result<BTreeMap<String, Run>, Failure> {
        let names = self.plan.slots.iter().filter_map(|slot| slot.run.clone());
        let names: Vec<_> = names.collect();
        let (store, look) = (self.store, &mut self.look);
        let note = |note| look(Event::Note(note));
        let read = async || Ok(store.named(&names).await?);
        patiently("its runs go on", None, note, read).await
    }
}
