//! The archive, or what replays read instead of it.

use anyhow::Context;
use common::findings::{Findings, Level};
use common::queue::inspect::{self, Declared};
use common::queue::{ARCHIVE_BYTES, Archive, Connection, Kind, QueueError, QueueName, has_streams};
use common::reason::paragraph;
use common::service::ServiceSettings;
use common::settings::{self, SecretUrl};
use ledger::Store;
use serde::Deserialize;

use crate::management::{self, ArchiveQueue, Node};
use crate::output::counted;

const WHAT: &str = "archive";

/// Why no batch is archived; none where batches are, or will be once a service has started.
pub(super) async fn none(
    connection: &Connection,
    settings: &ServiceSettings,
) -> Result<Option<String>, QueueError> {
    if settings.archive == Archive::Off {
        return Ok(Some("ETL_ARCHIVE is off".to_owned()));
    }
    if inspect::check(connection, QueueName::Archive).await? != Declared::Missing {
        return Ok(None);
    }
    Ok(match has_streams(connection).await? {
        Kind::Has | Kind::Unknown => None,
        Kind::Lacks(why) => Some(format!("the broker has no streams: {why}")),
        Kind::Pretends => Some("the broker only pretends to have streams".to_owned()),
    })
}

/// What holds where no batch is archived. A result in S3 must live for as long as a person may want its replay, and only AWS
/// knows its lifetime.
pub(super) async fn absent(
    why: &str,
    settings: &ServiceSettings,
    store: Option<&Store>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    if settings.archive == Archive::Stream {
        findings.wrong(
            WHAT,
            format!(
                "{why}, and ETL_ARCHIVE=stream asks for one: no service starts; set ETL_ARCHIVE=off"
            ),
        );
    }
    if settings.archive == Archive::Off {
        findings.fine(
            WHAT,
            format!(
                "no batch is archived, since {why}; a replay reads the query's result in S3 again"
            ),
        );
    } else {
        findings.warning(WHAT, format!("no batch is archived, since {why}; a replay reads the query's result in S3 again. ETL_ARCHIVE=off says that this is meant"));
    }
    let Some(store) = store else { return Ok(()) };
    let results = store.results().await?;
    if let Some((runs, since)) = results.with_rejects {
        findings.add(
            Level::Unknown,
            "results",
            format!("{} with rejected rows may be replayed, the first one of {since}: results have to live in S3 for longer than you take to correct a job", counted(runs, "run")),
        );
    }
    for (bucket, runs, since) in results.buckets {
        findings.add(
            Level::Unknown,
            "results",
            format!("{bucket} has the results of {}, the first one of {since}; this shows when they expire: aws s3api get-bucket-lifecycle-configuration --bucket {bucket}", counted(runs, "run")),
        );
    }
    if results.pages > 0 {
        findings.warning(
            "results",
            format!("{} read as pages, without an object in S3: Athena gives these for 45 days at most, a managed result for 24 hours, and then they cannot be replayed", counted(results.pages, "run was")),
        );
    }
    Ok(())
}

/// The settings that no other command has.
#[derive(Deserialize)]
struct Management {
    /// `http://user:password@host:15672`.
    management_url: Option<SecretUrl>,
}

/// Whether the disks of the broker have room for the archive as it may become.
pub(super) async fn room(vhost: &str, findings: &mut Findings) {
    match measured(vhost).await {
        Ok(Some((nodes, archive))) => compare(vhost, &nodes, &archive, findings),
        Ok(None) => {
            findings.add(
                Level::Unknown,
                WHAT,
                format!(
                    "AMQP does not tell the broker's disk, which needs {} GiB for etl.archive on each of its members; set ETL_MANAGEMENT_URL (http://user:password@host:15672), or compare: rabbitmq-diagnostics status (Free Disk Space), rabbitmq-streams stream_status etl.archive",
                    ARCHIVE_BYTES >> 30
                ),
            );
        }
        Err(error) => {
            findings.warning(
                WHAT,
                format!("{}; check ETL_MANAGEMENT_URL, whose user needs the tag monitoring and a permission in the vhost", paragraph(&error)),
            );
        }
    }
}

async fn measured(vhost: &str) -> anyhow::Result<Option<(Vec<Node>, ArchiveQueue)>> {
    let settings: Management = settings::load()?;
    let Some(url) = settings.management_url else {
        return Ok(None);
    };
    let nodes = management::nodes(&url).await;
    let nodes = nodes.context("the disks of the broker are unknown")?;
    let archive = management::archive(&url, vhost).await;
    let archive = archive.context("the policy of etl.archive is unknown")?;
    Ok(Some((nodes, archive)))
}

fn compare(vhost: &str, nodes: &[Node], archive: &ArchiveQueue, findings: &mut Findings) {
    let most = archive
        .policy_bytes()
        .unwrap_or(ARCHIVE_BYTES)
        .min(ARCHIVE_BYTES);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    for node in nodes.iter().filter(|node| archive.is_on(node)) {
        let (Some(free), Some(limit)) = (node.disk_free, node.disk_free_limit) else {
            continue;
        };
        let (name, room) = (&node.name, free.saturating_sub(limit));
        if room >= most {
            findings.fine(
                WHAT,
                format!(
                    "{name} has {} free above its disk alarm, and etl.archive takes {} at most",
                    mib(room),
                    mib(most)
                ),
            );
        } else {
            let half = room / 2;
            findings.warning(
                WHAT,
                format!("{name} has {} free above its disk alarm, and etl.archive may take {} (what it has already is counted twice here): at the alarm nothing is published. Make it smaller: rabbitmqctl set_policy --vhost {vhost} --apply-to queues etl-archive '^etl\\.archive$' '{{\"max-length-bytes\":{half}}}'", mib(room), mib(most)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn small_disk_is_named_with_the_policy_that_fits_it() {
        let node = |free: u64| {
            serde_json::from_value::<Node>(
                json!({ "name": "rabbit@a", "disk_free": free, "disk_free_limit": 1_u64 << 30 }),
            )
            .unwrap()
        };
        let archive = |policy| {
            serde_json::from_value::<ArchiveQueue>(json!({ "effective_policy_definition": policy }))
                .unwrap()
        };
        let small = archive(json!({ "max-length-bytes": 1_u64 << 30 }));
        for (free, archive, wanted) in [
            (
                30 << 30,
                archive(json!({})),
                "29696 MiB free above its disk alarm, and etl.archive takes 20480 MiB at most",
            ),
            (
                5 << 30,
                archive(json!({})),
                "set_policy --vhost v --apply-to queues etl-archive '^etl\\.archive$' '{\"max-length-bytes\":2147483648}'",
            ),
            (5 << 30, small, "takes 1024 MiB at most"),
        ] {
            let mut findings = Findings::default();
            compare("v", &[node(free)], &archive, &mut findings);
            assert!(findings.0[0].text.contains(wanted), "{findings:?}");
        }
    }
}
