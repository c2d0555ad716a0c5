//! Moves a run's staged rows into its target, all or nothing, in the transaction that completes the run.
//!
//! A reader of the target sees none of the rows before the commit and all of them after it: the rows are written by
//! DELETE and INSERT, never by TRUNCATE or a rename. The rows of a later run supersede the run; any other obstacle
//! holds it for a person. In both cases the target is unchanged and no row is lost.

use std::collections::BTreeMap;

use common::failpoint;
use common::job::{Mode, Target};
use common::schema::{BATCH_COLUMN, TargetColumn, quoted};
use ledger::completion::{End, Sums};
use ledger::conflict::{self, RowsByRun};
use ledger::staging::Staging;
use ledger::{BatchNo, Class, LockedRun, batch, classify, database, search_path};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use super::catalog;
use super::deletion::{Deletion, Expected, within};
use super::merge::{joined, staged_keys, updates};
use super::staged::staging_table;
use super::table::{lock, lock_key};
use super::window::{TypedBound, condition, overlap, typed};
use crate::ddl::{ColumnType, TableName, list};
use crate::errors::{Refused, held_because};

/// Why an attempt ends without the rows in the target.
enum Stop {
    With(End),
    Postgres(sqlx::Error),
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        Self::Postgres(error)
    }
}

fn held<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::With(End::Held(why.into())))
}

/// Commits the run, which this transaction has locked, in a savepoint. An error is a failure of the environment or a
/// conflict, and is retried.
pub(crate) async fn commit(
    run: &mut LockedRun<'_>,
    sums: &Sums,
    staging: &Staging,
) -> Result<End, ledger::Error> {
    run.connection().execute("SAVEPOINT before_commit").await?;
    let end = match attempt(run, sums, staging).await {
        Ok(()) => return Ok(End::Completed),
        Err(Stop::With(end)) => end,
        Err(Stop::Postgres(error @ sqlx::Error::Database(_)))
            if matches!(classify(&error), Class::Row | Class::Message) =>
        {
            End::Held(held_because(&error))
        }
        // The savepoint cannot be rolled back, or another transaction conflicts.
        Err(Stop::Postgres(error)) => return Err(error.into()),
    };
    run.connection()
        .execute("ROLLBACK TO SAVEPOINT before_commit")
        .await?;
    Ok(end)
}

async fn attempt(run: &mut LockedRun<'_>, sums: &Sums, staging: &Staging) -> Result<(), Stop> {
    let (target, columns) = (&staging.target.0, &staging.columns.0);
    // The schema was allowed when the first batch arrived.
    let (schema, _) = target.schema_and_table();
    let name = match TableName::of(target, &[schema.to_owned()]) {
        Ok(name) => name,
        Err(refusal) => return held(refusal.to_string()),
    };
    let mut commit = Commit {
        table: name.sql(),
        deletion: Deletion::new(&name, target.allow_cascades),
        stage: staging_table(&staging.table_name).sql(),
        batch: quoted(BATCH_COLUMN),
        names: columns.iter().map(|column| column.name.clone()).collect(),
        types: Vec::new(),
        name,
        target,
        columns,
    };
    commit.lock(run.connection()).await?;
    commit.check_later_runs(run).await?;
    let staged = commit.check_staged(run.connection(), sums).await?;
    if !staging.is_approved {
        commit.check_limits(sums, staged)?;
    }
    failpoint::reach("before_run_commit").await;
    let written = commit.write(run).await?;
    commit.check_written(run, staged, &written).await?;
    let (schema, table) = (&commit.name.schema, &commit.name.table);
    let bounds = serde_json::to_value(commit.bounds()).unwrap_or_default();
    let window = commit.window().unwrap_or_default();
    let table = format!("{schema}.{table}");
    run.record_commit(&written, &table, (&window, bounds), target.mode.name())
        .await?;
    Ok(())
}

/// The source and the target of a commit.
struct Commit<'a> {
    name: TableName,
    deletion: Deletion,
    /// The target, the staging table and the column `_batch`, quoted for SQL.
    table: String,
    stage: String,
    batch: String,
    target: &'a Target,
    columns: &'a [TargetColumn],
    /// The columns' names.
    names: Vec<String>,
    /// What they take.
    types: Vec<ColumnType>,
}

impl Commit<'_> {
    fn bounds(&self) -> Vec<TypedBound> {
        typed(self.target.replace_where.as_ref(), self.columns)
    }

    /// The part of the target that a replace replaces, as a condition; none for the whole table.
    fn window(&self) -> Option<String> {
        let window = self.target.replace_where.as_ref();
        window.map(|window| condition(window, self.columns, quoted))
    }

    /// Locks the target against merges and alterations until the transaction ends, and checks that it still accepts the
    /// rows: PostgreSQL would silently round values for a narrower type.
    async fn lock(&mut self, tx: &mut PgConnection) -> Result<(), Stop> {
        database::lock(tx, lock_key(&self.name)).await?;
        tx.execute(AssertSqlSafe(lock(&self.table))).await?;
        match catalog::check_again(tx, &self.name, self.target, self.columns).await? {
            Ok(types) => {
                self.types = types;
                Ok(())
            }
            Err(refusal) => held(refusal.to_string()),
        }
    }

    /// A replace is superseded by a later run that was committed for an overlapping window, or whose rows are in its
    /// window.
    async fn check_later_runs(&self, run: &mut LockedRun<'_>) -> Result<(), Stop> {
        if !self.target.mode.replaces() {
            return Ok(());
        }
        let table = format!("{}.{}", self.name.schema, self.name.table);
        for (later, bounds) in run.later_replaces(&table).await? {
            let bounds: Vec<TypedBound> = serde_json::from_value(bounds)
                .map_err(|error| sqlx::Error::Decode(error.into()))?;
            let overlap = format!("SELECT {}", overlap(&self.bounds(), &bounds));
            if sqlx::query_scalar(AssertSqlSafe(overlap))
                .fetch_one(run.connection())
                .await?
            {
                return self.give_way(run, &later).await;
            }
        }
        let (table, batch) = (&self.table, &self.batch);
        let window = self.window().unwrap_or_else(|| "true".to_owned());
        let later = format!(
            "SELECT DISTINCT {batch} FROM {table} WHERE {batch} >= $1 AND {window} LIMIT 100"
        );
        let after = run.row().batch_nos().end;
        let numbers: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(later))
            .bind(after)
            .fetch_all(run.connection())
            .await?;
        self.check_known(run.connection(), &numbers).await?;
        match run.latest_of(&numbers).await? {
            None => Ok(()),
            Some(later) => self.give_way(run, &later).await,
        }
    }

    /// The run is superseded by a later run. A replay may have rows that the later run has not replaced: their correct
    /// values are unknown, and they stay unchanged.
    async fn give_way(&self, run: &mut LockedRun<'_>, later: &str) -> Result<(), Stop> {
        let (table, batch) = (&self.table, &self.batch);
        let has_own =
            format!("SELECT EXISTS (SELECT FROM {table} WHERE {batch} >= $1 AND {batch} < $2)");
        let own = run.row().batch_nos();
        let has_own: bool = sqlx::query_scalar(AssertSqlSafe(has_own))
            .bind(own.start)
            .bind(own.end)
            .fetch_one(run.connection())
            .await?;
        if has_own {
            return held(format!(
                "the run {later}, which was requested later, has replaced a part of the same rows, and the others are in {table} as they were before this replay; `etl discard {} --why ...` leaves them so, and a new run for their part of {} loads them anew",
                run.row().run_id,
                self.window().unwrap_or_default()
            ));
        }
        Err(Stop::With(End::Superseded(format!(
            "the run {later}, which was requested later, has replaced the same rows already; none of this run's rows are in the target"
        ))))
    }

    /// Checks that the staged rows are those that the ledger calls accepted, and that they are in the window.
    async fn check_staged(&self, tx: &mut PgConnection, sums: &Sums) -> Result<i64, Stop> {
        let stage = &self.stage;
        let count = format!("SELECT count(*) FROM {stage}");
        let staged: i64 = sqlx::query_scalar(AssertSqlSafe(count))
            .fetch_one(&mut *tx)
            .await?;
        if staged != sums.rows_loaded {
            return held(format!(
                "the ledger says that {} rows were accepted, and {staged} are staged; replay the whole run",
                sums.rows_loaded
            ));
        }
        let Some(window) = &self.target.replace_where else {
            return Ok(staged);
        };
        let in_staging = condition(window, self.columns, |name| {
            let place = self.names.iter().position(|one| one == name);
            format!("c{}", place.unwrap_or_default())
        });
        let outside = format!("SELECT count(*) FROM {stage} WHERE ({in_staging}) IS NOT TRUE");
        let outside: i64 = sqlx::query_scalar(AssertSqlSafe(outside))
            .fetch_one(tx)
            .await?;
        if outside > 0 {
            return held(format!(
                "{outside} of its {staged} rows are outside of replace_where ({}) and would not be replaced by the next run; discard it",
                self.window().unwrap_or_default()
            ));
        }
        Ok(staged)
    }

    /// The limits of the job.
    fn check_limits(&self, sums: &Sums, staged: i64) -> Result<(), Stop> {
        let rejected = sums.rows_rejected.unsigned_abs();
        if let Some(most) = self.target.max_rejected
            && most.is_exceeded(rejected, sums.rows_extracted.unsigned_abs())
        {
            return held(format!(
                "{rejected} of its {} rows {} rejected, and max_rejected is {most}",
                sums.rows_extracted,
                if rejected == 1 { "was" } else { "were" }
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

    /// Deletes the rows of an earlier generation of the run and those that a replace replaces, and inserts or merges
    /// the staged rows. Returns the number of rows in the target by batch.
    async fn write(&self, run: &mut LockedRun<'_>) -> Result<BTreeMap<i64, i64>, Stop> {
        let mut void = Vec::new();
        if run.row().is_replay() {
            self.check_dependents(run).await?;
            self.delete_earlier(run).await?;
            void = run.void_conflicts().await?;
            run.forget_kept_out().await?;
        }
        if self.target.mode.replaces() {
            self.delete_window(run).await?;
        }
        if self.target.mode.has_key() {
            let overwritten = self.overwritten(run, &void).await?;
            let run_no = run.row().run_no;
            conflict::record_overwritten(run.connection(), run_no, &overwritten).await?;
        }
        let (insert, schema) = (self.insert(&void), &self.name.schema);
        let tx = run.connection();
        let written = search_path::as_triggers_expect(tx, schema, async |tx: &mut PgConnection| {
            let insert = sqlx::query_as::<_, (i64, i64)>(AssertSqlSafe(insert));
            insert.fetch_all(tx).await
        });
        Ok(written.await?.into_iter().collect())
    }

    /// Holds a replay that would leave a key without a row, where other runs gave way to the row that is there.
    async fn check_dependents(&self, run: &mut LockedRun<'_>) -> Result<(), Stop> {
        if !self.target.mode.has_key() {
            return Ok(());
        }
        let mut dependents = run.dependents().await?;
        // Rows of no run are not brought back by a replay of any.
        dependents.retain(|dependent| dependent.run_id.is_some());
        if dependents.is_empty() {
            return Ok(());
        }
        let own = within(&run.row().batch_nos());
        let dropped = format!(
            "SELECT count(*) FROM {} t WHERE {own} AND NOT EXISTS (SELECT FROM {} s WHERE {})",
            self.table,
            self.stage,
            joined(&self.target.key, &self.names)
        );
        let dropped: i64 = sqlx::query_scalar(AssertSqlSafe(dropped))
            .fetch_one(run.connection())
            .await?;
        // Replays of some of them have taken the place of this run's rows: an older one may stand where a newer one belongs.
        let taken = run.overwritten_by_older().await?.is_some();
        let id = run.row().run_id.clone();
        let then = format!("`etl approve {id}`");
        match conflict::refusal(&id, &dependents, "", &then) {
            Some(why) if dropped > 0 || taken => held(format!(
                "the replay leaves {dropped} keys without a row of the run: {why}"
            )),
            _ => Ok(()),
        }
    }

    /// Deletes what an earlier generation of the run has in the target.
    async fn delete_earlier(&self, run: &mut LockedRun<'_>) -> Result<(), Stop> {
        let most = run.earlier_rows().await?;
        // Rows with a key may have been overwritten, and those that a replace replaces are deleted all the same.
        let fewest = if self.target.mode.adds() { most } else { 0 };
        let own = run.row().batch_nos();
        let expected = Expected { fewest, most };
        let deleted = self
            .deletion
            .delete_batches(run.connection(), own, expected);
        deleted
            .await?
            .map(drop)
            .or_else(|refused| held(refused.to_string()))
    }

    /// Deletes the rows that a replace replaces, and none of a later run.
    async fn delete_window(&self, run: &mut LockedRun<'_>) -> Result<(), Stop> {
        let batch = &self.batch;
        let window = self.window().unwrap_or_else(|| "true".to_owned());
        let end = run.row().batch_nos().end;
        let condition =
            format!("({window}) AND ({batch} IS NULL OR {batch} OPERATOR(pg_catalog.<) {end})");
        let deleted = self.deletion.delete(run.connection(), &condition);
        deleted
            .await?
            .map(drop)
            .or_else(|refused| held(refused.to_string()))
    }

    /// The rows of other runs that the staged rows are about to overwrite, by run. `void`: runs whose rows do not count.
    async fn overwritten(
        &self,
        run: &mut LockedRun<'_>,
        void: &[i64],
    ) -> Result<RowsByRun, sqlx::Error> {
        let (batch, start) = (&self.batch, run.row().batch_nos().start);
        let older = match self.target.mode {
            Mode::Upsert => format!("t.{batch} IS NULL OR t.{batch} < {start} OR "),
            Mode::InsertOnly | Mode::Append | Mode::Replace => String::new(),
        };
        let condition = format!("({older}{})", is_of(batch, void));
        let (_, counts) = self.conflicting(run, &condition).await?;
        Ok(counts)
    }

    /// The staged values, as the columns of the target take them.
    fn staged_values(&self) -> String {
        let values = self.types.iter().enumerate().map(|(index, one)| {
            let cast = one.cast.as_ref().map(|cast| format!("::{cast}"));
            format!("c{index}{}", cast.unwrap_or_default())
        });
        values.collect::<Vec<_>>().join(", ")
    }

    /// The statement that writes the staged rows and returns the number in the target by batch.
    /// `void`: runs whose rows do not count, and are overwritten.
    fn insert(&self, void: &[i64]) -> String {
        let (table, batch) = (&self.table, &self.batch);
        let key = &self.target.key;
        let keys = staged_keys(key, &self.names);
        let conflict = format!("ON CONFLICT ({})", list(key));
        let (distinct, end) = match self.target.mode {
            Mode::Append | Mode::Replace => (String::new(), String::new()),
            Mode::Upsert => (
                format!("DISTINCT ON ({keys}) "),
                format!(
                    " ORDER BY {keys}, b DESC, n DESC {conflict} DO UPDATE SET {} WHERE t.{batch} IS NULL OR t.{batch} OPERATOR(pg_catalog.<=) excluded.{batch} OR {}",
                    updates(key, &self.names),
                    is_of(batch, void)
                ),
            ),
            Mode::InsertOnly => {
                let action = if void.is_empty() {
                    "DO NOTHING".to_owned()
                } else {
                    let updates = updates(key, &self.names);
                    format!("DO UPDATE SET {updates} WHERE {}", is_of(batch, void))
                };
                (
                    format!("DISTINCT ON ({keys}) "),
                    format!(" ORDER BY {keys}, b, n {conflict} {action}"),
                )
            }
        };
        format!(
            "WITH written AS (INSERT INTO {table} AS t ({}, {batch}) SELECT {distinct}{}, b FROM {}{end} RETURNING t.{batch} AS b) \
             SELECT b, pg_catalog.count(*) FROM written GROUP BY b",
            list(&self.names),
            self.staged_values(),
            self.stage
        )
    }

    /// Checks that every staged row is in the target, or replaced by another row of its key.
    async fn check_written(
        &self,
        run: &mut LockedRun<'_>,
        staged: i64,
        written: &BTreeMap<i64, i64>,
    ) -> Result<(), Stop> {
        let stored: i64 = written.values().sum();
        if stored == staged {
            return Ok(());
        }
        let wanted = if self.target.mode.has_key() {
            let (keys, lost) = self.kept_out(run).await?;
            let run_no = run.row().run_no;
            conflict::record_kept_out(run.connection(), run_no, &lost).await?;
            keys - lost.values().sum::<i64>()
        } else {
            staged
        };
        if stored != wanted {
            return held(
                Refused::RowsVanished {
                    table: self.table.clone(),
                    sent: wanted.unsigned_abs(),
                    stored: stored.unsigned_abs(),
                }
                .to_string(),
            );
        }
        Ok(())
    }

    /// The number of keys with a row of this run, and the rows of other runs that win over them, by run. The ledger must
    /// know the batches that count as newer.
    async fn kept_out(&self, run: &mut LockedRun<'_>) -> Result<(i64, RowsByRun), Stop> {
        let batch = &self.batch;
        let keys: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT count(*) FROM {}",
            self.staged_keys()
        )))
        .fetch_one(run.connection())
        .await?;
        let own = run.row().batch_nos();
        let condition = match self.target.mode {
            Mode::Upsert => format!("t.{batch} >= {}", own.end),
            Mode::InsertOnly | Mode::Append | Mode::Replace => format!(
                "(t.{batch} IS NULL OR t.{batch} < {} OR t.{batch} >= {})",
                own.start, own.end
            ),
        };
        let (winners, counts) = self.conflicting(run, &condition).await?;
        if self.target.mode == Mode::Upsert {
            self.check_known(run.connection(), &winners).await?;
        }
        Ok((keys, counts))
    }

    /// The rows `t` of the target with a staged key for which a condition holds: their batches, and their number by run.
    async fn conflicting(
        &self,
        run: &mut LockedRun<'_>,
        condition: &str,
    ) -> Result<(Vec<i64>, RowsByRun), sqlx::Error> {
        let count = format!(
            "SELECT t.{} AS b, count(*) FROM {} JOIN {} t ON {} WHERE {condition} GROUP BY 1",
            self.batch,
            self.staged_keys(),
            self.table,
            joined(&self.target.key, &self.names)
        );
        let by_batch: Vec<(Option<i64>, i64)> = sqlx::query_as(AssertSqlSafe(count))
            .fetch_all(run.connection())
            .await?;
        let mut by_run = RowsByRun::new();
        for (batch, rows) in &by_batch {
            *by_run.entry(batch.map_or(0, BatchNo::run_of)).or_default() += rows;
        }
        let batches = by_batch.into_iter().filter_map(|(batch, _)| batch);
        Ok((batches.collect(), by_run))
    }

    /// The distinct staged keys `s`.
    fn staged_keys(&self) -> String {
        format!(
            "(SELECT DISTINCT {} FROM {}) s",
            staged_keys(&self.target.key, &self.names),
            self.stage
        )
    }

    /// Holds the run when the ledger lacks one of these batches, whose rows would count as newer.
    async fn check_known(&self, tx: &mut PgConnection, numbers: &[i64]) -> Result<(), Stop> {
        match batch::first_unknown(tx, numbers).await? {
            None => Ok(()),
            Some(number) => {
                let table = self.table.clone();
                held(Refused::UnknownNewer { table, number }.to_string())
            }
        }
    }
}

/// Whether the row `t` is of one of these runs.
fn is_of(batch: &str, runs: &[i64]) -> String {
    if runs.is_empty() {
        return "false".to_owned();
    }
    let runs = runs.iter().map(i64::to_string).collect::<Vec<_>>();
    format!(
        "etl.run_no(t.{batch}) OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::bigint[])",
        runs.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use common::job::Window;

    use super::*;

    fn columns() -> Vec<TargetColumn> {
        let column = |name: &str, pg_type: &str| TargetColumn {
            name: name.into(),
            pg_type: pg_type.parse().unwrap(),
            athena_type: "varchar".into(),
        };
        vec![column("site", "text"), column("da\"y", "date")]
    }

    fn commit<'a>(target: &'a Target, columns: &'a [TargetColumn]) -> Commit<'a> {
        let name = TableName::of(target, &["public".into()]).unwrap();
        Commit {
            deletion: Deletion::new(&name, false),
            table: name.sql(),
            stage: staging_table("s_7_1").sql(),
            batch: quoted(BATCH_COLUMN),
            names: columns.iter().map(|column| column.name.clone()).collect(),
            types: columns.iter().map(|column| column.pg_type.into()).collect(),
            name,
            target,
            columns,
        }
    }

    #[test]
    fn window_has_quoted_names_and_typed_literals() {
        let window = Window::parse("\"da\"\"y\" between :from and :to and site > 'it''s'").unwrap();
        let values = BTreeMap::from([
            ("from".to_owned(), "2018-04-02".to_owned()),
            ("to".to_owned(), "x'; DROP TABLE t; --".to_owned()),
        ]);
        let target = Target {
            table: "t".into(),
            mode: Mode::Replace,
            replace_where: Some(window.filled(&values)),
            ..Target::default()
        };
        let columns = columns();
        let wanted = r#""da""y" OPERATOR(pg_catalog.>=) '2018-04-02'::pg_catalog.date AND "da""y" OPERATOR(pg_catalog.<=) 'x''; DROP TABLE t; --'::pg_catalog.date AND "site" COLLATE pg_catalog."C" OPERATOR(pg_catalog.>) 'it''s'::pg_catalog.text"#;
        assert_eq!(commit(&target, &columns).window().as_deref(), Some(wanted));
    }

    #[test]
    fn replace_without_a_window_replaces_the_whole_table() {
        let target = Target {
            table: "t".into(),
            mode: Mode::Replace,
            ..Target::default()
        };
        let columns = columns();
        let commit = commit(&target, &columns);
        assert_eq!(commit.window(), None);
        assert_eq!(
            commit.insert(&[]),
            r#"WITH written AS (INSERT INTO "public"."t" AS t ("site", "da""y", "_batch") SELECT c0, c1, b FROM "etl_staging"."s_7_1" RETURNING t."_batch" AS b) SELECT b, pg_catalog.count(*) FROM written GROUP BY b"#
        );
    }

    #[test]
    fn upsert_keeps_the_last_row_of_a_key_and_insert_only_the_first() {
        let of_mode = |mode| {
            let target = Target {
                table: "t".into(),
                mode,
                key: vec!["site".into()],
                ..Target::default()
            };
            commit(&target, &columns()).insert(&[])
        };
        let upsert = of_mode(Mode::Upsert);
        assert!(
            upsert.contains(r#"ORDER BY c0, b DESC, n DESC ON CONFLICT ("site") DO UPDATE SET "da""y" = excluded."da""y", "_batch" = excluded."_batch" WHERE"#),
            "{upsert}"
        );
        let insert = of_mode(Mode::InsertOnly);
        assert!(
            insert.contains(r#"ORDER BY c0, b, n ON CONFLICT ("site") DO NOTHING"#),
            "{insert}"
        );
    }
}
