//! A run's staged rows into its target, all or nothing, in the transaction that completes the run.
//!
//! A reader of the target sees it without them until the commit and with all of them after it. What
//! speaks against publishing is either a newer run's rows (the run is superseded) or something that
//! a person has to look at (it is held); in both cases the target is as it was, and no row is lost.

use std::collections::BTreeMap;

use common::failpoint;
use common::job::Target;
use common::schema::TargetColumn;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::ddl::TableName;
use crate::errors::{Class, LoadError, Refused, classify, held_because};
use crate::ledger::{self, batch_numbers};
use crate::staging::Staging;
use crate::statements::overlap::{TypedBound, overlap, typed};
use crate::statements::publish::{Losers, Publishing, STAGING_SCHEMA};
use crate::target::check_again;

/// What is known of a run whose batches are all in the ledger.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Counted {
    pub(crate) run_no: i64,
    pub(crate) generation: i32,
    pub(crate) rows_extracted: i64,
    pub(crate) rows_loaded: i64,
    pub(crate) rows_rejected: i64,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// The rows are in the target.
    Done,
    /// They are not, and a person has to say what shall be done.
    Held(String),
    /// They are not, since a newer run's rows are there.
    Superseded(String),
}

/// What ends an attempt without the rows in the target.
enum Stop {
    As(Published),
    Postgres(sqlx::Error),
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        Self::Postgres(error)
    }
}

fn held<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::As(Published::Held(why.into())))
}

/// Publishes the run, whose row this transaction has locked. An error is the world's fault or a
/// conflict: it is tried again.
pub(crate) async fn publish(
    tx: &mut PgConnection,
    run: &str,
    counted: &Counted,
    staging: &Staging,
) -> Result<Published, sqlx::Error> {
    let attempt = Attempt {
        run,
        staging: TableName {
            schema: STAGING_SCHEMA.to_owned(),
            table: staging.table_name.clone(),
        },
        counted,
        is_approved: staging.is_approved,
        target: &staging.target.0,
        columns: &staging.columns.0,
    };
    let mut point = tx.begin().await?;
    match attempt.publish(&mut point).await {
        Ok(()) => {
            point.commit().await?;
            Ok(Published::Done)
        }
        Err(Stop::As(published)) => {
            point.rollback().await?;
            Ok(published)
        }
        Err(Stop::Postgres(error @ sqlx::Error::Database(_)))
            if matches!(classify(&error), Class::Row | Class::Message) =>
        {
            point.rollback().await?;
            Ok(Published::Held(held_because(&error)))
        }
        // The connection is in no state to roll back on, or somebody else was in the way.
        Err(Stop::Postgres(error)) => Err(error),
    }
}

struct Attempt<'a> {
    run: &'a str,
    staging: TableName,
    counted: &'a Counted,
    is_approved: bool,
    target: &'a Target,
    columns: &'a [TargetColumn],
}

impl Attempt<'_> {
    async fn publish(&self, tx: &mut PgConnection) -> Result<(), Stop> {
        let (schema, _) = self.target.schema_and_table();
        // The schema was allowed when the first batch came.
        let name = TableName::of(self.target, &[schema.to_owned()]);
        let name = match name {
            Ok(name) => name,
            Err(refusal) => return held(refusal.to_string()),
        };
        let sql = Publishing::of(&name, &self.staging, self.target, self.columns);
        self.lock(tx, &name, &sql).await?;
        self.check_newer(tx, &name, &sql).await?;
        let staged = self.check_staged(tx, &sql).await?;
        self.check_limits(staged)?;
        failpoint::reach("before_publish").await;
        let written = self.write(tx, &sql).await?;
        self.check_written(tx, &name, &sql, staged, &written)
            .await?;
        self.note(tx, &name, &sql, &written).await?;
        Ok(())
    }

    fn bounds(&self) -> Vec<TypedBound> {
        typed(self.target.replace_where.as_ref(), self.columns)
    }

    /// Nobody merges into the target and nobody alters it until the transaction ends; and it still
    /// takes the rows as they are, since Postgres would round into a narrower type without a word.
    async fn lock(
        &self,
        tx: &mut PgConnection,
        name: &TableName,
        sql: &Publishing,
    ) -> Result<(), Stop> {
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(sql.lock_key)
            .execute(&mut *tx)
            .await?;
        tx.execute(AssertSqlSafe(sql.lock.clone())).await?;
        match check_again(tx, name, self.target, self.columns).await? {
            Ok(()) => Ok(()),
            Err(refusal) => held(refusal.to_string()),
        }
    }

    /// A replace gives way to a newer run that was published for a window that overlaps with its own,
    /// or whose rows are in its own.
    async fn check_newer(
        &self,
        tx: &mut PgConnection,
        name: &TableName,
        sql: &Publishing,
    ) -> Result<(), Stop> {
        let Some(newer) = &sql.newer else {
            return Ok(());
        };
        let table = format!("{}.{}", name.schema, name.table);
        let published: Vec<(String, Option<Json<Vec<TypedBound>>>)> = sqlx::query_as(
            "SELECT run_id, target_bounds FROM etl.runs WHERE run_no > $1 AND target_table = $2 AND mode = 'replace'
             AND published_at IS NOT NULL ORDER BY run_no DESC",
        )
        .bind(self.counted.run_no)
        .bind(&table)
        .fetch_all(&mut *tx)
        .await?;
        for (run, bounds) in published {
            let bounds = bounds.map(|bounds| bounds.0).unwrap_or_default();
            let overlap = format!("SELECT {}", overlap(&self.bounds(), &bounds));
            if sqlx::query_scalar(AssertSqlSafe(overlap))
                .fetch_one(&mut *tx)
                .await?
            {
                return self.give_way(tx, name, sql, &run).await;
            }
        }
        let numbers: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(newer.clone()))
            .bind(batch_numbers(self.counted.run_no).1)
            .fetch_all(&mut *tx)
            .await?;
        if let Some(number) = first_unknown(tx, &numbers).await? {
            let table = name.sql();
            return held(Refused::UnknownNewer { table, number }.to_string());
        }
        let run: Option<String> = sqlx::query_scalar(
            "SELECT run_id FROM etl.runs WHERE run_no = (SELECT max(number >> 24) FROM unnest($1::bigint[]) AS n (number))",
        )
        .bind(&numbers)
        .fetch_optional(&mut *tx)
        .await?;
        match run {
            None => Ok(()),
            Some(run) => self.give_way(tx, name, sql, &run).await,
        }
    }

    /// To a newer run. Of a replay there may be rows that the newer run has not replaced: then nobody can say what they
    /// shall be, and they stay as they are.
    async fn give_way(
        &self,
        tx: &mut PgConnection,
        name: &TableName,
        sql: &Publishing,
        newer: &str,
    ) -> Result<(), Stop> {
        let (from, to) = batch_numbers(self.counted.run_no);
        let has_own: bool = sqlx::query_scalar(AssertSqlSafe(sql.has_own.clone()))
            .bind(from)
            .bind(to)
            .fetch_one(tx)
            .await?;
        if has_own {
            return held(format!(
                "the run {newer}, which was asked for later, has replaced a part of the same rows, and the others are in {} as they were before this replay; `etl discard {} --why ...` leaves them so, and a new run for their part of {} brings them in anew",
                name.sql(),
                self.run,
                sql.window
            ));
        }
        Err(Stop::As(Published::Superseded(format!(
            "the run {newer}, which was asked for later, has replaced the same rows already; none of this run's rows are in the target"
        ))))
    }

    /// What is staged is what the ledger says was accepted, and belongs into the window.
    async fn check_staged(&self, tx: &mut PgConnection, sql: &Publishing) -> Result<i64, Stop> {
        let staged: i64 = sqlx::query_scalar(AssertSqlSafe(sql.count_staged.clone()))
            .fetch_one(&mut *tx)
            .await?;
        if staged != self.counted.rows_loaded {
            return held(format!(
                "the ledger says that {} rows were accepted, and {staged} are staged; replay the whole run",
                self.counted.rows_loaded
            ));
        }
        let Some(count_outside) = &sql.count_outside else {
            return Ok(staged);
        };
        let outside: i64 = sqlx::query_scalar(AssertSqlSafe(count_outside.clone()))
            .fetch_one(tx)
            .await?;
        if outside > 0 {
            return held(format!(
                "{outside} of its {staged} rows are outside of replace_where ({}) and would not be replaced by the next run; discard it",
                sql.window
            ));
        }
        Ok(staged)
    }

    /// The limits of the job, unless a person approved of the run.
    fn check_limits(&self, staged: i64) -> Result<(), Stop> {
        if self.is_approved {
            return Ok(());
        }
        let counted = self.counted;
        let rejected = counted.rows_rejected.unsigned_abs();
        if let Some(most) = self.target.max_rejected
            && most.is_exceeded(rejected, counted.rows_extracted.unsigned_abs())
        {
            return held(format!(
                "{rejected} of its {} rows were rejected, and max_rejected is {most}",
                counted.rows_extracted
            ));
        }
        let fewest = self.target.fewest_rows();
        if staged.unsigned_abs() < fewest {
            return held(format!(
                "it has {staged} rows, and a replace needs {fewest} (min_rows); the rows that it would replace are still there"
            ));
        }
        Ok(())
    }

    /// How many rows of each batch are in the target then.
    async fn write(
        &self,
        tx: &mut PgConnection,
        sql: &Publishing,
    ) -> Result<BTreeMap<i64, i64>, sqlx::Error> {
        if self.counted.generation > 0 {
            let (from, to) = batch_numbers(self.counted.run_no);
            let delete = sqlx::query(AssertSqlSafe(sql.delete_own.clone()));
            delete.bind(from).bind(to).execute(&mut *tx).await?;
        }
        if let Some(delete) = &sql.delete_window {
            tx.execute(AssertSqlSafe(delete.clone())).await?;
        }
        let written: Vec<(i64, i64)> = sqlx::query_as(AssertSqlSafe(sql.write.clone()))
            .fetch_all(tx)
            .await?;
        Ok(written.into_iter().collect())
    }

    /// Every staged row is in the target, or lost to another row of its key.
    async fn check_written(
        &self,
        tx: &mut PgConnection,
        name: &TableName,
        sql: &Publishing,
        staged: i64,
        written: &BTreeMap<i64, i64>,
    ) -> Result<(), Stop> {
        let stored: i64 = written.values().sum();
        if stored == staged {
            return Ok(());
        }
        let (wanted, numbers) = match &sql.losers {
            None => (staged, Vec::new()),
            Some(losers) => self.count_losers(tx, losers).await?,
        };
        if stored != wanted {
            return held(
                Refused::RowsVanished {
                    table: name.sql(),
                    sent: wanted.unsigned_abs(),
                    stored: stored.unsigned_abs(),
                }
                .to_string(),
            );
        }
        if let Some(number) = first_unknown(tx, &numbers).await? {
            let table = name.sql();
            return held(Refused::UnknownNewer { table, number }.to_string());
        }
        Ok(())
    }

    /// How many keys should be this run's, and the batches whose rows won over it.
    async fn count_losers(
        &self,
        tx: &mut PgConnection,
        losers: &Losers,
    ) -> Result<(i64, Vec<i64>), sqlx::Error> {
        let keys: i64 = sqlx::query_scalar(AssertSqlSafe(losers.count_keys.clone()))
            .fetch_one(&mut *tx)
            .await?;
        let (from, to) = batch_numbers(self.counted.run_no);
        let (beaten, numbers): (i64, Vec<i64>) =
            sqlx::query_as(AssertSqlSafe(losers.count_beaten.clone()))
                .bind(from)
                .bind(to)
                .fetch_one(tx)
                .await?;
        Ok((keys - beaten, numbers))
    }

    /// Into the books: what collapsed, by batch, and what was replaced.
    async fn note(
        &self,
        tx: &mut PgConnection,
        name: &TableName,
        sql: &Publishing,
        written: &BTreeMap<i64, i64>,
    ) -> Result<(), sqlx::Error> {
        let (numbers, counts): (Vec<i64>, Vec<i64>) = written.iter().map(|(b, n)| (*b, *n)).unzip();
        sqlx::query(
            "UPDATE etl.batches b SET rows_collapsed = b.rows_loaded - w.written
             FROM (SELECT l.seq, coalesce(n.written, 0) AS written FROM etl.batches l
                   LEFT JOIN unnest($3::bigint[], $4::bigint[]) AS n (number, written) ON (n.number & 16777215) = l.seq
                   WHERE l.run_id = $1 AND l.generation = $2) w
             WHERE b.run_id = $1 AND b.generation = $2 AND b.seq = w.seq AND b.rows_collapsed <> b.rows_loaded - w.written",
        )
        .bind(self.run)
        .bind(self.counted.generation)
        .bind(numbers)
        .bind(counts)
        .execute(&mut *tx)
        .await?;
        sqlx::query("UPDATE etl.runs SET target_table = $2, target_window = $3, target_bounds = $4, mode = $5, published_at = now() WHERE run_id = $1")
            .bind(self.run)
            .bind(format!("{}.{}", name.schema, name.table))
            .bind(&sql.window)
            .bind(Json(self.bounds()))
            .bind(self.target.mode.name())
            .execute(tx)
            .await
            .map(drop)
    }
}

async fn first_unknown(tx: &mut PgConnection, numbers: &[i64]) -> Result<Option<i64>, sqlx::Error> {
    match ledger::first_unknown(tx, numbers).await {
        Ok(number) => Ok(number),
        Err(
            LoadError::Books { source, .. }
            | LoadError::Target { source, .. }
            | LoadError::Completion { source, .. },
        ) => Err(source),
        Err(LoadError::Refused(_)) => Ok(None),
    }
}
