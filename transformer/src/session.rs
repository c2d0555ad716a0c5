//! What a transformer does while it is connected: take the deliveries that are ready, transform them,
//! publish every answer, and then ack. After a crash at any point the same batches are published again,
//! with the same content.

use std::time::Duration;

use common::failpoint;
use common::message::RawBatch;
use common::queue::{Delivery, Handler, Intake, Prefetch, QueueName, Workers};
use common::service::{Fault, Session};

use crate::answer::answer;
use crate::transform::Plans;

/// What a worker takes. More deliveries would not be faster. The bytes bound a window, since its
/// deliveries and their answers are in memory together.
const PREFETCH: Prefetch = Prefetch {
    deliveries: 4,
    together: 4,
    bytes: 1 << 20,
    alone: Duration::from_secs(5),
};

/// Workers of a queue: one computes while the other waits for its confirms.
const WORKERS: usize = 2;

/// Transforms batches until the session ends.
pub async fn run(session: &Session) -> Result<(), Fault> {
    let queues = [QueueName::Raw, QueueName::RawBulk].map(|queue| {
        let worker = |_| Worker {
            session,
            plans: Plans::default(),
        };
        Workers {
            queue,
            handlers: (0..WORKERS).map(worker).collect(),
        }
    });
    session.consume(PREFETCH, queues).await
}

struct Worker<'a> {
    session: &'a Session,
    plans: Plans,
}

impl Handler<RawBatch> for Worker<'_> {
    type Fault = Fault;

    /// Answers every delivery, and acks them once all answers are confirmed.
    async fn handle(
        &mut self,
        window: Vec<Delivery<RawBatch>>,
        intake: &mut Intake<'_, RawBatch>,
    ) -> Result<(), Fault> {
        let mut outgoing = Vec::with_capacity(window.len());
        let mut counts = Vec::with_capacity(window.len());
        for delivery in &window {
            failpoint::reach("transform").await;
            let (answer, counted) = answer(&mut self.plans, delivery);
            outgoing.push(answer);
            counts.push(counted);
        }
        if let Err(error) = intake.publisher.publish(&outgoing).await {
            return self.session.wait_for_room(intake, error).await;
        }
        failpoint::reach("after_confirm").await;
        for (delivery, counts) in window.into_iter().zip(counts) {
            delivery.ack().await?;
            counts.record();
        }
        Ok(())
    }
}
