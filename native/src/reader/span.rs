//! Spans of runspan, and the members of documents that they carry.

use super::format::{Format, Kind, Meaning, Table};
use super::json;
use super::wire::{self, Content, Fields, Found, Unusual, Value, array, attribute, once, text};
use crate::timestamps::{self, Time, canonical_text};

pub type SpanId = [u8; 8];

/// A span of runspan. What is absent on the wire is zero there.
#[derive(Default)]
pub struct Span<'a> {
    pub span_id: SpanId,
    pub start: u64,
    pub end: u64,
    pub values: Vec<Option<Value<'a>>>,
    pub role: Option<&'a str>,
    pub revision: Option<i64>,
    pub run_id: Option<&'a str>,
    pub tenant: Option<&'a str>,
    pub digest: Option<&'a str>,
    pub step_count: Option<i64>,
    pub manifest: Option<&'a str>,
    pub start_text: Option<&'a str>,
    pub end_text: Option<&'a str>,
}

impl<'a> Span<'a> {
    /// The text of a member.
    pub fn value(&self, place: Option<usize>) -> Option<&'a str> {
        match self.values.get(place?)? {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

impl Format {
    /// Read a span whose only attributes and events are those of usual runs.
    pub fn span<'a>(&self, content: &'a [u8], table: &Table) -> Found<Span<'a>> {
        let mut span = Span { values: vec![None; table.members.len()], ..Span::default() };
        let mut singles = [false; 17];
        let mut parts = 0;
        for field in Fields(content) {
            let (number, content) = field?;
            match (number, content) {
                (9, Content::Bytes(pair)) => {
                    parts += 1;
                    self.add_attribute(&mut span, pair, table)?;
                }
                (11, Content::Bytes(event)) => parts += 1 + wire::check_event(event, &self.names.text_key)?,
                (13, Content::Bytes(link)) => parts += 1 + wire::check_link(link)?,
                (1, Content::Bytes(_)) | (6 | 10 | 12 | 14, Content::Varint(_)) | (16, Content::Fixed32) => {}
                (2, Content::Bytes(id)) => span.span_id = array(id)?,
                (3 | 5, Content::Bytes(name)) => _ = text(name)?,
                (4, Content::Bytes(id)) if matches!(id.len(), 0 | 8) => {}
                (7, Content::Fixed64(ns)) => span.start = ns,
                (8, Content::Fixed64(ns)) => span.end = ns,
                (15, Content::Bytes(status)) => wire::check_status(status)?,
                _ => return Err(Unusual),
            }
            let is_repeated = singles.get_mut(number as usize).is_none_or(|found| std::mem::replace(found, true));
            if is_repeated && !matches!(number, 9 | 11 | 13) {
                return Err(Unusual);
            }
        }
        let is_in_time = span.start <= self.rules.latest_start && span.end <= self.rules.latest_end;
        if span.span_id == SpanId::default() || !is_in_time || parts > self.rules.max_parts {
            return Err(Unusual);
        }
        Ok(span)
    }

    fn add_attribute<'a>(&self, span: &mut Span<'a>, pair: &'a [u8], table: &Table) -> Found<()> {
        let (key, value) = attribute(pair)?;
        let Some(meaning) = table.meanings.get(key) else {
            return if key.starts_with(&self.rules.own_prefix) { Err(Unusual) } else { Ok(()) };
        };
        match *meaning {
            Meaning::Member(index) => once(span.values.get_mut(index).ok_or(Unusual)?, value),
            Meaning::Role => once(&mut span.role, value.text()?),
            Meaning::Revision => once(&mut span.revision, value.integer()?),
            Meaning::RunId => once(&mut span.run_id, value.text()?),
            Meaning::Tenant => once(&mut span.tenant, value.text()?),
            Meaning::Digest => once(&mut span.digest, value.text()?),
            Meaning::StepCount => once(&mut span.step_count, value.integer()?),
            Meaning::Manifest => once(&mut span.manifest, value.text()?),
            Meaning::StartText => once(&mut span.start_text, value.text()?),
            Meaning::EndText => once(&mut span.end_text, value.text()?),
            Meaning::Ignored => Ok(()),
        }
    }

    /// Append the members of a span, and return its times. A text that is empty gets the bracket of an object first.
    pub fn push_members(
        &self,
        out: &mut Vec<u8>,
        mut summary: Option<&mut Vec<u8>>,
        span: &Span<'_>,
        table: &Table,
    ) -> Found<(Time, Time)> {
        let mut separator = if summary.is_some() { b',' } else { b'{' };
        let (mut start, mut end) = (Time::Absent, Time::Absent);
        for (member, value) in table.members.iter().zip(&span.values) {
            let begin = out.len();
            out.push(separator);
            out.extend_from_slice(&member.name);
            let content = out.len();
            match (&member.kind, value) {
                (Kind::Start, _) => start = self.push_time(out, span.start, span.start_text)?,
                (Kind::End, _) => end = self.push_time(out, span.end, span.end_text)?,
                (_, None) => {}
                (Kind::Text, Some(value)) => json::push_string(out, value.text()?),
                (Kind::Integer, Some(value)) => out.extend_from_slice(value.integer()?.to_string().as_bytes()),
                (Kind::Payload, Some(value)) => {
                    let text = value.text()?;
                    json::check_value(text)?;
                    out.extend_from_slice(text.as_bytes());
                }
            }
            if out.len() == content {
                out.truncate(begin);
                continue;
            }
            separator = b',';
            if let (true, Some(summary)) = (member.is_in_summary, summary.as_deref_mut()) {
                summary.extend_from_slice(out.get(begin..).ok_or(Unusual)?);
            }
        }
        Ok((start, end))
    }

    /// Append a time: that of an attribute if there is one, else the span's own.
    fn push_time(&self, out: &mut Vec<u8>, ns: u64, text: Option<&str>) -> Found<Time> {
        let latest = self.rules.latest_start;
        match text {
            None => {
                let text = canonical_text(ns, latest).ok_or(Unusual)?;
                out.push(b'"');
                out.extend_from_slice(&text);
                out.push(b'"');
                Ok(Time::At(ns))
            }
            Some(text) if text == self.names.absent => Ok(Time::Absent),
            Some(text) => {
                let time =
                    if text == "null" { Time::Absent } else { timestamps::parse(json::plain_string(text)?, latest) };
                out.extend_from_slice(text.as_bytes());
                Ok(time)
            }
        }
    }
}
