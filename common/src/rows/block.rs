//! A block: content with its length, compressed by LZ4 if that makes it smaller.
//!
//! ```text
//! length of the content, length of the rest          u32 each, little endian; equal if not compressed
//! an LZ4 block, or the content
//! ```

use std::cell::RefCell;

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// The largest content of a compressed block: far above the limits of batches, and too small for an attack on memory.
const MAX_UNPACKED: usize = 64 << 20;

/// Smaller content is not compressed.
const MIN_PACKED: usize = 1 << 10;

/// The bytes before the content.
const HEAD: usize = 8;

/// Appends a block of `content` to `out`. Returns whether it is compressed.
pub(crate) fn write(content: &[u8], out: &mut Vec<u8>) -> bool {
    let packed = |room: &mut Vec<u8>| {
        if !(MIN_PACKED..=MAX_UNPACKED).contains(&content.len()) {
            return false;
        }
        room.resize(get_maximum_output_size(content.len()), 0);
        match compress_into(content, room) {
            Ok(length) if length < content.len() => {
                put(content.len(), &room[..length], out);
                true
            }
            Ok(_) | Err(_) => false,
        }
    };
    with_buffer(packed) || {
        put(content.len(), content, out);
        false
    }
}

fn put(unpacked: usize, bytes: &[u8], out: &mut Vec<u8>) {
    // Exact, since a message stays in memory until its confirm.
    out.reserve_exact(HEAD + bytes.len());
    for length in [unpacked, bytes.len()] {
        // Bodies are far smaller. A reader would refuse a wrong length.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_le_bytes());
    }
    out.extend_from_slice(bytes);
}

/// A block at the start of some bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    /// The whole block.
    pub(crate) bytes: &'a [u8],
    unpacked: usize,
}

impl<'a> Block<'a> {
    /// Takes a block off the front of `bytes`.
    ///
    /// # Errors
    /// A description of the problem, without any of the bytes.
    pub(crate) fn take(bytes: &mut &'a [u8]) -> Result<Self, String> {
        let cut_off = || "it is cut off".to_owned();
        let length = |at: usize| {
            let length = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(length) as usize)
        };
        let (unpacked, packed) = length(0).zip(length(4)).ok_or_else(cut_off)?;
        let (block, rest) = bytes
            .split_at_checked(HEAD.saturating_add(packed))
            .ok_or_else(cut_off)?;
        // LZ4 expands a byte to 255 bytes at most. No memory is allocated for a larger claim.
        if unpacked < packed || unpacked > MAX_UNPACKED.min(packed.saturating_mul(255)) {
            return Err(format!("it cannot be {unpacked} bytes once it is unpacked"));
        }
        *bytes = rest;
        Ok(Self {
            bytes: block,
            unpacked,
        })
    }

    pub(crate) fn is_packed(&self) -> bool {
        self.bytes.len() != HEAD + self.unpacked
    }

    /// Reads the content.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, String> {
        let content = &self.bytes[HEAD..];
        if !self.is_packed() {
            return read(content);
        }
        with_buffer(|room| {
            room.resize(self.unpacked, 0);
            match decompress_into(content, room) {
                Ok(length) if length == self.unpacked => read(room),
                Ok(_) | Err(_) => Err("it cannot be unpacked".to_owned()),
            }
        })
    }
}

thread_local! {
    /// Buffers for reuse. Allocating a megabyte for a moment costs more than filling it, and fragments the memory.
    static ROOMS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A larger buffer is freed.
const KEPT: usize = 4 << 20;

/// Lends a buffer of this thread, with its old content. `work` may borrow another one.
pub(crate) fn with_buffer<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut room = ROOMS.with_borrow_mut(Vec::pop).unwrap_or_default();
    let done = work(&mut room);
    if room.capacity() <= KEPT {
        ROOMS.with_borrow_mut(|rooms| rooms.push(room));
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(mut bytes: &[u8]) -> Result<Vec<u8>, String> {
        let block = Block::take(&mut bytes)?;
        assert!(bytes.is_empty());
        block.read(|content| Ok(content.to_vec()))
    }

    #[test]
    fn a_claim_of_more_than_there_may_be_is_no_reason_to_take_memory() {
        let content = vec![b'x'; 5_000];
        let mut block = Vec::new();
        assert!(write(&content, &mut block));
        assert!(block.len() < 100);
        assert_eq!(read(&block), Ok(content));
        for claim in [0, 1, 4_999, 5_001, 65 << 20, u32::MAX] {
            let mut lie = block.clone();
            lie[..4].copy_from_slice(&claim.to_le_bytes());
            assert!(read(&lie).is_err(), "{claim}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(content in prop_oneof![prop::collection::vec(0..3_u8, 0..4_000), prop::collection::vec(any::<u8>(), 0..2_000)]) {
            let mut block = Vec::new();
            let packed = write(&content, &mut block);
            prop_assert_eq!(packed, block.len() < HEAD + content.len());
            prop_assert_eq!(read(&block), Ok(content));
            for cut in 0..block.len().min(40) {
                prop_assert!(read(&block[..cut]).is_err());
            }
        }
    }
}
