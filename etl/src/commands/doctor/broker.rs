//! The broker and its queues, as far as AMQP tells.

use std::time::Duration;

use anyhow::anyhow;
use common::findings::{Findings, Level};
use common::queue::inspect::{self, Declared};
use common::queue::{self, Connection, Declare, Publisher, QueueError, QueueName};
use common::reason::paragraph;
use common::service::ServiceSettings;
use common::settings::{self, SecretUrl};
use futures::future::join_all;
use tokio::time::timeout;

use super::{archive, found};
use crate::Failure;
use crate::output::counted;
use ledger::Store;

/// How long the broker may take for a test message.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all looks at the broker may take.
const EXAMINATION_TIMEOUT: Duration = Duration::from_mins(1);

pub(super) async fn examine(store: Option<&Store>, findings: &mut Findings) -> Result<(), Failure> {
    let settings: ServiceSettings = settings::load().map_err(Failure::usage)?;
    let connection = connect(&settings.amqp_url, findings).await?;
    let vhost = Connection::vhost(&settings.amqp_url).map_err(anyhow::Error::from)?;
    let examined = timeout(
        EXAMINATION_TIMEOUT,
        examine_on(&connection, &vhost, &settings, store, findings),
    )
    .await;
    let examined = examined.unwrap_or_else(|_| {
        let timeout = QueueError::Timeout {
            doing: "looking at its queues".to_owned(),
            after: EXAMINATION_TIMEOUT,
        };
        Err(timeout.into())
    });
    found(findings, "broker", examined.map_err(Failure::Failed));
    findings.add(
        Level::Unknown,
        "consumer timeout",
        "AMQP does not tell it; it should be half an hour or more (the default): rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'",
    );
    connection.close().await;
    Ok(())
}

/// Connects to each host that the URL names; returns one of the connections.
async fn connect(url: &SecretUrl, findings: &mut Findings) -> Result<Connection, Failure> {
    let hosts: Vec<_> = url.expose_each().cloned().map(SecretUrl::from).collect();
    let opened = hosts
        .iter()
        .map(|host| Connection::open(host, "etl doctor"));
    let (mut connections, mut failures) = (Vec::new(), Vec::new());
    for (host, opened) in hosts.iter().zip(join_all(opened).await) {
        match opened {
            Ok(connection) => {
                findings.fine("broker", format!("connected to {host}"));
                connections.push(connection);
            }
            Err(error) => failures.push(paragraph(&error.into())),
        }
    }
    let Some(connection) = connections.pop() else {
        let failures = failures.join("; ");
        let error =
            anyhow!("{failures}; check that the broker runs and that ETL_AMQP_URL is right");
        return Err(error.into());
    };
    for failure in failures {
        findings.warning(
            "broker",
            format!("{failure}; the services use the other hosts, and while most of the cluster's nodes are away the queues take nothing"),
        );
    }
    for other in connections {
        other.close().await;
    }
    Ok(connection)
}

async fn examine_on(
    connection: &Connection,
    vhost: &str,
    settings: &ServiceSettings,
    store: Option<&Store>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    if !takes_messages(connection, findings).await? {
        return Ok(());
    }
    if let Some(pretended) = queue::pretended(connection).await? {
        findings.warning("queue", pretended);
    }
    let no_archive = archive::none(connection, settings).await?;
    for queue in QueueName::ALL {
        if queue != QueueName::Archive || no_archive.is_none() {
            compare(connection, queue, settings.declare, findings).await?;
        }
    }
    match no_archive {
        Some(why) => archive::absent(&why, settings, store, findings).await?,
        None => archive::room(vhost, findings).await,
    }
    consumers(connection, findings).await?;
    Ok(unreadable(connection, vhost, findings).await?)
}

/// Whether the broker takes messages now, and the largest ones.
async fn takes_messages(
    connection: &Connection,
    findings: &mut Findings,
) -> Result<bool, QueueError> {
    let mut publisher = Publisher::open(connection).await?;
    match timeout(PROBE_TIMEOUT, publisher.probe()).await {
        Ok(Ok(())) => findings.fine("alarms", "the broker takes messages"),
        Ok(Err(error)) => findings.wrong("alarms", paragraph(&error.into())),
        Err(_) => {
            findings.wrong(
                "alarms",
                "the broker takes no messages: a memory or disk alarm (rabbitmq-diagnostics alarms); free memory or disk space there",
            );
            return Ok(false);
        }
    }
    publisher.close().await;
    match inspect::takes_largest(connection).await? {
        Ok(bytes) => findings.fine(
            "message size",
            format!("the broker takes messages of {} MiB, the largest that are sent", bytes >> 20),
        ),
        Err(why) => findings.wrong(
            "message size",
            format!("the broker refuses the largest messages that may be sent ({why}); set max_message_size = 16777216 in rabbitmq.conf"),
        ),
    }
    Ok(true)
}

/// Compares a queue with what this version needs.
async fn compare(
    connection: &Connection,
    queue: QueueName,
    declare: Declare,
    findings: &mut Findings,
) -> Result<(), QueueError> {
    let (name, what) = (queue.name(), "queue");
    match inspect::check(connection, queue).await? {
        Declared::AsWanted => findings.fine(what, format!("{name} is as this version needs it")),
        Declared::Missing if declare == Declare::Skip => findings.wrong(
            what,
            format!("{name} does not exist, and with ETL_DECLARE=skip no service declares it; an administrator does: `etl topology >etl.json` and `rabbitmqctl import_definitions etl.json`"),
        ),
        Declared::Missing => findings.warning(
            what,
            format!("{name} does not exist yet; the first service that starts, or `etl run`, declares it"),
        ),
        Declared::Otherwise(why) => findings.wrong(
            what,
            format!("{name} has other arguments than this version needs ({why}); let its consumers empty it and delete it with `rabbitmqctl delete_queue --vhost VHOST {name}`: it is declared again"),
        ),
        Declared::Unknown => {
            findings.add(
                Level::Unknown,
                what,
                format!("{name} is there; only a user who may configure it can compare its arguments: run `etl doctor` with an administrator's ETL_AMQP_URL"),
            );
        }
    }
    Ok(())
}

/// The messages that no client can receive, with the command that removes them.
async fn unreadable(
    connection: &Connection,
    vhost: &str,
    findings: &mut Findings,
) -> Result<(), QueueError> {
    let queue = QueueName::Unreadable;
    let (name, found) = (queue.name(), inspect::look(connection, queue).await?);
    if let Some(count) = found.map(|state| state.messages).filter(|count| *count > 0) {
        let messages = counted(count.into(), "message");
        findings.wrong(
            "unreadable",
            format!("{name} has {messages} that no client can receive: the headers are larger than a frame, or are not UTF-8; no run waits for them. The broker's management page shows them (Queues, {name}, Get messages), and this removes them: rabbitmqctl purge_queue {name} --vhost {vhost}"),
        );
    }
    Ok(())
}

/// Whether each work queue has a consumer.
async fn consumers(connection: &Connection, findings: &mut Findings) -> Result<(), QueueError> {
    for (queue, service) in [
        (QueueName::Extract, "extractor"),
        (QueueName::ExtractBulk, "extractor"),
        (QueueName::Raw, "transformer"),
        (QueueName::RawBulk, "transformer"),
        (QueueName::Valid, "loader"),
        (QueueName::ValidBulk, "loader"),
    ] {
        let Some(state) = inspect::look(connection, queue).await? else {
            continue;
        };
        let name = queue.name();
        match state.consumers {
            0 => findings.warning(
                service,
                format!(
                    "{name} has no consumer, and {} messages wait; start one, or look at its /readyz",
                    state.messages
                ),
            ),
            count => findings.fine(
                service,
                format!("{} of {name}", counted(count.into(), "consumer")),
            ),
        }
    }
    Ok(())
}
