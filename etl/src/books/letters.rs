//! Dead letters: what no stage could handle.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow};

use super::{Books, Run};
use crate::Failure;

/// A dead letter, without its body.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct DeadLetter {
    pub(crate) id: i64,
    pub(crate) message_id: Option<String>,
    pub(crate) stage: String,
    pub(crate) reason: String,
    pub(crate) attempts: i32,
    pub(crate) job: Option<String>,
    pub(crate) run_id: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) received_at: String,
    pub(crate) resolution: Option<String>,
}

/// What it takes to send a dead letter again.
#[derive(Debug, FromRow)]
pub(crate) struct Letter {
    pub(crate) id: i64,
    pub(crate) message_id: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) kind: Option<String>,
    #[sqlx(json)]
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Option<Vec<u8>>,
    /// To the microsecond, as Postgres shows it: tells whether the letter came again.
    pub(crate) received_at: String,
}

const LETTERS: &str = r#"
    SELECT id, message_id, stage, reason, attempts, job, run_id, queue, kind, resolution,
           to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS received_at
    FROM etl.dead_letters
"#;

impl Books {
    /// The dead letters that nobody has dealt with, the oldest first; of one run, or all.
    pub(crate) async fn dead_letters(
        &self,
        run: Option<&Run>,
        limit: Option<u32>,
    ) -> Result<Vec<DeadLetter>, Failure> {
        let query = format!(
            "{LETTERS} WHERE resolved_at IS NULL AND ($1::text IS NULL OR run_id = $1) ORDER BY id LIMIT $2"
        );
        let letters = sqlx::query_as(AssertSqlSafe(query))
            .bind(run.map(|run| &run.run_id))
            .bind(limit.map(i64::from))
            .fetch_all(&self.pool)
            .await
            .context("cannot read the dead letters")?;
        Ok(letters)
    }

    /// One dead letter, dealt with or not, and its body unless that was pruned.
    pub(crate) async fn dead_letter(&self, id: i64) -> Result<(DeadLetter, Letter), Failure> {
        let shown = sqlx::query_as(AssertSqlSafe(format!("{LETTERS} WHERE id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .context("cannot read the dead letter")?;
        let whole = sqlx::query_as(
            "SELECT id, message_id, queue, kind, headers, body, received_at::text AS received_at FROM etl.dead_letters WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await
        .context("cannot read the dead letter")?;
        shown.zip(whole).ok_or_else(|| {
            Failure::misuse(anyhow!(
                "there is no dead letter {id}; `etl dead list` shows them"
            ))
        })
    }

    /// Writes down that a dead letter was sent again, and by whom; unless it came back meanwhile.
    pub(crate) async fn resolve(
        &self,
        id: i64,
        received_at: &str,
        resolution: &str,
    ) -> Result<(), Failure> {
        sqlx::query("UPDATE etl.dead_letters SET resolved_at = now(), resolution = $2 WHERE id = $1 AND resolved_at IS NULL AND received_at::text = $3")
            .bind(id)
            .bind(resolution)
            .bind(received_at)
            .execute(&self.pool)
            .await
            .with_context(|| format!("the dead letter {id} was sent again, but that could not be written down; sending it twice changes nothing"))?;
        Ok(())
    }
}
