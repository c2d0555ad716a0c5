//! The archive, or what replays read instead of it.

use common::findings::{Findings, Level};
use common::queue::inspect::{self, Declared};
use common::queue::{Archive, Connection, Kind, QueueError, QueueName, has_streams};
use common::service::ServiceSettings;
use ledger::Store;

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
