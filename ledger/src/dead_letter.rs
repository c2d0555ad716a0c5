//! Dead letters: messages that no stage could process, and what a person made of each. Stored from the queue, so that looking at
//! them costs no delivery.

use std::collections::BTreeMap;

use common::message::RunId;
use common::queue::RawDelivery;
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::batch;
use crate::database::Store;
use crate::earlier::Earlier;
use crate::error::Error;
use crate::quarantine::storable;
use crate::removal::DroppedBatch;
use crate::run::{LockedRun, bigint, integer};
use crate::state::{RunState, Transition};

/// A dead letter as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeadLetter<'a> {
    pub message_id: String,
    pub stage: String,
    pub reason: String,
    pub attempts: i32,
    pub run: Option<String>,
    pub job: Option<String>,
    pub kind: String,
    pub queue: String,
    pub headers: serde_json::Value,
    pub body: &'a [u8],
    pub dead_at: Option<String>,
}

impl<'a> NewDeadLetter<'a> {
    /// From what the stage that dead-lettered it wrote into its headers, or from the broker's own record where no stage did.
    pub fn new(delivery: &'a RawDelivery) -> Self {
        let header = |name: &str| {
            delivery
                .header(name)
                .map(|text| storable(&text).into_owned())
        };
        let death = delivery.death();
        let by_broker = death.as_ref().map(|death| {
            let times = delivery.deliveries();
            match death.reason.as_str() {
                "delivery_limit" => "it was delivered until the broker's limit was reached: it seems to end every process that handles it".to_owned(),
                other => format!("the broker dead-lettered it: {other} ({} times, delivered {times} times since)", death.count),
            }
        });
        let headers = delivery.headers().into_iter().map(|(name, value)| {
            (
                storable(&name).into_owned(),
                storable(&value).into_owned().into(),
            )
        });
        let unstaged = if by_broker.is_some() {
            "broker"
        } else {
            "unknown"
        };
        Self {
            message_id: storable(delivery.id()).into_owned(),
            stage: header("x-etl-stage").unwrap_or_else(|| unstaged.to_owned()),
            reason: header("x-etl-reason").or(by_broker).unwrap_or_else(|| {
                "no reason was given: it was published to etl.dead by hand".to_owned()
            }),
            attempts: header("x-etl-attempts")
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            run: delivery.run().map(String::from).or_else(|| header("run")),
            job: header("job"),
            kind: storable(delivery.kind()).into_owned(),
            queue: header("x-etl-queue")
                .or(death.map(|death| death.queue))
                .unwrap_or_default(),
            headers: serde_json::Value::Object(headers.collect()),
            body: delivery.body(),
            dead_at: header("x-etl-dead-at").filter(|text| text.parse::<jiff::Timestamp>().is_ok()),
        }
    }

    /// Two deliveries of one dead letter have the same; the same message dead-lettered twice has not.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let dead_at = self.dead_at.as_deref().unwrap_or_default();
        for part in [
            &self.message_id,
            &self.kind,
            &self.queue,
            &self.stage,
            &self.reason,
            dead_at,
        ] as [&str; 6]
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(self.body);
        format!("{:x}", hash.finalize())
    }
}

/// A dead letter with the beginning of its body.
#[derive(Debug, FromRow, Serialize)]
pub struct DeadLetterSummary {
    pub id: i64,
    pub message_id: Option<String>,
    pub stage: String,
    pub reason: String,
    pub attempts: i32,
    pub job: Option<String>,
    pub run_id: Option<String>,
    pub queue: Option<String>,
    pub kind: Option<String>,
    pub received_at: String,
    /// How long ago that was.
    pub age_seconds: i64,
    pub resolution: Option<String>,
    /// Bytes of the body; none when it was pruned.
    pub body_bytes: Option<i32>,
    /// Its first four hundred bytes, as far as they are text.
    #[sqlx(try_from = "BodyStart")]
    pub body_start: String,
}

/// The beginning of a body, which may be anything.
#[derive(sqlx::Type)]
#[sqlx(transparent)]
struct BodyStart(Vec<u8>);

impl From<BodyStart> for String {
    fn from(start: BodyStart) -> Self {
        // A compressed batch begins with a few bytes, and then with its head as it is until something in it repeats.
        let packed = start.0.iter().take(20).position(|byte| *byte == b'{');
        let from = packed.filter(|_| start.0.first().is_some_and(|byte| *byte < b' '));
        let shown = Self::from_utf8_lossy(&start.0[from.unwrap_or(0)..]);
        let until = from.and_then(|_| shown.find(|c: char| c.is_control() || c == '\u{fffd}'));
        shown[..until.unwrap_or(shown.len())]
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }
}

/// A dead letter with all that it takes to send it again, or to drop it.
#[derive(Debug, FromRow)]
pub struct DeadLetter {
    pub id: i64,
    pub message_id: Option<String>,
    pub run_id: Option<String>,
    pub queue: Option<String>,
    pub kind: Option<String>,
    #[sqlx(json)]
    pub headers: BTreeMap<String, String>,
    pub body: Option<Vec<u8>>,
    /// To the microsecond, as PostgreSQL shows it: tells whether the dead letter arrived again.
    pub received_at: String,
    pub resolution: Option<String>,
}

/// Which dead letters, of those that are not resolved.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    pub run: Option<String>,
    pub job: Option<String>,
    pub stage: Option<String>,
}

impl DeadLetterFilter {
    /// Those of one run.
    pub fn of_run(run: &str) -> Self {
        Self {
            run: Some(run.to_owned()),
            ..Self::default()
        }
    }
}

/// What became of a batch that a person drops.
#[derive(Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Its rows are counted as dropped.
    Counted,
    /// The ledger did not need it, and why.
    NotNeeded(&'static str),
    /// Rows of an earlier generation of the batch are in the target. A loader removes them, and counts the batch:
    /// [`Store::removed`] tells when it has.
    Requested { removal: i64 },
}

/// What became of the replay that a dropped task belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplayDropped {
    /// The run was complete before, and is so again.
    Restored,
    /// It was not, and has failed now.
    Failed,
    /// There is no such replay, or it is not the live one: only the dead letter was resolved.
    NotNeeded,
}

const SUMMARY: &str = r#"
    SELECT id, message_id, stage, reason, attempts, job, run_id, queue, kind, resolution,
           to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS received_at,
           greatest(0, extract(epoch FROM now() - received_at))::bigint AS age_seconds,
           length(body) AS body_bytes, coalesce(substr(body, 1, 400), '') AS body_start
    FROM etl.dead_letters
"#;

const FILTER: &str = "resolved_at IS NULL AND ($1::text IS NULL OR run_id = $1) \
    AND ($2::text IS NULL OR job = $2) AND ($3::text IS NULL OR stage = $3)";

const UNREADABLE: &str = "cannot read the dead letters";

impl Store {
    /// Stores a dead letter; it may be acknowledged then. One that was resolved and arrives again is open again: the broker does
    /// not say when it dead-lettered a message, so that the two may be two. One that is open gets a new `received_at`, by which
    /// a person who is about to resolve it sees that it arrived again.
    pub async fn store_dead_letter(&self, letter: &NewDeadLetter<'_>) -> Result<(), Error> {
        let failure = "cannot store a dead letter";
        self.transaction(failure, async |tx: &mut PgConnection| {
            sqlx::query(
                "INSERT INTO etl.dead_letters AS d (digest, message_id, stage, reason, attempts, run_id, job, kind, queue, headers, body, dead_at)
                 VALUES ($1, nullif($2, ''), $3, $4, $5, $6, $7, nullif($8, ''), nullif($9, ''), $10, $11, $12::text::timestamptz)
                 ON CONFLICT (digest) DO UPDATE SET resolved_at = NULL, resolution = NULL, body = excluded.body,
                     received_at = greatest(clock_timestamp(), d.received_at + interval '1 microsecond')",
            )
            .bind(letter.digest())
            .bind(&letter.message_id)
            .bind(&letter.stage)
            .bind(&letter.reason)
            .bind(letter.attempts)
            .bind(&letter.run)
            .bind(&letter.job)
            .bind(&letter.kind)
            .bind(&letter.queue)
            .bind(&letter.headers)
            .bind(letter.body)
            .bind(&letter.dead_at)
            .execute(tx)
            .await?;
            Ok(())
        })
        .await
    }

    /// The unresolved dead letters, the oldest first.
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        limit: Option<u32>,
    ) -> Result<Vec<DeadLetterSummary>, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let query = format!("{SUMMARY} WHERE {FILTER} ORDER BY id LIMIT $4");
            let query = sqlx::query_as(AssertSqlSafe(query));
            let query = query
                .bind(&filter.run)
                .bind(&filter.job)
                .bind(&filter.stage);
            Ok(query.bind(limit.map(i64::from)).fetch_all(tx).await?)
        })
        .await
    }

    /// The number of unresolved dead letters.
    pub async fn count_dead_letters(&self, filter: &DeadLetterFilter) -> Result<i64, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let query = format!("SELECT count(*) FROM etl.dead_letters WHERE {FILTER}");
            let query = sqlx::query_scalar(AssertSqlSafe(query));
            let query = query
                .bind(&filter.run)
                .bind(&filter.job)
                .bind(&filter.stage);
            Ok(query.fetch_one(tx).await?)
        })
        .await
    }

    /// The ids of the unresolved dead letters.
    pub async fn dead_letter_ids(&self, filter: &DeadLetterFilter) -> Result<Vec<i64>, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let query = format!("SELECT id FROM etl.dead_letters WHERE {FILTER} ORDER BY id");
            let query = sqlx::query_scalar(AssertSqlSafe(query));
            let query = query
                .bind(&filter.run)
                .bind(&filter.job)
                .bind(&filter.stage);
            Ok(query.fetch_all(tx).await?)
        })
        .await
    }

    /// One dead letter to be shown, resolved or not.
    pub async fn dead_letter_summary(&self, id: i64) -> Result<DeadLetterSummary, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let query = sqlx::query_as(AssertSqlSafe(format!("{SUMMARY} WHERE id = $1")));
            let found = query.bind(id).fetch_optional(tx).await?;
            found.ok_or_else(|| no_such_dead_letter(id))
        })
        .await
    }

    /// One dead letter with its whole body, unless that was pruned.
    pub async fn dead_letter(&self, id: i64) -> Result<DeadLetter, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let found = sqlx::query_as(
                "SELECT id, message_id, run_id, queue, kind, headers, body, received_at::text AS received_at, resolution
                 FROM etl.dead_letters WHERE id = $1",
            )
            .bind(id)
            .fetch_optional(tx)
            .await?;
            found.ok_or_else(|| no_such_dead_letter(id))
        })
        .await
    }

    /// Records what a person did with a dead letter, unless it arrived again meanwhile.
    pub async fn resolve_dead_letter(
        &self,
        letter: &DeadLetter,
        resolution: &str,
    ) -> Result<(), Error> {
        let failure = format!(
            "cannot record what became of the dead letter {}; the same command again changes nothing else",
            letter.id
        );
        self.transaction(failure, async |tx: &mut PgConnection| {
            Ok(resolve(tx, letter.id, &letter.received_at, resolution).await?)
        })
        .await
    }

    /// Counts the rows of a batch as dropped, so that its run can complete without them, and resolves the dead letter.
    pub async fn drop_batch(
        &self,
        run: &RunId,
        batch: &DroppedBatch,
        by: &str,
        why: &str,
    ) -> Result<Dropped, Error> {
        let failure = format!("cannot drop the dead letter {}", batch.dead_letter);
        self.transaction(failure, async |tx: &mut PgConnection| {
            let locked = LockedRun::lock_for_person(&mut *tx, run).await;
            let mut locked = match locked {
                Err(Error::NotFound(_)) => {
                    let reason = "its run is unknown here";
                    let resolution = format!("dropped by {by}: {why} ({reason})");
                    resolve(tx, batch.dead_letter, &batch.received_at, &resolution).await?;
                    return Ok(Dropped::NotNeeded(reason));
                }
                locked => locked?,
            };
            // A replay that replaces batch by batch has left the rows of the generation before in the target until the batch
            // arrives. It never will.
            if locked.row.generation > 0
                && locked.row.replays_by_batch()
                && locked.why_not_needed(batch).await?.is_none()
            {
                let removal = locked.request_removal(Some(batch), by, why).await?;
                return Ok(Dropped::Requested { removal });
            }
            let not_needed = locked.drop_batch(batch, by, why).await?;
            Ok(not_needed.map_or(Dropped::Counted, Dropped::NotNeeded))
        })
        .await
    }

    /// Drops the dead letter of a task that was to read a result again, and abandons the replay that sent the task: the run is
    /// then what it was before, and no row that had been loaded is lost.
    pub async fn drop_replay(
        &self,
        letter: &DeadLetter,
        run: &RunId,
        generation: u32,
        by: &str,
        why: &str,
    ) -> Result<ReplayDropped, Error> {
        let failure = format!("cannot drop the dead letter {}", letter.id);
        self.transaction(failure, async |tx: &mut PgConnection| {
            // The run first, as everywhere: another command may hold it and want the dead letter.
            let dropped = match LockedRun::lock_for_person(&mut *tx, run).await {
                Err(Error::NotFound(_)) => ReplayDropped::NotNeeded,
                locked => locked?.drop_replay(generation, by, why).await?,
            };
            let resolution = format!("dropped by {by}: {why}");
            resolve(tx, letter.id, &letter.received_at, &resolution).await?;
            Ok(dropped)
        })
        .await
    }
}

fn no_such_dead_letter(id: i64) -> Error {
    Error::NotFound(format!(
        "there is no dead letter {id}; `etl dead list` shows them"
    ))
}

async fn resolve(
    tx: &mut PgConnection,
    id: i64,
    received_at: &str,
    resolution: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE etl.dead_letters SET resolved_at = now(), resolution = $2 WHERE id = $1 AND resolved_at IS NULL AND received_at::text = $3")
        .bind(id)
        .bind(resolution)
        .bind(received_at)
        .execute(tx)
        .await
        .map(drop)
}

impl LockedRun<'_> {
    /// Why the ledger does not need a batch, if it does not.
    async fn why_not_needed(
        &mut self,
        batch: &DroppedBatch,
    ) -> Result<Option<&'static str>, Error> {
        let row = &self.row;
        if !row.state.takes_batches() {
            return Ok(Some("its run had ended without it"));
        }
        if batch.generation != row.generation {
            return Ok(Some("a replay has superseded it"));
        }
        let is_beyond = |expected: i32| i64::from(batch.seq) >= i64::from(expected);
        if row.check_pinned(&batch.result_id).is_err()
            || row.batches_expected.is_some_and(is_beyond)
        {
            return Ok(Some("it is not part of the run's result"));
        }
        let is_there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM etl.batches WHERE run_id = $1 AND generation = $2 AND seq = $3)",
        )
        .bind(self.id.as_str())
        .bind(batch.generation)
        .bind(integer("the seq", batch.seq)?)
        .fetch_one(&mut *self.tx)
        .await?;
        Ok(is_there.then_some("it was loaded after all"))
    }

    /// Gives a batch its ledger row, all of its rows dropped, and resolves its dead letter. Answers why it was not needed, if it
    /// was not.
    pub(crate) async fn drop_batch(
        &mut self,
        batch: &DroppedBatch,
        by: &str,
        why: &str,
    ) -> Result<Option<&'static str>, Error> {
        let not_needed = self.why_not_needed(batch).await?;
        if not_needed.is_none() {
            self.write_dropped(batch, by, why).await?;
        }
        let resolution = match not_needed {
            None => format!("dropped by {by}, {} rows: {why}", batch.rows),
            Some(reason) => format!("dropped by {by}: {why} ({reason})"),
        };
        let (id, received_at) = (batch.dead_letter, &batch.received_at);
        resolve(self.tx, id, received_at, &resolution).await?;
        Ok(not_needed)
    }

    async fn write_dropped(
        &mut self,
        batch: &DroppedBatch,
        by: &str,
        why: &str,
    ) -> Result<(), Error> {
        let state = self.to(Transition::DropBatch)?;
        sqlx::query(
            "INSERT INTO etl.batches (run_id, generation, seq, content_hash, result_id, first_row, rows_extracted, rows_loaded, rows_dropped, dropped_by, drop_reason)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $7, $8, $9)",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .bind(integer("the seq", batch.seq)?)
        .bind(&batch.content_hash)
        .bind(&batch.result_id)
        .bind(bigint("the first row", batch.first_row)?)
        .bind(bigint("the number of rows", batch.rows)?)
        .bind(by)
        .bind(why)
        .execute(&mut *self.tx)
        .await?;
        let id = self.batch_id(batch.seq);
        batch::check_neighbours(self.tx, &id, batch.first_row, batch.rows).await?;
        // The run may have no result yet: this batch is of it, like the first one that is loaded.
        sqlx::query("UPDATE etl.runs SET result_id = coalesce(result_id, $2), state = $3, started_at = coalesce(started_at, now()) WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(&batch.result_id)
            .bind(state.name())
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    async fn drop_replay(
        mut self,
        generation: u32,
        by: &str,
        why: &str,
    ) -> Result<ReplayDropped, Error> {
        let is_live = u32::try_from(self.row.generation) == Ok(generation);
        let source: Option<String> = sqlx::query_scalar(
            "SELECT source FROM etl.replays WHERE run_id = $1 AND generation = $2",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .fetch_optional(&mut *self.tx)
        .await?;
        let is_reading = source.as_deref() == Some("athena");
        if !is_live || !is_reading || self.row.state != RunState::Running {
            return Ok(ReplayDropped::NotNeeded);
        }
        let reason = format!("abandoned by {by}: {why}");
        self.abandon_replay(&reason).await?;
        let is_staged = self.row.is_staged();
        let earlier = Earlier::of(self.tx, &self.row, is_staged).await?;
        if earlier.batches > 0 {
            earlier.carry_back(self.tx, &self.row, is_staged).await?;
        } else if is_staged {
            self.drop_loaded(by, &reason).await?;
        }
        if self.is_balanced().await? && (earlier.batches > 0 || !is_staged) {
            self.restore(&reason).await?;
            return Ok(ReplayDropped::Restored);
        }
        self.fail(&format!("its replay was {reason}")).await?;
        Ok(ReplayDropped::Failed)
    }
}
