//! Protobuf as usual writers write it, and the parts of a span that carry no member of a document.
//!
//! Everything that is accepted here is valid for every protobuf parser, and means the same to it.

use std::str;

/// Bytes that do not have the layout.
#[derive(Debug)]
pub struct Unusual;

pub type Found<T> = Result<T, Unusual>;

/// The content of a field.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields of a message in order: number and content.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// An integer in as few bytes as possible.
    #[inline]
    fn varint(&mut self) -> Found<u64> {
        match self.0.split_first() {
            Some((&byte, rest)) if byte < 128 => {
                self.0 = rest;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Found<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Unusual)?;
            self.0 = rest;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                let fits = shift < 63 || byte == 1;
                return if byte > 0 && fits { Ok(value) } else { Err(Unusual) };
            }
        }
        Err(Unusual)
    }

    fn take(&mut self, count: usize) -> Found<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Unusual)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Found<(u32, Content<'a>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Unusual)?;
        if number == 0 {
            return Err(Unusual);
        }
        let content = match tag & 7 {
            0 => Content::Varint(self.varint()?),
            1 => Content::Fixed64(u64::from_le_bytes(array(self.take(8)?)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Unusual)?;
                Content::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Content::Fixed32
            }
            _ => return Err(Unusual),
        };
        Ok((number, content))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Found<(u32, Content<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.field())
    }
}

/// Bytes of exactly this number.
pub fn array<const N: usize>(bytes: &[u8]) -> Found<[u8; N]> {
    bytes.try_into().map_err(|_| Unusual)
}

pub fn text(bytes: &[u8]) -> Found<&str> {
    str::from_utf8(bytes).map_err(|_| Unusual)
}

/// Keep what occurs once.
pub fn once<T>(place: &mut Option<T>, value: T) -> Found<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Unusual),
    }
}

/// The value of an attribute.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    Text(&'a str),
    Integer(i64),
    Other,
}

impl<'a> Value<'a> {
    pub fn text(self) -> Found<&'a str> {
        if let Value::Text(text) = self { Ok(text) } else { Err(Unusual) }
    }

    pub fn integer(self) -> Found<i64> {
        if let Value::Integer(number) = self { Ok(number) } else { Err(Unusual) }
    }
}

/// Key and value of a `KeyValue` with a scalar.
pub fn attribute(pair: &[u8]) -> Found<(&str, Value<'_>)> {
    let (mut key, mut value) = (None, None);
    for field in Fields(pair) {
        match field? {
            (1, Content::Bytes(bytes)) => once(&mut key, text(bytes)?)?,
            (2, Content::Bytes(bytes)) => once(&mut value, any_value(bytes)?)?,
            _ => return Err(Unusual),
        }
    }
    Ok((key.ok_or(Unusual)?, value.ok_or(Unusual)?))
}

fn any_value(bytes: &[u8]) -> Found<Value<'_>> {
    let mut fields = Fields(bytes);
    let value = match fields.next().ok_or(Unusual)?? {
        (1, Content::Bytes(bytes)) => Value::Text(text(bytes)?),
        (3, Content::Varint(bits)) => Value::Integer(bits as i64),
        (2, Content::Varint(_)) | (4, Content::Fixed64(_)) => Value::Other,
        _ => return Err(Unusual),
    };
    if fields.next().is_none() { Ok(value) } else { Err(Unusual) }
}

/// Check an `Event` that has no attribute of this key, and return the number of its attributes.
pub fn check_event(event: &[u8], other_than: &str) -> Found<usize> {
    let mut attributes = 0;
    for field in Fields(event) {
        match field? {
            (1, Content::Fixed64(_)) | (4, Content::Varint(_)) => {}
            (2, Content::Bytes(name)) => _ = text(name)?,
            (3, Content::Bytes(pair)) if attribute(pair)?.0 != other_than => attributes += 1,
            _ => return Err(Unusual),
        }
    }
    Ok(attributes)
}

/// Check a `Link`, and return the number of its attributes.
pub fn check_link(link: &[u8]) -> Found<usize> {
    let mut attributes = 0;
    for field in Fields(link) {
        match field? {
            (1 | 2, Content::Bytes(_)) | (5, Content::Varint(_)) | (6, Content::Fixed32) => {}
            (3, Content::Bytes(state)) => _ = text(state)?,
            (4, Content::Bytes(pair)) => {
                attribute(pair)?;
                attributes += 1;
            }
            _ => return Err(Unusual),
        }
    }
    Ok(attributes)
}

pub fn check_status(status: &[u8]) -> Found<()> {
    for field in Fields(status) {
        match field? {
            (2, Content::Bytes(message)) => _ = text(message)?,
            (3, Content::Varint(_)) => {}
            _ => return Err(Unusual),
        }
    }
    Ok(())
}

/// The resource of a `ResourceSpans`, which is not checked, and its `ScopeSpans`.
pub fn resource_spans(content: &[u8]) -> Found<(&[u8], Vec<&[u8]>)> {
    let (mut resource, mut scopes, mut schema_url) = (None, vec![], None);
    for field in Fields(content) {
        match field? {
            (1, Content::Bytes(bytes)) => once(&mut resource, bytes)?,
            (2, Content::Bytes(bytes)) => scopes.push(bytes),
            (3, Content::Bytes(bytes)) => once(&mut schema_url, text(bytes)?)?,
            _ => return Err(Unusual),
        }
    }
    Ok((resource.unwrap_or_default(), scopes))
}

/// The name of the scope of a `ScopeSpans`, and its spans.
pub fn scope_spans(content: &[u8]) -> Found<(&str, Vec<&[u8]>)> {
    let (mut scope, mut spans, mut schema_url) = (None, vec![], None);
    for field in Fields(content) {
        match field? {
            (1, Content::Bytes(bytes)) => once(&mut scope, scope_name(bytes)?)?,
            (2, Content::Bytes(bytes)) => spans.push(bytes),
            (3, Content::Bytes(bytes)) => once(&mut schema_url, text(bytes)?)?,
            _ => return Err(Unusual),
        }
    }
    Ok((scope.unwrap_or_default(), spans))
}

fn scope_name(scope: &[u8]) -> Found<&str> {
    let (mut name, mut version) = (None, None);
    for field in Fields(scope) {
        match field? {
            (1, Content::Bytes(bytes)) => once(&mut name, text(bytes)?)?,
            (2, Content::Bytes(bytes)) => once(&mut version, text(bytes)?)?,
            _ => return Err(Unusual),
        }
    }
    Ok(name.unwrap_or_default())
}
