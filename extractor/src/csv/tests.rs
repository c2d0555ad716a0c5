//! Rows are read whatever the chunks; malformed text is refused naming its place.

use super::*;
use proptest::prelude::*;

type Rows = Vec<Vec<Option<String>>>;

/// Every record of the given pieces, with the offsets behind them.
fn read_pieces(mut tokenizer: Tokenizer, pieces: &[&[u8]]) -> Result<(Rows, Vec<u64>), CsvError> {
    let (mut rows, mut offsets) = (Vec::new(), Vec::new());
    let owned = |record: &Record| -> Vec<_> {
        record
            .values()
            .map(|value| value.map(str::to_owned))
            .collect()
    };
    for piece in pieces {
        let mut rest = *piece;
        while let Some(row) = tokenizer.read(&mut rest)?.map(owned) {
            rows.push(row);
            offsets.push(tokenizer.offset());
        }
        assert!(rest.is_empty());
    }
    if let Some(row) = tokenizer.finish()?.map(owned) {
        rows.push(row);
        offsets.push(tokenizer.offset());
    }
    Ok((rows, offsets))
}

fn read(columns: usize, text: &[u8]) -> Result<Rows, CsvError> {
    let whole = read_pieces(Tokenizer::new(columns, Place::Row(0), 0), &[text]).map(|read| read.0);
    let bytes: Vec<&[u8]> = text.chunks(1).collect();
    let single = read_pieces(Tokenizer::new(columns, Place::Row(0), 0), &bytes).map(|read| read.0);
    assert_eq!(whole, single);
    whole
}

fn rows(rows: &[&[Option<&str>]]) -> Rows {
    rows.iter()
        .map(|row| row.iter().map(|value| value.map(str::to_owned)).collect())
        .collect()
}

fn problem(columns: usize, text: &[u8]) -> (Place, Problem) {
    let error = read(columns, text).unwrap_err();
    (error.place, error.problem)
}

#[test]
fn null_and_empty_string_differ() {
    let wanted = rows(&[&[None, Some(""), Some("a")], &[None, None, None]]);
    assert_eq!(read(3, b",\"\",\"a\"\n,,\n"), Ok(wanted));
}

#[test]
fn blank_line_is_a_null_row_of_one_column() {
    let wanted = rows(&[&[Some("a")], &[None], &[Some("")], &[None], &[Some("b")]]);
    assert_eq!(read(1, b"\"a\"\n\n\"\"\n\r\nb"), Ok(wanted));
    assert_eq!(
        problem(2, b"a,b\n\nc,d\n").1,
        Problem::Columns {
            found: 1,
            wanted: 2
        }
    );
}

#[test]
fn quotes_commas_and_line_ends_inside_quotes_are_text() {
    let wanted = rows(&[
        &[Some("a\"b"), Some("c,\r\nd")],
        &[Some("\""), Some("\"\"")],
    ]);
    assert_eq!(
        read(2, b"\"a\"\"b\",\"c,\r\nd\"\r\n\"\"\"\",\"\"\"\"\"\""),
        Ok(wanted)
    );
}

#[test]
fn bare_values_are_text() {
    let wanted = rows(&[&[Some("12"), Some(" a\"b ")], &[Some("c\rd"), None]]);
    assert_eq!(read(2, b"12, a\"b \r\nc\rd,\r\n"), Ok(wanted));
    assert_eq!(read(2, b"a,"), Ok(rows(&[&[Some("a"), None]])));
}

#[test]
fn empty_input_has_no_row() {
    assert_eq!(read(1, b""), Ok(vec![]));
}

#[test]
fn malformed_csv_is_refused_naming_the_place() {
    let (row_1, column) = (Place::Row(1), 1);
    assert_eq!(
        problem(2, b"a,b\nc,\"d\"e\n"),
        (row_1, Problem::TextAfterQuote { column })
    );
    assert_eq!(
        problem(2, b"a,b\nc,\"d\"\re\n"),
        (row_1, Problem::TextAfterQuote { column })
    );
    assert_eq!(
        problem(2, b"a,b\nc,\"d\n"),
        (row_1, Problem::Unterminated { column })
    );
    assert_eq!(
        problem(2, b"a,b\nc,\"\xff\"\n"),
        (row_1, Problem::NotUtf8 { column })
    );
    assert_eq!(
        problem(2, b"a,b\nc\n"),
        (
            row_1,
            Problem::Columns {
                found: 1,
                wanted: 2
            }
        )
    );
    assert_eq!(
        problem(2, b"a,b\nc"),
        (
            row_1,
            Problem::Columns {
                found: 1,
                wanted: 2
            }
        )
    );
    assert_eq!(
        problem(2, b"a,b\nc,d,e\n"),
        (row_1, Problem::TooManyColumns { wanted: 2 })
    );
    // A comma inside a UTF-8 sequence.
    assert_eq!(
        problem(2, b"\xc3,\xa9\n"),
        (Place::Row(0), Problem::NotUtf8 { column: 0 })
    );
    let error = read(2, b"a,b\nc,\"d\"e\n").unwrap_err().to_string();
    assert!(
        error.contains("row 1") && error.contains("byte 4"),
        "{error}"
    );
}

#[test]
fn too_large_row_is_refused_before_it_is_in_memory() {
    let mut text = b"a,\"".to_vec();
    text.resize(text.len() + Limits::ROW_BYTES - 1, b'x');
    text.extend(b"\"\n");
    assert!(read_pieces(Tokenizer::new(2, Place::Row(0), 0), &[&text]).is_ok());
    text.splice(3..3, *b"y");
    let error = read_pieces(Tokenizer::new(2, Place::Row(0), 0), &[&text]).unwrap_err();
    assert_eq!(error.problem, Problem::TooLong { column: 1 });
}

#[test]
fn header_is_not_counted_as_a_row() {
    let mut tokenizer = Tokenizer::new(1, Place::Header, 0);
    let mut rest: &[u8] = b"\"n\"\n\"1\"\n\"2\"3";
    assert!(tokenizer.read(&mut rest).unwrap().is_some());
    assert_eq!(tokenizer.offset(), 4);
    assert!(tokenizer.read(&mut rest).unwrap().is_some());
    assert_eq!(tokenizer.read(&mut rest).unwrap_err().place, Place::Row(1));
}

/// A reference writer: quoted values, or bare ones where that is equivalent.
fn write(rows: &Rows, bare: bool, end: &str) -> Vec<u8> {
    let mut text = String::new();
    for row in rows {
        let fields: Vec<_> = row
            .iter()
            .map(|value| match value {
                None => String::new(),
                Some(v) if bare && !v.is_empty() && !v.contains(['"', ',', '\n', '\r']) => {
                    v.clone()
                }
                Some(v) => format!("\"{}\"", v.replace('"', "\"\"")),
            })
            .collect();
        text += &fields.join(",");
        text += end;
    }
    text.into_bytes()
}

fn any_rows() -> impl Strategy<Value = Rows> {
    let value = prop::option::of("[a\"\",\r\n\u{e9}\u{6f22} \\\\]{0,6}");
    (1..4_usize).prop_flat_map(move |width| {
        prop::collection::vec(prop::collection::vec(value.clone(), width), 1..8)
    })
}

proptest! {
    #[test]
    fn written_rows_are_read_whatever_the_chunks(
        rows in any_rows(), bare: bool, crlf: bool, cut in prop::collection::vec(0..400_usize, 0..6),
    ) {
        let bytes = write(&rows, bare, if crlf { "\r\n" } else { "\n" });
        let mut cuts: Vec<_> = cut.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let width = rows[0].len();
        let (seen, offsets) = read_pieces(Tokenizer::new(width, Place::Row(0), 0), &pieces).unwrap();
        prop_assert_eq!(&seen, &rows);
        // Every chunk boundary, and resuming from every record.
        for middle in 0..=bytes.len() {
            let (left, right) = bytes.split_at(middle);
            let (seen, _) = read_pieces(Tokenizer::new(width, Place::Row(0), 0), &[left, right]).unwrap();
            prop_assert_eq!(&seen, &rows);
        }
        for (done, offset) in offsets.iter().enumerate() {
            let from = usize::try_from(*offset).unwrap();
            let tokenizer = Tokenizer::new(width, Place::Row(done as u64 + 1), *offset);
            let (rest, again) = read_pieces(tokenizer, &[&bytes[from..]]).unwrap();
            prop_assert_eq!(&rest[..], &rows[done + 1..]);
            prop_assert_eq!(&again[..], &offsets[done + 1..]);
        }
    }

    #[test]
    fn no_input_panics(bytes in prop::collection::vec(prop::sample::select(b"\",\r\na\xc3\xa9".to_vec()), 0..40), width in 1..4_usize) {
        let whole = read_pieces(Tokenizer::new(width, Place::Row(0), 0), &[&bytes]);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(whole, read_pieces(Tokenizer::new(width, Place::Row(0), 0), &single));
    }
}
