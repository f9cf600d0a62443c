//! The spans of finished runs as OTLP bytes, written from the canonical texts of the documents in one pass.
//!
//! The format is Python's: the keys come from `codec.fields`, the attributes that labels determine are templates, and
//! what depends on the meaning of a payload is asked for, step by step. A run that does not have the common form is left
//! to Python as a whole. See `runspan.otlp.bulk_writer`.

mod members;
mod placement;
mod timestamps;
mod wire;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList, PyString};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use members::{Members, Row, Time, expect, plain_string};
use placement::{enclosing_loops, set_positions};
use wire::{PARENT_ID, SPAN_ID, SPANS, TRACE_ID, put_hex, put_integer, put_string, put_times, put_varint};

/// Templates that are kept of each kind, and the longest text of labels that is kept.
const MAX_TEMPLATES: usize = 4096;
const MAX_LABELS: usize = 1000;

type SpanId = [u8; 8];

/// What all spans of a tenant have in common.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Format {
    /// The bytes before the length and text of the run id in the digest of the ids.
    run_id_prefix: Vec<u8>,
    /// The bytes before revision, start and summary in the digest of a summary.
    summary_prefix: Vec<u8>,
    /// The attributes of the run span that name the tenant.
    tenant: Vec<u8>,
    /// The keys of the run id on every span.
    run_id_keys: Vec<Vec<u8>>,
    task_run_key: Vec<u8>,
    digest_key: Vec<u8>,
    summary_digest_key: Vec<u8>,
    step_count_key: Vec<u8>,
    manifest_key: Vec<u8>,
    /// The attributes of a step without times.
    absent_times: Vec<u8>,
    /// What follows the attributes of a span without events, links and status.
    plain_end: Vec<u8>,
    /// The revision of the run span.
    revision: u64,
    max_attribute_bytes: usize,
    step_scope: Py<PyString>,
    run_scope: Py<PyString>,
}

/// The parts of a span that its labels determine, from `codec.attributes.SpanTemplate`.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Template {
    source: Py<PyAny>,
    /// Whether spans with these labels have the common form.
    is_common: bool,
    /// Whether status, links or attributes depend on payloads.
    is_special: bool,
    /// Whether only the attributes of token usage do.
    has_usage: bool,
    is_loop: bool,
    /// Name, kind and attributes.
    wire: Vec<u8>,
    /// Of a run: the attributes of all of its spans.
    identity: Vec<u8>,
    /// Of a run: what they add to the seed of the step ids.
    salt: u64,
}

/// The parts of a step span that Python may determine.
#[derive(FromPyObject)]
struct Parts {
    start: u64,
    end: u64,
    /// Beside those of its members.
    attributes: Option<PyBackedBytes>,
    /// What follows the attributes.
    rest: Option<PyBackedBytes>,
}

/// Templates by the text of their labels.
#[derive(Default)]
struct Templates(Mutex<HashMap<Box<[u8]>, Arc<Template>>>);

impl Templates {
    /// Return the template of labels; `create` returns a new one. It runs without the lock, since it runs Python.
    fn get(&self, labels: &[u8], create: impl FnOnce() -> PyResult<Template>) -> PyResult<Arc<Template>> {
        if let Some(template) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(labels) {
            return Ok(Arc::clone(template));
        }
        let template = Arc::new(create()?);
        if labels.len() <= MAX_LABELS {
            let mut templates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if templates.len() >= MAX_TEMPLATES {
                templates.clear();
            }
            templates.insert(labels.into(), Arc::clone(&template));
        }
        Ok(template)
    }
}

struct Step<'a> {
    text: &'a [u8],
    /// The JSON text of its id.
    id: &'a [u8],
    template: Arc<Template>,
    start: Time,
    end: Time,
    /// Its own attributes, in the buffer of all steps.
    attributes: Range<usize>,
    /// Where it lies if it has no times.
    position: Option<u64>,
    span_id: SpanId,
    parent_id: SpanId,
}

/// Writes the spans of one tenant's runs. It keeps the templates that it has seen; threads may share it.
#[pyclass(frozen)]
pub struct SpanWriter {
    format: Format,
    run_members: Members,
    step_members: Members,
    run_templates: Templates,
    step_templates: Templates,
}

#[pymethods]
impl SpanWriter {
    #[new]
    fn new(format: Format, run_rows: Vec<Row>, step_rows: Vec<Row>) -> PyResult<SpanWriter> {
        Ok(SpanWriter {
            run_members: Members::new(run_rows, format.max_attribute_bytes)?,
            step_members: Members::new(step_rows, format.max_attribute_bytes)?,
            format,
            run_templates: Templates::default(),
            step_templates: Templates::default(),
        })
    }

    /// Return the spans of a finished run as pairs of scope and bytes, the run span last; None if the run does not have
    /// the common form.
    ///
    /// `text` is the canonical text of a plain document; `details` answers what the text does not, see `bulk_writer`.
    fn write<'py>(
        &self,
        text: &Bound<'py, PyBytes>,
        details: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyList>>> {
        let text = text.as_bytes();
        let mut position = 0;
        let (mut run_attributes, mut summary) = (Vec::with_capacity(1024), vec![b'{']);
        let Some(run) = self.run_members.read(text, &mut position, &mut run_attributes, &mut summary) else {
            return Ok(None);
        };
        let (Some(run_id), Time::Canonical(start), Time::Canonical(end)) = (plain_string(run.id), run.start, run.end)
        else {
            return Ok(None);
        };
        let template = self.run_templates.get(run.labels, || details.call_method0("run_template")?.extract())?;
        let mut ids = Sha256::new_with_prefix(&self.format.run_id_prefix);
        ids.update((run_id.len() as u64).to_be_bytes());
        ids.update(run_id);
        let ids: [u8; 32] = ids.finalize().into();
        let (trace_id, root_id, seed) = (&ids[..16], part(&ids, 16), u64::from_be_bytes(part(&ids, 24)));
        let is_common = template.is_common && 0 < start && start < end && trace_id != [0; 16] && root_id != [0; 8];
        if !is_common {
            return Ok(None);
        }

        let mut step_attributes = Vec::with_capacity(text.len());
        let Some(mut steps) = self.read_steps(text, position, root_id, &mut step_attributes, details)? else {
            return Ok(None);
        };
        set_positions(&mut steps, start, end);
        assign_ids(&mut steps, seed ^ template.salt ^ start);
        if steps.is_empty() || has_duplicates(&steps) {
            return Ok(None);
        }

        let mut shared = Vec::with_capacity(256);
        for key in &self.format.run_id_keys {
            put_string(&mut shared, key, run_id);
        }
        shared.extend_from_slice(&template.identity);
        let spans = PyList::empty(details.py());
        let mut manifest = Vec::with_capacity(16 * steps.len());
        let mut span = Vec::with_capacity(2048);
        let mut has_parts = template.is_special;
        for (index, step) in steps.iter().enumerate() {
            let position = step.position.unwrap_or(start);
            let is_special = step.template.is_special || (step.template.has_usage && step.position.is_some());
            let parts = match (step.start, step.end) {
                (Time::Canonical(start), Time::Canonical(end)) if start < end && !is_special => {
                    let mut parts = Parts { start, end, attributes: None, rest: None };
                    if step.template.has_usage {
                        has_parts = true;
                        parts.attributes = Some(details.call_method1("usage_attributes", (index,))?.extract()?);
                    }
                    parts
                }
                (Time::Absent, Time::Absent) if !is_special => {
                    Parts { start: position, end: position + 1, attributes: None, rest: None }
                }
                _ => {
                    has_parts = true;
                    let arguments = (index, &step.template.source, position);
                    let Some(parts) = details.call_method1("step_parts", arguments)?.extract()? else {
                        return Ok(None);
                    };
                    parts
                }
            };
            let times = (parts.start, parts.end);
            put_start(&mut span, trace_id, step.span_id, Some(step.parent_id), times, &step.template, &shared);
            let id_text = manifest.len();
            put_hex(&mut manifest, &step.span_id);
            put_string(&mut span, &self.format.task_run_key, &manifest[id_text..]);
            span.extend_from_slice(&step_attributes[step.attributes.clone()]);
            match &parts.attributes {
                Some(attributes) => span.extend_from_slice(attributes),
                None if step.start == Time::Absent => span.extend_from_slice(&self.format.absent_times),
                None => (),
            }
            span.extend_from_slice(parts.rest.as_deref().unwrap_or(&self.format.plain_end));
            spans.append((&self.format.step_scope, delimited(details.py(), &span)?))?;
        }

        if manifest.len() > self.format.max_attribute_bytes {
            return Ok(None);
        }
        put_start(&mut span, trace_id, root_id, None, (start, end), &template, &shared);
        put_hex_string(&mut span, &self.format.digest_key, &Sha256::digest(text));
        if summary.last() == Some(&b',') {
            summary.pop();
        }
        summary.push(b'}');
        let mut digest = Sha256::new_with_prefix(&self.format.summary_prefix);
        digest.update(self.format.revision.to_be_bytes());
        digest.update(start.to_be_bytes());
        digest.update(&summary);
        put_hex_string(&mut span, &self.format.summary_digest_key, &digest.finalize()[..16]);
        span.extend_from_slice(&self.format.tenant);
        put_integer(&mut span, &self.format.step_count_key, steps.len() as u64);
        put_string(&mut span, &self.format.manifest_key, &manifest);
        span.extend_from_slice(&run_attributes);
        if has_parts {
            let found = details.call_method1("run_parts", (&template.source, end))?;
            let (attributes, end): (PyBackedBytes, PyBackedBytes) = found.extract()?;
            span.extend_from_slice(&attributes);
            span.extend_from_slice(&end);
        } else {
            span.extend_from_slice(&self.format.plain_end);
        }
        spans.append((&self.format.run_scope, delimited(details.py(), &span)?))?;
        Ok(Some(spans))
    }
}

impl SpanWriter {
    /// Return the steps of the array at a position; None if one of them, or what follows, does not have the common form.
    fn read_steps<'a>(
        &self,
        text: &'a [u8],
        mut position: usize,
        root_id: SpanId,
        attributes: &mut Vec<u8>,
        details: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Vec<Step<'a>>>> {
        let mut steps = Vec::with_capacity(16);
        if expect(text, &mut position, b'[').is_none() {
            return Ok(None);
        }
        loop {
            let (start, first) = (position, attributes.len());
            let Some(object) = self.step_members.read(text, &mut position, attributes, &mut Vec::new()) else {
                return Ok(None);
            };
            let index = steps.len();
            let create = || details.call_method1("step_template", (index,))?.extract();
            let template = self.step_templates.get(object.labels, create)?;
            if !template.is_common {
                return Ok(None);
            }
            steps.push(Step {
                text: &text[start..position],
                id: object.id,
                template,
                start: object.start,
                end: object.end,
                attributes: first..attributes.len(),
                position: None,
                span_id: [0; 8],
                parent_id: root_id,
            });
            if expect(text, &mut position, b',').is_none() {
                return Ok((text.get(position..) == Some(b"]}")).then_some(steps));
            }
        }
    }
}

/// Assign the span ids as `model.span.step_digest` does, and the parents of the rounds of loops.
fn assign_ids(steps: &mut [Step], seed: u64) {
    for step in &mut *steps {
        step.span_id = step_id(step, seed);
    }
    for (round, around) in enclosing_loops(steps) {
        let parent_id = steps[around].span_id;
        let step = &mut steps[round];
        step.parent_id = parent_id;
        step.span_id = step_id(step, seed ^ u64::from_be_bytes(parent_id));
    }
}

fn step_id(step: &Step, seed: u64) -> SpanId {
    xxh3_64_with_seed(step.text, seed ^ step.position.unwrap_or(0)).to_be_bytes()
}

/// Whether two steps have the same id, or one has none.
fn has_duplicates(steps: &[Step]) -> bool {
    let mut ids: Vec<SpanId> = steps.iter().map(|step| step.span_id).collect();
    ids.sort_unstable();
    ids.first() == Some(&[0; 8]) || ids.windows(2).any(|pair| pair[0] == pair[1])
}

fn part(digest: &[u8; 32], start: usize) -> SpanId {
    std::array::from_fn(|index| digest[start + index])
}

/// Replace a buffer by all of a span before its own attributes.
fn put_start(
    span: &mut Vec<u8>,
    trace_id: &[u8],
    span_id: SpanId,
    parent_id: Option<SpanId>,
    (start, end): (u64, u64),
    template: &Template,
    shared: &[u8],
) {
    span.clear();
    span.extend_from_slice(&TRACE_ID);
    span.extend_from_slice(trace_id);
    span.extend_from_slice(&SPAN_ID);
    span.extend_from_slice(&span_id);
    if let Some(parent_id) = parent_id {
        span.extend_from_slice(&PARENT_ID);
        span.extend_from_slice(&parent_id);
    }
    put_times(span, start, end);
    span.extend_from_slice(&template.wire);
    span.extend_from_slice(shared);
}

fn put_hex_string(span: &mut Vec<u8>, key: &[u8], bytes: &[u8]) {
    let mut text = Vec::with_capacity(2 * bytes.len());
    put_hex(&mut text, bytes);
    put_string(span, key, &text);
}

/// Return a span with tag and length, as an element of `ScopeSpans.spans`.
fn delimited<'py>(py: Python<'py>, content: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let mut head = Vec::with_capacity(11);
    head.push(SPANS);
    put_varint(&mut head, content.len() as u64);
    PyBytes::new_with(py, head.len() + content.len(), |span| {
        let (start, rest) = span.split_at_mut(head.len());
        start.copy_from_slice(&head);
        rest.copy_from_slice(content);
        Ok(())
    })
}
