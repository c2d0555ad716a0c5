//! The SQL that stages a run's rows and, at its end, publishes them as a whole. Pure.
//!
//! A staging table has the columns `c0, c1, ...` with the job's types, `b` for `_batch`, and `n`,
//! which grows within a batch in the order of its rows. Rows reach the target by DELETE and INSERT:
//! a reader sees the table as it was until the commit, and nobody has to wait for it.

use std::fmt::Write as _;

use common::job::{Mode, Target, Window};
use common::schema::{BATCH_COLUMN, PgType, TargetColumn, quoted};

use super::merge::{joined, merge_lock, staged_columns, staged_keys, updates};
use super::{FINGERPRINT, Statements};
use crate::ddl::{TableName, list, literal};

/// The schema of the staging tables.
pub const STAGING_SCHEMA: &str = "etl_staging";

/// The staging table of a run's generation.
pub fn staging_table(run_no: i64, generation: i32) -> TableName {
    TableName {
        schema: STAGING_SCHEMA.to_owned(),
        table: format!("s_{run_no}_{generation}"),
    }
}

/// The statement that makes a staging table. Logged, like the ledger rows that go with its rows.
pub fn create_staging(staging: &TableName, columns: &[TargetColumn]) -> String {
    let mut sql = format!("CREATE TABLE {} (", staging.sql());
    for (index, column) in columns.iter().enumerate() {
        // Writing to a String cannot fail.
        write!(sql, "c{index} {}, ", column.pg_type).ok();
    }
    sql + "b bigint NOT NULL, n bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000))"
}

/// How batches get into a staging table with this fingerprint.
pub fn into_staging(
    staging: &TableName,
    columns: &[TargetColumn],
    fingerprint: String,
) -> Statements {
    let table = staging.sql();
    let copied_types = columns.iter().map(|column| column.pg_type).collect();
    let columns = staged_columns(columns.len());
    let copy = format!("COPY {table} ({columns}, b) FROM STDIN");
    Statements {
        lock: lock(&table),
        fingerprint,
        copy_binary: format!("{copy} WITH (FORMAT binary)"),
        copy: format!("{copy} WITH (FORMAT text, ENCODING 'UTF8')"),
        copied_table: staging.table.clone(),
        copied_columns: columns.split(", ").map(str::to_owned).collect(),
        copied_types,
        supersede: None,
        merge: None,
    }
}

/// Keeps a table as it is until the transaction ends, and answers its fingerprint. Two statements,
/// so that the second one sees what the lock waited for.
pub(super) fn lock(table: &str) -> String {
    format!(
        "LOCK TABLE ONLY {table} IN ROW EXCLUSIVE MODE; SELECT {FINGERPRINT} FROM pg_class c WHERE c.oid = {}::regclass",
        literal(table)
    )
}

/// The statements that publish a run.
#[derive(Debug)]
pub struct Publishing {
    /// Serialises with everything else that depends on the rows in the target.
    pub lock_key: i64,
    /// Keeps the target's columns as they are.
    pub lock: String,
    /// What part of the target a replace replaces, as a condition; empty for all of it.
    pub window: String,
    /// Counts the staged rows.
    pub count_staged: String,
    /// Counts staged rows outside of the window.
    pub count_outside: Option<String>,
    /// Names some batches after the run's own that have rows in the window. $1: the end of the
    /// run's range of `_batch`.
    pub newer: Option<String>,
    /// Whether rows of earlier generations are there. $1, $2: as below.
    pub has_own: String,
    /// Takes the rows of earlier generations away. $1, $2: the run's range of `_batch`, the end
    /// excluded.
    pub delete_own: String,
    /// Takes the window's rows away.
    pub delete_window: Option<String>,
    /// Writes the staged rows; answers how many, by batch, are in the target.
    pub write: String,
    /// For a target whose rows have a key: how the rows that were not written lost.
    pub losers: Option<Losers>,
}

/// How staged rows lost to others.
#[derive(Debug)]
pub struct Losers {
    /// Counts the distinct staged keys.
    pub count_keys: String,
    /// Counts the keys that have a row of another run in the target that wins, and names the
    /// batches of those rows, where it matters whether the books know them. $1, $2: the run's range
    /// of `_batch`, the end excluded.
    pub count_beaten: String,
}

impl Publishing {
    pub fn of(
        name: &TableName,
        staging: &TableName,
        target: &Target,
        columns: &[TargetColumn],
    ) -> Self {
        let (table, stage, batch) = (name.sql(), staging.sql(), quoted(BATCH_COLUMN));
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let window = target.replace_where.as_ref();
        let in_target = window.map(|window| condition(window, columns, quoted));
        let in_staging = window.map(|window| {
            condition(window, columns, |name| {
                let place = names.iter().position(|one| one == name);
                format!("c{}", place.unwrap_or_default())
            })
        });
        let is_replace = target.mode == Mode::Replace;
        let of_window = in_target.as_deref().unwrap_or("true");
        Self {
            lock_key: merge_lock(name),
            lock: lock(&table),
            count_staged: format!("SELECT count(*) FROM {stage}"),
            count_outside: in_staging.map(|condition| {
                format!("SELECT count(*) FROM {stage} WHERE ({condition}) IS NOT TRUE")
            }),
            newer: is_replace.then(|| {
                format!("SELECT DISTINCT {batch} FROM {table} WHERE {batch} >= $1 AND {of_window} LIMIT 100")
            }),
            has_own: format!("SELECT EXISTS (SELECT FROM {table} WHERE {batch} >= $1 AND {batch} < $2)"),
            delete_own: format!("DELETE FROM {table} WHERE {batch} >= $1 AND {batch} < $2"),
            delete_window: is_replace.then(|| format!("DELETE FROM {table} WHERE {of_window}")),
            write: write_statement(&table, &stage, target, &names),
            losers: target
                .mode
                .has_key()
                .then(|| Losers::of(&table, &stage, target, &names)),
            window: in_target.unwrap_or_default(),
        }
    }
}

fn write_statement(table: &str, stage: &str, target: &Target, names: &[String]) -> String {
    let batch = quoted(BATCH_COLUMN);
    let keys = staged_keys(&target.key, names);
    let conflict = format!("ON CONFLICT ({})", list(&target.key));
    let (distinct, end) = match target.mode {
        Mode::Append | Mode::Replace => (String::new(), String::new()),
        Mode::Upsert => (
            format!("DISTINCT ON ({keys}) "),
            format!(
                " ORDER BY {keys}, b DESC, n DESC {conflict} DO UPDATE SET {} WHERE t.{batch} IS NULL OR t.{batch} <= excluded.{batch}",
                updates(&target.key, names)
            ),
        ),
        Mode::InsertOnly => (
            format!("DISTINCT ON ({keys}) "),
            format!(" ORDER BY {keys}, b, n {conflict} DO NOTHING"),
        ),
    };
    format!(
        "WITH written AS (INSERT INTO {table} AS t ({}, {batch}) SELECT {distinct}{}, b FROM {stage}{end} RETURNING t.{batch} AS b) \
         SELECT b, count(*) FROM written GROUP BY b",
        list(names),
        staged_columns(names.len())
    )
}

impl Losers {
    fn of(table: &str, stage: &str, target: &Target, names: &[String]) -> Self {
        let batch = quoted(BATCH_COLUMN);
        let keys = staged_keys(&target.key, names);
        let distinct = format!("(SELECT DISTINCT {keys} FROM {stage}) s");
        let (others, doubtful) = if target.mode == Mode::Upsert {
            (format!("t.{batch} >= $1 AND t.{batch} >= $2"), "true")
        } else {
            let others = format!("(t.{batch} IS NULL OR t.{batch} < $1 OR t.{batch} >= $2)");
            (others, "false")
        };
        Self {
            count_keys: format!("SELECT count(*) FROM {distinct}"),
            count_beaten: format!(
                "SELECT count(*), coalesce(array_agg(DISTINCT t.{batch}) FILTER (WHERE {doubtful}), '{{}}') \
                 FROM {distinct} JOIN {table} t ON {} WHERE {others}",
                joined(&target.key, names)
            ),
        }
    }
}

/// Text is compared by its bytes, as the transformer compares it, whatever the database's collation.
pub(super) fn collation(pg_type: PgType) -> &'static str {
    match pg_type {
        PgType::Text | PgType::Varchar(_) | PgType::Char(_) => " COLLATE \"C\"",
        _ => "",
    }
}

/// A window as SQL: quoted names, and literals of the columns' types.
fn condition(window: &Window, columns: &[TargetColumn], shown: impl Fn(&str) -> String) -> String {
    let bounds = window.bounds().iter().map(|bound| {
        let column = columns.iter().find(|column| column.name == bound.column);
        let pg_type = column.map_or(PgType::Text, |column| column.pg_type);
        let collation = collation(pg_type);
        format!(
            "{}{collation} {} {}::{pg_type}",
            shown(&bound.column),
            bound.op.sign(),
            literal(bound.value())
        )
    });
    bounds.collect::<Vec<_>>().join(" AND ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn columns() -> Vec<TargetColumn> {
        let column = |name: &str, pg_type: &str| TargetColumn {
            name: name.into(),
            pg_type: pg_type.parse().unwrap(),
            athena_type: "varchar".into(),
        };
        vec![column("site", "text"), column("da\"y", "date")]
    }

    fn publishing(target: &Target) -> Publishing {
        let name = TableName::of(target, &["public".into()]).unwrap();
        Publishing::of(&name, &staging_table(7, 1), target, &columns())
    }

    #[test]
    fn a_window_is_quoted_names_and_typed_literals() {
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
        let publishing = publishing(&target);
        let wanted = r#""da""y" >= '2018-04-02'::date AND "da""y" <= 'x''; DROP TABLE t; --'::date AND "site" COLLATE "C" > 'it''s'::text"#;
        assert_eq!(publishing.window, wanted);
        assert_eq!(
            publishing.delete_window.as_deref(),
            Some(format!("DELETE FROM \"public\".\"t\" WHERE {wanted}").as_str())
        );
        let outside = publishing.count_outside.unwrap();
        assert!(
            outside.contains("c1 >= '2018-04-02'::date") && outside.ends_with("IS NOT TRUE"),
            "{outside}"
        );
    }

    #[test]
    fn a_replace_without_a_window_is_the_whole_table() {
        let target = Target {
            table: "t".into(),
            mode: Mode::Replace,
            ..Target::default()
        };
        let publishing = publishing(&target);
        assert_eq!(publishing.window, "");
        assert_eq!(
            publishing.delete_window.as_deref(),
            Some("DELETE FROM \"public\".\"t\" WHERE true")
        );
        assert!(publishing.count_outside.is_none());
        assert_eq!(
            publishing.write,
            r#"WITH written AS (INSERT INTO "public"."t" AS t ("site", "da""y", "_batch") SELECT c0, c1, b FROM "etl_staging"."s_7_1" RETURNING t."_batch" AS b) SELECT b, count(*) FROM written GROUP BY b"#
        );
    }

    #[test]
    fn of_a_key_the_last_row_is_upserted_and_the_first_inserted() {
        let of_mode = |mode| {
            publishing(&Target {
                table: "t".into(),
                mode,
                key: vec!["site".into()],
                ..Target::default()
            })
            .write
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

    #[test]
    fn a_staging_table_has_the_jobs_types() {
        assert_eq!(
            create_staging(&staging_table(7, 0), &columns()),
            r#"CREATE TABLE "etl_staging"."s_7_0" (c0 text, c1 date, b bigint NOT NULL, n bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000))"#
        );
    }
}
