//! S3's part of the emulator: path-style GET, HEAD and PUT of whole objects or ranges, with If-Match, `ETag` and S3's own
//! errors (Amazon S3 API Reference, `GetObject` and "Error responses").

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::fault::{ErrorAnswer, s3_error};
use super::result::Spool;
use super::state::{Object, State};

/// The result of a GET or HEAD: the object, and the requested range.
pub(crate) struct Found {
    pub(crate) object: Object,
    /// `None` for the whole object.
    pub(crate) range: Option<Range<u64>>,
}

impl Object {
    /// Runs `read` on the object's bytes. Blocks while a result is written for the first time.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&Spool) -> T) -> T {
        match self {
            Self::Result(result) => read(result.spool()),
            Self::Bytes(spool) => read(spool),
        }
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let spool =
            Spool::of_bytes(bytes).expect("an object fits into the folder for temporary files");
        Self::Bytes(Arc::new(spool))
    }
}

/// Finds the object named `bucket/key`; denied and missing ones are errors.
pub(crate) fn find(state: &State, name: &str) -> Result<Object, ErrorAnswer> {
    if state.denied.contains(name) {
        return Err(s3_error(403, "AccessDenied", "Access Denied"));
    }
    let missing = || s3_error(404, "NoSuchKey", "The specified key does not exist.");
    state.objects.get(name).cloned().ok_or_else(missing)
}

/// Applies If-Match and Range. Blocks as [`Object::with`] does.
pub(crate) fn select(
    object: Object,
    if_match: Option<&str>,
    range: Option<&str>,
) -> Result<Found, ErrorAnswer> {
    let (size, etag) = object.with(|spool| (spool.size, spool.etag.clone()));
    if if_match
        .is_some_and(|wanted| wanted != "*" && wanted.trim_matches('"') != etag.trim_matches('"'))
    {
        return Err(s3_error(
            412,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold",
        ));
    }
    let range = match range {
        None => None,
        Some(text) => parse_range(text, size)?,
    };
    Ok(Found { object, range })
}

/// A single `bytes=` range within `size`; any other header is ignored, as in HTTP.
fn parse_range(text: &str, size: u64) -> Result<Option<Range<u64>>, ErrorAnswer> {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Ok(None);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(length)) if first.is_empty() => size.saturating_sub(length)..size,
        _ => return Ok(None),
    };
    if range.start >= range.end {
        return Err(s3_error(
            416,
            "InvalidRange",
            "The requested range is not satisfiable",
        ));
    }
    Ok(Some(range))
}

/// Stores an object under `bucket/key`.
pub(crate) fn put(state: &mut State, name: &str, body: &Bytes) -> String {
    let object = Object::of_bytes(body);
    let etag = object.with(|spool| spool.etag.clone());
    state.objects.insert(name.to_owned(), object);
    etag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Option<Range<u64>> {
        parse_range(text, 100).unwrap_or_else(|e| panic!("{}", e.status))
    }

    #[test]
    fn ranges_are_limited_to_the_object() {
        assert_eq!(range("bytes=0-9"), Some(0..10));
        assert_eq!(range("bytes=90-"), Some(90..100));
        assert_eq!(range("bytes=90-5000"), Some(90..100));
        assert_eq!(range("bytes=-7"), Some(93..100));
        assert_eq!(range("lines=1-2"), None);
        assert_eq!(range("bytes=9-2"), None);
    }

    #[test]
    fn range_behind_the_end_is_refused() {
        assert_eq!(
            parse_range("bytes=100-", 100).err().map(|e| e.status),
            Some(416)
        );
    }
}
