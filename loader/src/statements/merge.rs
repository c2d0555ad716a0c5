//! The merge of one batch into a target whose rows have a key. Pure.
//!
//! Of each key one row of the batch: the last of an upsert, the first of an insert only, in the order
//! of the keys, so that two loaders lock rows in the same order. An upsert never overwrites a row
//! of a later batch; an insert only overwrites nothing but a row of a later batch of its own run, so
//! that of a run's rows with one key the first is the one that stays, whichever batch commits first.

use common::job::{Mode, Target};
use common::schema::{BATCH_COLUMN, quoted};

use super::lock_key;
use crate::ddl::{TableName, list};
use crate::ledger::Run;

/// The statements of a merge.
#[derive(Debug)]
pub struct Merge {
    mode: Mode,
    /// Makes the connection's staging table, unless it has one; it is empty when a transaction begins.
    pub create_stage: String,
    /// Merges staged rows. $1: `_batch`; $2, $3: the range of rows, the end excluded.
    pub merge: String,
    /// Counts target rows with a staged key that came with batches of the run over which this one
    /// wins. $1, $2: the range of `_batch`, the end excluded.
    pub count_beaten: String,
    /// Counts the distinct staged keys, those whose target row is this batch's, and those whose
    /// target row is another batch's that wins over this one; and names those batches, where it
    /// matters whether the books know them. $1: `_batch`; $2: the rows that are left out.
    pub count_winners: String,
    /// What serialises the merges into one target: `pg_advisory_xact_lock`.
    pub lock_key: i64,
    /// The target as SQL has it.
    pub table: String,
}

impl Merge {
    pub(super) fn of(name: &TableName, target: &Target, stage: &str, names: &[String]) -> Self {
        let (table, batch, key) = (name.sql(), quoted(BATCH_COLUMN), &target.key);
        let keys = staged_keys(key, names);
        let joined = joined(key, names);
        let columns = staged_columns(names.len());
        let updates = updates(key, names);
        let is_upsert = target.mode == Mode::Upsert;
        let (last_or_first, may_overwrite) = if is_upsert {
            (
                "DESC",
                format!("t.{batch} IS NULL OR t.{batch} <= excluded.{batch}"),
            )
        } else {
            (
                "ASC",
                format!(
                    "t.{batch} > excluded.{batch} AND t.{batch} < (((excluded.{batch} >> 24) + 1) << 24)"
                ),
            )
        };
        let (others, doubtful) = if is_upsert {
            (format!("t.{batch} > $1"), format!("t.{batch} > $1"))
        } else {
            // Whose they are is all the same: what is there stays.
            let first = quoted(key.first().map_or("", String::as_str));
            let others = format!("t.{first} IS NOT NULL AND t.{batch} IS DISTINCT FROM $1");
            (others, "false".to_owned())
        };
        let staged_as = names.iter().enumerate();
        let staged_as = staged_as.map(|(index, name)| format!("{} AS c{index}", quoted(name)));
        Self {
            mode: target.mode,
            create_stage: format!(
                "CREATE TEMP TABLE IF NOT EXISTS {} ON COMMIT DELETE ROWS AS SELECT {}, 0 AS n FROM {table} WITH NO DATA",
                stage.trim_start_matches("pg_temp."),
                staged_as.collect::<Vec<_>>().join(", ")
            ),
            merge: format!(
                "INSERT INTO {table} AS t ({}, {batch}) SELECT DISTINCT ON ({keys}) {columns}, $1::bigint FROM {stage} WHERE n >= $2 AND n < $3 \
                 ORDER BY {keys}, n {last_or_first} ON CONFLICT ({}) DO UPDATE SET {updates} WHERE {may_overwrite}",
                list(names),
                list(key),
            ),
            count_beaten: format!(
                "SELECT count(*) FROM (SELECT DISTINCT {keys} FROM {stage}) s JOIN {table} t ON {joined} WHERE t.{batch} >= $1 AND t.{batch} < $2"
            ),
            count_winners: format!(
                "SELECT count(*), count(*) FILTER (WHERE t.{batch} = $1), count(*) FILTER (WHERE {others}), \
                 coalesce(array_agg(DISTINCT t.{batch}) FILTER (WHERE {doubtful}), '{{}}') \
                 FROM (SELECT DISTINCT {keys} FROM {stage} WHERE n <> ALL($2::int[])) s LEFT JOIN {table} t ON {joined}"
            ),
            lock_key: merge_lock(name),
            table,
        }
    }

    /// The batches of its own run over which a batch wins, as a range of `_batch`, the end excluded.
    pub(crate) fn beaten(&self, run: &Run, number: i64) -> (i64, i64) {
        match self.mode {
            Mode::InsertOnly => (number + 1, run.batch_numbers().1),
            Mode::Append | Mode::Upsert | Mode::Replace => (run.batch_numbers().0, number),
        }
    }
}

/// The key of the lock that serialises what depends on the rows that are in a target.
pub(crate) fn merge_lock(name: &TableName) -> i64 {
    lock_key("merge", &name.sql())
}

/// `c0, c1, ...`: the staged columns, which have no names of their own.
pub(super) fn staged_columns(count: usize) -> String {
    let all = (0..count).map(|index| format!("c{index}"));
    all.collect::<Vec<_>>().join(", ")
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

/// Everything but the key, from the row that was refused for its key.
pub(super) fn updates(key: &[String], names: &[String]) -> String {
    let batch = BATCH_COLUMN.to_owned();
    let others = names.iter().filter(|name| !key.contains(name));
    let all = others.chain([&batch]).map(|name| {
        let column = quoted(name);
        format!("{column} = excluded.{column}")
    });
    all.collect::<Vec<_>>().join(", ")
}
