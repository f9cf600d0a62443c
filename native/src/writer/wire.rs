//! The protobuf encoding of spans: `trace.proto` and `common.proto`.

pub const SPANS: u8 = 0x12;
pub const TRACE_ID: [u8; 2] = [0x0a, 0x10];
pub const SPAN_ID: [u8; 2] = [0x12, 0x08];
pub const PARENT_ID: [u8; 2] = [0x22, 0x08];
const START: u8 = 0x39;
const END: u8 = 0x41;
const ATTRIBUTES: u8 = 0x4a;
const KEY: u8 = 0x0a;
const VALUE: u8 = 0x12;
const STRING_VALUE: u8 = 0x0a;
const INT_VALUE: u8 = 0x18;
const DOUBLE_VALUE: u8 = 0x21;
const EVENTS: u8 = 0x5a;
const EVENT_TIME: u8 = 0x09;
const EVENT_NAME: u8 = 0x12;
const EVENT_ATTRIBUTES: u8 = 0x1a;
const STATUS: u8 = 0x7a;
const STATUS_MESSAGE: u8 = 0x12;
const STATUS_CODE: u8 = 0x18;

pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number > 127 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint_size(number: usize) -> usize {
    (usize::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

pub fn put_times(out: &mut Vec<u8>, start: u64, end: u64) {
    out.push(START);
    out.extend_from_slice(&start.to_le_bytes());
    out.push(END);
    out.extend_from_slice(&end.to_le_bytes());
}

/// Append a field whose value has a length.
pub fn put_delimited(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// Append an attribute of a span whose value is a string.
pub fn put_string(out: &mut Vec<u8>, key: &[u8], text: &[u8]) {
    put_string_in(out, ATTRIBUTES, key, text);
}

fn put_string_in(out: &mut Vec<u8>, tag: u8, key: &[u8], text: &[u8]) {
    let any_value = 1 + varint_size(text.len()) + text.len();
    put_key(out, tag, key, any_value);
    put_delimited(out, STRING_VALUE, text);
}

/// Append an attribute of a span whose value is an integer.
pub fn put_integer(out: &mut Vec<u8>, key: &[u8], number: u64) {
    put_key(out, ATTRIBUTES, key, 1 + varint_size(number as usize));
    out.push(INT_VALUE);
    put_varint(out, number);
}

/// Append an attribute of a span whose value is a double.
pub fn put_double(out: &mut Vec<u8>, key: &[u8], number: f64) {
    put_key(out, ATTRIBUTES, key, 1 + size_of::<f64>());
    out.push(DOUBLE_VALUE);
    out.extend_from_slice(&number.to_le_bytes());
}

/// Append an event whose attributes are strings.
pub fn put_event(out: &mut Vec<u8>, time: u64, name: &[u8], pairs: &[(&[u8], &[u8])]) {
    let mut event = Vec::with_capacity(256);
    event.push(EVENT_TIME);
    event.extend_from_slice(&time.to_le_bytes());
    put_delimited(&mut event, EVENT_NAME, name);
    for (key, text) in pairs {
        put_string_in(&mut event, EVENT_ATTRIBUTES, key, text);
    }
    put_delimited(out, EVENTS, &event);
}

pub fn put_status(out: &mut Vec<u8>, code: u64, message: &[u8]) {
    let mut status = Vec::with_capacity(64);
    if !message.is_empty() {
        put_delimited(&mut status, STATUS_MESSAGE, message);
    }
    status.push(STATUS_CODE);
    put_varint(&mut status, code);
    put_delimited(out, STATUS, &status);
}

/// Append all of a KeyValue before the content of its value, which has `any_value` bytes.
fn put_key(out: &mut Vec<u8>, tag: u8, key: &[u8], any_value: usize) {
    let key_value = 1 + varint_size(key.len()) + key.len() + 1 + varint_size(any_value) + any_value;
    out.push(tag);
    put_varint(out, key_value as u64);
    put_delimited(out, KEY, key);
    out.push(VALUE);
    put_varint(out, any_value as u64);
}

pub fn put_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}
