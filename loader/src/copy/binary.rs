//! Rows in the binary format of `COPY ... FROM STDIN`, which costs Postgres less than half of the CPU that text does. Pure.
//!
//! Promise: a value becomes exactly what Postgres would have read from its text, or nothing is encoded at all and the
//! text format has to be used. That is so for types whose text is not read here (`interval`, `inet`) and for a value
//! that is not in its type's canonical form; a test has Postgres compare the two formats.
//!
//! Sources: PostgreSQL documentation, COPY, "Binary Format"; the receive functions of the types (`date_recv`,
//! `timestamp_recv`, `numeric_recv` ...) in its source.

use common::Rows;
use common::schema::PgType;

mod moment;
mod number;

/// Signature, flags, and the length of the header's extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In place of a row's number of values: the end.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// The value at the end of each row.
#[derive(Debug, Clone, Copy)]
pub enum Last {
    /// The same number in each, a `bigint`.
    Batch(i64),
    /// The row's index, an `integer`.
    Index,
}

/// Whether values of this type are encoded here.
pub fn is_encodable(pg_type: PgType) -> bool {
    !matches!(pg_type, PgType::Interval | PgType::Inet)
}

/// All of `rows`, each with one more value at its end. None when one of the values has to be read by Postgres.
pub fn encode(rows: &Rows, types: &[PgType], last: Last) -> Option<Vec<u8>> {
    if types.len() != rows.width() || !types.iter().all(|one| is_encodable(*one)) {
        return None;
    }
    let fields = i16::try_from(types.len() + 1).ok()?.to_be_bytes();
    let mut out = Vec::with_capacity(rows.text_bytes() + rows.len() * (types.len() * 6 + 14) + 32);
    out.extend_from_slice(HEADER);
    let mut values = rows.values();
    for index in 0..rows.len() {
        out.extend_from_slice(&fields);
        for pg_type in types {
            match values.next()? {
                None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
                Some(text) => put(&mut out, *pg_type, text)?,
            }
        }
        match last {
            Last::Batch(number) => field(&mut out, &number.to_be_bytes()),
            Last::Index => field(&mut out, &i32::try_from(index).ok()?.to_be_bytes()),
        }
    }
    out.extend_from_slice(&TRAILER);
    Some(out)
}

/// A value behind its length. Values are far below 2 GiB.
fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put(out: &mut Vec<u8>, pg_type: PgType, text: &str) -> Option<()> {
    match pg_type {
        // Its receive function checks json as its input function does.
        PgType::Text | PgType::Varchar(_) | PgType::Char(_) | PgType::Json => {
            field(out, text.as_bytes());
        }
        PgType::Jsonb => {
            // The version of the form.
            let length = u32::try_from(text.len() + 1).ok()?;
            out.extend_from_slice(&length.to_be_bytes());
            out.push(1);
            out.extend_from_slice(text.as_bytes());
        }
        PgType::Boolean => field(out, &[boolean(text)?]),
        PgType::SmallInt => field(out, &number::integer::<i16>(text)?.to_be_bytes()),
        PgType::Integer => field(out, &number::integer::<i32>(text)?.to_be_bytes()),
        PgType::BigInt => field(out, &number::integer::<i64>(text)?.to_be_bytes()),
        PgType::Real => field(out, &number::real(text)?.to_be_bytes()),
        PgType::Double => field(out, &number::double(text)?.to_be_bytes()),
        PgType::Numeric(_) => number::numeric(out, text)?,
        PgType::Date => field(out, &moment::date(text)?.to_be_bytes()),
        PgType::Time => field(out, &moment::time(text)?.to_be_bytes()),
        PgType::Timestamp => field(out, &moment::timestamp(text)?.to_be_bytes()),
        PgType::TimestampTz => field(out, &moment::timestamptz(text)?.to_be_bytes()),
        PgType::Bytea => bytea(out, text)?,
        PgType::Uuid => field(out, &uuid(text)?),
        PgType::Interval | PgType::Inet => return None,
    }
    Some(())
}

fn boolean(text: &str) -> Option<u8> {
    match text {
        "true" => Some(1),
        "false" => Some(0),
        _ => None,
    }
}

/// `\x` and pairs of hexadecimal digits.
fn bytea(out: &mut Vec<u8>, text: &str) -> Option<()> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    if digits.len() % 2 != 0 {
        return None;
    }
    let length = u32::try_from(digits.len() / 2).ok()?;
    out.extend_from_slice(&length.to_be_bytes());
    for pair in digits.chunks_exact(2) {
        out.push(digit(pair[0])? << 4 | digit(pair[1])?);
    }
    Some(())
}

/// 32 hexadecimal digits with hyphens where Postgres writes them.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let text = text.as_bytes();
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|at| text[*at] != b'-') {
        return None;
    }
    let mut bytes = [0; 16];
    let mut digits = text.iter().filter(|byte| **byte != b'-');
    for byte in &mut bytes {
        *byte = digit(*digits.next()?)? << 4 | digit(*digits.next()?)?;
    }
    digits.next().is_none().then_some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(pg_type: &str, text: &str) -> Option<Vec<u8>> {
        let mut rows = Rows::new(1);
        rows.push([Some(text)]);
        let bytes = encode(&rows, &[pg_type.parse().unwrap()], Last::Index)?;
        let end = bytes.len() - 8 - 2;
        Some(bytes[HEADER.len() + 2 + 4..end].to_vec())
    }

    #[test]
    fn the_form_is_the_documented_one() {
        let mut rows = Rows::new(2);
        rows.push([Some("ä"), None]);
        rows.push([Some(""), Some("7")]);
        let types = [PgType::Text, PgType::Integer];
        let mut wanted = HEADER.to_vec();
        wanted.extend(b"\0\x03\0\0\0\x02\xc3\xa4\xff\xff\xff\xff\0\0\0\x08\0\0\0\0\0\0\0\x05");
        wanted.extend(b"\0\x03\0\0\0\0\0\0\0\x04\0\0\0\x07\0\0\0\x08\0\0\0\0\0\0\0\x05\xff\xff");
        assert_eq!(encode(&rows, &types, Last::Batch(5)), Some(wanted));
    }

    #[test]
    fn what_is_not_canonical_is_left_to_postgres() {
        for (pg_type, text) in [
            ("boolean", "t"),
            ("integer", "+1"),
            ("integer", "2147483648"),
            ("smallint", " 1"),
            ("double", "1e400x"),
            ("double", "1e-400"),
            ("real", "1e-60"),
            ("numeric", "1e3"),
            ("date", "2018-4-2"),
            ("date", "0000-01-01"),
            ("time", "24:00:00"),
            ("timestamp", "2018-04-02"),
            ("timestamptz", "2018-04-02 00:00:00"),
            ("bytea", "\\x0"),
            ("uuid", "0"),
            ("interval", "1 day"),
            ("inet", "::1"),
        ] {
            assert_eq!(one(pg_type, text), None, "{pg_type} {text}");
        }
        assert_eq!(one("bytea", "\\x00fF"), Some(vec![0, 255]));
        assert_eq!(one("jsonb", "1"), Some(vec![1, b'1']));
    }
}
