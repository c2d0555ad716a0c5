//! The database and the books in it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::Failure;
use crate::books::{Books, Server};
use crate::jobs::Jobs;
use crate::report::Finding;

/// The oldest PostgreSQL whose SQL the books use (multiranges).
const OLDEST: i32 = 140_000;

/// Seconds that clocks may differ before an archive is entered at the wrong place.
const SKEW: f64 = 60.0;

/// Examines the database; the books, where they can be read.
pub(super) async fn examine(findings: &mut Vec<Finding>) -> Option<Books> {
    let books = match Books::connect().await {
        Ok(books) => books,
        Err(error) => {
            findings.push(Finding::wrong("database", sentence(&error)));
            return None;
        }
    };
    let server = match books.server().await {
        Ok(server) => server,
        Err(error) => {
            findings.push(Finding::wrong("database", format!("{error:#}")));
            return None;
        }
    };
    findings.extend(of_server(&server));
    schema(&books, &server.role, findings)
        .await
        .unwrap_or_else(|error| {
            findings.push(Finding::wrong("database", format!("{error:#}")));
            false
        })
        .then_some(books)
}

fn sentence(error: &Failure) -> String {
    match error {
        Failure::Misuse(error) | Failure::Untrue(error) => format!("{error:#}"),
    }
}

fn of_server(server: &Server) -> Vec<Finding> {
    let Server { version, role, .. } = server;
    let mut findings = vec![if server.version_num < OLDEST {
        Finding::wrong(
            "database",
            format!(
                "PostgreSQL {version} is too old; 14 is the oldest that the books work with, 15 and 17 are tested"
            ),
        )
    } else {
        Finding::fine(
            "database",
            format!("PostgreSQL {version}, as the role {role}"),
        )
    }];
    if server.is_read_only {
        findings.push(Finding::wrong(
            "database",
            "it takes no writes: it is a standby or set to read-only; point ETL_DATABASE_URL to the primary",
        ));
    }
    let here = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let apart = (here - server.clock).abs();
    findings.push(if apart > SKEW {
        Finding::warning(
            "clock",
            format!("this machine's and the database's differ by {apart:.0} s; set them (NTP), a replay enters the archive by the time"),
        )
    } else {
        Finding::fine("clock", "this machine's and the database's agree")
    });
    findings
}

/// Whether the books can be read.
async fn schema(books: &Books, role: &str, findings: &mut Vec<Finding>) -> anyhow::Result<bool> {
    let is_current = books.migrations_are_current().await?;
    findings.push(if is_current {
        Finding::fine("migrations", "schema etl is of this version")
    } else {
        Finding::wrong(
            "migrations",
            "schema etl is missing or of an older version; run `loader migrate`",
        )
    });
    let missing = books.privileges().await?.missing;
    findings.push(if missing.is_empty() {
        Finding::fine("privileges", format!("{role} may read and write the books"))
    } else {
        Finding::wrong(
            "privileges",
            format!(
                "{role} lacks {} of them; run, as their owner: GRANT {} TO \"{role}\"",
                missing.len(),
                missing.join(&format!(" TO \"{role}\"; GRANT "))
            ),
        )
    });
    for schema in Jobs::load().map(|jobs| jobs.schemas).unwrap_or_default() {
        let what = "schema";
        findings.push(match books.may_create_in(&schema).await? {
            None => Finding::wrong(
                what,
                format!("{schema} of ETL_SCHEMAS is not there; CREATE SCHEMA \"{schema}\", or correct the setting"),
            ),
            Some(false) => Finding::warning(
                what,
                format!("{role} may not create tables in {schema}; where the loader has the same role: GRANT CREATE ON SCHEMA \"{schema}\" TO \"{role}\""),
            ),
            Some(true) => Finding::fine(what, format!("{role} may create tables in {schema}")),
        });
    }
    Ok(is_current && missing.is_empty())
}
