//! What went wrong with a task since it last made progress. It travels in a header of the task, so that it is
//! forgotten when a person sends a dead letter again.

use std::collections::BTreeSet;
use std::time::Duration;

use common::backoff::backoff;
use common::message::{ExtractTask, TaskState};
use common::queue::{Outgoing, RawDelivery};
use serde::{Deserialize, Serialize};

/// The header.
const HEADER: &str = "x-etl-setbacks";

/// Interruptions without progress after which the task is dead-lettered: it may take the process down.
const MAX_INTERRUPTIONS: u32 = 7;

/// Denials after which a run fails although no other replica had its task: about half a minute.
const MAX_DENIALS: u32 = 10;

/// The most replicas that are named. Only the task of a run that is being read may be denied by more than two.
const MAX_NAMES: usize = 4;

/// The setbacks of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Setbacks {
    /// How often it came back, neither acked nor followed by a checkpoint: the process died, or lost its connection.
    pub(crate) interruptions: u32,
    /// Whether the query of the task's attempt may have been started.
    pub(crate) may_have_started: bool,
    /// Attempts that AWS denied.
    denials: u32,
    /// The replicas that AWS denied, with their principals.
    denied: BTreeSet<String>,
}

impl Setbacks {
    /// Those of a delivered task. A redelivered one was interrupted.
    pub(crate) fn of(delivery: &RawDelivery) -> Self {
        let known = delivery.header(HEADER);
        let known = known.and_then(|json| serde_json::from_str(&json).ok());
        let mut setbacks: Self = known.unwrap_or_default();
        // The broker closes the channels of a dead process one after another, and delivers the task to each of the others: once
        // more for each, and all of it is one interruption.
        let is_back = delivery.deliveries() > 1;
        setbacks.interruptions = setbacks.interruptions.saturating_add(is_back.into());
        setbacks.may_have_started |= is_back;
        setbacks
    }

    /// Adds them to the message of the task.
    pub(crate) fn put_on(&self, task: Outgoing) -> Outgoing {
        if *self == Self::default() {
            return task;
        }
        let json = serde_json::to_string(self).expect("numbers and names can be written");
        task.with_header(HEADER, &json)
    }

    /// Why the task is not worked on any more.
    pub(crate) fn poison(&self) -> Option<String> {
        (self.interruptions >= MAX_INTERRUPTIONS).then(|| {
            format!(
                "it was interrupted {} times without progress, so it may take the process down; it was not processed again",
                self.interruptions
            )
        })
    }

    /// A step succeeded: what AWS denied before, it does not deny any more.
    pub(crate) fn progress(&mut self) {
        self.denials = 0;
        self.denied.clear();
    }

    /// Counts that AWS denied a replica what the task needs.
    pub(crate) fn deny(&mut self, replica: String) {
        self.denials = self.denials.saturating_add(1);
        // Its principal may be known better than at the denial before.
        let process = |name: &str| name.split(" (").next().map(str::to_owned);
        let is_known = (self.denied.iter()).any(|known| process(known) == process(&replica));
        if !is_known && self.denied.len() < MAX_NAMES {
            self.denied.insert(replica);
        }
    }

    /// Whether the denials fail the task's run: two replicas were denied, or one for long. A run that is being read has
    /// had the permission, and waits for it.
    pub(crate) fn are_final(&self, task: &ExtractTask) -> bool {
        let is_being_read =
            matches!(&task.state, TaskState::Reading { cursor, .. } if cursor.batches > 0);
        !is_being_read && (self.denied.len() > 1 || self.denials >= MAX_DENIALS)
    }

    /// Who was denied.
    pub(crate) fn denied(&self) -> String {
        let names: Vec<_> = self.denied.iter().map(String::as_str).collect();
        names.join(", and ")
    }

    /// How long a replica that was denied leaves the task to others.
    pub(crate) fn pause(&self) -> Duration {
        let before = self.denials.saturating_sub(1);
        backoff(before, Duration::from_millis(500), Duration::from_secs(5))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use common::job::{JobSpec, Results, Source, Target};
    use common::message::{Cursor, Limits, ResultLocation};

    use super::*;

    fn task(state: TaskState) -> ExtractTask {
        ExtractTask {
            run: "r".parse().unwrap(),
            run_no: 1,
            generation: 0,
            first_generation: 0,
            requested_at: jiff::Timestamp::UNIX_EPOCH,
            resumed_at: None,
            sql: "SELECT 1".into(),
            source: Source {
                database: "d".into(),
                workgroup: None,
                catalog: None,
                output_location: None,
                results: Results::Auto,
                max_scanned: None,
                timeout: Duration::from_mins(30),
                ..Source::default()
            },
            job: Arc::new(JobSpec {
                name: "j".into(),
                target: Target::default(),
                columns: vec![],
                watermark: None,
            }),
            limits: Limits::default(),
            state,
        }
    }

    fn reading(batches: u32) -> ExtractTask {
        task(TaskState::Reading {
            query_execution_id: "q".into(),
            bytes_scanned: 1,
            location: ResultLocation::Pages,
            columns: Arc::default(),
            cursor: Cursor {
                batches,
                ..Cursor::default()
            },
        })
    }

    #[test]
    fn denials_are_final_after_two_replicas_or_many_attempts_and_never_while_a_run_is_read() {
        let start = task(TaskState::Start { attempt: 1 });
        let mut one = Setbacks::default();
        for _ in 1..MAX_DENIALS {
            one.deny("a".into());
            assert!(!one.are_final(&start), "{one:?}");
        }
        let mut two = Setbacks::default();
        two.deny("a".into());
        two.deny("b".into());
        one.deny("a".into());
        for mut setbacks in [one, two] {
            assert!(setbacks.are_final(&start) && setbacks.are_final(&reading(0)));
            assert!(!setbacks.are_final(&reading(1)));
            setbacks.progress();
            assert!(!setbacks.are_final(&start));
        }
    }

    #[test]
    fn replica_counts_once_whatever_is_known_of_its_principal() {
        let start = task(TaskState::Start { attempt: 1 });
        let mut setbacks = Setbacks::default();
        setbacks.deny("the extractor h/1 (access key ...ABCD)".into());
        setbacks.deny("the extractor h/1 (arn:aws:iam::1:role/etl)".into());
        assert!(!setbacks.are_final(&start));
        setbacks.deny("the extractor h/2 (arn:aws:iam::1:role/etl)".into());
        assert!(setbacks.are_final(&start));
    }

    #[test]
    fn task_is_poison_only_after_many_interruptions() {
        let interrupted = |interruptions| Setbacks {
            interruptions,
            ..Setbacks::default()
        };
        assert_eq!(interrupted(MAX_INTERRUPTIONS - 1).poison(), None);
        assert!(interrupted(MAX_INTERRUPTIONS).poison().is_some());
    }
}
