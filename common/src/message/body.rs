//! The bodies of messages. Most are JSON. A batch is a head in JSON, everything but the rows, and then the rows in a form
//! that is read without building anything a value; compressed, since what is not sent need not be stored twice by the
//! broker.
//!
//! ```text
//! 1, length of the head (u32, little endian), head, rows        (rows: see `common/src/rows/binary.rs`)
//! 2, length of what follows when it is unpacked (u32, little endian), an LZ4 block of it: the same without the 1
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::rows::Rows;

/// First byte of a batch whose head and rows follow as they are.
const PLAIN: u8 = 1;
/// First byte of a batch whose head and rows follow compressed.
const LZ4: u8 = 2;

/// What a compressed body may become: far above what the batches' limits allow, and little enough to be no attack.
const MAX_UNPACKED: usize = 64 << 20;

/// Smaller bodies are not worth it.
const MIN_PACKED: usize = 1 << 10;

/// A body and how it is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub bytes: Vec<u8>,
    pub content_type: &'static str,
    /// The AMQP property of this name. For whoever looks on: the bytes themselves say the same.
    pub content_encoding: Option<&'static str>,
}

impl Body {
    /// A message as JSON.
    pub(super) fn json(message: &impl Serialize) -> serde_json::Result<Self> {
        Ok(Self {
            bytes: serde_json::to_vec(message)?,
            content_type: "application/json",
            content_encoding: None,
        })
    }

    /// A batch. `head` is all of it but its rows.
    pub(super) fn batch(head: &impl Serialize, rows: &Rows) -> serde_json::Result<Self> {
        let content_type = "application/vnd.etl.batch";
        let mut bytes = vec![PLAIN, 0, 0, 0, 0];
        serde_json::to_writer(&mut bytes, head)?;
        let length = u32::try_from(bytes.len() - 5).unwrap_or(u32::MAX);
        bytes[1..5].copy_from_slice(&length.to_le_bytes());
        rows.write(&mut bytes);
        if let Some(packed) = pack(&bytes) {
            return Ok(Self {
                bytes: packed,
                content_type,
                content_encoding: Some("lz4"),
            });
        }
        Ok(Self {
            bytes,
            content_type,
            content_encoding: None,
        })
    }
}

/// None when it would not become smaller.
fn pack(plain: &[u8]) -> Option<Vec<u8>> {
    let content = &plain[1..];
    let length = u32::try_from(content.len()).ok()?;
    if content.len() < MIN_PACKED || content.len() > MAX_UNPACKED {
        return None;
    }
    let mut packed = vec![0; 5 + lz4_flex::block::get_maximum_output_size(content.len())];
    packed[0] = LZ4;
    packed[1..5].copy_from_slice(&length.to_le_bytes());
    let written = lz4_flex::block::compress_into(content, &mut packed[5..]).ok()?;
    packed.truncate(5 + written);
    packed.shrink_to_fit();
    (packed.len() < plain.len()).then_some(packed)
}

/// Reads a batch: its head, which has no rows, and its rows.
pub(super) fn read_batch<T: DeserializeOwned>(body: &[u8]) -> Result<(T, Rows), String> {
    match body {
        [PLAIN, content @ ..] => read_content(content),
        [LZ4, a, b, c, d, block @ ..] => {
            let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            // A byte of a block stands for 255 at most: what claims more is not given the memory.
            if length > MAX_UNPACKED || length > block.len().saturating_mul(255) {
                return Err(format!("it cannot be {length} bytes once it is unpacked"));
            }
            match lz4_flex::block::decompress(block, length) {
                Ok(content) if content.len() == length => read_content(&content),
                Ok(_) | Err(_) => Err("it cannot be unpacked".to_owned()),
            }
        }
        _ => Err("it does not begin as a batch does".to_owned()),
    }
}

fn read_content<T: DeserializeOwned>(content: &[u8]) -> Result<(T, Rows), String> {
    let short = "it is cut off";
    let (length, rest) = content.split_first_chunk::<4>().ok_or(short)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (head, rows) = rest.split_at_checked(length).ok_or(short)?;
    Ok((read_json(head)?, Rows::read(rows)?))
}

/// Reads JSON. The error says where and of what kind; serde's own text may quote a value of a row.
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
