//! `append`, batch by batch: rows are copied directly into the target.

use common::message::ValidBatch;
use common::schema::{BATCH_COLUMN, PgType, quoted};
use sqlx::{AssertSqlSafe, PgConnection};

use super::Written;
use super::copy_into::CopyInto;
use crate::ddl::TableName;
use crate::errors::LoadError;

/// Appends batches to one target.
#[derive(Debug)]
pub(crate) struct Append {
    table: String,
    copy: CopyInto,
    /// Deletes the rows of an earlier generation of a batch. $1: `_batch`.
    delete_earlier: String,
}

impl Append {
    /// The writer for a table in which these columns have these types.
    pub(crate) fn new(name: &TableName, columns: Vec<String>, types: Vec<PgType>) -> Self {
        let (table, batch) = (name.sql(), quoted(BATCH_COLUMN));
        Self {
            copy: CopyInto::new(&table, &table, (columns, types), &batch),
            delete_earlier: format!("DELETE FROM {table} WHERE {batch} = $1"),
            table,
        }
    }

    /// Writes a batch. A batch of a replay replaces its earlier generation.
    pub(crate) async fn write(
        &self,
        tx: &mut PgConnection,
        batch: &ValidBatch,
        batch_no: i64,
    ) -> Result<Written, LoadError> {
        if batch.id.generation > 0 {
            let delete = sqlx::query(AssertSqlSafe(self.delete_earlier.clone())).bind(batch_no);
            let deleted = delete.execute(&mut *tx).await;
            deleted.map_err(LoadError::target(|| {
                format!("cannot delete the replaced rows from {}", self.table)
            }))?;
        }
        self.copy.write(tx, batch, batch_no).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_copied_with_their_batch_number() {
        let name = TableName {
            schema: "public".into(),
            table: "t".into(),
        };
        let append = Append::new(
            &name,
            vec!["a\"b".into(), "c1".into()],
            vec![PgType::Text; 2],
        );
        let copy = format!("{:?}", append.copy);
        let wanted = r#"COPY "public"."t" ("a""b", "c1", "_batch") FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')"#;
        assert!(copy.contains(&format!("{wanted:?}")), "{copy}");
    }
}
