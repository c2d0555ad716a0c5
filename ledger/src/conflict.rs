//! Conflicts between runs: rows of one run that are not in the target because a row of another run has their key. A
//! removal of the other run's rows would lose them, so that removals look here first.

use std::collections::BTreeMap;

use common::job::Mode;
use sqlx::{FromRow, PgConnection};

use crate::run::LockedRun;

/// Rows by the number of their run; 0 for rows that no run had loaded.
pub type RowsByRun = BTreeMap<i64, i64>;

/// A run whose rows gave way to another run, or were overwritten by it.
#[derive(Debug, Clone, FromRow)]
pub struct Dependent {
    /// None for rows that no run had loaded.
    pub run_id: Option<String>,
    pub rows: i64,
}

/// Records that so many rows of other runs were overwritten by this run.
pub async fn record_overwritten(
    tx: &mut PgConnection,
    run_no: i64,
    others: &RowsByRun,
) -> Result<(), sqlx::Error> {
    let all = others.iter().map(|(other, rows)| (*other, run_no, *rows));
    record(tx, all).await
}

/// Records that so many rows of this run gave way to rows of other runs.
pub async fn record_kept_out(
    tx: &mut PgConnection,
    run_no: i64,
    others: &RowsByRun,
) -> Result<(), sqlx::Error> {
    let all = others.iter().map(|(other, rows)| (run_no, *other, *rows));
    record(tx, all).await
}

async fn record(
    tx: &mut PgConnection,
    conflicts: impl Iterator<Item = (i64, i64, i64)>,
) -> Result<(), sqlx::Error> {
    let conflicts = conflicts.filter(|(run, other, rows)| run != other && *rows > 0);
    let (mut runs, mut others, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (run, other, rows) in conflicts {
        runs.push(run);
        others.push(other);
        counts.push(rows);
    }
    if runs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO etl.conflicts AS c (run_no, conflicting_run_no, rows)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[])
         ON CONFLICT (conflicting_run_no, run_no) DO UPDATE SET rows = c.rows + excluded.rows",
    )
    .bind(runs)
    .bind(others)
    .bind(counts)
    .execute(tx)
    .await
    .map(drop)
}

impl LockedRun<'_> {
    /// The runs that would lose rows with those of this run, in the order of their numbers. A run that ended without being
    /// complete has no claim to its rows: the runs that gave way to it depend on the run that took its place.
    pub async fn dependents(&mut self) -> Result<Vec<Dependent>, sqlx::Error> {
        sqlx::query_as(
            "WITH RECURSIVE lost (run_no, rows) AS (
                 SELECT run_no, rows FROM etl.conflicts WHERE conflicting_run_no = $1
                 UNION SELECT c.run_no, least(c.rows, l.rows)
                 FROM lost l JOIN etl.runs r USING (run_no) JOIN etl.conflicts c ON c.conflicting_run_no = l.run_no
                 WHERE r.state IN ('failed', 'cancelled', 'superseded'))
             SELECT r.run_id, max(l.rows) AS rows FROM lost l LEFT JOIN etl.runs r USING (run_no)
             WHERE l.run_no <> $1 AND coalesce(r.state NOT IN ('failed', 'cancelled', 'superseded'), true)
             GROUP BY l.run_no, r.run_id ORDER BY l.run_no",
        )
        .bind(self.row.run_no)
        .fetch_all(&mut *self.tx)
        .await
    }

    /// The runs that this one gave way to and whose rows count no more: they ended without being complete, or a replay
    /// of them is held; and those of this kind that took their place. A replay of this run takes the place of their rows.
    /// They stay so until the transaction ends.
    pub async fn void_conflicts(&mut self) -> Result<Vec<i64>, sqlx::Error> {
        sqlx::query_scalar(
            "WITH RECURSIVE void (run_no) AS (
                 SELECT conflicting_run_no FROM etl.conflicts JOIN etl.runs r ON r.run_no = conflicting_run_no
                 WHERE conflicts.run_no = $1 AND r.state IN ('failed', 'cancelled', 'held')
                 UNION SELECT c.conflicting_run_no FROM void v JOIN etl.conflicts c ON c.run_no = v.run_no
                 JOIN etl.runs r ON r.run_no = c.conflicting_run_no WHERE r.state IN ('failed', 'cancelled', 'held'))
             SELECT r.run_no FROM etl.runs r
             WHERE r.run_no IN (SELECT run_no FROM void) AND r.run_no <> $1 AND r.state IN ('failed', 'cancelled', 'held')
             ORDER BY r.run_no FOR SHARE OF r",
        )
        .bind(self.row.run_no)
        .fetch_all(&mut *self.tx)
        .await
    }

    /// An older run that has overwritten rows of this one, in mode upsert: a replay of it while a replay of this run was held.
    /// What the run was before cannot be had any more.
    pub async fn overwritten_by_older(&mut self) -> Result<Option<String>, sqlx::Error> {
        if self.row.mode != Mode::Upsert {
            return Ok(None);
        }
        sqlx::query_scalar(
            "SELECT r.run_id FROM etl.conflicts c JOIN etl.runs r ON r.run_no = c.conflicting_run_no
             WHERE c.run_no = $1 AND c.conflicting_run_no < $1 ORDER BY r.run_no LIMIT 1",
        )
        .bind(self.row.run_no)
        .fetch_optional(&mut *self.tx)
        .await
    }

    /// Forgets to whom rows of this run gave way: they are merged anew.
    pub async fn forget_kept_out(&mut self) -> Result<(), sqlx::Error> {
        self.delete_conflicts("DELETE FROM etl.conflicts WHERE run_no = $1")
            .await
    }

    /// Forgets every conflict of this run: none of its rows is in the target.
    pub(crate) async fn forget_conflicts(&mut self) -> Result<(), sqlx::Error> {
        self.delete_conflicts(
            "DELETE FROM etl.conflicts WHERE run_no = $1 OR conflicting_run_no = $1",
        )
        .await
    }

    async fn delete_conflicts(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        let delete = sqlx::query(statement).bind(self.row.run_no);
        delete.execute(&mut *self.tx).await.map(drop)
    }
}

/// Why rows of `run` must not go, and what to do first; none where no other run needs them. `then` is the command that
/// can be repeated afterwards.
pub fn refusal(run: &str, dependents: &[Dependent], first: &str, then: &str) -> Option<String> {
    let foreign = dependents.iter().find(|other| other.run_id.is_none());
    if let Some(foreign) = foreign {
        return Some(format!(
            "the run {run} has overwritten {} rows that no run had loaded, and nothing can restore them",
            foreign.rows
        ));
    }
    let replays = dependents.iter().filter_map(|other| {
        let run = other.run_id.as_ref()?;
        Some(format!("`etl replay {run}`"))
    });
    let replays: Vec<_> = replays.collect();
    (!replays.is_empty()).then(|| {
        format!(
            "rows of other runs gave way to rows of the run {run} or were overwritten by them, and would be lost with them; run {first}{}, which brings them back, and then {then}",
            replays.join(", ")
        )
    })
}
