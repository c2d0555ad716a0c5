//! Staging tables: the rows of a run that is committed as a whole wait in one table for each run and generation. The
//! loader of the first batch creates it; a cleanup drops it when it is no longer needed.
//!
//! A staging table has the columns `c0, c1, ...` with the job's types, `b` for `_batch`, and `n`, which grows within a batch in
//! the order of its rows.

use std::fmt::Write as _;

use common::message::ValidBatch;
use common::schema::TargetColumn;
use ledger::{Store, staging};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use super::copy_into::CopyInto;
use super::table::{Checked, fingerprint_of};
use crate::ddl::TableName;
use crate::errors::{LoadError, Refused, Verdict};

/// The schema of the staging tables.
const STAGING_SCHEMA: &str = "etl_staging";

/// The staging table of the batch's run, created if it is missing, and its writer.
pub(crate) async fn prepare(
    store: &Store,
    batch: &ValidBatch,
) -> Result<(Checked, CopyInto), LoadError> {
    let columns = &batch.columns;
    let failure = "cannot make a staging table in schema etl_staging";
    let found = store.transaction(failure, async |tx: &mut PgConnection| {
        let run_no = staging::begin_staging(tx, &batch.id.run).await?;
        let name = staging_table(&format!("s_{run_no}_{}", batch.id.generation));
        if staging::register(tx, &batch.id, &name.table, &batch.target, columns).await? {
            tx.execute(AssertSqlSafe(create(&name, columns))).await?;
        }
        let fingerprint = fingerprint_of(tx, &name).await?;
        Ok((name, fingerprint))
    });
    let (name, fingerprint) = found.await.map_err(LoadError::of_target)?;
    let table = name.sql();
    let Some(fingerprint) = fingerprint else {
        return Err(Refused::StagingGone { table }.into());
    };
    let names = (0..columns.len()).map(|index| format!("c{index}"));
    let types = columns.iter().map(|column| column.pg_type.into());
    let copy = CopyInto::new(&table, &table, (names.collect(), types.collect()), "b");
    Ok((Checked::new(&table, fingerprint), copy))
}

/// The name of a table in the staging schema.
pub(crate) fn staging_table(table: &str) -> TableName {
    TableName {
        schema: STAGING_SCHEMA.to_owned(),
        table: table.to_owned(),
    }
}

/// The statement that creates a staging table. Logged (WAL), like the ledger rows of its batches.
fn create(name: &TableName, columns: &[TargetColumn]) -> String {
    let mut sql = format!("CREATE TABLE {} (", name.sql());
    for (index, column) in columns.iter().enumerate() {
        // Writing to a String cannot fail.
        write!(sql, "c{index} {}, ", column.pg_type).ok();
    }
    sql + "b bigint NOT NULL, n bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000))"
}

/// Drops the staging tables of ended runs and of superseded generations, and returns their number. One that cannot be dropped,
/// since a backup reads it, keeps no other from it.
pub async fn clean_up(store: &Store) -> Result<usize, LoadError> {
    let mut dropped = 0;
    let mut failed = None;
    for (run, generation) in staging::unused(store).await? {
        let failure = "cannot drop a staging table in schema etl_staging";
        let done = store.transaction(failure, async |tx: &mut PgConnection| {
            let Some(table) = staging::unregister(tx, &run, generation).await? else {
                return Ok(false);
            };
            tx.execute("SET LOCAL lock_timeout = '100ms'").await?;
            let drop = format!("DROP TABLE IF EXISTS {}", staging_table(&table).sql());
            tx.execute(AssertSqlSafe(drop)).await?;
            Ok(true)
        });
        match done.await.map_err(LoadError::of_target) {
            Err(error) if error.verdict() != Verdict::Pause => failed = Some(error),
            done => dropped += usize::from(done?),
        }
    }
    failed.map_or(Ok(dropped), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_table_has_the_types_of_the_job() {
        let column = |name: &str, pg_type: &str| TargetColumn {
            name: name.into(),
            pg_type: pg_type.parse().unwrap(),
            athena_type: "varchar".into(),
        };
        let columns = [column("site", "text"), column("da\"y", "date")];
        assert_eq!(
            create(&staging_table("s_7_0"), &columns),
            r#"CREATE TABLE "etl_staging"."s_7_0" (c0 text, c1 date, b bigint NOT NULL, n bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000))"#
        );
    }
}
