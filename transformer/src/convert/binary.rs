//! `bytea`. Athena shows bytes as pairs of hex digits with blanks between them, which Postgres would
//! read as text; Postgres' own format begins with `\x`.

use std::borrow::Cow;

use common::schema::AthenaType;

use super::Problem;

const NOT_BYTES: &str = "is not a row of two-digit hex bytes";

/// `31 32 33` of a `varbinary`, or `\x313233` of a text, as `\x313233`.
pub(super) fn bytea(from: AthenaType, text: &str) -> Result<Cow<'_, str>, Problem> {
    if from != AthenaType::Varbinary {
        let digits = text
            .strip_prefix("\\x")
            .ok_or("does not begin with \\x, as bytea does")?;
        return if digits.len().is_multiple_of(2)
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            Ok(lower_case(text))
        } else {
            Err(NOT_BYTES.into())
        };
    }
    let mut shown = String::with_capacity(2 + text.len() / 3 * 2 + 2);
    shown.push_str("\\x");
    // Trino separates words and lines of bytes with more than one blank.
    for pair in text.split_ascii_whitespace() {
        if pair.len() != 2 || !pair.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NOT_BYTES.into());
        }
        shown.extend(pair.chars().map(|digit| digit.to_ascii_lowercase()));
    }
    Ok(shown.into())
}

pub(super) fn lower_case(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    }
}
