//! JSON values that become a part of a document's text as they are.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::wire::{Found, Unusual};

/// Append a string as JSON.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("memory and strings always can be written");
}

/// Check that a text is one JSON value, without white space around it, without lone surrogates and not nested deeply.
pub fn check_value(text: &str) -> Found<()> {
    const SPACE: &[char] = &[' ', '\t', '\r', '\n'];
    if text.starts_with(SPACE) || text.ends_with(SPACE) {
        return Err(Unusual);
    }
    serde_json::from_str::<Valid>(text).map(|_| ()).map_err(|_| Unusual)
}

/// Check that a text is a JSON string without escapes.
pub fn plain_string(text: &str) -> Found<&str> {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or(Unusual)?;
    let needs_escape = |byte| byte < b' ' || byte == b'"' || byte == b'\\';
    if inner.bytes().any(needs_escape) { Err(Unusual) } else { Ok(inner) }
}

/// Any JSON value. Unlike `serde::de::IgnoredAny`, it has its strings decoded and its depth bounded.
struct Valid;

impl<'de> Deserialize<'de> for Valid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Valid)
    }
}

impl<'de> Visitor<'de> for Valid {
    type Value = Valid;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_str<E>(self, _: &str) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Valid, A::Error> {
        while values.next_element::<Valid>()?.is_some() {}
        Ok(Valid)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Valid, A::Error> {
        while members.next_entry::<Valid, Valid>()?.is_some() {}
        Ok(Valid)
    }
}
