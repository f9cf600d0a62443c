//! Whether a text is the canonical one of a plain document, as `model.document.parse_document` decides it.

use memchr::memmem;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::de::IgnoredAny;

use crate::json::end_of_value;

/// Bytes of a run id that are as many characters at most as `parse_document` takes at once.
const MAX_RUN_ID: usize = 128;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A string.
    Id,
    /// A string or null.
    Text,
    /// Any value.
    Raw,
    /// An array of steps, or null.
    Steps,
}

struct Member {
    /// `"durationMs":`
    name: Vec<u8>,
    kind: Kind,
}

/// Recognizes plain documents in their canonical form.
#[pyclass(frozen)]
pub struct PlainDocuments {
    run: Vec<Member>,
    step: Vec<Member>,
}

#[pymethods]
impl PlainDocuments {
    /// `run` and `step` are the names and kinds of the members in order.
    #[new]
    fn new(run: Vec<(Vec<u8>, String)>, step: Vec<(Vec<u8>, String)>) -> PyResult<PlainDocuments> {
        Ok(PlainDocuments { run: members(run)?, step: members(step)? })
    }

    /// Return the run id if a text is the canonical one of a plain document for certain.
    fn run_id<'a>(&self, text: &'a Bound<'_, PyBytes>) -> Option<&'a str> {
        let text = std::str::from_utf8(text.as_bytes()).ok()?;
        let bytes = text.as_bytes();
        let is_surrogate = |at: usize| matches!(bytes.get(at + 2), Some(b'd' | b'D'));
        if memmem::find_iter(bytes, b"\\u").any(is_surrogate) {
            return None; // Python decides whether it is a lone one
        }
        let mut position = 0;
        let id = self.object(text, &mut position, &self.run)?;
        (position == text.len() && !id.is_empty() && id.len() <= MAX_RUN_ID).then_some(id)
    }
}

impl PlainDocuments {
    /// Move behind the object at a position, and return its id.
    fn object<'a>(&self, text: &'a str, position: &mut usize, members: &[Member]) -> Option<&'a str> {
        let mut id = None;
        expect(text, position, b'{')?;
        for member in members {
            if !text.as_bytes().get(*position..)?.starts_with(&member.name) {
                continue;
            }
            *position += member.name.len();
            match member.kind {
                Kind::Id => id = Some(plain_string(text, position)?),
                Kind::Text => drop(null(text, position).or_else(|| plain_string(text, position))?),
                Kind::Raw => skip_value(text, position)?,
                Kind::Steps => self.steps(text, position)?,
            }
            match text.as_bytes().get(*position)? {
                b',' => *position += 1,
                b'}' => {
                    *position += 1;
                    return id;
                }
                _ => return None,
            }
        }
        None
    }

    fn steps(&self, text: &str, position: &mut usize) -> Option<()> {
        if null(text, position).is_some() {
            return Some(());
        }
        expect(text, position, b'[')?;
        if expect(text, position, b']').is_some() {
            return Some(());
        }
        loop {
            self.object(text, position, &self.step)?;
            if expect(text, position, b',').is_none() {
                return expect(text, position, b']');
            }
        }
    }
}

fn members(rows: Vec<(Vec<u8>, String)>) -> PyResult<Vec<Member>> {
    let member = |(name, kind): (Vec<u8>, String)| {
        let kind = match kind.as_str() {
            "id" => Kind::Id,
            "text" => Kind::Text,
            "raw" => Kind::Raw,
            "steps" => Kind::Steps,
            other => return Err(PyValueError::new_err(format!("unknown kind of member {other}"))),
        };
        Ok(Member { name, kind })
    };
    rows.into_iter().map(member).collect()
}

/// Move behind a byte, or return None if another one is there.
fn expect(text: &str, position: &mut usize, byte: u8) -> Option<()> {
    (text.as_bytes().get(*position) == Some(&byte)).then(|| *position += 1)
}

fn null<'a>(text: &'a str, position: &mut usize) -> Option<&'a str> {
    let value = text.get(*position..)?.get(..4).filter(|value| *value == "null")?;
    *position += 4;
    Some(value)
}

/// Move behind a string without escapes, and return its content.
fn plain_string<'a>(text: &'a str, position: &mut usize) -> Option<&'a str> {
    expect(text, position, b'"')?;
    let rest = text.get(*position..)?;
    let length = memchr::memchr(b'"', rest.as_bytes())?;
    let content = rest.get(..length)?;
    // What has to be escaped, and what a writer might escape.
    if content.bytes().any(|byte| byte < 0x20 || byte == b'\\' || byte == 0x7f) {
        return None;
    }
    *position += length + 1;
    Some(content)
}

/// Move behind any value. White space before it is not canonical.
fn skip_value(text: &str, position: &mut usize) -> Option<()> {
    let end = end_of_value(text.as_bytes(), *position)?;
    let value = text.get(*position..end)?;
    if value.starts_with([' ', '\t', '\r', '\n']) || value.ends_with([' ', '\t', '\r', '\n']) {
        return None;
    }
    serde_json::from_str::<IgnoredAny>(value).ok()?;
    *position = end;
    Some(())
}
