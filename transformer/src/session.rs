//! What a transformer does while it is connected: take the deliveries that are ready, transform them,
//! publish every answer, and then ack. After a crash at any point the same batches are published again,
//! with the same content.

use common::failpoint;
use common::message::RawBatch;
use common::queue::{self, Delivery, Handler, Intake, Prefetch, Publisher};
use common::service::{Fault, Session};

use crate::answer::{STAGE, answer};
use crate::transform::Plans;

/// What a worker takes. More deliveries would not be faster. The bytes bound a window, since its
/// deliveries and their answers are in memory together.
const PREFETCH: Prefetch = Prefetch {
    deliveries: 4,
    together: 4,
    bytes: 1 << 20,
};

/// Workers side by side: one computes while the other waits for its confirms.
const WORKERS: usize = 2;

/// Transforms batches until the session ends.
pub async fn run(session: &Session) -> Result<(), Fault> {
    let mut workers = Vec::with_capacity(WORKERS);
    for _ in 0..WORKERS {
        workers.push(Worker {
            session,
            publisher: Publisher::open(&session.publishing).await?,
            plans: Plans::default(),
        });
    }
    queue::consume(&session.consuming, &session.stop, PREFETCH, workers).await
}

struct Worker<'a> {
    session: &'a Session,
    publisher: Publisher<'a>,
    plans: Plans,
}

impl Handler<RawBatch> for Worker<'_> {
    type Fault = Fault;

    fn started(&mut self) {
        self.session.begins();
    }

    /// Answers every delivery, and acks them once all answers are confirmed.
    async fn handle(
        &mut self,
        window: Vec<Delivery<RawBatch>>,
        _: &mut Intake<'_, RawBatch>,
    ) -> Result<(), Fault> {
        let mut outgoing = Vec::with_capacity(window.len());
        let mut counts = Vec::with_capacity(window.len());
        for delivery in &window {
            failpoint::reach("transform").await;
            let (answer, counted) = answer(&mut self.plans, delivery);
            outgoing.push(answer);
            counts.push(counted);
        }
        self.publisher.publish(&outgoing).await?;
        failpoint::reach("after_confirm").await;
        for (delivery, counts) in window.into_iter().zip(counts) {
            delivery.ack().await?;
            counts.record();
        }
        Ok(())
    }

    async fn dead_letter(
        &mut self,
        delivery: Delivery<RawBatch>,
        reason: &str,
    ) -> Result<(), Fault> {
        let attempts = delivery.deliveries();
        let publisher = &mut self.publisher;
        Ok(delivery
            .dead_letter(publisher, STAGE, reason, attempts)
            .await?)
    }
}
