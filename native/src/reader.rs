//! Reads finished runs from OTLP requests: a run whose spans are all in the request becomes a document, which its
//! digest proves. The names of attributes and members come from the tables in `runspan.codec.fields`.
//!
//! The decoder in Python would read the same of every span that is accepted here. It gets all other spans.

mod json;
mod placement;
mod times;
mod wire;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use placement::{Place, enclosing_loops, positions};
use times::{Time, canonical_text};
use wire::{Content, Fields, Found, Unusual, Value, array, attribute, once, text};

type TraceId = [u8; 16];
type SpanId = [u8; 8];

/// The constants in `runspan.codec.fields`.
#[derive(FromPyObject)]
struct Names {
    #[pyo3(attribute("ROLE"))]
    role: String,
    #[pyo3(attribute("ROLE_RUN"))]
    role_run: String,
    #[pyo3(attribute("ROLE_STEP"))]
    role_step: String,
    #[pyo3(attribute("SCOPE_RUN"))]
    scope_run: String,
    #[pyo3(attribute("SCOPE_STEP"))]
    scope_step: String,
    #[pyo3(attribute("REVISION"))]
    revision: String,
    #[pyo3(attribute("ROOT_REVISION"))]
    root_revision: i64,
    #[pyo3(attribute("RUN_ID"))]
    run_id: String,
    #[pyo3(attribute("WORKFLOW_ID"))]
    workflow_id: String,
    #[pyo3(attribute("TENANT"))]
    tenant: String,
    #[pyo3(attribute("DIGEST"))]
    digest: String,
    #[pyo3(attribute("STEP_COUNT"))]
    step_count: String,
    #[pyo3(attribute("MANIFEST"))]
    manifest: String,
    #[pyo3(attribute("NON_CANONICAL"))]
    non_canonical: String,
    #[pyo3(attribute("ABSENT"))]
    absent: String,
    #[pyo3(attribute("TEXT_KEY"))]
    text_key: String,
}

/// What the format says that is no name.
#[derive(FromPyObject)]
struct Rules {
    terminal_run_statuses: Vec<String>,
    terminal_step_statuses: Vec<String>,
    loop_type: String,
    id_domain: Vec<u8>,
    max_run_id_bytes: usize,
    max_pipeline_bytes: usize,
    max_parts: usize,
    own_prefix: String,
    latest_start: u64,
    latest_end: u64,
    is_hashed: bool,
}

enum Kind {
    Text,
    Integer,
    Payload,
    Start,
    End,
}

/// A member that is carried by a span.
struct Member {
    kind: Kind,
    /// Its name in the document, with quotes and colon.
    name: Vec<u8>,
    is_in_summary: bool,
}

/// What an attribute says.
#[derive(Clone, Copy)]
enum Meaning {
    Member(usize),
    Role,
    Revision,
    RunId,
    Tenant,
    Digest,
    StepCount,
    Manifest,
    StartText,
    EndText,
    /// Nothing that the decoder reads on such a span.
    Ignored,
}

/// The members of a span and the meanings of its attributes.
struct Table {
    members: Vec<Member>,
    meanings: HashMap<String, Meaning>,
    /// The places of members that decide how the span is read.
    id: Option<usize>,
    kind: Option<usize>,
    status: Option<usize>,
    workflow: Option<usize>,
}

/// Attribute key, member, name in the document, kind, and whether a list item has it.
type Row = (String, String, String, String, bool);

impl Table {
    fn new(names: &Names, rows: Vec<Row>) -> PyResult<Table> {
        let mut table =
            Table { members: vec![], meanings: HashMap::new(), id: None, kind: None, status: None, workflow: None };
        for (index, (key, member, name, kind, is_in_summary)) in rows.into_iter().enumerate() {
            match member.as_str() {
                "id" => table.id = Some(index),
                "type" => table.kind = Some(index),
                "status" => table.status = Some(index),
                "workflow_id" => table.workflow = Some(index),
                _ => {}
            }
            let kind = match kind.as_str() {
                "LABEL" | "TEXT" => Kind::Text,
                "INTEGER" => Kind::Integer,
                "PAYLOAD" => Kind::Payload,
                "START" => Kind::Start,
                "END" => Kind::End,
                _ => return Err(PyValueError::new_err(format!("kind {kind} of {key}"))),
            };
            let (key, meaning) = match kind {
                Kind::Start => (key + &names.non_canonical, Meaning::StartText),
                Kind::End => (key + &names.non_canonical, Meaning::EndText),
                _ => (key, Meaning::Member(index)),
            };
            table.meanings.insert(key, meaning);
            table.members.push(Member { kind, name: format!("\"{name}\":").into_bytes(), is_in_summary });
        }
        table.meanings.insert(names.role.clone(), Meaning::Role);
        Ok(table)
    }
}

/// A span of runspan. What is absent on the wire is zero there.
#[derive(Default)]
struct Span<'a> {
    span_id: SpanId,
    start: u64,
    end: u64,
    values: Vec<Option<Value<'a>>>,
    role: Option<&'a str>,
    revision: Option<i64>,
    run_id: Option<&'a str>,
    tenant: Option<&'a str>,
    digest: Option<&'a str>,
    step_count: Option<i64>,
    manifest: Option<&'a str>,
    start_text: Option<&'a str>,
    end_text: Option<&'a str>,
}

impl<'a> Span<'a> {
    fn value(&self, place: Option<usize>) -> Option<&'a str> {
        match self.values.get(place?)? {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// The spans of a trace in the request.
#[derive(Default)]
struct Trace<'a> {
    resource: usize,
    runs: Vec<&'a [u8]>,
    steps: Vec<&'a [u8]>,
    /// Whether it has spans of other scopes.
    is_mixed: bool,
}

/// The parts of a request.
#[derive(Default)]
struct Request<'a> {
    spans: usize,
    /// The different resources.
    resources: Vec<&'a [u8]>,
    traces: Vec<(TraceId, Trace<'a>)>,
}

/// A run that was read.
struct FoundRun<'a> {
    text: Vec<u8>,
    summary: Vec<u8>,
    run_id: &'a str,
    workflow_id: Option<&'a str>,
    status: &'a str,
    tenant: &'a str,
    trace_id: TraceId,
    digest: [u8; 32],
    step_ids: Vec<u8>,
    has_content_ids: bool,
    position: u64,
    end: Option<u64>,
    resource: usize,
}

/// Reads requests.
#[pyclass(frozen)]
pub struct Reader {
    names: Names,
    rules: Rules,
    run: Table,
    step: Table,
}

#[pymethods]
impl Reader {
    #[new]
    fn new(names: Names, rules: Rules, run: Vec<Row>, step: Vec<Row>, ignored: Vec<String>) -> PyResult<Reader> {
        let mut run = Table::new(&names, run)?;
        let mut step = Table::new(&names, step)?;
        for key in ignored {
            run.meanings.insert(key.clone(), Meaning::Ignored);
            step.meanings.insert(key, Meaning::Ignored);
        }
        for (key, meaning) in [
            (&names.revision, Meaning::Revision),
            (&names.run_id, Meaning::RunId),
            (&names.tenant, Meaning::Tenant),
            (&names.digest, Meaning::Digest),
            (&names.step_count, Meaning::StepCount),
            (&names.manifest, Meaning::Manifest),
        ] {
            run.meanings.insert(key.clone(), meaning);
        }
        for key in [&names.run_id, &names.workflow_id] {
            step.meanings.insert(key.clone(), Meaning::Ignored);
        }
        Ok(Reader { names, rules, run, step })
    }

    /// Return the number of spans and of traces of a request, its different resources, and its complete runs.
    ///
    /// Return None for bytes without the layout, also if there are more than `max_spans` spans, resources and scopes.
    fn read<'py>(&self, py: Python<'py>, body: &[u8], max_spans: usize) -> Option<Answer<'py>> {
        let (request, runs) = py.detach(|| {
            let request = self.split(body, max_spans).ok()?;
            let runs = request.traces.iter().filter_map(|(trace_id, trace)| self.run(*trace_id, trace).ok());
            let runs = runs.collect::<Vec<_>>();
            Some((request, runs))
        })?;
        let bytes = |content: &[u8]| PyBytes::new(py, content);
        let resources = request.resources.iter().map(|content| bytes(content)).collect();
        let rows = runs.iter().map(|run| {
            let row = (
                bytes(&run.text),
                bytes(&run.summary),
                PyString::new(py, run.run_id),
                run.workflow_id.map(|text| PyString::new(py, text)),
                PyString::new(py, run.status),
                PyString::new(py, run.tenant),
                bytes(&run.trace_id),
                bytes(&run.digest),
                bytes(&run.step_ids),
                run.has_content_ids,
                run.position,
                run.end,
            );
            (row, run.resource)
        });
        Some((request.spans, request.traces.len(), resources, rows.collect()))
    }
}

type Bytes<'py> = Bound<'py, PyBytes>;
type Text<'py> = Bound<'py, PyString>;
/// The members of `ReceivedRun` in `runspan.otlp.protobuf_reader`, without the last one.
type RunRow<'py> = (
    Bytes<'py>,
    Bytes<'py>,
    Text<'py>,
    Option<Text<'py>>,
    Text<'py>,
    Text<'py>,
    Bytes<'py>,
    Bytes<'py>,
    Bytes<'py>,
    bool,
    u64,
    Option<u64>,
);
type Answer<'py> = (usize, usize, Vec<Bytes<'py>>, Vec<(RunRow<'py>, usize)>);

impl Reader {
    /// Find the spans of each trace.
    fn split<'a>(&self, body: &'a [u8], max_spans: usize) -> Found<Request<'a>> {
        let mut request = Request::default();
        let mut places: HashMap<TraceId, usize> = HashMap::new();
        let mut resources: HashMap<&[u8], usize> = HashMap::new();
        let mut count = 0;
        for field in Fields(body) {
            let (1, Content::Bytes(resource_spans)) = field? else { return Err(Unusual) };
            let (content, scopes) = wire::resource_spans(resource_spans)?;
            count += 1 + scopes.len();
            let resource = *resources.entry(content).or_insert_with(|| {
                request.resources.push(content);
                request.resources.len() - 1
            });
            for scope_spans in scopes {
                let (scope, spans) = wire::scope_spans(scope_spans)?;
                count += spans.len();
                request.spans += spans.len();
                if count > max_spans {
                    return Err(Unusual);
                }
                for span in spans {
                    let trace_id = trace_id(span)?;
                    let place = *places.entry(trace_id).or_insert_with(|| {
                        request.traces.push((trace_id, Trace { resource, ..Trace::default() }));
                        request.traces.len() - 1
                    });
                    let (_, trace) = request.traces.get_mut(place).ok_or(Unusual)?;
                    if scope == self.names.scope_step {
                        trace.steps.push(span);
                    } else if scope == self.names.scope_run {
                        trace.runs.push(span);
                    } else {
                        trace.is_mixed = true;
                    }
                }
            }
        }
        if count > max_spans { Err(Unusual) } else { Ok(request) }
    }

    /// Read and prove the run of a trace.
    fn run<'a>(&self, trace_id: TraceId, trace: &Trace<'a>) -> Found<FoundRun<'a>> {
        let &[run] = trace.runs.as_slice() else {
            return Err(Unusual);
        };
        if trace.is_mixed || trace_id == TraceId::default() {
            return Err(Unusual);
        }
        let run = self.span(run, &self.run)?;
        let count = usize::try_from(run.step_count.ok_or(Unusual)?).map_err(|_| Unusual)?;
        let step_ids = step_ids(run.manifest.unwrap_or_default())?;
        if run.role != Some(&self.names.role_run)
            || run.revision != Some(self.names.root_revision)
            || step_ids.len() != count
            || trace.steps.len() != count
        {
            return Err(Unusual);
        }
        let run_id = run.run_id.ok_or(Unusual)?;
        let tenant = run.tenant.unwrap_or_default();
        let status = run.value(self.run.status).ok_or(Unusual)?;
        let is_finished = self.rules.terminal_run_statuses.iter().any(|found| found == status);
        if run_id.is_empty() || run_id.len() > self.rules.max_run_id_bytes || !is_finished {
            return Err(Unusual);
        }
        let ids: [u8; 32] = Sha256::digest(self.prefixed(&[b"run", tenant.as_bytes(), run_id.as_bytes()])).into();
        if ids[..16] != trace_id {
            return Err(Unusual);
        }

        let mut size = 0;
        let mut steps: HashMap<SpanId, Span<'a>> = HashMap::with_capacity(count);
        for content in &trace.steps {
            size += content.len();
            let step = self.span(content, &self.step)?;
            if step.role != Some(&self.names.role_step) || step.value(self.step.id).is_none() {
                return Err(Unusual);
            }
            match steps.entry(step.span_id) {
                Entry::Vacant(place) => _ = place.insert(step),
                Entry::Occupied(_) => return Err(Unusual),
            }
        }
        let mut text = Vec::with_capacity(size + 4096);
        let mut summary = Vec::with_capacity(512);
        text.extend_from_slice(b"{\"id\":");
        json::push_string(&mut text, run_id);
        summary.extend_from_slice(&text);
        let (start, end) = self.push_members(&mut text, Some(&mut summary), &run, &self.run)?;
        summary.push(b'}');
        text.extend_from_slice(b",\"steps\":[");
        let mut places = Vec::with_capacity(count);
        let mut parts = Vec::with_capacity(count);
        let mut are_ended = true;
        let mut are_clear = true;
        for (index, span_id) in step_ids.iter().enumerate() {
            let step = steps.remove(span_id).ok_or(Unusual)?;
            if index > 0 {
                text.push(b',');
            }
            let begin = text.len();
            let (start, end) = self.push_members(&mut text, None, &step, &self.step)?;
            text.push(b'}');
            parts.push(begin..text.len());
            let status = step.value(self.step.status);
            are_ended &= self.rules.terminal_step_statuses.iter().any(|found| Some(found.as_str()) == status);
            are_clear &= start != Time::Other && end != Time::Other;
            places.push(Place {
                id: step.value(self.step.id).unwrap_or_default(),
                is_loop: step.value(self.step.kind) == Some(&self.rules.loop_type),
                start: start.known(),
                end: end.known(),
            });
        }
        text.extend_from_slice(b"]}");
        let digest: [u8; 32] = if self.rules.is_hashed { Sha256::digest(&text).into() } else { [0; 32] };
        if bytes_of_hex(run.digest.ok_or(Unusual)?)? != digest {
            return Err(Unusual);
        }

        let workflow_id = run.value(self.run.workflow);
        let is_clear = are_clear && start == Time::At(run.start) && run.start > 0 && end != Time::Other;
        let mut has_content_ids = is_clear && are_ended;
        if let (true, Some(mut seed)) = (has_content_ids, self.salt(workflow_id)) {
            seed ^= u64::from_be_bytes(array(&ids[24..])?) ^ run.start;
            let positions = positions(&places, run.start, end.known());
            let has_loops = places.iter().any(|place| place.is_loop);
            let loops = if has_loops { enclosing_loops(&places, &positions) } else { vec![] };
            for (index, (part, span_id)) in parts.into_iter().zip(&step_ids).enumerate() {
                let mut seed = seed ^ positions.get(index).copied().flatten().unwrap_or(0);
                if let Some(place) = loops.get(index).copied().flatten() {
                    seed ^= u64::from_be_bytes(*step_ids.get(place).ok_or(Unusual)?);
                }
                let content = text.get(part).ok_or(Unusual)?;
                has_content_ids &= xxh3_64_with_seed(content, seed).to_be_bytes() == *span_id;
            }
        } else {
            has_content_ids = false;
        }
        Ok(FoundRun {
            text,
            summary,
            run_id,
            workflow_id,
            status,
            tenant,
            trace_id,
            digest,
            step_ids: step_ids.concat(),
            has_content_ids,
            position: run.start,
            end: end.known().filter(|&end| end > 0),
            resource: trace.resource,
        })
    }

    /// Read a span whose only attributes and events are those of usual runs.
    fn span<'a>(&self, content: &'a [u8], table: &Table) -> Found<Span<'a>> {
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
    fn push_members(
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
                let time = if text == "null" { Time::Absent } else { times::parse(json::plain_string(text)?, latest) };
                out.extend_from_slice(text.as_bytes());
                Ok(time)
            }
        }
    }

    /// The bytes whose digest ids are made of, as in `runspan.model.span`.
    fn prefixed(&self, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = self.rules.id_domain.clone();
        for part in parts {
            out.extend_from_slice(&(part.len() as u64).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    /// The salt of a run's template; None if it does not follow from the workflow alone.
    fn salt(&self, workflow_id: Option<&str>) -> Option<u64> {
        let mut parts: Vec<&[u8]> = vec![b"salt"];
        if let Some(workflow_id) = workflow_id.filter(|text| !text.is_empty()) {
            if workflow_id.len() > self.rules.max_pipeline_bytes {
                return None;
            }
            parts.extend([self.names.workflow_id.as_bytes(), workflow_id.as_bytes()]);
        }
        let digest: [u8; 32] = Sha256::digest(self.prefixed(&parts)).into();
        digest.first_chunk().map(|first| u64::from_be_bytes(*first))
    }
}

/// The trace id of a span of any kind.
fn trace_id(span: &[u8]) -> Found<TraceId> {
    let mut found = None;
    for field in Fields(span) {
        if let (1, content) = field? {
            let Content::Bytes(id) = content else {
                return Err(Unusual);
            };
            once(&mut found, array(id)?)?;
        }
    }
    found.ok_or(Unusual)
}

/// The span ids of a manifest without open steps, each of which is there once.
fn step_ids(manifest: &str) -> Found<Vec<SpanId>> {
    let bytes = bytes_of_hex(manifest)?;
    let chunks = bytes.chunks_exact(8);
    if chunks.remainder().is_empty() { chunks.map(array).collect() } else { Err(Unusual) }
}

/// The bytes of pairs of lowercase digits.
fn bytes_of_hex(digits: &str) -> Found<Vec<u8>> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(Unusual),
    };
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| if let &[high, low] = pair { Ok(value(high)? << 4 | value(low)?) } else { Err(Unusual) }).collect()
}
