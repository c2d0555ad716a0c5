//! The broker and its queues, as far as AMQP tells.

use std::time::Duration;

use common::queue::inspect::{self, Declared};
use common::queue::{Connection, Publisher, QueueError, QueueName};
use common::service::ServiceSettings;
use common::settings;
use tokio::time::timeout;

use crate::report::Finding;

/// How long the broker may take for a test message.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn examine(findings: &mut Vec<Finding>) {
    let settings: ServiceSettings = match settings::load() {
        Ok(settings) => settings,
        Err(error) => {
            findings.push(Finding::wrong("broker", chain(&error)));
            return;
        }
    };
    let connection = match Connection::open(&settings.amqp_url, "etl doctor").await {
        Ok(connection) => connection,
        Err(error) => {
            let remedy = "check that the broker runs and that ETL_AMQP_URL is right";
            findings.push(Finding::wrong(
                "broker",
                format!("{}; {remedy}", chain(&error)),
            ));
            return;
        }
    };
    findings.push(Finding::fine(
        "broker",
        format!("connected to {}", settings.amqp_url),
    ));
    if let Err(error) = examine_on(&connection, findings).await {
        findings.push(Finding::wrong("broker", chain(&error)));
    }
    findings.push(Finding::unknown(
        "consumer timeout",
        "AMQP does not tell it; it should be half an hour or more (the default): rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'",
    ));
    connection.close().await;
}

async fn examine_on(
    connection: &Connection,
    findings: &mut Vec<Finding>,
) -> Result<(), QueueError> {
    let mut publisher = Publisher::open(connection).await?;
    findings.push(match timeout(PATIENCE, publisher.probe()).await {
        Ok(Ok(())) => Finding::fine("alarms", "it takes messages"),
        Ok(Err(error)) => Finding::wrong("alarms", chain(&error)),
        Err(_) => {
            findings.push(Finding::wrong(
                "alarms",
                "it takes no messages: a memory or disk alarm (rabbitmq-diagnostics alarms); free some there",
            ));
            return Ok(());
        }
    });
    publisher.close().await;
    findings.push(match inspect::takes_largest(connection).await? {
        Ok(bytes) => Finding::fine(
            "message size",
            format!("it takes messages of {} MiB, the largest that are sent", bytes >> 20),
        ),
        Err(why) => Finding::wrong(
            "message size",
            format!("it refuses the largest messages that may be sent ({why}); set max_message_size = 16777216 in rabbitmq.conf"),
        ),
    });
    for queue in QueueName::ALL {
        findings.push(queue_of(connection, queue).await?);
    }
    services(connection, findings).await
}

async fn queue_of(connection: &Connection, queue: QueueName) -> Result<Finding, QueueError> {
    let name = queue.name();
    Ok(match inspect::check(connection, queue).await? {
        Declared::AsWanted => Finding::fine("queue", format!("{name} is as this version wants it")),
        Declared::Missing => Finding::warning(
            "queue",
            format!(
                "{name} is not there yet; the first service that starts, or `etl run`, declares it"
            ),
        ),
        Declared::Otherwise(why) => Finding::wrong(
            "queue",
            format!(
                "{name} has other arguments than this version needs ({why}); let it run empty, delete it, and it is declared anew"
            ),
        ),
    })
}

/// Whether somebody takes the messages of each queue.
async fn services(connection: &Connection, findings: &mut Vec<Finding>) -> Result<(), QueueError> {
    for (queue, service) in [
        (QueueName::Extract, "extractor"),
        (QueueName::Raw, "transformer"),
        (QueueName::Valid, "loader"),
    ] {
        let Some(state) = inspect::look(connection, queue).await? else {
            continue;
        };
        findings.push(if state.consumers == 0 {
            Finding::warning(
                service,
                format!(
                    "none takes from {}, where {} messages wait; start one, or look at its /readyz",
                    queue.name(),
                    state.messages
                ),
            )
        } else {
            Finding::fine(
                service,
                format!(
                    "{} of {}",
                    plural(state.consumers, "consumer"),
                    queue.name()
                ),
            )
        });
    }
    Ok(())
}

fn plural(count: u32, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
