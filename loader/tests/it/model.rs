//! Random sequences of what operators, loaders and crashes do, against what the table and the ledger have to be.
//!
//! One process and one database: the queue and the archive are lists here, and a kill is a future that is dropped. Two operators
//! act at the same time. At the end everything is delivered and settled, and the tables have to be what the ledger says.
//! `ETL_MODEL_SEED` repeats one sequence, `ETL_MODEL_SEQUENCES` sets how many there are.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{iter, thread};

use common::Rows;
use common::job::{Job, JobSpec, Request};
use common::message::{
    BatchId, ContentHash, EventKind, Limits, Reject, RejectedRow, RunEvent, RunId, ValidBatch,
};
use common::schema::{ResultColumn, TargetColumn};
use ledger::{
    DeadLetterFilter, Dropped, DroppedBatch, NewDeadLetter, NewReplay, Requested, RowRanges,
    Rows as RowsLeft, Run, RunState, Store, Terms,
};
use loader::errors::{LoadError, Verdict};
use loader::load::Loader;
use loader::{completion, removal, target};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::{FromRow, PgPool};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::support::{ledger_database, loader};
use source::Source;

/// The jobs: name, target, the settings of the target. Jobs share tables.
const JOBS: [(&str, &str, &str); 6] = [
    ("add", "events", "mode = \"append\""),
    ("add_whole", "events", "mode = \"append\"\ncommit = \"run\""),
    ("put", "latest", "mode = \"upsert\"\nkey = [\"k\"]"),
    (
        "put_whole",
        "latest",
        "mode = \"upsert\"\nkey = [\"k\"]\ncommit = \"run\"",
    ),
    ("keep", "latest", "mode = \"insert_only\"\nkey = [\"k\"]"),
    ("swap", "report", "mode = \"replace\""),
];

/// How many jobs there are, with those that have a watermark.
const ALL_JOBS: usize = JOBS.len() + source::JOBS.len();

const BATCHES: u32 = 3;
const ROWS: u64 = 4;
const STEPS: usize = 45;

/// Sequences in a run of all tests. The soak has a thousand.
const DEFAULT_SEQUENCES: u64 = 50;
const AT_A_TIME: usize = 4;

/// The raw rows of a run: keys by batch, or numbers of events for a job with a watermark. The value of a row is `run/ordinal`.
type Raw = Vec<Vec<i64>>;

/// A range that an operator sets: its beginning and its end.
type ByHand = (String, String);

/// What is in a queue.
#[derive(Debug, Clone)]
enum Message {
    Batch {
        run: String,
        generation: u32,
        /// The place of the batch in its run.
        place: usize,
        rule: i64,
    },
    Extracted {
        run: String,
        generation: u32,
    },
    Failed {
        run: String,
        generation: u32,
    },
}

/// What an operator does.
#[derive(Debug, Clone)]
enum Action {
    Request {
        job: usize,
        parameter: i64,
        by_hand: Option<ByHand>,
        keys: Raw,
        fails_after: Option<usize>,
        /// What is left of another run is removed, and the request repeated.
        takes_back: bool,
    },
    Retry {
        run: usize,
        keys: Raw,
        fails_after: Option<usize>,
    },
    Cancel {
        run: usize,
        undo: bool,
    },
    Approve(usize),
    Discard(usize),
    Replay {
        run: usize,
        rule: i64,
        places: BTreeSet<usize>,
        only_rejected: bool,
    },
    ReplayLetter(usize),
    DropLetter(usize),
}

/// What an action leads to.
#[derive(Default)]
struct Effect {
    run: Option<(String, Known)>,
    messages: Vec<Message>,
}

/// An attempt of a run, as the test made it.
#[derive(Clone)]
struct Known {
    job: usize,
    parameter: i64,
    by_hand: Option<ByHand>,
    first_generation: u32,
    run_no: i64,
    raw: Raw,
    /// How many batches the extractor published before it failed, if it failed.
    fails_after: Option<usize>,
}

impl Known {
    fn rows(&self) -> u64 {
        self.first_row(self.raw.len())
    }

    /// The first row of the batch at this place.
    fn first_row(&self, place: usize) -> u64 {
        let before = self.raw[..place].iter();
        before.map(|batch| batch.len() as u64).sum()
    }

    /// The place of the batch that begins with this row.
    fn place(&self, first_row: i64) -> usize {
        let mut places = 0..self.raw.len();
        let found = places.find(|place| self.first_row(*place) == first_row.cast_unsigned());
        found.expect("a batch of this test")
    }
}

struct World {
    store: Store,
    loaders: [Loader; 2],
    jobs: Vec<Job>,
    runs: Vec<(String, Known)>,
    queue: Vec<Message>,
    random: StdRng,
    source: Source,
    number: usize,
    pool: PgPool,
}

impl World {
    /// The attempt of a run that a generation belongs to.
    fn known(&self, run: &str, generation: u32) -> &Known {
        let attempts = self
            .runs
            .iter()
            .filter(|(name, known)| name == run && known.first_generation <= generation);
        let found = attempts.max_by_key(|(_, known)| known.first_generation);
        &found.expect("a run of this test").1
    }

    fn spec(&self, job: usize) -> Arc<JobSpec> {
        Arc::new(self.jobs[job].example(&BTreeMap::new()).unwrap().spec)
    }

    fn batch(&self, message: &Message) -> Option<ValidBatch> {
        let Message::Batch {
            run,
            generation,
            place,
            rule,
        } = message
        else {
            return None;
        };
        let known = self.known(run, *generation);
        let result = result_id(run, known.first_generation);
        let id = BatchId {
            run: run.parse().unwrap(),
            generation: *generation,
            first_row: known.first_row(*place),
        };
        let raw = &known.raw[*place];
        let keys: Vec<_> = raw.iter().map(|raw| self.key(known.job, *raw)).collect();
        let mut valid = batch(id, result, &keys, *rule, &self.spec(known.job));
        let is_watched = known.job >= JOBS.len() && valid.target.mode.has_key();
        if is_watched {
            valid.watermark = self.source.latest(raw);
        }
        Some(valid)
    }

    /// The key of a raw row in its table.
    fn key(&self, job: usize, raw: i64) -> i64 {
        if job < JOBS.len() {
            return raw;
        }
        let is_keyed = self.jobs[job].spec.target.mode.has_key();
        self.source.key(is_keyed, raw)
    }

    fn action(&mut self) -> Option<Action> {
        let random = &mut self.random;
        let runs = self.runs.len();
        let keys = |random: &mut StdRng| -> Raw {
            let batch = |_| (0..ROWS).map(|_| random.random_range(0..9)).collect();
            (0..BATCHES).map(batch).collect()
        };
        let fails_after = |random: &mut StdRng| {
            random
                .random_bool(0.25)
                .then(|| random.random_range(0..BATCHES as usize))
        };
        Some(match random.random_range(0..16) {
            0..=3 => Action::Request {
                job: random.random_range(0..ALL_JOBS),
                parameter: random.random_range(0..2),
                by_hand: self.source.by_hand(random),
                keys: keys(random),
                fails_after: fails_after(random),
                takes_back: random.random_bool(0.5),
            },
            _ if runs == 0 => return None,
            4 | 5 => Action::Cancel {
                run: random.random_range(0..runs),
                undo: random.random_bool(0.6),
            },
            6 => Action::Approve(random.random_range(0..runs)),
            7 => Action::Discard(random.random_range(0..runs)),
            8..=10 => Action::Replay {
                run: random.random_range(0..runs),
                rule: random.random_range(0..9),
                places: (0..BATCHES as usize)
                    .filter(|_| random.random_bool(0.6))
                    .collect(),
                only_rejected: random.random_bool(0.3),
            },
            14 | 15 => Action::Retry {
                run: random.random_range(0..runs),
                keys: keys(random),
                fails_after: fails_after(random),
            },
            11 | 12 => Action::ReplayLetter(random.random_range(0..9)),
            _ => Action::DropLetter(random.random_range(0..9)),
        })
    }

    /// Carries out an action, like the commands. Refusals are answers.
    async fn act(&self, action: Action, number: usize) -> Effect {
        let run_of = |index: usize| -> (RunId, &Known) {
            let (name, known) = &self.runs[index];
            (name.parse().unwrap(), known)
        };
        match action {
            Action::Request {
                job,
                parameter,
                by_hand,
                keys,
                fails_after,
                takes_back,
            } => {
                let known = Known {
                    job,
                    parameter,
                    by_hand,
                    first_generation: 0,
                    run_no: 0,
                    raw: keys,
                    fails_after,
                };
                let name = format!("r{number}");
                self.request(name, known, false, takes_back).await
            }
            Action::Retry {
                run,
                keys,
                fails_after,
            } => {
                let (name, known) = &self.runs[run];
                let mut known = known.clone();
                (known.raw, known.fails_after) = (keys, fails_after);
                self.request(name.clone(), known, true, false).await
            }
            Action::Replay {
                run,
                rule,
                places,
                only_rejected,
            } => {
                let (id, known) = run_of(run);
                let replayed = self.replay(&id, known, rule, places, only_rejected);
                replayed.await.unwrap_or_default()
            }
            Action::ReplayLetter(index) => self.replay_letter(index).await.unwrap_or_default(),
            decided => {
                self.decide(decided, run_of).await;
                Effect::default()
            }
        }
    }

    /// What leads to no message.
    async fn decide<'a>(&self, action: Action, run_of: impl Fn(usize) -> (RunId, &'a Known)) {
        let Self { store, .. } = self;
        match action {
            Action::Cancel { run, undo } => {
                store.cancel(&run_of(run).0, undo, None).await.ok();
            }
            Action::Approve(run) => {
                store.approve(&run_of(run).0, None).await.ok();
            }
            Action::Discard(run) => {
                store.discard(&run_of(run).0, "because").await.ok();
            }
            Action::DropLetter(index) => self.drop_letter(index).await,
            other => panic!("{other:?} leads to messages"),
        }
    }

    /// The request of an attempt: of a parameter, or of what is new. None where nothing is.
    async fn wanted(&self, known: &mut Known, before: Option<&Run>) -> Option<Request> {
        let job = &self.jobs[known.job];
        if known.job < JOBS.len() {
            let set = BTreeMap::from([("p".to_owned(), known.parameter.to_string())]);
            return Some(job.request(&set).unwrap());
        }
        if let Some((since, until)) = known
            .by_hand
            .as_ref()
            .filter(|_| job.spec.target.mode.adds())
        {
            let set = [("since", since), ("until", until)];
            let set = set.map(|(name, value)| (name.to_owned(), value.clone()));
            let request = job.request(&BTreeMap::from(set)).unwrap();
            known.raw = self.source.select(request.spec.watermark.as_ref()?);
            return Some(request);
        }
        let (set, now) = (BTreeMap::new(), self.source.now());
        let mut values = job.resolve(&set, before.map(|run| &run.parameters), now);
        let watermark = match before {
            Some(run) => run.watermark_from.clone(),
            None => self.store.watermark(&job.spec.name).await.unwrap(),
        };
        let watermark = watermark.as_deref();
        let read_on = job.read_on(&set, &mut values, watermark, before.is_some(), now);
        let read_on = read_on.unwrap().unwrap();
        if read_on.range.is_empty() {
            return None;
        }
        known.raw = self.source.select(&read_on.range);
        Some(job.request(&values).unwrap().reading_on(Some(read_on)))
    }

    /// What `etl run` does.
    async fn request(
        &self,
        name: String,
        mut known: Known,
        retry: bool,
        takes_back: bool,
    ) -> Effect {
        let run: RunId = name.parse().unwrap();
        let before = self.store.named(std::slice::from_ref(&name)).await.unwrap();
        let Some(request) = self.wanted(&mut known, before.get(&name)).await else {
            return Effect::default();
        };
        let job = &self.jobs[known.job];
        let terms = Terms {
            retry,
            ..Terms::default()
        };
        let ask = || (self.store).request(&run, job, &request, Limits::default(), terms);
        let mut requested = ask().await;
        let in_the_way = match &requested {
            Ok(Requested::Conflicts(conflict)) if conflict.has_left_rows() && takes_back => {
                Some(conflict.run_id.clone())
            }
            Ok(Requested::LeftRows { run, .. }) => Some(run.to_string()),
            _ => None,
        };
        if let Some(other) = in_the_way {
            self.take_back(&other).await;
            requested = ask().await;
        }
        if !matches!(requested, Ok(Requested::New)) {
            return Effect::default();
        }
        let generation = self.store.settled(&run).await.unwrap().generation;
        let moment = self.store.moment(&run, generation).await.unwrap();
        let published = known.raw.len().min(known.fails_after.unwrap_or(usize::MAX));
        let mut messages: Vec<_> = (0..published)
            .map(|place| Message::Batch {
                run: name.clone(),
                generation,
                place,
                rule: -1,
            })
            .collect();
        let run = name.clone();
        messages.push(match known.fails_after {
            None => Message::Extracted { run, generation },
            Some(_) => Message::Failed { run, generation },
        });
        let known = Known {
            first_generation: generation,
            run_no: moment.run_no,
            ..known
        };
        Effect {
            run: Some((name, known)),
            messages,
        }
    }

    /// What `--retry` does first.
    async fn take_back(&self, run: &str) {
        let undone = self.store.cancel(&run.parse().unwrap(), true, None).await;
        if let Ok(ended) = undone
            && let RowsLeft::Leave { removal, .. } = ended.rows
        {
            removal::execute_all(&self.loaders[0]).await.ok();
            let removed = self.store.removed(removal, Duration::from_secs(5));
            removed.await.ok();
        }
    }

    /// What `etl replay` does: the whole run, or some of its batches where each replaces its former self alone.
    async fn replay(
        &self,
        run: &RunId,
        known: &Known,
        rule: i64,
        places: BTreeSet<usize>,
        only_rejected: bool,
    ) -> Option<Effect> {
        let subject = self.store.subject(run.as_str()).await.unwrap();
        subject.check_state(rule % 2 == 0).ok()?;
        subject.rows()?;
        let spec = self.spec(known.job);
        let may_be_partial =
            subject.run.commit == "batch" && !spec.target.is_staged(subject.generation() + 1);
        let wanted = if only_rejected {
            self.store.batches_with_rejects(&subject.run).await.unwrap()
        } else {
            let places = places.iter().filter(|place| **place < known.raw.len());
            RowRanges::from_ranges(places.map(|place| {
                let rows = known.raw[*place].len().max(1) as u64;
                (known.first_row(*place), known.first_row(*place) + rows - 1)
            }))
        };
        if wanted.is_empty() || subject.unfinished().is_some() {
            return None;
        }
        let missing = RowRanges::from_ledger(self.store.missing(&subject.run).await.unwrap());
        let rows = if may_be_partial {
            wanted.with(missing)
        } else {
            RowRanges::first(known.rows())
        };
        let partial = rows != RowRanges::first(known.rows());
        let replay = NewReplay {
            source: "archive",
            rows,
            partial,
            job_hash: "h".into(),
            spec,
        };
        let generation = self.store.begin_replay(&subject, &replay).await.ok()?;
        let rule = if rule > 6 { -1 } else { rule };
        let name = run.to_string();
        let messages = (0..known.raw.len())
            .filter(|place| replay.rows.contains(known.first_row(*place)))
            .map(|place| Message::Batch {
                run: name.clone(),
                generation,
                place,
                rule,
            });
        let messages = messages.collect();
        self.store.replay_sent(&name, generation).await.unwrap();
        Some(Effect {
            run: None,
            messages,
        })
    }

    async fn letters(&self) -> Vec<i64> {
        self.store
            .dead_letter_ids(&DeadLetterFilter::default())
            .await
            .unwrap()
    }

    /// The message of a dead letter: what a message is, is its body here.
    async fn message_of(&self, id: i64) -> (ledger::DeadLetter, Message) {
        let letter = self.store.dead_letter(id).await.unwrap();
        let body = String::from_utf8(letter.body.clone().unwrap()).unwrap();
        let parts: Vec<_> = body.split(' ').collect();
        let message = Message::Batch {
            run: parts[0].into(),
            generation: parts[1].parse().unwrap(),
            place: parts[2].parse().unwrap(),
            rule: parts[3].parse().unwrap(),
        };
        (letter, message)
    }

    async fn replay_letter(&self, index: usize) -> Option<Effect> {
        let letters = self.letters().await;
        let id = letters.get(index % letters.len().max(1))?;
        let (letter, message) = self.message_of(*id).await;
        self.store
            .resolve_dead_letter(&letter, "replayed")
            .await
            .unwrap();
        Some(Effect {
            run: None,
            messages: vec![message],
        })
    }

    async fn drop_letter(&self, index: usize) {
        let letters = self.letters().await;
        let Some(id) = letters.get(index % letters.len().max(1)) else {
            return;
        };
        let (letter, message) = self.message_of(*id).await;
        let batch = self.batch(&message).unwrap();
        let rows = batch.rows_extracted() as u64;
        let dropped = DroppedBatch {
            generation: batch.id.generation.cast_signed(),
            content_hash: batch.content_hash.to_string(),
            result_id: batch.result_id.clone(),
            first_row: batch.id.first_row,
            rows,
            dead_letter: letter.id,
            received_at: letter.received_at.clone(),
        };
        if let Ok(Dropped::Requested { removal }) = self
            .store
            .drop_batch(&batch.id.run, &dropped, "me", "because")
            .await
        {
            removal::execute_all(&self.loaders[1]).await.ok();
            self.store
                .removed(removal, Duration::from_secs(5))
                .await
                .ok();
        }
    }

    fn apply(&mut self, effect: Effect) {
        self.runs.extend(effect.run);
        self.queue.extend(effect.messages);
    }

    /// Two operators, at the same time, beside a loader that handles a message.
    async fn step(&mut self) {
        let actions = [self.action(), self.action()];
        let delivery = self.take();
        let numbers = [self.number, self.number + 1];
        self.number += 2;
        self.source.go_on(&mut self.random);
        let [one, other] = actions;
        let act = async |action: Option<Action>, number| match action {
            Some(action) => self.act(action, number).await,
            None => Effect::default(),
        };
        let deliver = async {
            match &delivery {
                Some((message, fate)) => self.deliver(message, *fate, 0).await,
                None => None,
            }
        };
        let (one, other, back) =
            tokio::join!(act(one, numbers[0]), act(other, numbers[1]), deliver);
        self.queue.extend(back);
        self.apply(one);
        self.apply(other);
        for which in [0, 1] {
            if let Some((message, fate)) = self.take() {
                let back = self.deliver(&message, fate, which).await;
                self.queue.extend(back);
            }
        }
        if self.random.random_bool(0.3) {
            self.sweep().await;
        }
    }

    /// Any message, since queues are many and deliveries overtake each other; and what becomes of it.
    fn take(&mut self) -> Option<(Message, Fate)> {
        if self.queue.is_empty() {
            return None;
        }
        let place = self.random.random_range(0..self.queue.len());
        let fate = match self.random.random_range(0..20) {
            0..=3 => Fate::Killed(Duration::from_micros(self.random.random_range(0..9_000))),
            4 | 5 => Fate::Again,
            6 => Fate::Dead,
            _ => Fate::Handled,
        };
        Some((self.queue.remove(place), fate))
    }

    /// Delivers a message. Returns it when it will come again.
    async fn deliver(&self, message: &Message, fate: Fate, which: usize) -> Option<Message> {
        let loader = &self.loaders[which];
        if let (Fate::Dead, Message::Batch { .. }) = (fate, message) {
            self.bury(message, "it was refused").await;
            return None;
        }
        let handled = async {
            match self.batch(message) {
                Some(batch) => loader.handle(&batch).await.map(drop),
                None => loader.handle_event(&self.event(message)).await.map(drop),
            }
        };
        let limit = match fate {
            Fate::Killed(after) => after,
            _ => Duration::from_mins(1),
        };
        match timeout(limit, handled).await {
            Ok(Ok(())) if matches!(fate, Fate::Again) => Some(message.clone()),
            Ok(Ok(())) => None,
            Ok(Err(error)) if error.verdict() == Verdict::Retry => Some(message.clone()),
            Ok(Err(error)) => {
                assert!(
                    matches!(message, Message::Batch { .. })
                        && matches!(error.verdict(), Verdict::Dead | Verdict::Misfit),
                    "{message:?}: {}",
                    error.sentence()
                );
                self.bury(message, &error.sentence()).await;
                None
            }
            Err(_) => Some(message.clone()),
        }
    }

    fn event(&self, message: &Message) -> RunEvent {
        let (run, generation, kind) = match message {
            Message::Extracted { run, generation } => (
                run,
                generation,
                EventKind::Extracted {
                    result_id: result_id(run, self.known(run, *generation).first_generation),
                    batches: u32::try_from(self.known(run, *generation).raw.len()).unwrap(),
                    rows: self.known(run, *generation).rows(),
                    bytes_scanned: 1,
                    result_location: None,
                    columns: vec![],
                },
            ),
            Message::Failed { run, generation } => (
                run,
                generation,
                EventKind::Failed {
                    reason: "because".into(),
                },
            ),
            Message::Batch { .. } => panic!("no event"),
        };
        RunEvent {
            run: run.parse().unwrap(),
            generation: *generation,
            job: "job".into(),
            kind,
        }
    }

    async fn bury(&self, message: &Message, why: &str) {
        let Message::Batch {
            run,
            generation,
            place,
            rule,
        } = message
        else {
            return;
        };
        let body = format!("{run} {generation} {place} {rule}");
        let letter = NewDeadLetter {
            message_id: self.batch(message).unwrap().id.to_string(),
            stage: "loader".into(),
            reason: why.into(),
            attempts: 1,
            run: Some(run.clone()),
            job: Some("job".into()),
            kind: "valid-batch.v3".into(),
            queue: "etl.valid".into(),
            headers: serde_json::json!({}),
            body: body.as_bytes(),
            dead_at: None,
        };
        self.store.store_dead_letter(&letter).await.unwrap();
    }

    async fn sweep(&self) {
        let loader = &self.loaders[0];
        removal::execute_all(loader).await.ok();
        for run in ledger::completion::candidates(&self.store).await.unwrap() {
            let completed = completion::try_complete(&self.store, &run).await;
            let is_conflict = |error: &LoadError| error.verdict() == Verdict::Retry;
            assert!(
                completed.as_ref().err().is_none_or(is_conflict),
                "{completed:?}"
            );
        }
        target::clean_up(&self.store).await.unwrap();
    }

    /// Delivers and decides until nothing is left to do.
    async fn settle(&mut self) {
        for round in 0..400 {
            while let Some(message) = self.queue.pop() {
                let back = self.deliver(&message, Fate::Handled, round % 2).await;
                self.queue.extend(back);
            }
            self.sweep().await;
            let letters = self.letters().await;
            if !letters.is_empty() {
                if round < 3 {
                    let effect = self.replay_letter(0).await;
                    self.apply(effect.unwrap_or_default());
                } else {
                    self.drop_letter(0).await;
                }
                continue;
            }
            let mut is_settled = true;
            for index in 0..self.runs.len() {
                let name = self.runs[index].0.clone();
                let run = self.store.exactly(&name).await.unwrap();
                let id = name.parse().unwrap();
                is_settled &= run.state.is_over() && !run.removal_pending;
                if run.state == RunState::Held {
                    if round % 3 == 0 {
                        self.store.approve(&id, None).await.ok();
                    } else if round % 3 == 1 {
                        self.store.discard(&id, "because").await.ok();
                    } else {
                        self.follow(run.held_because.as_deref().unwrap_or_default())
                            .await;
                    }
                } else if run.removal_pending && round % 2 == 1 {
                    // What could not be removed stays.
                    self.store.cancel(&id, false, None).await.ok();
                } else if !run.state.is_over() && round > 20 {
                    panic!("{name} does not end: {run:?}");
                }
            }
            if is_settled {
                return;
            }
        }
        panic!("it does not settle\n{}", history(&self.pool).await);
    }
}

impl World {
    /// The event of a row that a job with a watermark has loaded.
    fn number_of(&self, row: &Row) -> i64 {
        let (run, ordinal) = row.1.split_once('/').unwrap();
        let run_no = ledger::BatchNo::run_of(row.2);
        let is_of = |(name, known): &&(String, Known)| name == run && known.run_no == run_no;
        let (_, known) = self.runs.iter().find(is_of).unwrap();
        let mut numbers = known.raw.iter().flatten();
        *numbers.nth(ordinal.parse().unwrap()).unwrap()
    }

    /// The last runs of the jobs with a watermark, once no event can appear late.
    async fn catch_up(&mut self) {
        for _ in 0..2 {
            self.source.wait();
            for job in JOBS.len()..ALL_JOBS {
                if self.jobs[job].spec.target.mode.adds() {
                    self.pass_by_hand(job).await;
                }
                self.request_last(job, None).await;
            }
        }
    }

    async fn request_last(&mut self, job: usize, by_hand: Option<ByHand>) {
        let known = Known {
            job,
            parameter: 0,
            by_hand,
            first_generation: 0,
            run_no: 0,
            raw: Vec::new(),
            fails_after: None,
        };
        self.number += 1;
        let name = format!("r{}", self.number);
        let effect = self.request(name, known, false, true).await;
        self.apply(effect);
        self.settle().await;
    }

    /// What an operator does where ranges by hand are in the way of the run that reads on: loads what is before each, and sets the
    /// watermark behind it.
    async fn pass_by_hand(&mut self, job: usize) {
        const LOADED: &str = "SELECT job_spec #>> '{watermark,from}', job_spec #>> '{watermark,to}' FROM etl.runs
            WHERE job = $1 AND watermark_from IS NULL AND state = 'completed' AND job_spec #>> '{watermark,to}' > $2 ORDER BY 1 LIMIT 1";
        let name = self.jobs[job].spec.name.clone();
        for _ in 0..100 {
            let watermark = self.store.watermark(&name).await.unwrap();
            let watermark = watermark.unwrap_or_else(|| source::INITIAL.to_owned());
            let next: Option<(String, String)> = sqlx::query_as(LOADED)
                .bind(&name)
                .bind(&watermark)
                .fetch_optional(&self.pool)
                .await
                .unwrap();
            let Some((from, to)) = next else {
                return;
            };
            if watermark < from {
                self.request_last(job, Some((watermark, from))).await;
            } else {
                let job = &self.jobs[job];
                self.store.set_watermark(job, &to, "loaded").await.unwrap();
            }
        }
        panic!(
            "ranges by hand without an end\n{}",
            history(&self.pool).await
        );
    }

    /// Follows the advice to replay other runs.
    async fn follow(&mut self, advice: &str) {
        let named = advice.split("`etl replay ").skip(1);
        let named: Vec<_> = named.filter_map(|rest| rest.split('`').next()).collect();
        for run in named {
            let generation = self.store.exactly(run).await.unwrap().generation;
            let known = self.known(run, generation.unsigned_abs()).clone();
            let every = (0..known.raw.len()).collect();
            let id = run.parse().unwrap();
            let replay = self.replay(&id, &known, 8, every, false);
            let effect = Box::pin(replay).await;
            self.apply(effect.unwrap_or_default());
        }
    }
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Handled,
    /// Handled, and delivered once more.
    Again,
    /// The loader is killed after this time.
    Killed(Duration),
    /// Some stage dead-letters it.
    Dead,
}

/// Each attempt has a result of its own.
fn result_id(run: &str, first_generation: u32) -> String {
    format!("{run}-{first_generation}:pages")
}

/// A batch as the transformer makes it. It rejects rows whose key is `rule`.
fn batch(id: BatchId, result_id: String, keys: &[i64], rule: i64, spec: &JobSpec) -> ValidBatch {
    let (run, first_row) = (&id.run, id.first_row);
    let columns: Vec<_> = [("k", "bigint"), ("v", "text")]
        .map(|(name, pg_type)| TargetColumn {
            name: name.into(),
            pg_type: pg_type.parse().unwrap(),
            athena_type: "varchar".into(),
        })
        .to_vec();
    let source = columns.iter().map(|column| ResultColumn {
        name: column.name.clone(),
        type_name: column.athena_type.clone(),
    });
    let source: Vec<_> = source.collect();
    let (mut all, mut rows) = (Rows::new(2), Rows::new(2));
    let (mut row_offsets, mut rejected) = (Vec::new(), Vec::new());
    for (offset, key) in keys.iter().enumerate() {
        let row = first_row + offset as u64;
        let values = [key.to_string(), format!("{run}/{row}")];
        let values = values.each_ref().map(|value| Some(value.as_str()));
        all.push(values);
        if *key == rule {
            let reject = Reject {
                column: None,
                rule: "no".into(),
                reason: "because".into(),
            };
            rejected.push(RejectedRow {
                row,
                reject,
                raw: Vec::new(),
            });
        } else {
            rows.push(values);
            row_offsets.push(u32::try_from(offset).unwrap());
        }
    }
    ValidBatch {
        id,
        is_bulk: false,
        result_id,
        content_hash: ContentHash::of(&source, &all),
        job: "job".into(),
        target: spec.target.clone(),
        columns,
        row_offsets,
        rows,
        rejected,
        watermark: None,
    }
}

/// A row of the ledger, with the rejected rows of the live generation.
#[derive(Debug, FromRow)]
struct Entry {
    run_id: String,
    run_no: i64,
    #[sqlx(try_from = "String")]
    state: RunState,
    generation: i32,
    first_generation: i32,
    is_staged: bool,
    /// The job's watermark is behind its range, or is moved there at the end.
    is_read: bool,
    first_row: i64,
    rows_extracted: i64,
    rows_loaded: i64,
    rows_rejected: i64,
    rows_dropped: i64,
    rejected: Vec<i64>,
}

impl Entry {
    /// Whether its rows are in the target.
    fn is_there(&self) -> bool {
        let is_only_staged = self.is_staged
            && self.generation == self.first_generation
            && self.state == RunState::Failed;
        self.rows_loaded > 0 && !is_only_staged && self.state != RunState::Superseded
    }
}

/// A row of a target: its key, its value, its batch.
type Row = (i64, String, i64);

async fn rows_of(pool: &PgPool, table: &str) -> Vec<Row> {
    let select = format!("SELECT k, v, _batch FROM public.{table} ORDER BY 1, 2, 3");
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('public.' || $1) IS NOT NULL")
        .bind(table)
        .fetch_one(pool)
        .await
        .unwrap();
    if !exists {
        return Vec::new();
    }
    sqlx::query_as(sqlx::AssertSqlSafe(select))
        .fetch_all(pool)
        .await
        .unwrap()
}

/// What the tables have to be, by the ledger.
async fn check(world: &World, pool: &PgPool) {
    let entries: Vec<Entry> = sqlx::query_as(
        "SELECT r.run_id, r.run_no, r.state, r.generation, r.first_generation,
                r.commit = 'run' OR r.mode <> 'append' AND r.generation > 0 AS is_staged,
                coalesce((SELECT w.value = r.watermark_to FROM etl.watermarks w WHERE w.run_no = r.run_no ORDER BY w.id DESC LIMIT 1),
                    r.watermark_from IS NULL AND r.state = 'completed') AS is_read,
                b.first_row, b.rows_extracted, b.rows_loaded, b.rows_rejected, b.rows_dropped,
                ARRAY(SELECT row_number FROM etl.rejected_rows j WHERE j.run_id = r.run_id AND j.generation = r.generation AND j.first_row = b.first_row) AS rejected
         FROM etl.runs r JOIN etl.batches b USING (run_id, generation) ORDER BY r.run_no, b.first_row",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut accepted: BTreeMap<usize, BTreeMap<String, Vec<Row>>> = BTreeMap::new();
    for entry in &entries {
        assert_eq!(
            entry.rows_extracted,
            entry.rows_loaded + entry.rows_rejected + entry.rows_dropped,
            "{entry:?}"
        );
        assert_eq!(
            entry.rejected.len(),
            usize::try_from(entry.rows_rejected).unwrap(),
            "{entry:?}"
        );
        let known = world.known(&entry.run_id, entry.generation.unsigned_abs());
        let mut rows = Vec::new();
        let raw = &known.raw[known.place(entry.first_row)];
        for (row, raw) in (entry.first_row..).zip(raw) {
            let key = world.key(known.job, *raw);
            if !entry.rejected.contains(&row) {
                let batch_no =
                    ledger::BatchNo::new(entry.run_no, entry.first_row.cast_unsigned()).get();
                rows.push((key, format!("{}/{row}", entry.run_id), batch_no));
            }
        }
        if entry.is_there() {
            assert_eq!(
                rows.len(),
                usize::try_from(entry.rows_loaded).unwrap(),
                "{entry:?}"
            );
            let of_run = accepted.entry(known.job).or_default();
            of_run.entry(entry.run_id.clone()).or_default().extend(rows);
        }
    }
    check_states(world).await;
    check_events(world, pool, &accepted).await;
    check_latest(world, pool, &accepted).await;
    check_report(world, pool, &accepted).await;
    let number_of = |row: &Row| world.number_of(row);
    let left_out = left_out(world, &entries);
    world.source.check(pool, &left_out, number_of).await;
}

/// The events that runs of each job have rejected, or that a person dropped of them, and that no other run reads again.
fn left_out(world: &World, entries: &[Entry]) -> BTreeMap<usize, Vec<i64>> {
    let mut left_out: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.is_read) {
        let known = world.known(&entry.run_id, entry.generation.unsigned_abs());
        let is_left_out = |row: i64| entry.rows_dropped > 0 || entry.rejected.contains(&row);
        let events = (entry.first_row..).zip(&known.raw[known.place(entry.first_row)]);
        let events = events.filter(|(row, _)| is_left_out(*row));
        left_out
            .entry(known.job)
            .or_default()
            .extend(events.map(|(_, event)| *event));
    }
    left_out
}

/// Every run has ended, and a completed one balances.
async fn check_states(world: &World) {
    for (name, known) in &world.runs {
        let run = world.store.exactly(name).await.unwrap();
        assert!(run.state.is_over(), "{run:?}");
        if run.first_generation.unsigned_abs() != known.first_generation {
            continue;
        }
        if run.state == RunState::Completed {
            assert!(run.is_complete(), "{run:?}");
            assert!(
                known.fails_after.is_none()
                    || run.batches == i64::try_from(known.raw.len()).unwrap(),
                "{run:?}"
            );
        }
    }
}

type Accepted = BTreeMap<usize, BTreeMap<String, Vec<Row>>>;

/// Appended: every accepted row once, and each request at most once.
async fn check_events(world: &World, pool: &PgPool, accepted: &Accepted) {
    let mut wanted: Vec<Row> = [0, 1]
        .iter()
        .filter_map(|job| accepted.get(job))
        .flat_map(|runs| runs.values().flatten().cloned())
        .collect();
    wanted.sort();
    assert_eq!(rows_of(pool, "events").await, wanted, "events");
    let mut requests = BTreeSet::new();
    for job in [0, 1] {
        for run in accepted.get(&job).into_iter().flat_map(BTreeMap::keys) {
            let known = world.store.exactly(run).await.unwrap();
            assert!(
                requests.insert((job, known.parameters)),
                "{run} is there twice"
            );
        }
    }
}

/// With a key: each key of a completed run once, and of upserts the latest.
async fn check_latest(world: &World, pool: &PgPool, accepted: &Accepted) {
    let there = rows_of(pool, "latest").await;
    let by_key: BTreeMap<i64, &Row> = there.iter().map(|row| (row.0, row)).collect();
    assert_eq!(by_key.len(), there.len(), "a key is there twice: {there:?}");
    let mut all = BTreeSet::new();
    for job in [2, 3, 4] {
        for (run, rows) in accepted.get(&job).into_iter().flatten() {
            all.extend(rows.iter().cloned());
            let known = world.store.exactly(run).await.unwrap();
            if known.state != RunState::Completed {
                continue;
            }
            for row in rows {
                let found = by_key.get(&row.0);
                let found = found.unwrap_or_else(|| panic!("the key of {row:?} of {run} is lost"));
                let is_older = ledger::BatchNo::run_of(found.2) < known.run_no;
                // A run that ended without being complete had overwritten it, and others have taken the place of that one.
                if job != 4 && is_older && !was_overwritten(pool, known.run_no).await {
                    let history = history(pool).await;
                    panic!("{row:?} of {run} lost to the older {found:?}\n{history}");
                }
            }
        }
    }
    for row in &there {
        assert!(all.contains(row), "{row:?} is of no run that is there");
    }
}

/// Whether a run that ended without being complete has overwritten rows of this one, or of later ones that had.
async fn was_overwritten(pool: &PgPool, run_no: i64) -> bool {
    sqlx::query_scalar(
        "WITH RECURSIVE later (run_no) AS (
             SELECT $1 UNION SELECT c.conflicting_run_no FROM later JOIN etl.conflicts c USING (run_no)
             WHERE c.conflicting_run_no > c.run_no)
         SELECT EXISTS (SELECT FROM later JOIN etl.runs r USING (run_no) WHERE r.state IN ('failed', 'cancelled'))",
    )
    .bind(run_no)
    .fetch_one(pool)
    .await
    .unwrap()
}

/// What became of each run, for a failed check.
async fn history(pool: &PgPool) -> String {
    let mut history = Vec::new();
    for (table, columns) in [
        (
            "runs",
            "run_id, run_no, job, state, first_generation, generation, commit, watermark_from, watermark_to, requested_at::time, committed_at::time, finished_at::time, held_because, decision",
        ),
        ("attempts", "run_id, run_no, generation, state"),
        ("watermarks", "id, job, value, run_id, run_no, reason"),
        (
            "replays",
            "run_id, generation, rows, state_before, requested_at::time, sent_at::time, abandoned",
        ),
        ("conflicts", "run_no, conflicting_run_no, rows"),
        (
            "removals",
            "run_id, generation, requested_at::time, finished_at::time, outcome, failure",
        ),
    ] {
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT concat_ws(' | ', {columns}) FROM etl.{table} ORDER BY {columns}"
        )))
        .fetch_all(pool)
        .await
        .unwrap();
        history.push(format!("{table}:\n  {}", rows.join("\n  ")));
    }
    history.join("\n")
}

/// Replaced: the rows of the latest run that was committed.
async fn check_report(world: &World, pool: &PgPool, accepted: &Accepted) {
    let mut latest: Option<(i64, Vec<Row>)> = None;
    for (name, known) in &world.runs {
        let run = world.store.exactly(name).await.unwrap();
        if known.job != 5 || run.committed_at.is_none() || run.state != RunState::Completed {
            continue;
        }
        let rows = accepted
            .get(&5)
            .and_then(|runs| runs.get(name))
            .cloned()
            .unwrap_or_default();
        if latest
            .as_ref()
            .is_none_or(|(run_no, _)| *run_no < run.run_no)
        {
            latest = Some((run.run_no, rows));
        }
    }
    let mut wanted = latest.map(|(_, rows)| rows).unwrap_or_default();
    wanted.sort();
    assert_eq!(rows_of(pool, "report").await, wanted, "report");
}

fn jobs() -> Vec<Job> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.sql"), "SELECT :p").unwrap();
    let job = |(name, table, settings): (&str, &str, &str)| {
        let toml = format!(
            "[source]\ndatabase = \"d\"\nsql = \"all.sql\"\n[parameters]\np = {{ type = \"integer\" }}\n[target]\ntable = \"{table}\"\n{settings}\n"
        );
        std::fs::write(folder.path().join(format!("{name}.toml")), toml).unwrap();
        Job::read(folder.path(), name).unwrap()
    };
    let mut jobs: Vec<_> = JOBS.map(job).into();
    jobs.extend(source::JOBS.map(|(name, rest)| {
        let sql = "SELECT 1 WHERE :since IS NOT NULL";
        let end = if rest.contains("until") {
            " AND :until IS NOT NULL"
        } else {
            ""
        };
        std::fs::write(
            folder.path().join(format!("{name}.sql")),
            format!("{sql}{end}"),
        )
        .unwrap();
        let toml = format!("[source]\ndatabase = \"d\"\nsql = \"{name}.sql\"\n{rest}");
        std::fs::write(folder.path().join(format!("{name}.toml")), toml).unwrap();
        Job::read(folder.path(), name).unwrap()
    }));
    jobs
}

async fn sequence(seed: u64) {
    let database = ledger_database().await;
    let loaders = [loader(&database), loader(&database)];
    let mut world = World {
        store: loaders[0].store.clone(),
        loaders,
        jobs: jobs(),
        runs: Vec::new(),
        queue: Vec::new(),
        random: StdRng::seed_from_u64(seed),
        source: Source::default(),
        number: 0,
        pool: database.pool.clone(),
    };
    for _ in 0..STEPS {
        Box::pin(world.step()).await;
    }
    world.settle().await;
    world.catch_up().await;
    check(&world, &database.pool).await;
}

fn setting(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "a setting of this test")]
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

/// A sequence whose failure has its seed.
#[expect(
    clippy::print_stdout,
    reason = "the seed repeats a sequence that failed"
)]
fn named(seed: u64) {
    let runtime = Runtime::new().unwrap();
    let sequence = AssertUnwindSafe(|| runtime.block_on(Box::pin(sequence(seed))));
    if let Err(failure) = catch_unwind(sequence) {
        println!("ETL_MODEL_SEED={seed} repeats the sequence that failed");
        resume_unwind(failure);
    }
}

/// Each sequence has a database of its own, and waits most of the time. Several take turns on as many threads: the end of a
/// database blocks its thread.
#[test]
fn tables_are_what_the_ledger_says_whatever_operators_do() {
    let first = u64::from(rand::random::<u32>());
    let count = setting("ETL_MODEL_SEQUENCES").unwrap_or(DEFAULT_SEQUENCES);
    let seeds = match setting("ETL_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + count,
    };
    let seeds = Mutex::new(seeds);
    let next = || seeds.lock().unwrap().next();
    let work = || iter::from_fn(next).for_each(named);
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
    });
}
