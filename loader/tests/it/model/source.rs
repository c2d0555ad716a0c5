//! What Athena would return to jobs with a watermark: events that appear up to a lag late. Every event has to be in the table of
//! the appending job once, and the latest of each key in the table of the merging one.

use std::collections::{BTreeMap, BTreeSet};

use common::job::WatermarkRange;
use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use rand::rngs::StdRng;
use sqlx::PgPool;

use super::{BATCHES, ByHand, Raw, Row, rows_of};

/// Minutes that an event may appear late.
const LAG: i64 = 60;

/// Where the first run of the jobs begins.
pub(super) const INITIAL: &str = "2020-01-01 00:00:00";

/// The jobs: name and the rest of the file behind the target.
pub(super) const JOBS: [(&str, &str); 2] = [
    (
        "new",
        "[parameters]\nsince = { type = \"timestamp\", watermark = \"at\", initial = \"2020-01-01\", lag = \"1h\" }\nuntil = { type = \"timestamp\", end_of = \"since\" }\n[target]\ntable = \"fresh\"\n",
    ),
    (
        "newest",
        "[parameters]\nsince = { type = \"timestamp\", watermark = \"at\", initial = \"2020-01-01\", lag = \"1h\" }\n[target]\ntable = \"newest\"\nmode = \"upsert\"\nkey = [\"k\"]\n",
    ),
];

/// An event: when it happened, in minutes since the beginning, and its key.
struct Event {
    at: i64,
    key: i64,
}

/// The events that have appeared, by their number, and the time.
#[derive(Default)]
pub(super) struct Source {
    events: Vec<Event>,
    clock: i64,
}

impl Source {
    /// Some time goes by, and some events appear.
    pub(super) fn go_on(&mut self, random: &mut StdRng) {
        self.clock += random.random_range(0..30);
        for _ in 0..random.random_range(0..4) {
            let at = self.clock - random.random_range(0..=LAG);
            // Ties are frequent.
            let at = if random.random_bool(0.5) {
                at - at.rem_euclid(20)
            } else {
                at
            };
            self.events.push(Event {
                at: at.max(self.clock - LAG),
                key: random.random_range(0..6),
            });
        }
    }

    /// No event appears any more that belongs to a range that ends now.
    pub(super) fn wait(&mut self) {
        self.clock += LAG + 1;
    }

    /// A range for a run by hand, now and then: of events that all have appeared.
    pub(super) fn by_hand(&self, random: &mut StdRng) -> Option<ByHand> {
        let until = self.clock - LAG - random.random_range(0..60);
        let from = until - random.random_range(1..60);
        random.random_bool(0.3).then(|| (text(from), text(until)))
    }

    pub(super) fn now(&self) -> Timestamp {
        moment(self.clock)
    }

    /// The numbers of the events in a range, in the order of their times, by batch.
    pub(super) fn select(&self, range: &WatermarkRange) -> Raw {
        let is_in = |number: &usize| range.contains(Some(&text(self.events[*number].at)));
        let mut numbers: Vec<_> = (0..self.events.len()).filter(is_in).collect();
        numbers.sort_by_key(|number| (self.events[*number].at, *number));
        let size = numbers.len().div_ceil(BATCHES as usize).max(1);
        let mut batches: Raw = numbers
            .chunks(size)
            .map(|batch| {
                batch
                    .iter()
                    .map(|number| i64::try_from(*number).unwrap())
                    .collect()
            })
            .collect();
        if batches.is_empty() {
            batches.push(Vec::new());
        }
        batches
    }

    /// The key of an event's row: its number, or the key of the event.
    pub(super) fn key(&self, is_keyed: bool, number: i64) -> i64 {
        if is_keyed {
            self.event(number).key
        } else {
            number
        }
    }

    fn event(&self, number: i64) -> &Event {
        &self.events[usize::try_from(number).unwrap()]
    }

    /// The latest time of a batch, as Athena writes it.
    pub(super) fn latest(&self, batch: &[i64]) -> Option<String> {
        let latest = batch.iter().map(|number| self.event(*number).at).max();
        latest.map(|at| format!("{}.000", text(at)))
    }

    /// Every event is there once, or was left out, and of each key the latest is there. `left_out`: events by job. `number_of`: the
    /// event that a row is of.
    pub(super) async fn check(
        &self,
        pool: &PgPool,
        left_out: &BTreeMap<usize, Vec<i64>>,
        number_of: impl Fn(&Row) -> i64,
    ) {
        let left_out = |job: usize| {
            left_out
                .get(&(super::JOBS.len() + job))
                .cloned()
                .unwrap_or_default()
        };
        let fresh = rows_of(pool, "fresh").await;
        let mut there: Vec<_> = fresh.iter().map(|row| row.0).chain(left_out(0)).collect();
        there.sort_unstable();
        let wanted: Vec<_> = (0..i64::try_from(self.events.len()).unwrap()).collect();
        if there != wanted {
            let history = super::history(pool).await;
            panic!("each event once: {there:?} of {}\n{history}", wanted.len());
        }
        let mut latest: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for (number, event) in (0..).zip(&self.events) {
            let found = latest.entry(event.key).or_insert((event.at, number));
            *found = (*found).max((event.at, number));
        }
        let unsure: BTreeSet<_> = left_out(1)
            .iter()
            .map(|number| self.event(*number).key)
            .collect();
        let newest = rows_of(pool, "newest").await;
        let found: BTreeMap<_, _> = newest.iter().map(|row| (row.0, number_of(row))).collect();
        assert_eq!(newest.len(), found.len(), "a key is there twice");
        for (key, (_, number)) in latest.into_iter().filter(|(key, _)| !unsure.contains(key)) {
            assert_eq!(found.get(&key), Some(&number), "the latest event of {key}");
        }
    }
}

fn moment(minutes: i64) -> Timestamp {
    let beginning: Timestamp = "2020-01-02T00:00:00Z".parse().unwrap();
    beginning + SignedDuration::from_mins(minutes)
}

fn text(minutes: i64) -> String {
    moment(minutes).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
