//! A result and a position in it, for the two readers of results, [`object`] and [`pages`]. Both
//! give the same rows and so the same batches.

pub mod object;
pub mod pages;

use std::sync::Arc;

use common::message::{Cursor, Limits};
use common::schema::ResultColumn;

use crate::aws::AwsError;
use crate::batching::{Batcher, RowTooLarge};
use crate::csv::CsvError;
use crate::outbox::PutError;
use crate::s3::S3Error;

/// A result and the position where reading begins.
#[derive(Debug, Clone)]
pub struct Reading {
    pub query_execution_id: String,
    pub columns: Arc<Vec<ResultColumn>>,
    pub limits: Limits,
    pub cursor: Cursor,
}

/// Why a result could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Aws(#[from] AwsError),
    #[error(transparent)]
    S3(#[from] S3Error),
    #[error(transparent)]
    Csv(#[from] CsvError),
    #[error(transparent)]
    RowTooLarge(#[from] RowTooLarge),
    #[error(
        "the result does not begin with its column names ({wanted}) but with {found}; only the results of SELECT and WITH can be loaded"
    )]
    Header { found: String, wanted: String },
    #[error("row {row} (from 0) of the result has {found} values for {wanted} columns")]
    Width {
        row: u64,
        found: usize,
        wanted: usize,
    },
    #[error(
        "the result has {rows} rows now, and {read} of it were read before: it has changed; run the job again"
    )]
    Shrunk { rows: u64, read: u64 },
    #[error(transparent)]
    Put(#[from] PutError),
}

impl Reading {
    fn batcher(&self) -> Batcher {
        let Cursor { batches, row, .. } = self.cursor;
        Batcher::new(self.limits, self.columns.len(), batches, row)
    }

    /// The first record must be the column names. A result without a header (`SHOW`, `DESCRIBE`)
    /// would lose its first row otherwise.
    fn check_header<'a>(
        &self,
        found: impl Iterator<Item = Option<&'a str>> + Clone,
    ) -> Result<(), ReadError> {
        let names = self.columns.iter().map(|column| column.name.as_str());
        if found.clone().flatten().eq(names) && found.clone().all(|name| name.is_some()) {
            return Ok(());
        }
        let shown =
            |name: Option<&str>| name.unwrap_or("NULL").chars().take(60).collect::<String>();
        Err(self.no_header(&found.map(shown).collect::<Vec<_>>().join(", ")))
    }

    fn no_header(&self, found: &str) -> ReadError {
        let names = self.columns.iter().map(|column| column.name.as_str());
        ReadError::Header {
            found: found.to_owned(),
            wanted: names.collect::<Vec<_>>().join(", "),
        }
    }

    fn row_too_large(&self, row: u64, column: usize) -> ReadError {
        let name = self.columns.get(column).map(|column| column.name.clone());
        RowTooLarge {
            row,
            column: name.unwrap_or_default(),
        }
        .into()
    }
}
