//! What each part of the system does to the ledger, as privileges: a role each, with no more than it needs.

use anyhow::{Context as _, ensure};
use common::schema::quoted;
use sqlx::{AssertSqlSafe, Connection as _};

use crate::address::Address;
use crate::database::{self, lock_key};
use crate::error::cause;

/// A part that works with the ledger as a role of its own. Its owner, the role that migrates it, may do everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The service.
    Loader,
    /// `etl`.
    Command,
    /// Reads only.
    Console,
}

/// Privileges and what they are on, as `GRANT` names them.
type Privileges = &'static [(&'static str, &'static str)];

const READS: Privileges = &[
    ("USAGE", "SCHEMA etl"),
    ("SELECT", "ALL TABLES IN SCHEMA etl"),
    // PUBLIC has it, unless the database's default privileges take it away.
    ("EXECUTE", "ALL FUNCTIONS IN SCHEMA etl"),
];

const LOADER: Privileges = &[
    (
        "INSERT, UPDATE",
        "etl.queries, etl.batches, etl.conflicts, etl.dead_letters, etl.staging, etl.parked, etl.loaders, etl.outbox",
    ),
    ("INSERT", "etl.rejected_rows, etl.watermarks"),
    ("UPDATE", "etl.runs, etl.replays, etl.removals, etl.jobs"),
    (
        "DELETE",
        "etl.batches, etl.conflicts, etl.rejected_rows, etl.staging, etl.parked, etl.outbox",
    ),
    // A run that is committed as a whole waits in a table of its own.
    ("USAGE, CREATE", "SCHEMA etl_staging"),
];

const COMMAND: Privileges = &[
    (
        "INSERT, UPDATE",
        "etl.runs, etl.batches, etl.replays, etl.removals, etl.jobs",
    ),
    ("INSERT", "etl.attempts, etl.watermarks, etl.outbox"),
    ("UPDATE", "etl.rejected_rows, etl.dead_letters"),
    // Of a replay that is abandoned, and of what is pruned.
    ("DELETE", "etl.batches, etl.rejected_rows, etl.outbox"),
];

impl Part {
    fn privileges(self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        READS.iter().chain(match self {
            Self::Loader => LOADER,
            Self::Command => COMMAND,
            Self::Console => &[],
        })
    }

    /// What the part does to single tables apart from reading them: a table and a privilege each.
    pub(crate) fn writes(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let on_tables = self.privileges().filter(|(_, on)| on.starts_with("etl."));
        on_tables.flat_map(|(privileges, tables)| {
            let tables = tables.split(", ");
            tables.flat_map(|table| privileges.split(", ").map(move |one| (table, one)))
        })
    }

    /// The statements that give a role what the part needs. They change nothing for a role that has it.
    pub fn grants(self, role: &str) -> Vec<String> {
        let role = quoted(role);
        let grant = |(privileges, on): &_| format!("GRANT {privileges} ON {on} TO {role}");
        self.privileges().map(grant).collect()
    }
}

/// Gives roles what their parts need: all of it, or nothing. The address's role must own the ledger.
pub async fn grant(address: &Address, roles: &[(Part, String)]) -> anyhow::Result<()> {
    if roles.is_empty() {
        return Ok(());
    }
    let connected = database::connect(address, "etl loader migrate").await;
    let mut connection = connected.map_err(|error| anyhow::anyhow!(address.failed(&error)))?;
    let failure = || format!("cannot give {} privileges on the ledger", names(roles));
    let mut tx = connection.begin().await.with_context(failure)?;
    // One at a time: PostgreSQL refuses two that change the same table's privileges.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(lock_key("grant", ""))
        .execute(&mut *tx)
        .await
        .with_context(failure)?;
    // A role that does not own a table, and has a privilege on it, would be warned of a GRANT without effect, and get no error.
    let owns: bool = sqlx::query_scalar(
        "SELECT coalesce(bool_and(pg_has_role(nspowner, 'USAGE')), false) FROM pg_namespace WHERE nspname IN ('etl', 'etl_staging')",
    )
    .fetch_one(&mut *tx)
    .await
    .with_context(failure)?;
    ensure!(
        owns,
        "{}: run loader migrate as the owner of the schemas etl and etl_staging",
        failure()
    );
    for (part, role) in roles {
        for statement in part.grants(role) {
            let granting = sqlx::raw_sql(AssertSqlSafe(statement.clone()));
            granting.execute(&mut *tx).await.map_err(|error| {
                anyhow::anyhow!("{}, none of them has got any: {statement}: {}; create the role first (deploy/postgres/roles.sql)", failure(), cause(&error))
            })?;
        }
    }
    tx.commit().await.with_context(|| {
        format!(
            "{}, or only the answer was lost; run loader migrate again",
            failure()
        )
    })?;
    connection.close().await.ok();
    Ok(())
}

fn names(roles: &[(Part, String)]) -> String {
    let names: Vec<_> = roles.iter().map(|(_, role)| role.as_str()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_statements_for_the_quoted_role() {
        assert_eq!(
            Part::Console.grants("a\"b"),
            [
                "GRANT USAGE ON SCHEMA etl TO \"a\"\"b\"",
                "GRANT SELECT ON ALL TABLES IN SCHEMA etl TO \"a\"\"b\"",
                "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA etl TO \"a\"\"b\""
            ]
        );
        assert!(
            Part::Command
                .writes()
                .any(|one| one == ("etl.batches", "UPDATE"))
        );
        assert_eq!(Part::Console.writes().count(), 0);
    }
}
