//! Handles each delivery, and then settles it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use common::failpoint;
use common::message::{Message, RunEvent, ValidBatch};
use common::queue::{self, Consumer, Delivery, Handler, Intake, Prefetch, Publisher};
use common::service::{Fault, Session};
use common::telemetry::{stage_label, trace};
use ledger::NewDeadLetter;
use sqlx::PgConnection;
use tokio::sync::Mutex;
use tracing::Instrument as _;

use super::persist::{Unfinished, wait_for_postgres, with_retries};
use crate::errors::LoadError;
use crate::load::{Loader, Outcome};

/// The stage's name in dead letters.
const STAGE: &str = "loader";

/// The prefetch of a lane: one delivery is loaded while the next one is transferred.
const PREFETCH: Prefetch = Prefetch {
    deliveries: 2,
    together: 1,
    bytes: 0,
};

/// The lanes that load batches in parallel, each on its own database connection. Each reports its health under its
/// name.
const LANES: [&str; 2] = ["batches", "batches, second lane"];

/// The shared state of a session's loops.
pub(super) struct Deliveries<'a> {
    pub(super) session: &'a Session,
    pub(super) loader: &'a Loader,
    /// For dead letters. One publish at a time, as a channel requires.
    pub(super) publisher: &'a Mutex<Publisher<'a>>,
    /// Whether this process ever waited for Postgres.
    pub(super) has_waited: &'a AtomicBool,
}

/// The handler of one lane's batches.
struct Lane<'d, 's> {
    shared: &'d Deliveries<'s>,
    name: &'static str,
}

impl Handler<ValidBatch> for Lane<'_, '_> {
    type Fault = Fault;

    async fn handle(
        &mut self,
        deliveries: Vec<Delivery<ValidBatch>>,
        intake: &mut Intake<'_, ValidBatch>,
    ) -> Result<(), Fault> {
        for delivery in deliveries {
            match delivery.read() {
                Ok(batch) => self.batch(delivery, intake, &batch).await?,
                Err(unreadable) => {
                    let reason = unreadable.to_string();
                    self.shared.dead_letter(delivery, &reason, 1).await?;
                }
            }
        }
        Ok(())
    }

    async fn dead_letter(
        &mut self,
        delivery: Delivery<ValidBatch>,
        reason: &str,
    ) -> Result<(), Fault> {
        let attempts = delivery.deliveries();
        self.shared.dead_letter(delivery, reason, attempts).await
    }

    async fn exempts(&mut self, _: &Delivery<ValidBatch>) -> bool {
        self.shared.database_may_be_at_fault().await
    }
}

impl Lane<'_, '_> {
    async fn batch(
        &self,
        delivery: Delivery<ValidBatch>,
        intake: &mut Intake<'_, ValidBatch>,
        batch: &ValidBatch,
    ) -> Result<(), Fault> {
        let span = tracing::info_span!(
            target: trace::TARGET,
            "load",
            run.id = %batch.id.run,
            batch.seq = i64::from(batch.id.seq),
            delivery.count = i64::from(delivery.deliveries()),
            batch.result = tracing::field::Empty,
        );
        trace::join(&span, delivery.traceparent().as_deref());
        Box::pin(self.load(delivery, intake, batch))
            .instrument(span)
            .await
    }

    async fn load(
        &self,
        delivery: Delivery<ValidBatch>,
        intake: &mut Intake<'_, ValidBatch>,
        batch: &ValidBatch,
    ) -> Result<(), Fault> {
        let Deliveries {
            session, loader, ..
        } = self.shared;
        let started = Instant::now();
        let retries = !loader.targets.is_ailing(&batch.target);
        match with_retries(&session.stop, retries, async || loader.handle(batch).await).await {
            Ok(outcome) => {
                note(batch, outcome, started);
                tracing::Span::current().record("batch.result", outcome.name());
                failpoint::reach("before_ack").await;
                delivery.ack().await?;
                Ok(())
            }
            Err(Unfinished::Dead { error, attempts }) => {
                loader.targets.mark_ailing(&batch.target);
                let reason = error.sentence();
                self.shared.dead_letter(delivery, &reason, attempts).await
            }
            Err(Unfinished::Stopping) => Ok(()),
            Err(Unfinished::Pause(error)) => {
                drop(delivery);
                intake.release().await;
                let again = async || loader.handle(batch).await.map(drop);
                self.shared.wait(self.name, error, again).await;
                Ok(())
            }
        }
    }
}

/// The handler of events about runs.
struct Events<'d, 's>(&'d Deliveries<'s>);

impl Handler<RunEvent> for Events<'_, '_> {
    type Fault = Fault;

    async fn handle(
        &mut self,
        deliveries: Vec<Delivery<RunEvent>>,
        intake: &mut Intake<'_, RunEvent>,
    ) -> Result<(), Fault> {
        for delivery in deliveries {
            match delivery.read() {
                Ok(event) => self.event(delivery, intake, &event).await?,
                Err(unreadable) => {
                    let reason = unreadable.to_string();
                    self.0.dead_letter(delivery, &reason, 1).await?;
                }
            }
        }
        Ok(())
    }

    async fn dead_letter(
        &mut self,
        delivery: Delivery<RunEvent>,
        reason: &str,
    ) -> Result<(), Fault> {
        let attempts = delivery.deliveries();
        self.0.dead_letter(delivery, reason, attempts).await
    }

    async fn exempts(&mut self, _: &Delivery<RunEvent>) -> bool {
        self.0.database_may_be_at_fault().await
    }
}

impl Events<'_, '_> {
    async fn event(
        &self,
        delivery: Delivery<RunEvent>,
        intake: &mut Intake<'_, RunEvent>,
        event: &RunEvent,
    ) -> Result<(), Fault> {
        let loader = self.0.loader;
        let stop = &self.0.session.stop;
        match with_retries(stop, true, async || loader.handle_event(event).await).await {
            Ok(noted) => {
                metrics::counter!("etl_events_total", "result" => noted.name()).increment(1);
                delivery.ack().await?;
                Ok(())
            }
            Err(Unfinished::Dead { error, attempts }) => {
                let reason = error.sentence();
                self.0.dead_letter(delivery, &reason, attempts).await
            }
            Err(Unfinished::Stopping) => Ok(()),
            Err(Unfinished::Pause(error)) => {
                drop(delivery);
                intake.release().await;
                let again = async || loader.handle_event(event).await.map(drop);
                self.0.wait("events", error, again).await;
                Ok(())
            }
        }
    }
}

impl Deliveries<'_> {
    /// Loads batches until the session ends, on this number of connections in parallel.
    pub(super) async fn batches(&self) -> Result<(), Fault> {
        let lanes = LANES.map(|name| Lane { shared: self, name });
        self.consume(lanes).await
    }

    /// Applies events until the session ends.
    pub(super) async fn events(&self) -> Result<(), Fault> {
        self.consume([Events(self)]).await
    }

    async fn consume<M: Message, H: Handler<M, Fault = Fault>>(
        &self,
        handlers: impl IntoIterator<Item = H>,
    ) -> Result<(), Fault> {
        let Session {
            consuming, stop, ..
        } = self.session;
        queue::consume(consuming, stop, PREFETCH, handlers).await
    }

    /// Stores dead letters until the session ends. A dead letter is retried without a limit.
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
                let dead = NewDeadLetter::new(&delivery);
                let store = async || {
                    let stored = self.loader.store.store_dead_letter(&dead).await;
                    stored.map_err(LoadError::from)
                };
                match with_retries(stop, true, store).await {
                    Ok(()) => {
                        metrics::counter!("etl_dead_letters_total", "stage" => stage_label(&dead.stage)).increment(1);
                        delivery.ack().await?;
                    }
                    Err(Unfinished::Stopping) => break,
                    Err(Unfinished::Pause(error) | Unfinished::Dead { error, .. }) => {
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

    /// Whether PostgreSQL, and not the message, may have made deliveries come back. Each loader that finds PostgreSQL away costs a
    /// message a delivery, too. So while PostgreSQL is away, and in a process that has waited for it, a message over the limit is
    /// handled once more. The next process dead-letters it.
    async fn database_may_be_at_fault(&self) -> bool {
        let probe = async |tx: &mut PgConnection| {
            sqlx::query("SELECT 1").execute(tx).await?;
            Ok(())
        };
        let store = &self.loader.store;
        let answers = store.transaction("PostgreSQL does not answer", probe);
        self.has_waited.load(Ordering::Relaxed) || answers.await.is_err()
    }

    /// Moves a message to `etl.dead`.
    async fn dead_letter<M>(
        &self,
        delivery: Delivery<M>,
        reason: &str,
        attempts: u32,
    ) -> Result<(), Fault> {
        let publisher = &mut *self.publisher.lock().await;
        Ok(delivery
            .dead_letter(publisher, STAGE, reason, attempts)
            .await?)
    }
}

/// Counts and logs a batch that was handled.
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
