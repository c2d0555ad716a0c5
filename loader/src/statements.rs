//! The SQL that moves a batch into its target, written once for a target and its columns. Pure.
//!
//! `append` copies straight into the target. `upsert` and `insert_only` copy into a staging table of
//! the connection and merge from there ([`merge`]). A run that is published as a whole copies into a
//! table of its own ([`publish`]).

pub mod merge;
pub(crate) mod overlap;
pub mod publish;

use common::job::{Mode, Target};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, quoted};
use sha2::{Digest, Sha256};

use crate::ddl::{TableName, list};

pub use merge::Merge;

/// A digest of what was checked of the table `pg_class c`, as an SQL expression. A cast to another
/// type rounds silently, so that a table with another fingerprint has to be checked again.
pub(crate) const FINGERPRINT: &str = "(SELECT encode(sha256(convert_to(concat_ws(' ', c.oid, c.relkind, c.relpersistence, \
    string_agg(concat_ws(' ', attnum, atttypid, atttypmod, attnotnull, attgenerated, quote_ident(attname)), ',' ORDER BY attnum)), 'UTF8')), 'hex') \
    FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)";

/// The statements for one target and its columns.
#[derive(Debug)]
pub struct Statements {
    /// Keeps the table as it is until the transaction ends, and answers its fingerprint. Two
    /// statements, so that the second one sees what the lock waited for.
    pub lock: String,
    /// The fingerprint of the table that the columns and the key were checked against.
    pub fingerprint: String,
    /// `COPY ... FROM STDIN`. The last value of a line is `_batch` (append) or the row's index in
    /// its batch (upsert).
    pub copy: String,
    /// The same in the binary format.
    pub copy_binary: String,
    /// The name that Postgres' error context has for the table that is copied into.
    pub copied_table: String,
    /// The columns' names in that context, in the batch's order.
    pub copied_columns: Vec<String>,
    /// The types that these columns have, some wider than the batch's. The binary format is of a type, and one of another
    /// type may be mistaken for a value.
    pub copied_types: Vec<PgType>,
    /// Takes the rows away that an earlier generation of the batch wrote. $1: `_batch`. Only where a
    /// replay replaces each batch by itself.
    pub supersede: Option<String>,
    /// What a target whose rows have a key needs beyond.
    pub merge: Option<Merge>,
}

impl Statements {
    /// For a table that these columns made.
    pub fn of(name: &TableName, target: &Target, columns: &[TargetColumn]) -> Self {
        let types = columns.iter().map(|column| column.pg_type).collect();
        Self::of_table(name, target, columns, types, String::new())
    }

    /// For a table with this fingerprint, which the columns and the key were checked against, and in which the columns
    /// have these types.
    pub fn of_table(
        name: &TableName,
        target: &Target,
        columns: &[TargetColumn],
        copied_types: Vec<PgType>,
        fingerprint: String,
    ) -> Self {
        let table = name.sql();
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let (copied_table, copied_columns) = match target.mode {
            Mode::Append | Mode::Replace => (name.table.clone(), names.clone()),
            Mode::Upsert | Mode::InsertOnly => (
                stage_name(name, columns, &fingerprint),
                (0..columns.len())
                    .map(|index| format!("c{index}"))
                    .collect(),
            ),
        };
        let (into, last) = match target.mode {
            Mode::Append | Mode::Replace => (table.clone(), quoted(BATCH_COLUMN)),
            Mode::Upsert | Mode::InsertOnly => {
                (format!("pg_temp.{}", quoted(&copied_table)), "n".to_owned())
            }
        };
        let copy = format!("COPY {into} ({}, {last}) FROM STDIN", list(&copied_columns));
        let merge = target
            .mode
            .has_key()
            .then(|| Merge::of(name, target, &into, &names));
        let supersede = (target.mode == Mode::Append)
            .then(|| format!("DELETE FROM {table} WHERE {} = $1", quoted(BATCH_COLUMN)));
        Self {
            lock: publish::lock(&table),
            supersede,
            fingerprint,
            copy_binary: format!("{copy} WITH (FORMAT binary)"),
            copy: format!("{copy} WITH (FORMAT text, ENCODING 'UTF8')"),
            copied_table,
            copied_columns,
            copied_types,
            merge,
        }
    }
}

/// The key of an advisory lock on something, for one purpose.
pub fn lock_key(purpose: &str, name: &str) -> i64 {
    let digest = Sha256::digest(format!("etl {purpose} {name}"));
    i64::from_be_bytes(digest[..8].try_into().unwrap_or_default())
}

/// The staging table for a target and its columns: another shape has another name, and so has that
/// of a table that was altered, whose types the staging table took over.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(key: &[&str]) -> Statements {
        let mode = if key.is_empty() {
            Mode::Append
        } else {
            Mode::Upsert
        };
        let target = Target {
            table: "t".into(),
            mode,
            key: key.iter().map(|key| (*key).into()).collect(),
            ..Target::default()
        };
        let name = TableName::of(&target, &["public".into()]).unwrap();
        let column = |name: &str| TargetColumn {
            name: name.into(),
            pg_type: "text".parse().unwrap(),
            athena_type: "varchar".into(),
        };
        Statements::of(&name, &target, &[column("a\"b"), column("c1")])
    }

    #[test]
    fn append_copies_into_the_target() {
        let statements = statements(&[]);
        assert_eq!(
            statements.copy,
            r#"COPY "public"."t" ("a""b", "c1", "_batch") FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')"#
        );
        assert!(statements.merge.is_none());
    }

    #[test]
    fn upsert_copies_into_staging_and_merges_in_the_order_of_the_keys() {
        let statements = statements(&["c1"]);
        assert!(
            statements.copy.starts_with("COPY pg_temp.\"etl_stage_"),
            "{}",
            statements.copy
        );
        let merge = statements.merge.unwrap();
        assert!(
            merge
                .merge
                .contains(r#"SELECT DISTINCT ON (c1) c0, c1, $1::bigint FROM pg_temp."etl_stage_"#),
            "{}",
            merge.merge
        );
        assert!(
            merge.merge.ends_with(
                r#"ORDER BY c1, n DESC ON CONFLICT ("c1") DO UPDATE SET "a""b" = excluded."a""b", "_batch" = excluded."_batch" WHERE t."_batch" IS NULL OR t."_batch" <= excluded."_batch""#
            ),
            "{}",
            merge.merge
        );
        assert!(merge.count_beaten.contains(r#"t."c1" = s.c1"#));
    }
}
