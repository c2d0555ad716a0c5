//! Handles each delivery, and then settles it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::failpoint;
use common::message::{RunEvent, ValidBatch};
use common::queue::{
    Consumer, Delivery, Handler, Intake, Outgoing, Prefetch, Publisher, QueueError, QueueName,
    RawDelivery, Workers,
};
use common::service::{Fault, Session};
use common::telemetry::{stage_label, trace};
use ledger::NewDeadLetter;
use sqlx::PgConnection;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::Instrument as _;

use super::batches::{End, Time, again, attempt};
use super::events::Events;
use super::persist::{Retries, Unfinished, wait_for_postgres, with_retries};
use crate::errors::LoadError;
use crate::load::{Loader, Outcome};
use crate::parking;

/// One delivery a lane: behind a slow batch waits no other one. While one lane gets its next delivery, the others load.
const PREFETCH: Prefetch = Prefetch {
    deliveries: 1,
    together: 1,
    bytes: 0,
    alone: Duration::from_secs(5),
};

/// The lanes of each queue that load batches in parallel, each on its own database connection. Each reports its health under
/// its name.
const LANES: [(QueueName, [&str; 3]); 2] = [
    (
        QueueName::Valid,
        ["batches", "batches, second lane", "batches, third lane"],
    ),
    (
        QueueName::ValidBulk,
        ["bulk", "bulk, second lane", "bulk, third lane"],
    ),
];

/// The pause of a lane when neither a target nor the queue for parked batches takes a batch.
const FULL_PAUSE: Duration = Duration::from_millis(500);

/// The shared state of a session's loops.
pub(super) struct Deliveries<'a> {
    pub(super) session: &'a Session,
    pub(super) loader: &'a Loader,
    /// Whether this process ever waited for Postgres.
    pub(super) has_waited: &'a AtomicBool,
    /// A target that was unavailable works again.
    pub(super) recovered: Notify,
    /// Bytes of batches that wait for a target before the extraction for it is paused.
    pub(super) parked_bytes: u64,
}

/// A worker, which reports its health under its name.
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
            let Some((delivery, batch)) = intake.read(delivery).await? else {
                continue;
            };
            let span = tracing::info_span!(
                target: trace::TARGET,
                "load",
                run.id = %batch.id.run,
                batch.first_row = batch.id.first_row.cast_signed(),
                delivery.count = i64::from(delivery.deliveries()),
                batch.result = tracing::field::Empty,
            );
            trace::join(&span, delivery.traceparent().as_deref());
            Box::pin(self.load(delivery, intake, &batch))
                .instrument(span)
                .await?;
        }
        Ok(())
    }

    async fn exempts(&mut self, _: &Delivery<ValidBatch>) -> bool {
        self.shared.database_may_be_at_fault().await
    }
}

impl Lane<'_, '_> {
    async fn load(
        &mut self,
        delivery: Delivery<ValidBatch>,
        intake: &mut Intake<'_, ValidBatch>,
        batch: &ValidBatch,
    ) -> Result<(), Fault> {
        let started = Instant::now();
        let shared = self.shared;
        let Deliveries {
            session, loader, ..
        } = shared;
        match attempt(loader, &session.stop, batch, Time::Little).await {
            End::Settled(outcome) => {
                note(batch, outcome, started);
                tracing::Span::current().record("batch.result", outcome.name());
                failpoint::reach("before_ack").await;
                delivery.ack().await?;
            }
            End::Dead { reason, attempts } => {
                intake.dead_letter(delivery, &reason, attempts).await?;
            }
            End::Stopping => {}
            end @ (End::Parked(_) | End::Misfit(_)) => {
                let why = end.reason();
                let publisher = &mut intake.publisher;
                match shared.park(publisher, &delivery, batch, &why).await? {
                    Ok(true) => delivery.ack().await?,
                    // The queue is full: the batch stays, behind the others.
                    Ok(false) => {
                        timeout(FULL_PAUSE, session.stop.cancelled()).await.ok();
                        intake.put_off(delivery).await?;
                    }
                    Err(error) => self.wait(delivery, intake, batch, error).await?,
                }
            }
            End::Pause(error) => self.wait(delivery, intake, batch, error).await?,
        }
        Ok(())
    }

    /// Waits until PostgreSQL works, with no delivery in hand.
    async fn wait(
        &self,
        delivery: Delivery<ValidBatch>,
        intake: &mut Intake<'_, ValidBatch>,
        batch: &ValidBatch,
        error: LoadError,
    ) -> Result<(), Fault> {
        let Deliveries {
            session, loader, ..
        } = self.shared;
        intake.put_off(delivery).await?;
        intake.release().await;
        self.shared.has_waited.store(true, Ordering::Relaxed);
        let again = async || again(loader, batch).await;
        wait_for_postgres(&session.health, self.name, &session.stop, error, again).await;
        Ok(())
    }
}

impl Deliveries<'_> {
    /// Loads batches until the session ends, in all lanes.
    pub(super) async fn batches(&self) -> Result<(), Fault> {
        let queues = LANES.map(|(queue, names)| Workers {
            queue,
            handlers: names.map(|name| Lane { shared: self, name }).into(),
        });
        self.session
            .consume::<ValidBatch, _>(PREFETCH, queues)
            .await
    }

    /// Applies events until the session ends.
    pub(super) async fn events(&self) -> Result<(), Fault> {
        let events = Workers {
            queue: QueueName::Events,
            handlers: vec![Events::new(self)],
        };
        self.session
            .consume::<RunEvent, _>(PREFETCH, [events])
            .await
    }

    /// Stores dead letters until the session ends. A dead letter is retried without a limit.
    pub(super) async fn dead_letters(&self) -> Result<(), Fault> {
        let Session {
            consuming,
            health,
            stop,
            ..
        } = self.session;
        let mut consumer = Consumer::open_dead(consuming, 1).await?;
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
            match with_retries(stop, Retries::MOST, store).await {
                Ok(()) => {
                    metrics::counter!("etl_dead_letters_total", "stage" => stage_label(&dead.stage))
                        .increment(1);
                    delivery.ack().await?;
                }
                Err(Unfinished::Stopping) => break,
                Err(
                    Unfinished::Pause(error)
                    | Unfinished::Conflict(error)
                    | Unfinished::Target(error)
                    | Unfinished::Misfit(error)
                    | Unfinished::Dead { error, .. },
                ) => {
                    consumer.close(consuming).await;
                    wait_for_postgres(health, "dead letters", stop, error, store).await;
                    consumer = Consumer::open_dead(consuming, 1).await?;
                }
            }
        }
        consumer.close(consuming).await;
        Ok(())
    }

    /// Publishes a delivery to `etl.parked`, to be acked then. False when that queue is full. An error of the ledger is
    /// PostgreSQL's fault.
    pub(super) async fn park(
        &self,
        publisher: &mut Publisher<'_>,
        delivery: &RawDelivery,
        batch: &ValidBatch,
        why: &str,
    ) -> Result<Result<bool, LoadError>, QueueError> {
        let store = &self.loader.store;
        let target = parking::name(&batch.target);
        let bytes = delivery.body().len();
        if let Err(error) = store.park(batch, bytes, &target, why).await {
            return Ok(Err(error.into()));
        }
        let parked = Outgoing::parked(delivery, &target, why);
        let is_parked = publisher.try_publish(&parked).await?;
        if is_parked && delivery.parked_attempts() == 0 {
            metrics::counter!("etl_batches_total", "job" => batch.job.clone(), "result" => "parked")
                .increment(1);
        }
        if delivery.parked_attempts() == 0 {
            self.pause(publisher, batch, &target).await?;
        }
        Ok(Ok(is_parked))
    }

    /// Whether PostgreSQL, and not the message, may have made deliveries come back. Each loader that finds PostgreSQL away costs a
    /// message a delivery, too. So while PostgreSQL is away, and in a process that has waited for it, a message over the limit is
    /// handled once more. The next process dead-letters it.
    pub(super) async fn database_may_be_at_fault(&self) -> bool {
        let probe = async |tx: &mut PgConnection| {
            sqlx::query("SELECT 1").execute(tx).await?;
            Ok(())
        };
        let store = &self.loader.store;
        let answers = store.transaction("PostgreSQL does not answer", probe);
        self.has_waited.load(Ordering::Relaxed) || answers.await.is_err()
    }
}

/// Counts and logs a batch that was handled.
pub(super) fn note(batch: &ValidBatch, outcome: Outcome, started: Instant) {
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
