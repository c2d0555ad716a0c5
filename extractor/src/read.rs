//! Reads a result from a checkpoint on and cuts it into batches, on either of the two ways that
//! Athena offers. Both give the same rows and so the same batches: the way is never part of them.

mod object;
mod pages;

use std::sync::Arc;

use common::message::{Cursor, Limits, ResultLocation};
use common::queue::Unsendable;
use common::schema::ResultColumn;

use crate::athena::Athena;
use crate::aws::AwsError;
use crate::batching::{Batcher, RowTooLarge};
use crate::csv::CsvError;
use crate::outbox::Outbox;
use crate::s3::{Object, S3, S3Error};

/// A result and where in it reading begins.
#[derive(Debug, Clone)]
pub struct Reading {
    pub query_execution_id: String,
    pub location: ResultLocation,
    pub columns: Arc<Vec<ResultColumn>>,
    pub limits: Limits,
    pub cursor: Cursor,
}

/// Why a result could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Aws(#[from] AwsError),
    #[error("{0}")]
    S3(S3Error),
    #[error(transparent)]
    Csv(#[from] CsvError),
    #[error(transparent)]
    RowTooLarge(#[from] RowTooLarge),
    #[error(
        "the result does not begin with its column names ({wanted}) but with {found}; only the results of SELECT and WITH can be loaded"
    )]
    Header { found: String, wanted: String },
    #[error("row {row} (from 0) of the result has {found} values where there are {wanted} columns")]
    Width {
        row: u64,
        found: usize,
        wanted: usize,
    },
    #[error(
        "the result has {rows} rows now, and {read} of it were read before: it is not the same any more; run the job again"
    )]
    Shrunk { rows: u64, read: u64 },
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    /// Nobody needs the rest.
    #[error("the batches are not taken any more")]
    Closed,
}

impl From<S3Error> for ReadError {
    fn from(error: S3Error) -> Self {
        match error {
            S3Error::Aws(error) => Self::Aws(error),
            error @ (S3Error::Replaced { .. } | S3Error::Location(_)) => Self::S3(error),
        }
    }
}

impl Reading {
    /// Reads from the cursor to the end, and puts every batch into the outbox.
    pub async fn run(&self, athena: &Athena, s3: &S3, outbox: &Outbox) -> Result<(), ReadError> {
        match self.location.clone() {
            ResultLocation::S3 {
                bucket,
                key,
                etag,
                size,
            } => {
                let object = Object {
                    bucket,
                    key,
                    etag,
                    size,
                };
                object::read(s3.read(object, self.cursor.offset), self, outbox).await
            }
            ResultLocation::Pages => pages::read(athena, self, outbox).await,
        }
    }

    fn batcher(&self) -> Batcher {
        Batcher::new(
            self.limits,
            self.columns.len(),
            self.cursor.seq,
            self.cursor.row,
        )
    }

    /// The first record has to be the column names. A result without a header (`SHOW`, `DESCRIBE`)
    /// would lose its first row otherwise.
    fn check_header<'a>(
        &self,
        found: impl Iterator<Item = Option<&'a str>> + Clone,
    ) -> Result<(), ReadError> {
        let mut pairs = found.clone().zip(self.columns.iter());
        let is_header = pairs.all(|(found, column)| found == Some(column.name.as_str()));
        if is_header && found.clone().count() == self.columns.len() {
            return Ok(());
        }
        let shown =
            |name: Option<&str>| name.unwrap_or("NULL").chars().take(60).collect::<String>();
        Err(self.no_header(&found.map(shown).collect::<Vec<_>>().join(", ")))
    }

    fn no_header(&self, found: &str) -> ReadError {
        let wanted: Vec<_> = self
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        ReadError::Header {
            found: found.to_owned(),
            wanted: wanted.join(", "),
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
