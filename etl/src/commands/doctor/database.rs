//! The database and the ledger in it.

use std::time::{SystemTime, UNIX_EPOCH};

use common::findings::Findings;

use crate::commands::status::waiting;
use crate::jobs::Jobs;
use crate::store;
use crate::{Failure, channels};
use ledger::{Address, Encryption, Role, Server, Store, unreachable};

/// The oldest PostgreSQL that has the SQL of the ledger (multiranges).
const OLDEST: i32 = 140_000;

/// Seconds that clocks may differ before a replay enters the archive at the wrong place.
const MAX_SKEW: f64 = 60.0;

/// Examines the database. Returns the ledger where it can be read.
pub(super) async fn examine(findings: &mut Findings) -> Result<Option<Store>, Failure> {
    let address = store::address()?;
    let store = store::connect(&address).await?;
    findings.fine(
        "sessions",
        "each connection is a session of its own, as without a pooler",
    );
    findings.fine("password", address.password_source());
    examine_encryption(&address, findings).await;
    examine_hosts(&store, findings).await;
    let server = store.server().await?;
    examine_server(&server, findings);
    let is_readable = schema(&store, &server.role, findings).await?;
    if is_readable {
        for parked in store.parked(None).await? {
            findings.warning("parked", waiting(&parked));
        }
        examine_outbox(&store, findings).await?;
    }
    Ok(is_readable.then_some(store))
}

/// What nobody could be told.
async fn examine_outbox(store: &Store, findings: &mut Findings) -> anyhow::Result<()> {
    let loaders = store.loader_roles().await?;
    let known = loaders.channels().unwrap_or_default();
    for waiting in store.outbox(None).await? {
        let is_known = known.contains(&waiting.channel);
        if is_known && !channels::waits_long(&waiting) {
            continue;
        }
        let remedy = if is_known {
            "the loaders try again by themselves; `etl prune --unsent` gives messages up".to_owned()
        } else {
            channels::unknown(&waiting.channel, known)
        };
        findings.warning(
            "notify",
            format!("{}; {remedy}", channels::waiting(&waiting)),
        );
    }
    Ok(())
}

/// Whether the connections are encrypted and the servers verified.
async fn examine_encryption(address: &Address, findings: &mut Findings) {
    let what = "encryption";
    for (server, encryption) in address.encryption().await {
        let remedy = "set sslmode=verify-full in ETL_DATABASE_URL";
        match encryption {
            Encryption::Local => findings.fine(
                what,
                format!("{server} is this machine, which the connection does not leave"),
            ),
            Encryption::Verified => findings.fine(
                what,
                format!("the connection to {server} is encrypted, and the server is verified"),
            ),
            Encryption::None => findings.warning(
                what,
                format!("the connection to {server} is not encrypted, and the server is not verified; {remedy}"),
            ),
            Encryption::Unverified => findings.warning(
                what,
                format!("the connection to {server} is encrypted, and the server is not verified, so that somebody in between can read all; {remedy}"),
            ),
            Encryption::AnyName => findings.warning(
                what,
                format!("the connection to {server} is encrypted, and every server with a certificate of an authority that is trusted here is taken for it (verify-ca); {remedy}"),
            ),
        }
    }
}

/// What each of several servers is.
async fn examine_hosts(store: &Store, findings: &mut Findings) {
    let roles = store.roles().await;
    if roles.len() < 2 {
        return;
    }
    let primaries = roles
        .iter()
        .filter(|(_, role)| matches!(role, Ok(Role::Primary)));
    let primaries: Vec<_> = primaries.map(|(host, _)| host.as_str()).collect();
    if primaries.len() > 1 {
        findings.wrong(
            "servers",
            format!(
                "{} take writes; one may be an old primary that was started again: stop it, since what is written there is lost",
                primaries.join(" and ")
            ),
        );
    }
    for (host, role) in &roles {
        match role {
            Ok(role) => findings.fine("servers", format!("{host} {}", role.name())),
            Err(error) => {
                findings.warning("servers", format!("{host} {}", unreachable(error)));
            }
        }
    }
}

fn examine_server(server: &Server, findings: &mut Findings) {
    let Server { version, role, .. } = server;
    let what = "database";
    findings.check(
        what,
        server.version_num >= OLDEST,
        format!("PostgreSQL {version}, as the role {role}"),
        format!(
            "PostgreSQL {version} is too old; 14 is the oldest that works, 15 and 17 are tested"
        ),
    );
    if server.is_read_only {
        findings.wrong(
            what,
            "it takes no writes: it is a standby or set to read-only; point ETL_DATABASE_URL to the primary",
        );
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let skew = (now.as_secs_f64() - server.clock).abs();
    if skew > MAX_SKEW {
        findings.warning(
            "clock",
            format!("the clocks of this machine and of the database differ by {skew:.0} s; set them (NTP), since a replay enters the archive by the time"),
        );
    } else {
        findings.fine(
            "clock",
            "the clocks of this machine and of the database agree",
        );
    }
}

/// Whether the ledger can be read.
async fn schema(store: &Store, role: &str, findings: &mut Findings) -> anyhow::Result<bool> {
    let missing = store.missing_privileges().await?;
    findings.check(
        "privileges",
        missing.is_empty(),
        format!("{role} may read and write the ledger"),
        format!(
            "{role} lacks {} privileges on the ledger; run, as its owner: loader migrate --command-role {role}, or: GRANT {} TO \"{role}\"",
            missing.len(),
            missing.join(&format!(" TO \"{role}\"; GRANT "))
        ),
    );
    let is_write = |one: &String| !one.starts_with("USAGE") && !one.starts_with("SELECT");
    let may_read = missing.iter().all(is_write);
    let is_current = may_read && store.is_current().await?;
    if may_read {
        findings.check(
            "migrations",
            is_current,
            "schema etl is of this version",
            "schema etl is missing or of an older version; run `loader migrate`",
        );
    }
    let is_readable = is_current && missing.is_empty();
    let roles = if is_readable {
        store.loader_roles().await?.checked().to_vec()
    } else {
        vec![role.to_owned()]
    };
    for role in &roles {
        schemas_of_targets(store, role, findings).await?;
    }
    Ok(is_readable)
}

/// Whether the role of a loader may make the targets that are missing.
async fn schemas_of_targets(
    store: &Store,
    role: &str,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let what = "schema";
    for schema in Jobs::load().map(|jobs| jobs.schemas).unwrap_or_default() {
        match store.may_create_in(&schema, role).await? {
            None => findings.wrong(
                what,
                format!("{schema} of ETL_SCHEMAS does not exist; CREATE SCHEMA \"{schema}\", or correct the setting"),
            ),
            Some(false) => findings.warning(
                what,
                format!("{role} may not create tables in {schema}, which a job with a missing target needs: GRANT CREATE ON SCHEMA \"{schema}\" TO \"{role}\""),
            ),
            Some(true) => findings.fine(what, format!("{role} may create tables in {schema}")),
        }
    }
    Ok(())
}
