//! JSON text: where values end, the members of an object, and which lines are documents.

use pyo3::prelude::*;
use serde::Deserialize;

/// Arrays and objects inside of each other, fewer than Python's parser reads.
const MAX_DEPTH: usize = 128;

/// Return the end of the value at a position, if it is valid JSON; None where it is nested deeper than `MAX_DEPTH`.
pub fn end_of_value(text: &[u8], start: usize) -> Option<usize> {
    let mut position = start;
    let mut depth = 0usize;
    loop {
        match text.get(position)? {
            b'"' => position = end_of_string(text, position)?,
            b'{' | b'[' => {
                depth += 1;
                position += 1;
                if depth > MAX_DEPTH {
                    return None;
                }
            }
            b'}' | b']' if depth > 0 => {
                depth -= 1;
                position += 1;
            }
            b',' | b':' if depth > 0 => {
                position += 1;
                continue;
            }
            b',' | b'}' | b']' => return Some(position),
            _ => {
                position += 1;
                continue;
            }
        }
        if depth == 0 {
            return Some(position);
        }
    }
}

fn end_of_string(text: &[u8], start: usize) -> Option<usize> {
    let mut position = start + 1;
    loop {
        position += memchr::memchr2(b'"', b'\\', text.get(position..)?)?;
        if text[position] == b'"' {
            return Some(position + 1);
        }
        position += 2;
    }
}

/// Return the object of a text. What serde derives reads arrays too.
pub fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    if text.starts_with('{') { serde_json::from_str(text).ok() } else { None }
}

/// Whether a line ends with `}` and has as many `{` as `}`, as `sources.splitter` defines a document of NDJSON.
#[pyfunction]
pub fn is_document(line: &[u8]) -> bool {
    // In parts whose sums fit a byte, which are added up several at once.
    let balance = |part: &[u8]| {
        part.iter()
            .fold(0i8, |sum, byte| sum.wrapping_add(i8::from(*byte == b'{')).wrapping_sub(i8::from(*byte == b'}')))
    };
    line.ends_with(b"}") && line.chunks(127).map(|part| isize::from(balance(part))).sum::<isize>() == 0
}
