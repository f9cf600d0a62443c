//! The error of a run or step, as `codec.semconv` reads it and `codec.encode` writes it.

use pyo3::FromPyObject;
use serde::Deserialize;

use super::members::plain_string;
use super::wire::{put_event, put_status, put_string};
use crate::json::object;

/// How spans name an error.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Keys {
    error_type: Vec<u8>,
    event_name: Vec<u8>,
    event_type: Vec<u8>,
    event_message: Vec<u8>,
    status: u64,
    /// What follows the status.
    span_end: Vec<u8>,
    /// Bytes of a code or a message.
    max_bytes: usize,
}

/// `semconv.ErrorInfo`, with an empty code instead of the type that depends on the status.
#[derive(Default, Deserialize)]
pub struct Error<'a> {
    #[serde(default)]
    code: &'a str,
    #[serde(default)]
    message: &'a str,
}

impl Keys {
    /// Return the error in a text, which may be empty; None if it has not the form that the platform writes.
    pub fn read<'a>(&self, text: &'a [u8]) -> Option<Error<'a>> {
        let error = match text.first() {
            Some(b'{') => object(std::str::from_utf8(text).ok()?)?,
            Some(b'"') => Error { code: "", message: std::str::from_utf8(plain_string(text)?).ok()? },
            _ => Error::default(),
        };
        (error.code.len() <= self.max_bytes && error.message.len() <= self.max_bytes).then_some(error)
    }

    /// Append the code to the attributes of a span that has not failed.
    pub fn put_code(&self, attributes: &mut Vec<u8>, error: &Error) {
        if !error.code.is_empty() {
            put_string(attributes, &self.error_type, error.code.as_bytes());
        }
    }

    /// Append the type to the attributes of a failed span, and return what follows them.
    pub fn put(&self, attributes: &mut Vec<u8>, error: &Error, default_type: &str, end: u64) -> Vec<u8> {
        let kind = if error.code.is_empty() { default_type } else { error.code };
        put_string(attributes, &self.error_type, kind.as_bytes());
        let message = error.message.as_bytes();
        let pairs: [(&[u8], &[u8]); 2] = [(&self.event_type, kind.as_bytes()), (&self.event_message, message)];
        let mut rest = Vec::with_capacity(256);
        put_event(&mut rest, end, &self.event_name, &pairs[..if message.is_empty() { 1 } else { 2 }]);
        put_status(&mut rest, self.status, message);
        rest.extend_from_slice(&self.span_end);
        rest
    }
}
