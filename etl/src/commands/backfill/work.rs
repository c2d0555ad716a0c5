//! Requests the runs of a backfill, a number of them at a time, and waits for them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, anyhow};
use common::message::RunId;
use ledger::{Requested, Rows, Run, RunState, Store};
use tokio::time::sleep;

use super::super::cancel;
use super::{Arguments, Plan, WindowReport, has_failed, moves};
use crate::Failure;
use crate::broker::Broker;
use crate::follow::patiently;
use crate::jobs::checkable;
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
        for text in target::check(store, &checkable(&slot.request), schemas).await? {
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
        self.find_runs(arguments.retry).await?;
        loop {
            let runs = self.runs().await?;
            let mut moving = runs.values().filter(|run| moves(run)).count();
            let may_request = arguments.keep_going || !runs.values().any(has_failed);
            while may_request && moving < arguments.parallel as usize {
                let Some(index) = self.plan.slots.iter().position(|slot| slot.run.is_none()) else {
                    break;
                };
                self.request(index).await?;
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

    /// Finds the last run of each window. `retry`: a window whose last run failed or was cancelled gets another.
    async fn find_runs(&mut self, retry: bool) -> Result<(), anyhow::Error> {
        let mut open: Vec<usize> = (0..self.plan.slots.len()).collect();
        for attempt in 1.. {
            let name = |index: &usize| self.plan.name(*index, attempt);
            let names: Vec<_> = open.iter().map(name).collect();
            let mut found = self.store.named(&names).await?;
            let mut failed = Vec::new();
            for (index, name) in open.into_iter().zip(names) {
                let Some(run) = found.remove(&name) else {
                    continue;
                };
                let slot = &mut self.plan.slots[index];
                (slot.attempt, slot.run) = (attempt, Some(name));
                if run.state == RunState::Requested {
                    self.send_again(index, &run).await?;
                } else if has_failed(&run) {
                    failed.push(index);
                }
            }
            if failed.is_empty() {
                break;
            }
            open = failed;
        }
        if retry {
            let runs = self.runs().await?;
            for slot in &mut self.plan.slots {
                let run = slot.run.as_ref().and_then(|name| runs.get(name));
                if run.is_some_and(has_failed) {
                    (slot.attempt, slot.run) = (slot.attempt + 1, None);
                }
            }
        }
        Ok(())
    }

    /// The process that requested the run may have died before it sent the task.
    async fn send_again(&mut self, index: usize, run: &Run) -> Result<(), anyhow::Error> {
        if run.job_hash == self.plan.job.hash() {
            return self.request(index).await;
        }
        let id = &run.run_id;
        (self.look)(Event::Note(format!(
            "the run {id} was requested with an older version of the job and has not started yet; if it does not start, `etl cancel {id}` and --retry"
        )));
        Ok(())
    }

    async fn request(&mut self, index: usize) -> Result<(), anyhow::Error> {
        loop {
            let Plan {
                job,
                identity,
                slots,
                ..
            } = &mut self.plan;
            let slot = &mut slots[index];
            let run = identity.run(slot.window, slot.attempt);
            let requested = request(self.store, self.broker, &run, job, &slot.request, false);
            let conflict = match requested.await? {
                Requested::New | Requested::Known(_) => {
                    slot.run = Some(run.to_string());
                    return Ok(());
                }
                Requested::Conflicts(conflict) => conflict,
            };
            let is_attempt = (1..slot.attempt)
                .any(|attempt| identity.run(slot.window, attempt).as_str() == conflict.run_id);
            if conflict.has_left_rows() && is_attempt {
                self.take_back(&conflict.run_id).await?;
            } else if conflict.has_left_rows() || conflict.has_loaded_otherwise() {
                return Err(anyhow!(conflict.sentence()));
            } else {
                // It has loaded, or loads, the window's rows.
                slot.run = Some(conflict.run_id);
                return Ok(());
            }
        }
    }

    /// Removes what an attempt that failed has left in the target, before the next one adds the same rows.
    async fn take_back(&mut self, run: &str) -> Result<(), anyhow::Error> {
        let id: RunId = run
            .parse()
            .context("the ledger has a run with an invalid name")?;
        (self.look)(Event::Note(format!(
            "removing what the run {run} has left in the target, before its window is tried again"
        )));
        let ended = cancel::act(self.store, &id, true, Some("its window is tried again")).await?;
        if let Rows::Leave { removal, .. } = ended.rows {
            let removed = cancel::removed(self.store, &id, removal).await?;
            removed.map_err(|why| anyhow!("the rows of the run {run} were not removed: {why}"))?;
        }
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
