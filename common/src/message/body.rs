//! The bodies of messages. Most are JSON. A batch is its head in JSON, and then the rows in a binary form that is read
//! without an allocation a value. Both are compressed, which saves the broker's disk. Rows that pass through unchanged
//! are not compressed again.
//!
//! ```text
//! 3, head, rows        blocks (common/src/rows/block.rs); the rows in the form of common/src/rows/binary.rs
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::rows::Rows;
use crate::rows::block::{self, Block, with_buffer};

/// The first byte of a batch.
const BLOCKS: u8 = 3;

/// A body, and the AMQP properties that describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub bytes: Vec<u8>,
    pub content_type: &'static str,
    /// The AMQP property, for people: a reader needs only the bytes.
    pub content_encoding: Option<&'static str>,
}

impl Body {
    /// Encodes a message as JSON.
    pub(super) fn json(message: &impl Serialize) -> serde_json::Result<Self> {
        Ok(Self {
            bytes: serde_json::to_vec(message)?,
            content_type: "application/json",
            content_encoding: None,
        })
    }

    /// Encodes a batch. `head` is the batch without its rows.
    pub(super) fn batch(head: &impl Serialize, rows: &Rows) -> serde_json::Result<Self> {
        let mut bytes = vec![BLOCKS];
        let head = with_buffer(|content| {
            content.clear();
            serde_json::to_writer(&mut *content, head)?;
            Ok::<_, serde_json::Error>(block::write(content, &mut bytes))
        })?;
        let rows = rows.write_block(&mut bytes);
        Ok(Self {
            bytes,
            content_type: "application/vnd.etl.batch",
            content_encoding: (head || rows).then_some("lz4"),
        })
    }
}

/// Decodes a batch: its head, which has no rows, and its rows.
pub(super) fn read_batch<T: DeserializeOwned>(body: &[u8]) -> Result<(T, Rows), String> {
    let Some((&BLOCKS, mut rest)) = body.split_first() else {
        return Err("it does not begin like a batch".to_owned());
    };
    let (head, rows) = (Block::take(&mut rest)?, Block::take(&mut rest)?);
    if !rest.is_empty() {
        return Err("it has bytes after its end".to_owned());
    }
    Ok((head.read(read_json)?, Rows::read_block(rows)?))
}

/// Decodes JSON. The error has a place and a kind only, since serde's own text may quote a value of a row.
pub(super) fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| {
        format!(
            "{:?} error at line {} column {}",
            error.classify(),
            error.line(),
            error.column()
        )
    })
}
