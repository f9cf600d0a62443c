//! The members of an object in canonical JSON, in the order of a table, each as an attribute of a span.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::wire::{put_integer, put_string};
use crate::json::end_of_value;
use crate::timestamps::{self, LAST_DAY};

/// Digits of an integer that fits 64 bits whatever they are.
const MAX_DIGITS: usize = 18;

/// The member that has the token usage of an agent.
const OUTPUT: &[u8] = b"\"output\":";
/// The member that has the error of a run or step.
const ERROR: &[u8] = b"\"error\":";

/// The canonical form of a member, by the names of `codec.fields.FieldKind`, and two members with a place of their own.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Id,
    Label,
    Start,
    End,
    Integer,
    Payload,
    Text,
    Steps,
}

/// One member: its name, key, kind, and whether a list shows it.
pub type Row = (Vec<u8>, Vec<u8>, String, bool);

struct Member {
    /// `"durationMs":`
    name: Vec<u8>,
    key: Vec<u8>,
    kind: Kind,
    in_summary: bool,
    is_output: bool,
    is_error: bool,
}

/// The members that an object may have, in order.
pub struct Members {
    members: Vec<Member>,
    max_attribute_bytes: usize,
}

/// What was read of an object.
#[derive(Default)]
pub struct Object<'a> {
    /// The JSON text of its first member.
    pub id: &'a [u8],
    /// The text of all labels.
    pub labels: &'a [u8],
    pub start: Time,
    pub end: Time,
    pub end_text: &'a [u8],
    /// The text of its output; empty without one.
    pub output: &'a [u8],
    /// The text of its error; empty without one.
    pub error: &'a [u8],
}

#[derive(Clone, Copy, Default, PartialEq)]
pub enum Time {
    #[default]
    Absent,
    Null,
    /// Nanoseconds since 1970.
    Canonical(u64),
}

impl Time {
    pub fn known(self) -> Option<u64> {
        if let Time::Canonical(ns) = self { Some(ns) } else { None }
    }
}

impl Members {
    pub fn new(rows: Vec<Row>, max_attribute_bytes: usize) -> PyResult<Members> {
        let member = |(name, key, kind, in_summary): Row| {
            let kind = match kind.as_str() {
                "ID" => Kind::Id,
                "LABEL" => Kind::Label,
                "START" => Kind::Start,
                "END" => Kind::End,
                "INTEGER" => Kind::Integer,
                "PAYLOAD" => Kind::Payload,
                "TEXT" => Kind::Text,
                "STEPS" => Kind::Steps,
                other => return Err(PyValueError::new_err(format!("unknown kind of member {other}"))),
            };
            let (is_output, is_error) = (name == OUTPUT, name == ERROR);
            Ok(Member { name, key, kind, in_summary, is_output, is_error })
        };
        Ok(Members { members: rows.into_iter().map(member).collect::<PyResult<_>>()?, max_attribute_bytes })
    }

    /// Read the object at a position, and move it behind the object, or to the value of `steps`.
    ///
    /// Append the attributes of its values, and the members of its summary with a comma after each. Return None if a
    /// value has not the canonical form of its kind, or is too long for an attribute.
    pub fn read<'a>(
        &self,
        text: &'a [u8],
        position: &mut usize,
        attributes: &mut Vec<u8>,
        summary: &mut Vec<u8>,
    ) -> Option<Object<'a>> {
        let mut object = Object::default();
        let mut labels = 0..0;
        expect(text, position, b'{')?;
        for member in &self.members {
            let name = *position;
            if !text.get(name..)?.starts_with(&member.name) {
                continue;
            }
            let start = name + member.name.len();
            if member.kind == Kind::Steps {
                *position = start;
                object.labels = text.get(labels)?;
                return Some(object);
            }
            let end = end_of_value(text, start)?;
            let value = text.get(start..end)?;
            if object.id.is_empty() {
                object.id = value;
            }
            if member.is_output {
                object.output = value;
            }
            if member.is_error {
                object.error = value;
            }
            match member.kind {
                Kind::Id => (),
                Kind::Label => labels = if labels.is_empty() { name..end } else { labels.start..end },
                Kind::Start => object.start = time(value)?,
                Kind::End => (object.end, object.end_text) = (time(value)?, value),
                Kind::Integer => put_integer(attributes, &member.key, integer(value)?),
                Kind::Payload if value.len() <= self.max_attribute_bytes => put_string(attributes, &member.key, value),
                Kind::Text => {
                    let content = plain_string(value)?;
                    // The limit is in characters, which have up to four bytes.
                    if content.is_empty() || content.len() > self.max_attribute_bytes / 4 {
                        return None;
                    }
                    put_string(attributes, &member.key, content);
                }
                Kind::Payload | Kind::Steps => return None,
            }
            if member.in_summary {
                summary.extend_from_slice(text.get(name..end)?);
                summary.push(b',');
            }
            *position = end + 1;
            match text.get(end)? {
                b',' => (),
                b'}' => {
                    object.labels = text.get(labels)?;
                    return Some(object);
                }
                _ => return None,
            }
        }
        None
    }
}

/// Move behind a byte, or return None if another one is there.
pub fn expect(text: &[u8], position: &mut usize, byte: u8) -> Option<()> {
    (text.get(*position) == Some(&byte)).then(|| *position += 1)
}

fn time(value: &[u8]) -> Option<Time> {
    if value == b"null" {
        return Some(Time::Null);
    }
    let text = std::str::from_utf8(plain_string(value)?).ok()?;
    timestamps::parse(text, LAST_DAY - 1).known().map(Time::Canonical)
}

/// Return the content of a string without escapes.
pub fn plain_string(value: &[u8]) -> Option<&[u8]> {
    let content = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    (!content.contains(&b'\\')).then_some(content)
}

/// Return the integer of its shortest text.
fn integer(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > MAX_DIGITS || (value.len() > 1 && value[0] == b'0') {
        return None;
    }
    value.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))
}
