//! Handles each delivery, and then settles it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::failpoint;
use common::job::Target;
use common::message::{Message, RunEvent, ValidBatch};
use common::queue::{Consumer, Delivery, Handler, Intake, Prefetch};
use common::service::{Fault, Session};
use common::telemetry::{stage_label, trace};
use ledger::NewDeadLetter;
use sqlx::PgConnection;
use tracing::Instrument as _;

use super::events::Events;
use super::persist::{Retries, Unfinished, wait_for_postgres, with_retries};
use crate::errors::LoadError;
use crate::load::{Loader, Outcome};

/// One delivery a lane: behind a slow batch waits no other one. While one lane gets its next delivery, the others load.
const PREFETCH: Prefetch = Prefetch {
    deliveries: 1,
    together: 1,
    bytes: 0,
    alone: Duration::from_secs(5),
};

/// The lanes that load batches in parallel, each on its own database connection. Each reports its health under its
/// name.
const LANES: [&str; 3] = ["batches", "batches, second lane", "batches, third lane"];

/// The shared state of a session's loops.
pub(super) struct Deliveries<'a> {
    pub(super) session: &'a Session,
    pub(super) loader: &'a Loader,
    /// Whether this process ever waited for Postgres.
    pub(super) has_waited: &'a AtomicBool,
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
                batch.seq = i64::from(batch.id.seq),
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
        &self,
        delivery: Delivery<ValidBatch>,
        intake: &mut Intake<'_, ValidBatch>,
        batch: &ValidBatch,
    ) -> Result<(), Fault> {
        let started = Instant::now();
        let target = Some(&batch.target);
        let load = async || self.shared.loader.accept(batch).await;
        if let Some((outcome, delivery)) = self.finish(delivery, intake, target, load).await? {
            note(batch, outcome, started);
            tracing::Span::current().record("batch.result", outcome.name());
            failpoint::reach("before_ack").await;
            delivery.ack().await?;
        }
        Ok(())
    }

    /// Does a delivery's work in the database, `target` included. Returns the result with the delivery, to be acked; none
    /// when the delivery is dead-lettered, or comes again after PostgreSQL was at fault or the service stopped.
    async fn finish<M: Message, T>(
        &self,
        delivery: Delivery<M>,
        intake: &mut Intake<'_, M>,
        target: Option<&Target>,
        mut work: impl AsyncFnMut() -> Result<T, LoadError>,
    ) -> Result<Option<(T, Delivery<M>)>, Fault> {
        let Deliveries {
            session, loader, ..
        } = self.shared;
        let retries = Retries {
            misfits: target.is_none_or(|target| !loader.targets.is_ailing(target)),
            ..Retries::ALL
        };
        match with_retries(&session.stop, retries, &mut work).await {
            Ok(done) => return Ok(Some((done, delivery))),
            Err(Unfinished::Dead { error, attempts }) => {
                if let Some(target) = target {
                    loader.targets.mark_ailing(target);
                }
                let reason = error.sentence();
                intake.dead_letter(delivery, &reason, attempts).await?;
            }
            Err(Unfinished::Stopping) => {}
            Err(Unfinished::Conflict(error) | Unfinished::Pause(error)) => {
                intake.put_off(delivery).await?;
                intake.release().await;
                self.shared.has_waited.store(true, Ordering::Relaxed);
                let again = async || work().await.map(drop);
                wait_for_postgres(&session.health, self.name, &session.stop, error, again).await;
            }
        }
        Ok(None)
    }
}

impl Deliveries<'_> {
    /// Loads batches until the session ends, on this number of connections in parallel.
    pub(super) async fn batches(&self) -> Result<(), Fault> {
        let lanes = LANES.map(|name| Lane { shared: self, name });
        self.session.consume::<ValidBatch, _>(PREFETCH, lanes).await
    }

    /// Applies events until the session ends.
    pub(super) async fn events(&self) -> Result<(), Fault> {
        let lane = Events::new(self);
        self.session.consume::<RunEvent, _>(PREFETCH, [lane]).await
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
            match with_retries(stop, Retries::ALL, store).await {
                Ok(()) => {
                    metrics::counter!("etl_dead_letters_total", "stage" => stage_label(&dead.stage))
                        .increment(1);
                    delivery.ack().await?;
                }
                Err(Unfinished::Stopping) => break,
                Err(
                    Unfinished::Pause(error)
                    | Unfinished::Conflict(error)
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
