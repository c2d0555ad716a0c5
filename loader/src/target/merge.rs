//! `upsert` and `insert_only`, batch by batch: rows are copied into a staging table of the connection, and merged from
//! there.
//!
//! For each key, one row of the batch is merged: the last for an upsert, the first for `insert_only`, in the order of the
//! keys, so that concurrent loaders lock rows in the same order. An upsert never overwrites a row of a later batch.
//! `insert_only` overwrites only a row of a later batch of the same run, so that the first row of a key in the run stays,
//! whichever batch commits first.

use common::job::{Mode, Target};
use common::message::ValidBatch;
use common::schema::{BATCH_COLUMN, TargetColumn, quoted};
use ledger::conflict::{self, RowsByRun};
use ledger::{BatchNo, batch, database, search_path};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use super::Written;
use super::copy_into::{CopyInto, RefusedRow, unless_refused, vanished};
use super::one_by_one::OneByOne;
use super::staged_columns;
use super::table::lock_key;
use crate::copy::Last;
use crate::ddl::{ColumnType, TableName, list};
use crate::errors::{LoadError, Refused};

/// Merges batches into one target.
#[derive(Debug)]
pub(crate) struct Merge {
    table: String,
    schema: String,
    copy: CopyInto,
    /// Serialises the merges into one target.
    lock_key: i64,
    /// Creates the connection's staging table unless it exists. It is empty when a transaction begins.
    create_stage: String,
    /// Merges the staged rows. $1: `_batch`.
    statement: String,
    /// The same for rows that do not come from staging.
    one_by_one: OneByOne,
    /// Counts target rows with a staged key that this batch overwrites, by their run. $1: `_batch`.
    count_overwritten: String,
    /// Counts the target rows with a staged key that win over this batch, by their run. $1: `_batch`; $2: the excluded
    /// rows.
    count_kept_out: String,
    /// Counts the distinct staged keys, those whose target row is this batch's, and those whose target row belongs to a
    /// batch that wins over this one; and lists those batches, where the ledger must know them. $1: `_batch`; $2: the
    /// excluded rows.
    count_winners: String,
}

impl Merge {
    /// The writer for a table with this fingerprint, in which the columns have these types.
    pub(crate) fn new(
        name: &TableName,
        target: &Target,
        columns: &[TargetColumn],
        (fingerprint, types): (&str, Vec<ColumnType>),
    ) -> Self {
        let (table, batch, key) = (name.sql(), quoted(BATCH_COLUMN), &target.key);
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let stage_name = stage_name(name, columns, fingerprint);
        let stage = format!("pg_temp.{}", quoted(&stage_name));
        let (keys, joined) = (staged_keys(key, &names), joined(key, &names));
        let columns = staged_columns(names.len());
        let sql = ModeSql::new(target.mode, key);
        let staged_as = names.iter().enumerate();
        let staged_as = staged_as.map(|(index, name)| format!("{} AS c{index}", quoted(name)));
        let stage_columns = (0..names.len()).map(|index| format!("c{index}")).collect();
        let merge = |batch_no: &str, rows: &str| {
            format!(
                "INSERT INTO {table} AS t ({}, {batch}) SELECT DISTINCT ON ({keys}) {columns}, {batch_no}::bigint FROM {rows} \
                 ORDER BY {keys}, n {} ON CONFLICT ({}) DO UPDATE SET {} WHERE {}",
                list(&names),
                sql.order,
                list(key),
                updates(key, &names),
                sql.may_overwrite,
            )
        };
        Self {
            one_by_one: OneByOne::new(&types, |rows| merge("$2", &format!("({rows}) AS s")))
                .firing(name),
            schema: name.schema.clone(),
            statement: merge("$1", &stage),
            // The stage has no triggers, but its columns may be of domains whose checks find their names as triggers do.
            copy: CopyInto::new(&table, &stage, (stage_columns, types), "n").firing(name),
            lock_key: lock_key(name),
            count_kept_out: format!(
                "SELECT coalesce(etl.run_no(t.{batch}), 0), count(*) FROM (SELECT DISTINCT {keys} FROM {stage} WHERE n <> ALL($2::int[])) s \
                 JOIN {table} t ON {joined} WHERE {} GROUP BY 1",
                sql.others
            ),
            create_stage: format!(
                "CREATE TEMP TABLE IF NOT EXISTS {} ON COMMIT DELETE ROWS AS SELECT {}, 0 AS n FROM {table} WITH NO DATA",
                quoted(&stage_name),
                staged_as.collect::<Vec<_>>().join(", ")
            ),
            count_overwritten: format!(
                "SELECT coalesce(etl.run_no(t.{batch}), 0), count(*) FROM (SELECT DISTINCT {keys} FROM {stage}) s JOIN {table} t ON {joined} WHERE {} GROUP BY 1",
                sql.overwritten
            ),
            count_winners: format!(
                "SELECT count(*), count(*) FILTER (WHERE t.{batch} = $1), count(*) FILTER (WHERE {}), \
                 coalesce(array_agg(DISTINCT t.{batch}) FILTER (WHERE {}), '{{}}') \
                 FROM (SELECT DISTINCT {keys} FROM {stage} WHERE n <> ALL($2::int[])) s LEFT JOIN {table} t ON {joined}",
                sql.others, sql.doubtful
            ),
            table,
        }
    }

    /// Writes a batch.
    pub(crate) async fn write(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        run_no: i64,
    ) -> Result<Written, LoadError> {
        if batch.rows.is_empty() {
            return Ok(Written::default());
        }
        let created = tx.execute(AssertSqlSafe(self.create_stage.clone())).await;
        created.map_err(LoadError::target(|| {
            format!(
                "cannot make the temporary table for a merge into {}",
                self.table
            )
        }))?;
        let mut refused = self.copy.copy(tx, batch, Last::Index).await?;
        let deduplicated = self.merge(tx, batch, run_no, &mut refused).await?;
        Ok(Written::new(refused, deduplicated))
    }

    /// Merges the staged rows, and returns the number of deduplicated rows: rows that another row replaced within the
    /// batch or in the target, and rows of this run's other batches that this one overwrote. So the sum over a run does
    /// not depend on the order in which its batches commit. A row of an upsert may only lose to a batch that the ledger
    /// knows.
    async fn merge(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        run_no: i64,
        refused: &mut Vec<RefusedRow>,
    ) -> Result<i64, LoadError> {
        let failed = || LoadError::target(|| format!("cannot merge rows into {}", self.table));
        let batch_no = BatchNo::new(run_no, batch.id.first_row).get();
        database::lock(tx, self.lock_key).await.map_err(failed())?;
        let before = self.overwritten(tx, batch_no).await.map_err(failed())?;
        let own_before = before.get(&run_no).copied().unwrap_or(0);
        let merged = unless_refused(tx, async |tx: &mut PgConnection| {
            search_path::as_triggers_expect(tx, &self.schema, async |tx: &mut PgConnection| {
                let merge = sqlx::query(AssertSqlSafe(self.statement.clone())).bind(batch_no);
                merge.execute(tx).await
            })
            .await
        });
        let merged = merged.await.map_err(failed())?;
        if merged.is_none() {
            let last = (Last::Index, batch_no);
            let written = self.one_by_one.write(tx, batch, last, refused);
            written.await.map_err(failed())?;
        }
        let accepted = batch.rows.len() - refused.len();
        // The usual case: all rows at once, and each key once.
        if refused.is_empty()
            && merged.is_some_and(|merged| merged.rows_affected() == accepted as u64)
        {
            let recorded = conflict::record_overwritten(tx, run_no, &before).await;
            recorded.map_err(failed())?;
            return Ok(own_before);
        }
        let after = self.overwritten(tx, batch_no).await.map_err(failed())?;
        let left = |run: &i64| after.get(run).copied().unwrap_or(0);
        let overwritten = before.iter().map(|(run, rows)| (*run, rows - left(run)));
        let recorded = conflict::record_overwritten(tx, run_no, &overwritten.collect()).await;
        recorded.map_err(failed())?;
        let written = self.check_winners(tx, (run_no, batch_no), refused).await?;
        let accepted = i64::try_from(accepted).unwrap_or(i64::MAX);
        Ok(accepted - written + own_before - left(&run_no))
    }

    /// Checks that every staged key has a row in the target, of this batch or of one that wins over it. Returns the
    /// number of this batch's rows.
    async fn check_winners(
        &self,
        tx: &mut PgConnection,
        (run_no, batch_no): (i64, i64),
        refused: &[RefusedRow],
    ) -> Result<i64, LoadError> {
        let failed = || LoadError::target(|| format!("cannot merge rows into {}", self.table));
        let left_out = refused
            .iter()
            .filter_map(|row| i32::try_from(row.index).ok());
        let left_out: Vec<i32> = left_out.collect();
        let (keys, own, later, winners): (i64, i64, i64, Vec<i64>) =
            sqlx::query_as(AssertSqlSafe(self.count_winners.clone()))
                .bind(batch_no)
                .bind(&left_out)
                .fetch_one(&mut *tx)
                .await
                .map_err(failed())?;
        if own + later != keys {
            let stored = (own + later).unsigned_abs();
            return Err(vanished(&self.table, keys.unsigned_abs(), stored));
        }
        let unknown = batch::first_unknown(tx, &winners).await.map_err(failed())?;
        if let Some(number) = unknown {
            let table = self.table.clone();
            return Err(Refused::UnknownWinner { table, number }.into());
        }
        if later > 0 {
            let winners: Vec<(i64, i64)> =
                sqlx::query_as(AssertSqlSafe(self.count_kept_out.clone()))
                    .bind(batch_no)
                    .bind(&left_out)
                    .fetch_all(&mut *tx)
                    .await
                    .map_err(failed())?;
            let winners = winners.into_iter().collect();
            let recorded = conflict::record_kept_out(tx, run_no, &winners).await;
            recorded.map_err(failed())?;
        }
        Ok(own)
    }

    async fn overwritten(
        &self,
        tx: &mut PgConnection,
        batch_no: i64,
    ) -> Result<RowsByRun, sqlx::Error> {
        let counts: Vec<(i64, i64)> = sqlx::query_as(AssertSqlSafe(self.count_overwritten.clone()))
            .bind(batch_no)
            .fetch_all(tx)
            .await?;
        Ok(counts.into_iter().collect())
    }
}

/// The differences between the two modes with a key.
struct ModeSql {
    /// The first staged row of a key in this order is merged.
    order: &'static str,
    /// Whether the merged row overwrites the target row `t`.
    may_overwrite: String,
    /// Whether the merged row overwrites the target row `t`, which is another row. $1: `_batch`.
    overwritten: String,
    /// Whether the target row `t` belongs to a batch that wins over this one.
    others: String,
    /// Whether the ledger must know the batch of the target row `t`.
    doubtful: String,
}

impl ModeSql {
    fn new(mode: Mode, key: &[String]) -> Self {
        let batch = quoted(BATCH_COLUMN);
        match mode {
            Mode::Upsert => Self {
                order: "DESC",
                may_overwrite: format!(
                    "t.{batch} IS NULL OR t.{batch} OPERATOR(pg_catalog.<=) excluded.{batch}"
                ),
                overwritten: format!("(t.{batch} IS NULL OR t.{batch} < $1)"),
                others: format!("t.{batch} > $1"),
                doubtful: format!("t.{batch} > $1"),
            },
            // The existing row stays, whichever batch wrote it.
            Mode::InsertOnly | Mode::Append | Mode::Replace => {
                let first = quoted(key.first().map_or("", String::as_str));
                Self {
                    order: "ASC",
                    may_overwrite: format!(
                        "t.{batch} OPERATOR(pg_catalog.>) excluded.{batch} AND etl.run_no(t.{batch}) OPERATOR(pg_catalog.=) etl.run_no(excluded.{batch})"
                    ),
                    overwritten: format!(
                        "t.{batch} > $1 AND etl.run_no(t.{batch}) = etl.run_no($1)"
                    ),
                    others: format!("t.{first} IS NOT NULL AND t.{batch} IS DISTINCT FROM $1"),
                    doubtful: "false".to_owned(),
                }
            }
        }
    }
}

/// The name of the staging table for a target and its columns. Other columns, or an altered table whose types the
/// staging table took over, have another name.
fn stage_name(name: &TableName, columns: &[TargetColumn], fingerprint: &str) -> String {
    let mut hash = Sha256::new();
    let table = [name.schema.as_str(), &name.table, fingerprint].map(str::to_owned);
    let columns = columns
        .iter()
        .flat_map(|c| [c.name.clone(), c.pg_type.to_string()]);
    for part in table.into_iter().chain(columns) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = format!("{:x}", hash.finalize());
    format!("etl_stage_{}", &digest[..24])
}

fn position(names: &[String], column: &String) -> usize {
    let found = names.iter().position(|name| name == column);
    found.unwrap_or_default()
}

/// The staged columns of the key.
pub(super) fn staged_keys(key: &[String], names: &[String]) -> String {
    let all = key
        .iter()
        .map(|column| format!("c{}", position(names, column)));
    all.collect::<Vec<_>>().join(", ")
}

/// The target's row `t` with the key of the staged row `s`.
pub(super) fn joined(key: &[String], names: &[String]) -> String {
    let all = key
        .iter()
        .map(|column| format!("t.{} = s.c{}", quoted(column), position(names, column)));
    all.collect::<Vec<_>>().join(" AND ")
}

/// The assignments of an upsert: `_batch` and every column outside of the key, from the proposed row (`excluded`).
pub(super) fn updates(key: &[String], names: &[String]) -> String {
    let batch = BATCH_COLUMN.to_owned();
    let others = names.iter().filter(|name| !key.contains(name));
    let all = others.chain([&batch]).map(|name| {
        let column = quoted(name);
        format!("{column} = excluded.{column}")
    });
    all.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use common::schema::PgType;

    use super::*;

    #[test]
    fn upsert_merges_in_key_order() {
        let column = |name: &str| TargetColumn {
            name: name.into(),
            pg_type: PgType::Text,
            athena_type: "varchar".into(),
        };
        let target = Target {
            table: "t".into(),
            mode: Mode::Upsert,
            key: vec!["c1".into()],
            ..Target::default()
        };
        let name = TableName::of(&target, &["public".into()]).unwrap();
        let columns = [column("a\"b"), column("c1")];
        let merge = Merge::new(&name, &target, &columns, ("", vec![PgType::Text.into(); 2]));
        assert!(
            merge
                .statement
                .contains(r#"SELECT DISTINCT ON (c1) c0, c1, $1::bigint FROM pg_temp."etl_stage_"#),
            "{}",
            merge.statement
        );
        assert!(
            merge.statement.ends_with(
                r#"ORDER BY c1, n DESC ON CONFLICT ("c1") DO UPDATE SET "a""b" = excluded."a""b", "_batch" = excluded."_batch" WHERE t."_batch" IS NULL OR t."_batch" OPERATOR(pg_catalog.<=) excluded."_batch""#
            ),
            "{}",
            merge.statement
        );
        assert!(merge.count_overwritten.contains(r#"t."c1" = s.c1"#));
    }
}
