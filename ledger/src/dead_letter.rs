//! Dead letters: messages that no stage could process, and what a person made of each. Stored from the queue, so that looking at
//! them costs no delivery.

mod drop;

use std::collections::BTreeMap;

use common::queue::RawDelivery;
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::quarantine::storable;
use crate::retry::resolve_former;

pub use drop::{Dropped, ReplayDropped};

/// Bytes at most of a text that a header gives.
const MAX_TEXT: usize = 4_000;

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
    /// PostgreSQL takes it whatever a stranger wrote into them: a dead letter that it refuses would keep the others waiting.
    pub fn new(delivery: &'a RawDelivery) -> Self {
        let bounded = |text: String| {
            let end = text.floor_char_boundary(MAX_TEXT);
            storable(&text[..end]).into_owned()
        };
        let header = |name: &str| delivery.header(name).map(bounded);
        let death = delivery.death();
        let by_broker = death.as_ref().map(|death| {
            let times = delivery.deliveries();
            match death.reason.as_str() {
                "delivery_limit" => "it was delivered until the broker's limit was reached: it seems to end every process that handles it".to_owned(),
                other => format!("the broker dead-lettered it: {} ({} times, delivered {times} times since)", bounded(other.to_owned()), death.count),
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
            // No other text: the ledger looks dead letters up by the run, through an index that takes no long text.
            run: delivery.run().map(String::from),
            job: header("job"),
            kind: storable(delivery.kind()).into_owned(),
            queue: header("x-etl-queue")
                .or(death.map(|death| bounded(death.queue)))
                .unwrap_or_default(),
            headers: serde_json::Value::Object(headers.collect()),
            body: delivery.body(),
            // PostgreSQL reads the years that a dead letter may be of, in this form.
            dead_at: header("x-etl-dead-at")
                .and_then(|text| text.parse::<jiff::Timestamp>().ok())
                .filter(|time| time.as_second() >= 0)
                .map(|time| time.to_string()),
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
        // The broker's own count deliveries.
        let headers = self.headers.as_object().into_iter().flatten();
        for (name, value) in headers.filter(|(name, _)| !name.starts_with("x-")) {
            hash.update(format!("{name}={value}\n"));
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
            .execute(&mut *tx)
            .await?;
            resolve_former(tx, letter.run.as_deref()).await?;
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
