//! `json` and `jsonb`. The text passes unchanged; what Postgres would refuse or change is refused.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Problem;

/// `serde_json` refuses a greater depth, and Postgres one that depends on its stack.
const MAX_DEPTH: usize = 128;

/// Valid JSON. Escapes are not checked, as in Postgres.
pub(super) fn json(text: &str) -> Result<Cow<'_, str>, Problem> {
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| format!("is not valid JSON: {error}"))?;
    if depth(text) > MAX_DEPTH {
        return Err(format!("is JSON nested more than {MAX_DEPTH} levels deep").into());
    }
    Ok(text.into())
}

/// Valid JSON that `jsonb` keeps: without `\u0000`, without half of a surrogate pair, without a key
/// that occurs twice in one object, and with numbers in the range of a double.
pub(super) fn jsonb(text: &str) -> Result<Cow<'_, str>, Problem> {
    json(text)?;
    serde_json::from_str::<Kept>(text)
        .map_err(|error| format!("is JSON that jsonb cannot keep: {error}"))?;
    Ok(text.into())
}

/// The depth of nested arrays and objects in valid JSON.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Any JSON that `jsonb` keeps without a change of meaning.
struct Kept;

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Kept {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self, E> {
        if text.contains('\0') {
            Err(E::custom("\\u0000 in a text"))
        } else {
            Ok(self)
        }
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            Self.visit_str::<A::Error>(&key)?;
            if !keys.insert(key) {
                return Err(A::Error::custom("a key occurs twice in one object"));
            }
            map.next_value::<Self>()?;
        }
        Ok(self)
    }
}
