//! Replays in the books: what a run is like before one, the lock that makes them one at a time, and
//! the transaction that comes before the first message.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use common::job::JobSpec;
use common::message::{Limits, RunId};
use jiff::Timestamp;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Postgres, Transaction};

use super::lock::try_take;
use super::{Books, Run};
use crate::Failure;
use crate::seqs::Seqs;

/// A run, with what only a replay asks for.
pub struct Subject {
    pub run: Run,
    pub publish: String,
    /// The job as it was when the run was asked for.
    pub first_spec: JobSpec,
    /// To the microsecond: a column may be filled with it.
    pub requested_at: Timestamp,
    pub sql: String,
    pub limits: Limits,
    /// The replay that made the live generation.
    pub replay: Option<Replay>,
}

/// A replay as the books have it.
pub struct Replay {
    pub source: String,
    pub seqs: Seqs,
    pub job_hash: String,
    pub spec: Arc<JobSpec>,
    pub requested_by: String,
    pub sent: bool,
}

impl Subject {
    /// The run's name.
    pub fn id(&self) -> &str {
        &self.run.run_id
    }

    /// The live generation.
    pub fn generation(&self) -> u32 {
        u32::try_from(self.run.generation).unwrap_or_default()
    }

    /// How many batches the result has, once that is known.
    pub fn batches(&self) -> Option<u32> {
        self.run
            .batches_expected
            .and_then(|batches| u32::try_from(batches).ok())
    }

    /// The replay of the live generation, if it was not sent to its end and may still be needed.
    pub fn unfinished(&self) -> Option<&Replay> {
        self.replay
            .as_ref()
            .filter(|replay| !replay.sent && !self.run.is_over())
    }

    /// The job of the live generation.
    pub fn live_spec(&self) -> Arc<JobSpec> {
        self.replay.as_ref().map_or_else(
            || Arc::new(self.first_spec.asked_at(self.requested_at)),
            |replay| Arc::clone(&replay.spec),
        )
    }
}

/// What a replay writes into the books before it sends anything.
pub struct NewReplay<'a> {
    /// `archive` or `athena`.
    pub source: &'static str,
    pub seqs: &'a Seqs,
    /// Whether the other batches are carried forward.
    pub partial: bool,
    pub job_hash: &'a str,
    pub spec: &'a JobSpec,
    /// When rows reach the target from now on.
    pub publish: &'a str,
    pub by: &'a str,
}

/// The runs that this process alone may replay, until this is dropped or the process ends.
pub struct Claims(PgConnection);

impl Claims {
    /// Takes a run, so that two operators do not replay it at the same time.
    pub async fn take(&mut self, name: &str) -> Result<(), Failure> {
        let taken = try_take(&mut self.0, &format!("etl replay {name}")).await;
        if taken.with_context(|| format!("cannot lock the run {name}"))? {
            return Ok(());
        }
        Err(anyhow!(
            "somebody else is replaying the run {name} at this moment; nothing was changed: look at it with `etl status {name}` once that is over"
        )
        .into())
    }
}

#[derive(FromRow)]
struct SubjectRow {
    publish: String,
    #[sqlx(json)]
    job_spec: JobSpec,
    sql: String,
    limits: Option<Json<Limits>>,
}

#[derive(FromRow)]
struct ReplayRow {
    source: String,
    first: Vec<i32>,
    last: Vec<i32>,
    job_hash: String,
    #[sqlx(json)]
    job_spec: JobSpec,
    requested_by: String,
    sent: bool,
}

impl Books {
    /// The run of this name with all that a replay has to know.
    pub async fn subject(&self, name: &str) -> Result<Subject, Failure> {
        let run = self.exactly(name).await?;
        let id = name
            .parse()
            .context("a run in the books has a name that is none")?;
        let requested_at = self.requested_at(&id).await?;
        let row: SubjectRow =
            sqlx::query_as("SELECT publish, job_spec, sql, limits FROM etl.runs WHERE run_id = $1")
                .bind(name)
                .fetch_one(&self.pool)
                .await
                .with_context(|| format!("cannot read the run {name}"))?;
        let replay: Option<ReplayRow> = sqlx::query_as(
            "SELECT source, job_hash, job_spec, requested_by, sent_at IS NOT NULL AS sent,
                    ARRAY(SELECT lower(r) FROM unnest(seqs) AS r ORDER BY 1) AS first,
                    ARRAY(SELECT upper(r) - 1 FROM unnest(seqs) AS r ORDER BY 1) AS last
             FROM etl.replays WHERE run_id = $1 AND generation = $2",
        )
        .bind(name)
        .bind(run.generation)
        .fetch_optional(&self.pool)
        .await
        .with_context(|| format!("cannot read the replays of {name}"))?;
        Ok(Subject {
            run,
            publish: row.publish,
            first_spec: row.job_spec,
            requested_at,
            sql: row.sql,
            limits: row.limits.map_or(Limits::UNRECORDED, |limits| limits.0),
            replay: replay.map(|row| Replay {
                source: row.source,
                seqs: Seqs::of_books(row.first.into_iter().zip(row.last)),
                job_hash: row.job_hash,
                spec: Arc::new(row.job_spec),
                requested_by: row.requested_by,
                sent: row.sent,
            }),
        })
    }

    /// Runs can be claimed on a connection of their own: the locks go with it, and so with the process.
    pub async fn claims(&self) -> Result<Claims, Failure> {
        let connection = self.pool.acquire().await;
        let connection = connection.context("cannot connect to the database")?;
        Ok(Claims(connection.detach()))
    }

    /// Writes a replay down and raises the run's generation: the new one's number. From here on
    /// batches of the generations before are stale.
    pub async fn begin_replay(
        &self,
        subject: &Subject,
        replay: &NewReplay<'_>,
    ) -> Result<u32, Failure> {
        let name = subject.id();
        let doing =
            || format!("cannot write the replay of {name} into the books; nothing was sent");
        let mut tx = self.pool.begin().await.with_context(doing)?;
        lock(&mut tx, subject).await?;
        let generation = subject.run.generation + 1;
        if replay.partial {
            sqlx::query(
                "UPDATE etl.batches SET generation = $3 WHERE run_id = $1 AND generation = $2 AND NOT $4::text::int4multirange @> seq",
            )
            .bind(name)
            .bind(subject.run.generation)
            .bind(generation)
            .bind(replay.seqs.multirange())
            .execute(&mut *tx)
            .await
            .with_context(doing)?;
        }
        write_down(&mut tx, subject, replay, generation)
            .await
            .with_context(doing)?;
        settle_letters(&mut tx, subject, replay, generation)
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(doing)?;
        Ok(u32::try_from(generation).unwrap_or_default())
    }

    /// Writes down that every message of the live generation's replay is with the broker.
    pub async fn replay_sent(&self, name: &str, generation: u32) -> Result<(), Failure> {
        sqlx::query("UPDATE etl.replays SET sent_at = now() WHERE run_id = $1 AND generation = $2 AND sent_at IS NULL")
            .bind(name)
            .bind(i32::try_from(generation).unwrap_or(i32::MAX))
            .execute(&self.pool)
            .await
            .with_context(|| format!("the replay of {name} was sent, but that could not be written down; ask again: sending it twice changes nothing"))?;
        Ok(())
    }

    /// The batches of the live generation that have a rejected row.
    pub async fn batches_with_rejects(&self, run: &Run) -> Result<Seqs, Failure> {
        let seqs: Vec<i32> = sqlx::query_scalar(
            "SELECT seq FROM etl.batches WHERE run_id = $1 AND generation = $2 AND rows_rejected > 0 ORDER BY seq",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .fetch_all(&self.pool)
        .await
        .with_context(|| format!("cannot look for the rejected rows of {}", run.run_id))?;
        Ok(Seqs::of_books(seqs.into_iter().map(|seq| (seq, seq))))
    }

    /// The names of a job's runs that were asked for in a span of time, the oldest first.
    pub async fn runs_between(
        &self,
        job: &str,
        since: Timestamp,
        until: Option<Timestamp>,
    ) -> Result<Vec<String>, Failure> {
        let runs = sqlx::query_scalar(
            "SELECT run_id FROM etl.runs WHERE job = $1 AND requested_at >= $2::text::timestamptz
                 AND ($3::text IS NULL OR requested_at < $3::text::timestamptz) ORDER BY run_no",
        )
        .bind(job)
        .bind(since.to_string())
        .bind(until.map(|until| until.to_string()))
        .fetch_all(&self.pool)
        .await
        .with_context(|| format!("cannot look for the runs of {job}"))?;
        Ok(runs)
    }
}

/// The run's row, alone, behind the same turn as the loader's; refused when the run is not as it was
/// when the checks were made.
async fn lock(tx: &mut Transaction<'_, Postgres>, subject: &Subject) -> Result<(), Failure> {
    let name = subject.id();
    let run: RunId = name
        .parse()
        .context("a run in the books has a name that is none")?;
    let doing = || format!("cannot lock the run {name}; nothing was changed");
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(loader::ledger::turn_key(&run))
        .execute(&mut **tx)
        .await
        .with_context(doing)?;
    let (state, generation): (String, i32) =
        sqlx::query_as("SELECT state, generation FROM etl.runs WHERE run_id = $1 FOR UPDATE")
            .bind(name)
            .fetch_one(&mut **tx)
            .await
            .with_context(doing)?;
    if state == subject.run.state && generation == subject.run.generation {
        return Ok(());
    }
    Err(anyhow!(
        "the run {name} has changed meanwhile: it was {} and is {state}; nothing was changed by this replay, ask again",
        subject.run.state
    )
    .into())
}

async fn write_down(
    tx: &mut PgConnection,
    subject: &Subject,
    replay: &NewReplay<'_>,
    generation: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO etl.replays (run_id, generation, source, seqs, job_hash, job_spec, state_before, requested_by)
         VALUES ($1, $2, $3, $4::text::int4multirange, $5, $6, $7, $8)",
    )
    .bind(subject.id())
    .bind(generation)
    .bind(replay.source)
    .bind(replay.seqs.multirange())
    .bind(replay.job_hash)
    .bind(Json(replay.spec))
    .bind(&subject.run.state)
    .bind(replay.by)
    .execute(&mut *tx)
    .await?;
    // What a person decided was about the generation before.
    sqlx::query(
        "UPDATE etl.runs SET generation = $2, state = 'running', finished_at = NULL, failure = NULL, publish = $3,
             held_because = NULL, approved_at = NULL, decided_by = NULL, decision = NULL WHERE run_id = $1",
    )
    .bind(subject.id())
    .bind(generation)
    .bind(replay.publish)
    .execute(tx)
    .await
    .map(drop)
}

/// Dead letters of batches that are put through again are of no use any more.
async fn settle_letters(
    tx: &mut PgConnection,
    subject: &Subject,
    replay: &NewReplay<'_>,
    generation: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        r"UPDATE etl.dead_letters SET resolved_at = now(), resolution = $5
          WHERE run_id = $1 AND resolved_at IS NULL AND (kind LIKE 'raw-batch.%' OR kind LIKE 'valid-batch.%')
              AND CASE WHEN message_id ~ '^[^/]+/\d{1,9}/\d{1,9}$' AND split_part(message_id, '/', 1) = $1
                  THEN split_part(message_id, '/', 2)::integer < $2 AND (NOT $3 OR $4::text::int4multirange @> split_part(message_id, '/', 3)::integer)
                  ELSE false END",
    )
    .bind(subject.id())
    .bind(generation)
    .bind(replay.partial)
    .bind(replay.seqs.multirange())
    .bind(format!("superseded by replay {generation} of {}", replay.by))
    .execute(tx)
    .await
    .map(drop)
}
