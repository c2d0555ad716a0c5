//! The targets that cannot take rows now, and how many batches of each target are being loaded. One target neither occupies
//! every worker, nor is it touched by each of its batches while it is known to be unavailable. Pure, apart from the clock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::backoff::backoff;
use common::job::Target;
use common::message::{RunId, ValidBatch};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// The batches of one target that are loaded at the same time: one less than a loader has lanes.
const MAX_PER_TARGET: usize = 2;

/// The pauses between probes of a target grow from the first to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// How often it is looked at whether a run is to be paused.
const PAUSE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a batch waits for others of its target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Where the latest batch of the target was loaded.
    pub(crate) proven: Duration,
    pub(crate) unproven: Duration,
}

/// The state of every target that is in use or unavailable.
#[derive(Default)]
pub(crate) struct Parking {
    targets: Mutex<HashMap<String, State>>,
    freed: Notify,
    /// When it was looked last whether a run is to be paused.
    looked: Mutex<HashMap<RunId, Instant>>,
}

#[derive(Default)]
struct State {
    loading: usize,
    /// The latest batch was loaded: more of them are loaded at the same time.
    is_proven: bool,
    /// A batch has waited in vain for one of them to end.
    is_slow: bool,
    fault: Option<Fault>,
}

/// A target that cannot take rows now.
struct Fault {
    why: String,
    /// A batch that it could not take: loading it shows that the target works again.
    sample: Arc<ValidBatch>,
    /// Failed probes.
    attempts: u32,
    next: Instant,
}

/// The right to load a batch of a target, until it is dropped.
pub(crate) struct Slot<'a> {
    parking: &'a Parking,
    target: String,
}

impl Slot<'_> {
    /// Records that the target took the batch.
    pub(crate) fn prove(&self) {
        let mut targets = self.parking.lock();
        if let Some(state) = targets.get_mut(&self.target) {
            state.is_proven = true;
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut targets = self.parking.lock();
        if let Some(state) = targets.get_mut(&self.target) {
            state.loading -= 1;
            state.is_slow = false;
            if state.loading == 0 && state.fault.is_none() && !state.is_proven {
                targets.remove(&self.target);
            }
        }
        drop(targets);
        self.parking.freed.notify_waiters();
    }
}

/// The name of a target, the same for every job that loads into it.
pub(crate) fn name(target: &Target) -> String {
    let (schema, table) = target.schema_and_table();
    format!("{schema}.{table}")
}

impl Parking {
    /// Waits for the right to load a batch of this target, for so long at most. The error is a sentence: why the batch
    /// has to be parked.
    pub(crate) async fn enter(&self, target: &str, patience: Patience) -> Result<Slot<'_>, String> {
        let since = Instant::now();
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(entered) = self.try_enter(target) {
                return entered;
            }
            let patience = if self.is_proven(target) {
                patience.proven
            } else {
                patience.unproven
            };
            if timeout_at(since + patience, freed).await.is_err() {
                let mut targets = self.lock();
                let state = targets.entry(target.to_owned()).or_default();
                state.is_slow = true;
                return Err(slow(target));
            }
        }
    }

    fn is_proven(&self, target: &str) -> bool {
        let targets = self.lock();
        targets.get(target).is_some_and(|state| state.is_proven)
    }

    fn try_enter(&self, target: &str) -> Option<Result<Slot<'_>, String>> {
        let mut targets = self.lock();
        let state = targets.entry(target.to_owned()).or_default();
        if let Some(fault) = &state.fault {
            return Some(Err(fault.why.clone()));
        }
        let max = if state.is_proven { MAX_PER_TARGET } else { 1 };
        if state.loading < max {
            state.loading += 1;
            return Some(Ok(Slot {
                parking: self,
                target: target.to_owned(),
            }));
        }
        state.is_slow.then(|| Err(slow(target)))
    }

    /// Records that a target could not take this batch, now and after the next pause.
    pub(crate) fn failed(&self, target: &str, batch: &ValidBatch, why: &str) {
        let mut targets = self.lock();
        let state = targets.entry(target.to_owned()).or_default();
        state.is_proven = false;
        let attempts = state.fault.as_ref().map_or(0, |fault| fault.attempts + 1);
        let sample = match state.fault.take() {
            Some(fault) => fault.sample,
            None => Arc::new(batch.clone()),
        };
        state.fault = Some(Fault {
            why: why.to_owned(),
            sample,
            attempts,
            next: Instant::now() + backoff(attempts, FIRST_PAUSE, MAX_PAUSE),
        });
    }

    /// Records that a target takes rows. True when it was unavailable.
    pub(crate) fn works(&self, target: &str) -> bool {
        let mut targets = self.lock();
        let state = targets.entry(target.to_owned()).or_default();
        state.is_proven = true;
        state.fault.take().is_some()
    }

    /// The targets whose next probe is due, with the batch to load. The next ones are due after the longest pause, unless
    /// the outcome is recorded earlier.
    pub(crate) fn due(&self) -> Vec<(String, Arc<ValidBatch>)> {
        let now = Instant::now();
        let mut targets = self.lock();
        let faults = targets
            .iter_mut()
            .filter_map(|(name, state)| Some((name, state.fault.as_mut()?)));
        let due = faults.filter(|(_, fault)| fault.next <= now);
        due.map(|(name, fault)| {
            fault.next = now + PROBE_TIMEOUT;
            (name.clone(), Arc::clone(&fault.sample))
        })
        .collect()
    }

    /// Whether it is time to look whether this run is to be paused.
    pub(crate) fn may_pause(&self, run: &RunId) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.retain(|_, at| at.elapsed() < PAUSE_INTERVAL);
        let is_due = !looked.contains_key(run);
        if is_due {
            looked.insert(run.clone(), Instant::now());
        }
        is_due
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, State>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longer than any probe takes.
const PROBE_TIMEOUT: Duration = Duration::from_mins(30);

fn slow(target: &str) -> String {
    format!("other batches of {target} are being loaded, and take long")
}

#[cfg(test)]
mod tests {
    use common::Rows;
    use common::message::{BatchId, ContentHash};
    use testkit::{TIMEOUT, wait_until};

    use super::*;

    const NONE: Patience = Patience {
        proven: Duration::ZERO,
        unproven: Duration::ZERO,
    };

    fn batch(first_row: u64) -> ValidBatch {
        ValidBatch {
            id: BatchId {
                run: "r".parse().unwrap(),
                generation: 0,
                first_row,
            },
            is_bulk: false,
            result_id: "q:pages".into(),
            content_hash: ContentHash::of(&[], &Rows::new(1)),
            job: "job".into(),
            target: Target::default(),
            columns: Vec::new(),
            rows: Rows::new(1),
            row_offsets: Vec::new(),
            rejected: Vec::new(),
            watermark: None,
        }
    }

    #[tokio::test]
    async fn one_target_leaves_a_worker_to_the_others() {
        let parking = Parking::default();
        let time = Duration::from_millis(50);
        let of = |time| Patience {
            proven: time,
            unproven: time,
        };
        let patience = of(time);
        let first = parking.enter("a", patience).await.unwrap();
        // The first batch is alone.
        assert!(parking.enter("a", patience).await.is_err());
        first.prove();
        drop(first);
        let first = parking.enter("a", patience).await.unwrap();
        let _second = parking.enter("a", patience).await.unwrap();
        let before = Instant::now();
        let why = parking.enter("a", patience).await.err().unwrap();
        assert!(
            why.contains("take long") && before.elapsed() >= time,
            "{why}"
        );
        // The next ones do not wait again.
        let again = timeout_at(Instant::now() + TIMEOUT, parking.enter("a", of(TIMEOUT)));
        assert!(again.await.unwrap().is_err());
        assert!(parking.enter("b", patience).await.is_ok());
        drop(first);
        assert!(parking.enter("a", patience).await.is_ok());
    }

    #[tokio::test]
    async fn unavailable_target_is_probed_with_its_first_batch() {
        let parking = Parking::default();
        parking.failed("a", &batch(7), "locked");
        let why = parking.enter("a", NONE).await.err();
        assert_eq!(why.as_deref(), Some("locked"));
        assert!(parking.due().is_empty(), "the first probe comes later");
        for first_row in 8..10 {
            let mut due = Vec::new();
            wait_until("the probe", TIMEOUT, async || {
                due = parking.due();
                !due.is_empty()
            })
            .await;
            assert_eq!((due[0].0.as_str(), due[0].1.id.first_row), ("a", 7));
            assert!(parking.due().is_empty(), "one probe at a time");
            parking.failed("a", &batch(first_row), "still locked");
        }
        assert!(parking.works("a") && !parking.works("a"));
        assert!(parking.enter("a", NONE).await.is_ok());
    }
}
