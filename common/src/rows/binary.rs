//! The binary form of rows: their number, the length of each value, and then all text.
//!
//! ```text
//! width, rows      LEB128 each
//! rows x width     LEB128 each: 0 for NULL, else the value's length in bytes, plus one
//! text             UTF-8, to the end
//! ```
//!
//! Reading checks that the lengths add up to the text and that each value is UTF-8. It allocates no more than the bytes
//! at hand can fill.

use std::sync::Arc;

use super::block::{self, Block, with_buffer};
use super::{NULL, Rows};

/// More than a row of any result can have. A width is checked before it is multiplied with a count.
const MAX_WIDTH: usize = 1 << 16;

impl Rows {
    /// Appends the rows to `out` as a block. Returns whether it is compressed.
    pub(crate) fn write_block(&self, out: &mut Vec<u8>) -> bool {
        if let Some(bytes) = &self.block {
            out.reserve_exact(bytes.len());
            out.extend_from_slice(bytes);
            return Block::take(&mut &bytes[..]).is_ok_and(|block| block.is_packed());
        }
        with_buffer(|content| {
            content.clear();
            self.write(content);
            block::write(content, out)
        })
    }

    /// Reads rows from a block.
    pub(crate) fn read_block(block: Block<'_>) -> Result<Self, String> {
        let mut rows = block.read(|content| Self::read(content).map_err(str::to_owned))?;
        rows.block = Some(Arc::from(block.bytes));
        Ok(rows)
    }

    /// Appends the rows to `out`.
    fn write(&self, out: &mut Vec<u8>) {
        out.reserve(16 + self.ends.len() * 2 + self.text.len());
        put(out, self.width as u64);
        put(out, self.len() as u64);
        let mut start = 0;
        for end in &self.ends {
            let length = (end & !NULL) - start;
            start += length;
            if end & NULL == 0 {
                put(out, u64::from(length) + 1);
            } else {
                out.push(0);
            }
        }
        out.extend_from_slice(self.text.as_bytes());
    }

    /// Reads rows from all of `bytes`. The error contains no value.
    fn read(mut bytes: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "rows that are cut off";
        let mut number = || take(&mut bytes).ok_or(SHORT);
        let (width, rows) = (number()?, number()?);
        let width = usize::try_from(width)
            .ok()
            .filter(|width| *width <= MAX_WIDTH);
        let width = width.ok_or("rows that are too wide")?;
        let values = usize::try_from(rows)
            .ok()
            .and_then(|rows| rows.checked_mul(width))
            // Each value takes at least one byte.
            .filter(|values| *values <= bytes.len())
            .ok_or(SHORT)?;
        if width == 0 && rows > 0 {
            return Err("rows without a value");
        }
        let mut ends = Vec::with_capacity(values);
        let mut end: u64 = 0;
        for _ in 0..values {
            let length = match bytes.split_first() {
                // Nearly all of them.
                Some((length, rest)) if *length < 0x80 => {
                    bytes = rest;
                    u64::from(*length)
                }
                _ => take(&mut bytes).ok_or(SHORT)?,
            };
            end = end.saturating_add(length.saturating_sub(1));
            let place = u32::try_from(end).ok().filter(|end| end & NULL == 0);
            let place = place.ok_or("rows of more than 2 GiB")?;
            ends.push(if length == 0 { place | NULL } else { place });
        }
        if end != bytes.len() as u64 {
            return Err("rows whose lengths are not those of their text");
        }
        let text = std::str::from_utf8(bytes).map_err(|_| "rows that are not UTF-8")?;
        if !(ends.iter()).all(|end| text.is_char_boundary((end & !NULL) as usize)) {
            return Err("a value that ends within a character");
        }
        Ok(Self {
            width,
            text: text.to_owned(),
            ends,
            block: None,
        })
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(rows: &Rows) -> Vec<u8> {
        let mut bytes = Vec::new();
        rows.write(&mut bytes);
        bytes
    }

    #[test]
    fn the_form_is_the_documented_one() {
        let mut rows = Rows::new(2);
        rows.push([Some("ä"), None]);
        rows.push([Some(""), Some("xy")]);
        assert_eq!(written(&rows), b"\x02\x02\x03\x00\x01\x03\xc3\xa4xy");
        assert_eq!(written(&Rows::new(3)), b"\x03\x00");
        assert_eq!(Rows::read(b"\x03\x00"), Ok(Rows::new(3)));
    }

    #[test]
    fn rows_that_get_another_one_are_not_sent_on_as_they_came() {
        let block_of = |rows: &Rows| {
            let mut bytes = Vec::new();
            rows.write_block(&mut bytes);
            bytes
        };
        let read = |bytes: &[u8]| Rows::read_block(Block::take(&mut &bytes[..]).unwrap()).unwrap();
        let mut rows = Rows::new(1);
        rows.push([Some("a")]);
        let came = block_of(&rows);
        let mut rows = read(&came);
        assert_eq!(block_of(&rows), came);
        rows.push([Some("b")]);
        assert_eq!(rows.len(), 2);
        assert_eq!(read(&block_of(&rows)), rows);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        for bad in [
            &b""[..],
            b"\x01",
            b"\x00\x01",
            b"\x01\x01\x03a",
            b"\x01\x01\x02ab",
            b"\x01\x01\x02\xff",
            b"\x01\x02\x02\x02\xc3\xa4",
            b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\xff\xff\xff\xff\x0f\x02",
            b"\xff\xff\x03\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x01\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        ] {
            assert!(Rows::read(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(values in prop::collection::vec(prop::array::uniform3(prop::option::of("(?s).{0,9}|x{120,300}")), 0..40)) {
            let mut rows = Rows::new(3);
            for row in &values {
                rows.push(row.iter().map(Option::as_deref));
            }
            let bytes = written(&rows);
            prop_assert_eq!(Rows::read(&bytes).unwrap(), rows);
            for cut in 0..bytes.len() {
                prop_assert!(Rows::read(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_rows_or_an_error(bytes in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..40)) {
            if let Ok(rows) = Rows::read(&bytes) {
                prop_assert_eq!(rows.iter().map(|row| row.iter().count()).sum::<usize>(), rows.len() * rows.width());
            }
        }
    }
}
