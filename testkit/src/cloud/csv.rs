//! The CSV form of a result as Athena writes it: a header always, every value that is not NULL in double quotes with `""`
//! for a quote, nothing at all for NULL, LF after every record, line ends inside of quotes unchanged.
//! (Athena user guide, "Working with query results"; the quoting was observed in real files.)

/// One row: a value's text as Athena returns it, or NULL.
pub type Row = Vec<Option<String>>;

/// Appends one record.
pub(crate) fn write_record<'a>(
    out: &mut Vec<u8>,
    fields: impl IntoIterator<Item = Option<&'a str>>,
) {
    for (index, field) in fields.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if let Some(text) = field {
            out.push(b'"');
            for part in text.split_inclusive('"') {
                out.extend_from_slice(part.as_bytes());
                if part.ends_with('"') {
                    out.push(b'"');
                }
            }
            out.push(b'"');
        }
    }
    out.push(b'\n');
}

/// Reads one record from the start of `bytes`: its fields and how many bytes it took, or `None` at the end.
///
/// It panics on input that Athena never writes.
pub(crate) fn read_record(bytes: &[u8]) -> Option<(Row, usize)> {
    if bytes.is_empty() {
        return None;
    }
    let (mut row, mut at) = (Row::new(), 0);
    loop {
        let (field, taken) = read_field(&bytes[at..]);
        row.push(field);
        at += taken;
        match bytes.get(at) {
            Some(b',') => at += 1,
            Some(b'\n') => return Some((row, at + 1)),
            None => return Some((row, at)),
            Some(other) => panic!(
                "a result file has byte {other:#x} after a field, where a comma or LF must be"
            ),
        }
    }
}

fn read_field(bytes: &[u8]) -> (Option<String>, usize) {
    if bytes.first() != Some(&b'"') {
        let end = bytes
            .iter()
            .position(|b| matches!(b, b',' | b'\n'))
            .unwrap_or(bytes.len());
        return ((end > 0).then(|| text(&bytes[..end])), end);
    }
    let (mut value, mut at) = (Vec::new(), 1);
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b'"'), Some(b'"')) => {
                value.push(b'"');
                at += 2;
            }
            (Some(b'"'), _) => return (Some(text(&value)), at + 1),
            (Some(byte), _) => {
                value.push(*byte);
                at += 1;
            }
            (None, _) => panic!("a result file ends inside of quotes"),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("a result file is UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fields: &[Option<&str>]) -> String {
        let mut out = Vec::new();
        write_record(&mut out, fields.iter().copied());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn null_is_written_as_nothing_and_the_empty_string_as_quotes() {
        assert_eq!(written(&[None, Some(""), Some("a")]), ",\"\",\"a\"\n");
        assert_eq!(written(&[None]), "\n");
    }

    #[test]
    fn quotes_are_doubled_and_line_ends_are_kept() {
        assert_eq!(written(&[Some("a\"b\n,\r\n\"")]), "\"a\"\"b\n,\r\n\"\"\"\n");
    }

    #[test]
    fn written_records_are_read_back() {
        let row = vec![None, Some(String::new()), Some("\"\n,é".to_owned()), None];
        let mut out = Vec::new();
        write_record(&mut out, row.iter().map(Option::as_deref));
        write_record(&mut out, [None]);
        let (read, taken) = read_record(&out).unwrap();
        assert_eq!(read, row);
        assert_eq!(read_record(&out[taken..]), Some((vec![None], 1)));
        assert_eq!(read_record(&out[taken + 1..]), None);
    }
}
