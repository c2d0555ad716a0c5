//! The roles that loaders work as. They decide what may be done to a target, and a command asks for them before it sends
//! anything: its own role may be another one.

use sqlx::PgConnection;

use crate::database::Store;
use crate::error::Error;

/// The roles of the loaders that were seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderRoles {
    seen: Vec<String>,
    /// The role of the connection that asked.
    own: String,
    /// The channels that they have settings for.
    channels: Vec<String>,
}

impl LoaderRoles {
    /// Their names; none where no loader has recorded its role yet.
    pub fn names(&self) -> Option<&[String]> {
        Some(&self.seen[..]).filter(|seen| !seen.is_empty())
    }

    /// The channels that they have settings for; none where no loader has recorded any yet.
    pub fn channels(&self) -> Option<&[String]> {
        self.names().map(|_| &self.channels[..])
    }

    /// The names of those whose privileges count.
    pub fn checked(&self) -> &[String] {
        self.names().unwrap_or(std::slice::from_ref(&self.own))
    }

    /// What a person has to know about them.
    pub fn note(&self) -> Option<String> {
        match &self.seen[..] {
            [] => Some(format!(
                "no loader has recorded its role yet: the target was checked for the role {} of this command; start a loader",
                self.own
            )),
            [_] => None,
            several => Some(format!(
                "loaders work as several roles ({}): the target was checked for each",
                several.join(", ")
            )),
        }
    }
}

/// The roles that loaders were seen with: those of the ten minutes before the latest one, so that loaders which are stopped
/// count and a role that no loader uses any more does not. A role that was dropped is none.
pub async fn loader_roles(tx: &mut PgConnection) -> Result<LoaderRoles, sqlx::Error> {
    let (seen, own, channels) = sqlx::query_as(
        "WITH known AS (SELECT l.* FROM etl.loaders l JOIN pg_roles r ON r.rolname = l.role_name),
              seen AS (SELECT * FROM known WHERE seen_at > (SELECT max(seen_at) FROM known) - interval '10 minutes')
         SELECT ARRAY(SELECT DISTINCT role_name FROM seen ORDER BY 1), current_user::text,
             ARRAY(SELECT DISTINCT unnest(channels) FROM seen ORDER BY 1)",
    )
    .fetch_one(tx)
    .await?;
    Ok(LoaderRoles {
        seen,
        own,
        channels,
    })
}

impl Store {
    /// [`loader_roles`], of this connection.
    pub async fn loader_roles(&self) -> Result<LoaderRoles, Error> {
        let failure = "cannot read which roles loaders work as";
        self.read(failure, async |tx: &mut PgConnection| {
            Ok(loader_roles(tx).await?)
        })
        .await
    }

    /// Records the role that the connections of a loader work as, and the channels that it has settings for: loaders with others
    /// have rows of their own. It may be another
    /// role than they log in as.
    pub async fn record_loader(&self, channels: &[String]) -> Result<(), Error> {
        let failure = "cannot record the role of this loader in etl.loaders";
        self.transaction(failure, async |tx: &mut PgConnection| {
            let record = "INSERT INTO etl.loaders (role_name, channels) VALUES (current_user, $1)
                ON CONFLICT (role_name, channels) DO UPDATE SET seen_at = now()";
            sqlx::query(record).bind(channels).execute(tx).await?;
            Ok(())
        })
        .await
    }
}
