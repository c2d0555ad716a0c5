//! The consuming loops: take a delivery, handle it, settle it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use common::failpoint;
use common::message::{Message, RunEvent, ValidBatch};
use common::queue::{CautiousConsumer, Consumer, Delivery, Outgoing, Publisher, RawDelivery};
use common::service::{Fault, Session};
use common::telemetry::stage_label;
use common::telemetry::trace::Span;
use futures::future::try_join_all;
use ledger::NewDeadLetter;
use sqlx::PgConnection;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::persist::{GivenUp, persevere, wait_for_postgres};
use crate::errors::{LoadError, Refused};
use crate::load::{Loader, Outcome};

/// What this service is called in dead letters.
const STAGE: &str = "loader";

/// Deliveries in hand at most, for each lane: one is loaded while the next is on its way.
const PREFETCH: u16 = 2;

/// Lanes in which batches are loaded side by side, each on a connection of its own: Postgres has as many processes at
/// work. Each is ready or not for itself, under this name.
const LANES: [&str; 2] = ["batches", "batches, second lane"];

/// What the loops of a session share.
pub(super) struct Deliveries<'a> {
    pub(super) session: &'a Session,
    pub(super) loader: &'a Loader,
    /// For dead letters. One publish at a time, as one channel demands.
    pub(super) publisher: &'a Mutex<Publisher<'a>>,
    /// Whether this process ever waited for Postgres.
    pub(super) has_waited: &'a AtomicBool,
}

/// A queue's consumer and what it has in hand; none while Postgres is waited for.
type Hand<M> = Option<CautiousConsumer<M>>;

impl Deliveries<'_> {
    /// Loads batches until the session ends, on so many connections side by side.
    pub(super) async fn batches(&self) -> Result<(), Fault> {
        // The first begins alone and with one delivery in hand, so that a batch that takes the process down is alone when
        // it does; the others follow once one was handled well.
        let proven = CancellationToken::new();
        let lanes = LANES.iter().enumerate().map(async |(index, lane)| {
            if index > 0 {
                tokio::select! {
                    biased;
                    () = self.session.stop.cancelled() => return Ok(()),
                    () = proven.cancelled() => {}
                }
            }
            self.lane(lane, &proven).await
        });
        try_join_all(lanes.map(Box::pin)).await.map(drop)
    }

    async fn lane(&self, lane: &'static str, proven: &CancellationToken) -> Result<(), Fault> {
        self.consume::<ValidBatch>(proven, async |delivery, hand| {
            let batch = match self.readable(&delivery).await {
                Ok(batch) => batch,
                Err(refused) => return self.bury(delivery, &refused.to_string(), 1).await,
            };
            let span = tracing::info_span!("batch", run.id = %batch.id.run, batch.seq = batch.id.seq, delivery.count = delivery.deliveries());
            self.batch(lane, delivery, hand, &batch)
                .instrument(span)
                .await
        })
        .await
    }

    async fn batch(
        &self,
        lane: &'static str,
        delivery: Delivery<ValidBatch>,
        hand: &mut Hand<ValidBatch>,
        batch: &ValidBatch,
    ) -> Result<(), Fault> {
        let started = Instant::now();
        let trace = Span::begin("load", delivery.trace())
            .with("run.id", batch.id.run.as_str())
            .with_number("batch.seq", batch.id.seq.into());
        let patient = !self.loader.targets.is_ailing(&batch.target);
        match persevere(&self.session.stop, patient, async || {
            self.loader.handle(batch).await
        })
        .await
        {
            Ok(outcome) => {
                note(batch, outcome, started);
                trace.with("batch.result", outcome.name()).end();
                failpoint::reach("before_ack").await;
                delivery.ack().await?;
                Ok(())
            }
            Err(GivenUp::Dead { error, attempts }) => {
                self.loader.targets.mark_ailing(&batch.target);
                self.bury(delivery, &error.sentence(), attempts).await
            }
            Err(GivenUp::Stopping) => Ok(()),
            Err(GivenUp::Pause(error)) => {
                drop(delivery);
                self.let_go(hand).await;
                self.wait(lane, error, async || {
                    self.loader.handle(batch).await.map(drop)
                })
                .await;
                Ok(())
            }
        }
    }

    /// Notes events until the session ends.
    pub(super) async fn events(&self) -> Result<(), Fault> {
        self.consume::<RunEvent>(&CancellationToken::new(), async |delivery, hand| {
            let event = match self.readable(&delivery).await {
                Ok(event) => event,
                Err(refused) => {
                    return self.bury(delivery, &refused.to_string(), 1).await;
                }
            };
            match persevere(&self.session.stop, true, async || {
                self.loader.handle_event(&event).await
            })
            .await
            {
                Ok(noted) => {
                    metrics::counter!("etl_events_total", "result" => noted.name()).increment(1);
                    delivery.ack().await?;
                    Ok(())
                }
                Err(GivenUp::Dead { error, attempts }) => {
                    self.bury(delivery, &error.sentence(), attempts).await
                }
                Err(GivenUp::Stopping) => Ok(()),
                Err(GivenUp::Pause(error)) => {
                    drop(delivery);
                    self.let_go(hand).await;
                    self.wait("events", error, async || {
                        self.loader.handle_event(&event).await.map(drop)
                    })
                    .await;
                    Ok(())
                }
            }
        })
        .await
    }

    /// Stores dead letters until the session ends. Nothing gives one of these up.
    pub(super) async fn dead_letters(&self) -> Result<(), Fault> {
        let stop = &self.session.stop;
        while !stop.is_cancelled() {
            let mut consumer = Consumer::open_dead(&self.session.consuming, 1).await?;
            loop {
                let delivery = tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    delivery = consumer.next_dead() => delivery?,
                };
                let letter = NewDeadLetter::new(&delivery);
                let store = async || {
                    let stored = self.loader.store.store_dead_letter(&letter).await;
                    stored.map_err(LoadError::from)
                };
                match persevere(stop, true, store).await {
                    Ok(()) => {
                        metrics::counter!("etl_dead_letters_total", "stage" => stage_label(&letter.stage)).increment(1);
                        delivery.ack().await?;
                    }
                    Err(GivenUp::Stopping) => break,
                    Err(GivenUp::Pause(error) | GivenUp::Dead { error, .. }) => {
                        consumer.close(&self.session.consuming).await;
                        wait_for_postgres(&self.session.health, "dead letters", stop, error, store)
                            .await;
                        consumer = Consumer::open_dead(&self.session.consuming, 1).await?;
                    }
                }
            }
            consumer.close(&self.session.consuming).await;
        }
        Ok(())
    }

    /// Consumes a queue with caution, and cancels `proven` when a delivery was handled well. Anew after each time that
    /// Postgres was waited for.
    async fn consume<M: Message>(
        &self,
        proven: &CancellationToken,
        mut handle: impl AsyncFnMut(Delivery<M>, &mut Hand<M>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (stop, connection) = (&self.session.stop, &self.session.consuming);
        while !stop.is_cancelled() {
            let mut hand = Some(CautiousConsumer::open(connection, PREFETCH).await?);
            while let Some(consumer) = hand.as_mut() {
                let delivery = tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    delivery = consumer.next() => delivery?,
                };
                let is_suspect = delivery.is_suspect();
                Box::pin(handle(delivery, &mut hand)).await?;
                if !is_suspect && let Some(consumer) = hand.as_mut() {
                    consumer.widen(connection).await?;
                    proven.cancel();
                }
            }
            self.let_go(&mut hand).await;
        }
        Ok(())
    }

    async fn wait(
        &self,
        cause: &'static str,
        error: LoadError,
        work: impl AsyncFnMut() -> Result<(), LoadError>,
    ) {
        self.has_waited.store(true, Ordering::Relaxed);
        let (health, stop) = (&self.session.health, &self.session.stop);
        wait_for_postgres(health, cause, stop, error, work).await;
    }

    /// The message, unless it cannot be read or keeps killing whoever handles it.
    async fn readable<M: Message>(&self, delivery: &Delivery<M>) -> Result<M, Refused> {
        if delivery.is_hopeless() && self.is_to_blame().await {
            return Err(Refused::Poison {
                deliveries: delivery.deliveries(),
            });
        }
        Ok(delivery.read()?)
    }

    /// Whether it is a message itself that made it come back so often. Each loader that finds Postgres
    /// away costs a message a delivery, too: while it is away, and in a process that has lived
    /// through that, the message is tried once more. If it is to blame all the same, it is the next
    /// process that gives it up.
    async fn is_to_blame(&self) -> bool {
        let probe = async |tx: &mut PgConnection| {
            sqlx::query("SELECT 1").execute(tx).await?;
            Ok(())
        };
        let answers = self
            .loader
            .store
            .transaction("PostgreSQL does not answer", probe);
        !self.has_waited.load(Ordering::Relaxed) && answers.await.is_ok()
    }

    async fn let_go<M: Message>(&self, hand: &mut Hand<M>) {
        if let Some(open) = hand.take() {
            open.close(&self.session.consuming).await;
        }
    }

    /// To `etl.dead`, and only then off its queue.
    async fn bury<M>(
        &self,
        delivery: Delivery<M>,
        reason: &str,
        attempts: u32,
    ) -> Result<(), Fault> {
        let raw: &RawDelivery = &delivery;
        tracing::error!(
            message.id = raw.id(),
            queue.name = raw.queue(),
            reason,
            "message given up; it will be in etl.dead_letters"
        );
        self.publisher
            .lock()
            .await
            .publish(&[Outgoing::dead(raw, STAGE, reason, attempts)])
            .await?;
        delivery.ack().await?;
        Ok(())
    }
}

/// A batch that was handled, in metrics and in the log.
fn note(batch: &ValidBatch, outcome: Outcome, started: Instant) {
    let elapsed = started.elapsed();
    metrics::counter!("etl_batches_total", "job" => batch.job.clone(), "result" => outcome.name())
        .increment(1);
    metrics::histogram!("etl_load_seconds").record(elapsed.as_secs_f64());
    let Outcome::Loaded(counts) = outcome else {
        tracing::debug!(batch.result = outcome.name(), "batch not loaded again");
        return;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    metrics::gauge!("etl_last_commit_timestamp_seconds").set(now.unwrap_or_default().as_secs_f64());
    metrics::counter!("etl_rows_loaded_total", "job" => batch.job.clone())
        .increment(counts.loaded.unsigned_abs());
    let rejected = |rule: &str, rows: u64| {
        metrics::counter!("etl_rows_rejected_total", "job" => batch.job.clone(), "rule" => rule.to_owned()).increment(rows);
    };
    batch
        .rejected
        .iter()
        .for_each(|row| rejected(&row.reject.rule, 1));
    let by_postgres = counts.rejected.unsigned_abs() - batch.rejected.len() as u64;
    if by_postgres > 0 {
        rejected("postgres", by_postgres);
    }
    tracing::info!(
        batch.rows = counts.loaded,
        batch.rejected = counts.rejected,
        duration_ms = elapsed.as_millis(),
        "batch loaded"
    );
}
