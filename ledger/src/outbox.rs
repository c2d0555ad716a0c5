//! The outbox: what is still to be sent to somebody outside. Promises: a message is written in the transaction that makes it
//! true, so that none is lost and none is made up; it is deleted only when its receiver has taken it, or a person prunes it; two
//! loaders do not send it at the same time, and no transaction is open while one does. A loader that dies between the sending
//! and the deletion leaves it to be sent once more.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::types::PgInterval;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::lineage::CHANNEL;
use crate::quarantine::storable;

/// A message to be sent.
#[derive(Debug, Clone, Copy)]
pub struct NewMessage<'a> {
    /// What happened, in a word.
    pub event: &'static str,
    pub job: &'a str,
    pub run: Option<&'a str>,
    /// What the receiver gets. It has no value of a row.
    pub body: &'a Value,
}

/// A message that a loader has to send now.
#[derive(Debug, Clone, FromRow)]
pub struct Claimed {
    pub id: String,
    pub channel: String,
    pub event: String,
    pub job: String,
    pub run_id: Option<String>,
    #[sqlx(json)]
    pub body: Value,
    /// This attempt included.
    pub attempts: i32,
}

/// What waits for a channel.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Waiting {
    pub channel: String,
    pub messages: i64,
    /// The age of the oldest one.
    pub seconds: f64,
    /// The attempts to send the one that was tried most often.
    pub attempts: i32,
    /// Why the latest attempt failed.
    pub last_error: Option<String>,
}

impl Waiting {
    /// The setting of the loaders that has where they are sent.
    pub fn setting(&self) -> String {
        match self.channel.as_str() {
            CHANNEL => "OPENLINEAGE_URL".to_owned(),
            name => format!("ETL_NOTIFY_{}_URL", name.to_uppercase()),
        }
    }
}

/// Writes a message to each of these channels, to be sent once the transaction is committed.
pub async fn post(
    tx: &mut PgConnection,
    channels: &[String],
    message: NewMessage<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO etl.outbox (channel, event, job, run_id, body) SELECT channel, $2, $3, $4, $5 FROM unnest($1::text[]) AS c (channel)",
    )
    .bind(channels)
    .bind(message.event)
    .bind(message.job)
    .bind(message.run)
    .bind(Json(message.body))
    .execute(tx)
    .await
    .map(drop)
}

impl Store {
    /// The oldest message of a channel that is due; to OpenLineage none before an earlier one of the same run was taken, so that no
    /// run begins after its end. No other loader gets it before the lease is over.
    pub async fn claim(&self, channel: &str, lease: Duration) -> Result<Option<Claimed>, Error> {
        let failure = "cannot look for messages to be sent";
        self.transaction(failure, async |tx: &mut PgConnection| {
            let claim = sqlx::query_as(
                "UPDATE etl.outbox SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $2)
                 WHERE id = (SELECT id FROM etl.outbox o WHERE channel = $1 AND next_attempt_at <= now()
                                 AND ($1 <> $3 OR NOT EXISTS (SELECT FROM etl.outbox e
                                     WHERE e.channel = o.channel AND e.run_id = o.run_id AND e.position < o.position))
                             ORDER BY position LIMIT 1 FOR UPDATE SKIP LOCKED)
                 RETURNING id::text, channel, event, job, run_id, body, attempts",
            );
            let claim = claim.bind(channel).bind(lease.as_secs_f64()).bind(CHANNEL);
            Ok(claim.fetch_optional(tx).await?)
        })
        .await
    }

    /// The receiver has taken the message.
    pub async fn sent(&self, message: &Claimed) -> Result<(), Error> {
        let failure = "cannot record that a message was sent; it is sent once more";
        self.transaction(failure, async |tx: &mut PgConnection| {
            let delete = sqlx::query("DELETE FROM etl.outbox WHERE id = $1::uuid");
            delete.bind(&message.id).execute(tx).await?;
            Ok(())
        })
        .await
    }

    /// The message was not sent, and is tried again after a pause, unless another loader has it by now.
    pub async fn not_sent(
        &self,
        message: &Claimed,
        why: &str,
        pause: Duration,
    ) -> Result<(), Error> {
        let failure = "cannot record why a message was not sent";
        self.transaction(failure, async |tx: &mut PgConnection| {
            sqlx::query(
                "UPDATE etl.outbox SET last_error = $3, next_attempt_at = now() + make_interval(secs => $4)
                 WHERE id = $1::uuid AND attempts = $2",
            )
            .bind(&message.id)
            .bind(message.attempts)
            .bind(storable(why))
            .bind(pause.as_secs_f64())
            .execute(tx)
            .await?;
            Ok(())
        })
        .await
    }

    /// Gives messages of this age up, or counts them: nobody is told any more.
    pub(crate) async fn prune_outbox(&self, age: PgInterval, dry_run: bool) -> Result<i64, Error> {
        let failure = "cannot prune the messages that were not sent";
        self.transaction(failure, async |tx: &mut PgConnection| {
            let statement = if dry_run {
                "SELECT count(*) FROM etl.outbox WHERE created_at < now() - $1"
            } else {
                "WITH gone AS (DELETE FROM etl.outbox WHERE created_at < now() - $1 RETURNING 1) SELECT count(*) FROM gone"
            };
            Ok(sqlx::query_scalar(statement).bind(age).fetch_one(tx).await?)
        })
        .await
    }

    /// What waits, of all runs or of one, by channel.
    pub async fn outbox(&self, run: Option<&str>) -> Result<Vec<Waiting>, Error> {
        let failure = "cannot read which messages wait to be sent";
        self.read(failure, async |tx: &mut PgConnection| {
            let select = sqlx::query_as(
                "SELECT channel, count(*) AS messages, extract(epoch FROM now() - min(created_at))::float8 AS seconds,
                        max(attempts) AS attempts, (array_agg(last_error ORDER BY next_attempt_at DESC) FILTER (WHERE last_error IS NOT NULL))[1] AS last_error
                 FROM etl.outbox WHERE $1::text IS NULL OR run_id = $1 GROUP BY channel ORDER BY channel",
            );
            Ok(select.bind(run).fetch_all(tx).await?)
        })
        .await
    }
}
