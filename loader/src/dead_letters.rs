//! Dead letters from the queue into `etl.dead_letters`, so that looking at them costs no delivery.

use common::queue::RawDelivery;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};

use crate::database::transaction;
use crate::errors::LoadError;
use crate::quarantine::storable;

/// A dead letter as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter<'a> {
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

impl<'a> DeadLetter<'a> {
    /// From what the stage that gave it up wrote into its headers, or from the broker's own record
    /// where nobody did.
    pub fn of(delivery: &'a RawDelivery) -> Self {
        let header = |name: &str| {
            delivery
                .header(name)
                .map(|text| storable(&text).into_owned())
        };
        let death = delivery.death();
        let by_broker = death.as_ref().map(|death| {
            let times = delivery.deliveries();
            match death.reason.as_str() {
                "delivery_limit" => "it was delivered until the broker's limit was reached: whoever handles it dies of it".to_owned(),
                other => format!("the broker dead-lettered it: {other} ({} times, delivered {times} times since)", death.count),
            }
        });
        let headers = delivery.headers().into_iter().map(|(name, value)| {
            (
                storable(&name).into_owned(),
                storable(&value).into_owned().into(),
            )
        });
        Self {
            message_id: storable(delivery.id()).into_owned(),
            stage: header("x-etl-stage").unwrap_or_else(|| {
                if by_broker.is_some() {
                    "broker".to_owned()
                } else {
                    "unknown".to_owned()
                }
            }),
            reason: header("x-etl-reason").or(by_broker).unwrap_or_else(|| {
                "nobody said why: it was published to etl.dead by hand".to_owned()
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

    /// Two deliveries of one dead letter have the same; the same message given up twice has not.
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

/// Stores a dead letter; it may be acknowledged then. One that was resolved and comes again is open
/// again: the broker does not say when it gave a message up, so that the two may be two. One that is
/// open gets a new `received_at`, by which whoever is about to resolve it sees that it came again.
pub async fn store(pool: &PgPool, letter: &DeadLetter<'_>) -> Result<(), LoadError> {
    let stored = transaction(pool, async |tx: &mut PgConnection| {
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
        .await
    });
    stored
        .await
        .map(drop)
        .map_err(LoadError::books("given a dead letter"))
}
