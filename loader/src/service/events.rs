//! The lane of events, which all runs share: it waits for no run. An event of a run that another transaction holds (a commit, a
//! slow batch) is put off, behind the others.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::message::{Message as _, RunEvent, RunId};
use common::queue::{Delivery, Handler, Intake};
use common::service::Fault;
use tokio::time::{Instant, timeout};

use super::deliveries::Deliveries;
use super::persist::{Retries, Unfinished, wait_for_postgres, with_retries};

/// How long the events of a run that another transaction holds are put off without another attempt.
const BUSY: Duration = Duration::from_secs(5);

/// The pause when every event in the queue was put off.
const PAUSE: Duration = Duration::from_millis(500);

/// Applies events, one after the other.
pub(super) struct Events<'d, 's> {
    shared: &'d Deliveries<'s>,
    /// The runs that another transaction holds, until when that is taken for granted.
    busy: HashMap<RunId, Instant>,
    /// The first event that was put off since one was applied: when it comes again, every event was put off.
    first_put_off: Option<String>,
}

impl<'d, 's> Events<'d, 's> {
    pub(super) fn new(shared: &'d Deliveries<'s>) -> Self {
        Self {
            shared,
            busy: HashMap::new(),
            first_put_off: None,
        }
    }

    fn is_busy(&mut self, run: &RunId) -> bool {
        let now = Instant::now();
        self.busy.retain(|_, until| *until > now);
        self.busy.contains_key(run)
    }

    async fn put_off(
        &mut self,
        delivery: Delivery<RunEvent>,
        intake: &mut Intake<'_, RunEvent>,
        event: &RunEvent,
    ) -> Result<(), Fault> {
        let id = event.id();
        if *self.first_put_off.get_or_insert_with(|| id.clone()) == id {
            // A session that stops puts it off, too: it is redelivered otherwise, and that counts.
            timeout(PAUSE, self.shared.session.stop.cancelled())
                .await
                .ok();
        }
        Ok(intake.put_off(delivery).await?)
    }

    async fn apply(
        &mut self,
        delivery: Delivery<RunEvent>,
        intake: &mut Intake<'_, RunEvent>,
        event: &RunEvent,
    ) -> Result<(), Fault> {
        let Deliveries {
            session, loader, ..
        } = self.shared;
        let apply = async || loader.accept_event(event).await;
        match with_retries(&session.stop, Retries::NONE, apply).await {
            Ok(noted) => {
                self.first_put_off = None;
                metrics::counter!("etl_events_total", "result" => noted.name()).increment(1);
                delivery.ack().await?;
            }
            Err(Unfinished::Conflict(error)) => {
                tracing::debug!(run.id = %event.run, error = error.sentence(), "event put off");
                self.busy.insert(event.run.clone(), Instant::now() + BUSY);
                self.put_off(delivery, intake, event).await?;
            }
            Err(Unfinished::Dead { error, attempts }) => {
                intake
                    .dead_letter(delivery, &error.reason(), attempts)
                    .await?;
            }
            Err(Unfinished::Stopping) => {}
            Err(
                Unfinished::Pause(error) | Unfinished::Target(error) | Unfinished::Misfit(error),
            ) => {
                intake.put_off(delivery).await?;
                intake.release().await;
                self.shared.has_waited.store(true, Ordering::Relaxed);
                let again = async || loader.accept_event(event).await.map(drop);
                wait_for_postgres(&session.health, "events", &session.stop, error, again).await;
            }
        }
        Ok(())
    }
}

impl Handler<RunEvent> for Events<'_, '_> {
    type Fault = Fault;

    async fn handle(
        &mut self,
        deliveries: Vec<Delivery<RunEvent>>,
        intake: &mut Intake<'_, RunEvent>,
    ) -> Result<(), Fault> {
        for delivery in deliveries {
            let Some((delivery, event)) = intake.read(delivery).await? else {
                continue;
            };
            if self.is_busy(&event.run) {
                self.put_off(delivery, intake, &event).await?;
            } else {
                Box::pin(self.apply(delivery, intake, &event)).await?;
            }
        }
        Ok(())
    }

    async fn exempts(&mut self, _: &Delivery<RunEvent>) -> bool {
        self.shared.database_may_be_at_fault().await
    }
}
