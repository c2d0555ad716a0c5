//! Batches: raw ones from Athena, and valid ones for Postgres.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::body::read_batch;
use super::{BatchId, Body, Message, QueueName, RunId};
use crate::job::{JobSpec, Target};
use crate::rows::Rows;
use crate::schema::{ResultColumn, TargetColumn};

/// Rows as Athena returned them: each value is exactly its text, or NULL. `etl.archive` keeps the same
/// body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBatch {
    pub id: BatchId,
    /// Whether it is one of the later batches of a long result. These wait in a queue of their own, with workers of their own,
    /// so that a short run waits for no long one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_bulk: bool,
    /// The result of these rows: the execution id with the object's `ETag`, or with `pages`.
    pub result_id: String,
    pub job: Arc<JobSpec>,
    pub columns: Arc<Vec<ResultColumn>>,
    pub rows: Rows,
}

/// Rows in canonical text of the columns' Postgres types, and the rejected rows. Together they are all
/// rows of the [`RawBatch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidBatch {
    pub id: BatchId,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_bulk: bool,
    pub result_id: String,
    /// The hash of the raw columns and rows.
    pub content_hash: ContentHash,
    /// The job's name.
    pub job: String,
    pub target: Target,
    /// The target's columns, without the loader's own.
    pub columns: Vec<TargetColumn>,
    pub rows: Rows,
    /// The ordinal in the result of each of `rows`, as an offset from the batch's first row, ascending. Empty when no row is
    /// rejected: then the offsets are 0, 1, 2 and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub row_offsets: Vec<u32>,
    pub rejected: Vec<RejectedRow>,
    /// The latest value of the column with the job's watermark, in all rows of the raw batch, as Athena wrote it. Only with a
    /// key: in mode `append` the watermark does not depend on the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<String>,
}

/// A row that is not loaded, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRow {
    /// The row's ordinal in the result, from 0.
    pub row: u64,
    pub reject: Reject,
    /// The names of the result's columns and the row's raw values, in the result's order. A masked column
    /// has its mask.
    pub raw: Vec<(String, Option<String>)>,
}

/// Why a row is rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The target column at fault, if there is one.
    pub column: Option<String>,
    /// The broken rule: a rule of the job, `type` for a value that is not of the column's type, or
    /// `postgres` for a row that Postgres refused.
    pub rule: String,
    /// A sentence for a person.
    pub reason: String,
}

/// SHA-256 of a batch's raw columns and rows, in hex. Two deliveries of one identity with different
/// hashes are different batches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentHash(String);

impl ContentHash {
    /// Hashes each part with its length, so that different batches never hash the same bytes.
    pub fn of(columns: &[ResultColumn], rows: &Rows) -> Self {
        let mut hash = Sha256::new();
        // Small pieces are collected: the digest is much faster with long ones.
        let mut pieces = Vec::with_capacity(PIECES + 256);
        for column in columns {
            piece(&mut hash, &mut pieces, column.name.as_bytes());
            piece(&mut hash, &mut pieces, column.type_name.as_bytes());
        }
        for value in rows.values() {
            match value {
                // No text has this length.
                None => pieces.extend_from_slice(&u64::MAX.to_le_bytes()),
                Some(text) => piece(&mut hash, &mut pieces, text.as_bytes()),
            }
        }
        hash.update(&pieces);
        Self(format!("{:x}", hash.finalize()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Bytes that are hashed at once, about.
const PIECES: usize = 8 << 10;

/// Adds a part behind its length.
fn piece(hash: &mut Sha256, pieces: &mut Vec<u8>, part: &[u8]) {
    pieces.extend_from_slice(&(part.len() as u64).to_le_bytes());
    pieces.extend_from_slice(part);
    if pieces.len() >= PIECES {
        hash.update(&pieces);
        pieces.clear();
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl RawBatch {
    /// The batch without its rows.
    pub(super) fn head(&self) -> Self {
        Self {
            id: self.id.clone(),
            is_bulk: self.is_bulk,
            result_id: self.result_id.clone(),
            job: Arc::clone(&self.job),
            columns: Arc::clone(&self.columns),
            rows: Rows::default(),
        }
    }
}

impl ValidBatch {
    /// The batch without its rows.
    pub(super) fn head(&self) -> Self {
        Self {
            id: self.id.clone(),
            is_bulk: self.is_bulk,
            result_id: self.result_id.clone(),
            content_hash: self.content_hash.clone(),
            job: self.job.clone(),
            target: self.target.clone(),
            columns: self.columns.clone(),
            rows: Rows::default(),
            row_offsets: self.row_offsets.clone(),
            rejected: self.rejected.clone(),
            watermark: self.watermark.clone(),
        }
    }

    /// The ordinal in the result of one of `rows`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn ordinal(&self, index: usize) -> u64 {
        let offset = match self.row_offsets.as_slice() {
            [] => index as u64,
            offsets => offsets[index].into(),
        };
        self.id.first_row + offset
    }

    /// The number of rows of the raw batch: the valid and the rejected ones.
    pub fn rows_extracted(&self) -> usize {
        self.rows.len() + self.rejected.len()
    }
}

/// Checks what is the same in both kinds of batches; `extracted` counts the rows of the raw batch.
fn check_batch(id: &BatchId, extracted: usize, rows: &Rows, columns: usize) -> Result<(), String> {
    // Readers add to the first row without overflow.
    let end = id.first_row.checked_add(extracted as u64);
    if id.first_row >= BatchId::MAX_ROWS || end.is_none_or(|end| end > BatchId::MAX_ROWS) {
        return Err(format!(
            "{extracted} rows from row {} on; a run has at most {} rows",
            id.first_row,
            BatchId::MAX_ROWS
        ));
    }
    let width = rows.width();
    if !rows.is_empty() && width != columns {
        return Err(format!("rows of {width} values for {columns} columns"));
    }
    Ok(())
}

/// Decodes a batch: a head and the rows behind it.
fn read_with_rows<T: Message>(body: &[u8], rows_of: fn(&mut T) -> &mut Rows) -> Result<T, String> {
    let (mut batch, rows) = read_batch::<T>(body)?;
    let place = rows_of(&mut batch);
    if !place.is_empty() {
        return Err("it has rows in its head".to_owned());
    }
    *place = rows;
    Ok(batch)
}

impl Message for RawBatch {
    const QUEUE: QueueName = QueueName::Raw;
    const KIND: &'static str = "raw-batch.v3";

    fn queue(&self) -> QueueName {
        if self.is_bulk {
            QueueName::RawBulk
        } else {
            QueueName::Raw
        }
    }

    fn id(&self) -> String {
        self.id.to_string()
    }

    fn run(&self) -> &RunId {
        &self.id.run
    }

    fn job(&self) -> &str {
        &self.job.name
    }

    fn check(&self) -> Result<(), String> {
        let (rows, columns) = (&self.rows, self.columns.len());
        check_batch(&self.id, rows.len(), rows, columns)?;
        self.job.check()
    }

    fn write(&self) -> serde_json::Result<Body> {
        Body::batch(&self.head(), &self.rows)
    }

    fn read(_kind: &str, body: &[u8]) -> Result<Self, String> {
        read_with_rows(body, |batch| &mut batch.rows)
    }
}

impl Message for ValidBatch {
    const QUEUE: QueueName = QueueName::Valid;
    const KIND: &'static str = "valid-batch.v3";

    fn queue(&self) -> QueueName {
        if self.is_bulk {
            QueueName::ValidBulk
        } else {
            QueueName::Valid
        }
    }

    fn id(&self) -> String {
        self.id.to_string()
    }

    fn run(&self) -> &RunId {
        &self.id.run
    }

    fn job(&self) -> &str {
        &self.job
    }

    fn check(&self) -> Result<(), String> {
        let (extracted, columns) = (self.rows_extracted(), self.columns.len());
        check_batch(&self.id, extracted, &self.rows, columns)?;
        self.target.check()?;
        if self.row_offsets.is_empty() && self.rejected.is_empty() {
            return Ok(());
        }
        if self.row_offsets.len() != self.rows.len() {
            return Err(format!(
                "{} row offsets for {} rows",
                self.row_offsets.len(),
                self.rows.len()
            ));
        }
        let first = self.id.first_row;
        let last = first + self.rows_extracted() as u64;
        let offsets = self
            .row_offsets
            .iter()
            .map(|offset| first + u64::from(*offset));
        let mut seen: Vec<u64> = offsets
            .chain(self.rejected.iter().map(|row| row.row))
            .collect();
        seen.sort_unstable();
        if seen.iter().copied().eq(first..last) {
            Ok(())
        } else {
            Err("its valid and rejected rows are not each row of the batch once".to_owned())
        }
    }

    fn write(&self) -> serde_json::Result<Body> {
        Body::batch(&self.head(), &self.rows)
    }

    fn read(_kind: &str, body: &[u8]) -> Result<Self, String> {
        read_with_rows(body, |batch| &mut batch.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(names: &[&str]) -> Vec<ResultColumn> {
        names
            .iter()
            .map(|name| ResultColumn {
                name: (*name).into(),
                type_name: "varchar".into(),
            })
            .collect()
    }

    fn hash(values: &[Option<&str>], width: usize) -> ContentHash {
        let mut rows = Rows::new(width);
        for row in values.chunks(width) {
            rows.push(row.iter().copied());
        }
        ContentHash::of(&columns(&["a", "b"][..width]), &rows)
    }

    #[test]
    fn different_batches_have_different_hashes() {
        let all = [
            hash(&[Some("ab"), Some("c")], 2),
            hash(&[Some("a"), Some("bc")], 2),
            hash(&[Some("ab"), None], 2),
            hash(&[Some("ab"), Some("")], 2),
            hash(&[Some("ab"), Some("c")], 1),
            hash(&[], 2),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| other != one), "{index}");
        }
    }

    #[test]
    fn valid_batch_without_one_of_its_rows_is_refused() {
        let mut rows = Rows::new(1);
        rows.push([Some("x")]);
        rows.push([Some("y")]);
        let run: RunId = "r".parse().unwrap();
        let mut batch = ValidBatch {
            id: BatchId {
                run,
                generation: 0,
                first_row: 10,
            },
            is_bulk: false,
            result_id: "q:pages".into(),
            content_hash: hash(&[], 1),
            job: "j".into(),
            target: Target {
                table: "t".into(),
                ..Target::default()
            },
            columns: vec![TargetColumn {
                name: "a".into(),
                pg_type: crate::schema::PgType::Text,
                athena_type: "varchar".into(),
            }],
            rows,
            row_offsets: vec![0, 2],
            rejected: vec![RejectedRow {
                row: 11,
                reject: Reject {
                    column: None,
                    rule: "type".into(),
                    reason: String::new(),
                },
                raw: vec![],
            }],
            watermark: None,
        };
        assert_eq!(batch.check(), Ok(()));
        let json = serde_json::to_vec(&batch).unwrap();
        assert_eq!(serde_json::from_slice::<ValidBatch>(&json).unwrap(), batch);
        batch.rejected.clear();
        assert!(batch.check().is_err());
        batch.row_offsets = vec![0, 0];
        assert!(batch.check().is_err());
    }
}
