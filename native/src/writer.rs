//! The spans of finished runs as OTLP bytes, written from the canonical texts of the documents in one pass.
//!
//! The format is Python's: the keys come from `codec.fields`, the attributes that labels determine are templates, and
//! what depends on the meaning of a payload is asked for, step by step. A run that does not have the common form is left
//! to Python as a whole. See `runspan.otlp.bulk_writer`.

mod error;
mod members;
mod usage;
mod wire;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::placement::{Place, enclosing_loops, positions};
use members::{Members, Object, Row, Time, expect, plain_string};
use usage::{Counts, Usage};
use wire::{PARENT_ID, SPAN_ID, SPANS, TRACE_ID, put_delimited, put_hex, put_integer, put_string, put_times};

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
    /// The keys of the sets of models and of step types.
    label_set_keys: [Vec<u8>; 2],
    /// A set that is too long.
    many_labels: Vec<u8>,
    step_count_key: Vec<u8>,
    manifest_key: Vec<u8>,
    /// The key of the end of a step without duration.
    end_key: Vec<u8>,
    /// The attributes of a step without times.
    absent_times: Vec<u8>,
    /// What follows the attributes of a span without events, links and status.
    plain_end: Vec<u8>,
    /// The revision of the run span.
    revision: u64,
    max_attribute_bytes: usize,
    usage_keys: usage::Keys,
    error_keys: error::Keys,
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
    is_agent: bool,
    is_loop: bool,
    is_sub_workflow: bool,
    /// The type of an error without a code if the span has failed.
    error_type: Option<String>,
    /// Of a step: its type.
    step_type: String,
    /// Name, kind and attributes.
    wire: Vec<u8>,
    /// Of a run: the attributes of all of its spans.
    identity: Vec<u8>,
    /// Of a run: what they add to the seed of the step ids.
    salt: u64,
}

/// The parts of a step span that its template and members do not determine.
#[derive(FromPyObject)]
struct Parts {
    start: u64,
    end: u64,
    attributes: Vec<u8>,
    /// What follows the attributes, if it is not that of a plain span.
    rest: Option<Vec<u8>>,
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

/// What all spans of a run share, and what is known of its run span.
struct Run {
    trace_id: [[u8; 8]; 2],
    root_id: SpanId,
    /// Of the ids of its steps.
    seed: u64,
    start: u64,
    end: u64,
    template: Arc<Template>,
    /// The attributes that are on every span.
    shared: Vec<u8>,
    /// The attributes of its members.
    attributes: Vec<u8>,
    /// What its agent steps used, other than those that were left to Python.
    usages: Vec<Counts>,
    /// Their models.
    models: Vec<String>,
    /// Whether Python has parts to add to the run span.
    has_details: bool,
}

impl Run {
    /// Replace a buffer by all of a span before its own attributes.
    fn put_start(
        &self,
        span: &mut Vec<u8>,
        span_id: SpanId,
        parent_id: Option<SpanId>,
        (start, end): (u64, u64),
        template: &Template,
    ) {
        span.clear();
        span.extend_from_slice(&TRACE_ID);
        span.extend_from_slice(self.trace_id.as_flattened());
        span.extend_from_slice(&SPAN_ID);
        span.extend_from_slice(&span_id);
        if let Some(parent_id) = parent_id {
            span.extend_from_slice(&PARENT_ID);
            span.extend_from_slice(&parent_id);
        }
        put_times(span, start, end);
        span.extend_from_slice(&template.wire);
        span.extend_from_slice(&self.shared);
    }
}

struct Step<'a> {
    text: &'a [u8],
    /// The JSON text of its id.
    id: &'a [u8],
    template: Arc<Template>,
    start: Time,
    end: Time,
    end_text: &'a [u8],
    output: &'a [u8],
    error: &'a [u8],
    /// Its own attributes, in the buffer of all steps.
    attributes: Range<usize>,
    /// Where it lies if it has no times.
    position: Option<u64>,
    span_id: SpanId,
    parent_id: SpanId,
}

impl<'a> Step<'a> {
    fn place(&self) -> Place<'a> {
        Place { id: self.id, is_loop: self.template.is_loop, start: self.start.known(), end: self.end.known() }
    }
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

    /// Return the step spans and the run span of a finished run, each as scope, bytes and number of spans; None if the run
    /// does not have the common form.
    ///
    /// `text` is the canonical text of a plain document; `details` answers what the text does not, see `bulk_writer`.
    fn write<'py>(
        &self,
        text: &Bound<'py, PyBytes>,
        details: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let text = text.as_bytes();
        let (mut position, mut attributes, mut summary) = (0, Vec::with_capacity(1024), vec![b'{']);
        let Some(object) = self.run_members.read(text, &mut position, &mut attributes, &mut summary) else {
            return Ok(None);
        };
        let template = self.run_templates.get(object.labels, || details.call_method0("run_template")?.extract())?;
        let Some(mut run) = self.identify(&object, template) else { return Ok(None) };
        run.attributes = attributes;
        let mut step_attributes = Vec::with_capacity(text.len());
        let Some(mut steps) = self.read_steps(text, position, run.root_id, &mut step_attributes, details)? else {
            return Ok(None);
        };
        place(&mut steps, &run);
        if has_duplicates(&steps) {
            return Ok(None);
        }

        let mut manifest = Vec::with_capacity(16 * steps.len());
        let (mut spans, mut span) = (Vec::with_capacity(2 * text.len()), Vec::with_capacity(2048));
        for step in &steps {
            let Some(parts) = self.step_parts(&mut run, step, details)? else { return Ok(None) };
            run.put_start(&mut span, step.span_id, Some(step.parent_id), (parts.start, parts.end), &step.template);
            let id_text = manifest.len();
            put_hex(&mut manifest, &step.span_id);
            put_string(&mut span, &self.format.task_run_key, &manifest[id_text..]);
            span.extend_from_slice(&step_attributes[step.attributes.clone()]);
            span.extend_from_slice(&parts.attributes);
            span.extend_from_slice(parts.rest.as_deref().unwrap_or(&self.format.plain_end));
            put_delimited(&mut spans, SPANS, &span);
        }
        if manifest.len() > self.format.max_attribute_bytes {
            return Ok(None);
        }
        let py = details.py();
        let step_spans = (&self.format.step_scope, PyBytes::new(py, &spans), steps.len());

        run.put_start(&mut span, run.root_id, None, (run.start, run.end), &run.template);
        let (mut totals, mut rest) = (Vec::new(), self.format.plain_end.clone());
        match self.format.error_keys.read(object.error) {
            Some(error) if !run.has_details && run.usages.len() <= 2 => {
                if !run.usages.is_empty() {
                    self.format.usage_keys.put_totals(&mut totals, &run.usages);
                }
                match &run.template.error_type {
                    Some(kind) => rest = self.format.error_keys.put(&mut totals, &error, kind, run.end),
                    None => self.format.error_keys.put_code(&mut totals, &error),
                }
            }
            _ => {
                let found = details.call_method1("run_parts", (&run.template.source, run.end, run.usages))?;
                let models: Vec<String>;
                (totals, rest, models) = found.extract()?;
                run.models.extend(models);
            }
        }
        let types = steps.iter().map(|step| step.template.step_type.as_str());
        let label_sets = [self.label_set(run.models.iter().map(String::as_str)), self.label_set(types)];
        let summary_digest = self.summary_digest(run.start, summary, &label_sets);
        put_hex_string(&mut span, &self.format.digest_key, &Sha256::digest(text));
        put_hex_string(&mut span, &self.format.summary_digest_key, &summary_digest[..16]);
        for (key, labels) in self.format.label_set_keys.iter().zip(&label_sets) {
            if !labels.is_empty() {
                put_string(&mut span, key, labels);
            }
        }
        span.extend_from_slice(&self.format.tenant);
        put_integer(&mut span, &self.format.step_count_key, steps.len() as u64);
        put_string(&mut span, &self.format.manifest_key, &manifest);
        span.extend_from_slice(&run.attributes);
        span.extend_from_slice(&totals);
        span.extend_from_slice(&rest);
        spans.clear();
        put_delimited(&mut spans, SPANS, &span);
        let run_span = (&self.format.run_scope, PyBytes::new(py, &spans), 1);
        Ok(Some((step_spans, run_span).into_pyobject(py)?))
    }
}

impl SpanWriter {
    /// Return what the spans of a run share; None if it does not have the common form.
    fn identify(&self, object: &Object, template: Arc<Template>) -> Option<Run> {
        let (Time::Canonical(start), Time::Canonical(end)) = (object.start, object.end) else { return None };
        let run_id = plain_string(object.id)?;
        let mut digest = Sha256::new_with_prefix(&self.format.run_id_prefix);
        digest.update((run_id.len() as u64).to_be_bytes());
        digest.update(run_id);
        let ids: [[u8; 8]; 4] = std::array::from_fn({
            let digest = digest.finalize();
            move |part| std::array::from_fn(|index| digest[8 * part + index])
        });
        let mut shared = Vec::with_capacity(256);
        for key in &self.format.run_id_keys {
            put_string(&mut shared, key, run_id);
        }
        shared.extend_from_slice(&template.identity);
        let run = Run {
            trace_id: [ids[0], ids[1]],
            root_id: ids[2],
            seed: u64::from_be_bytes(ids[3]) ^ template.salt ^ start,
            start,
            end,
            shared,
            has_details: false,
            template,
            attributes: Vec::new(),
            usages: Vec::new(),
            models: Vec::new(),
        };
        let has_ids = run.trace_id != [[0; 8]; 2] && run.root_id != [0; 8];
        (run.template.is_common && has_ids && 0 < start && start < end).then_some(run)
    }

    /// The text of a set of few labels, empty if there is none.
    fn label_set<'a>(&self, labels: impl Iterator<Item = &'a str>) -> Vec<u8> {
        let mut distinct = Vec::with_capacity(8);
        for label in labels {
            if !distinct.contains(&label) {
                distinct.push(label);
            }
        }
        if distinct.is_empty() {
            return Vec::new();
        }
        distinct.sort_unstable();
        let text = serde_json::to_vec(&distinct).unwrap_or_default();
        if text.len() <= self.format.max_attribute_bytes { text } else { self.format.many_labels.clone() }
    }

    fn summary_digest(&self, start: u64, mut summary: Vec<u8>, label_sets: &[Vec<u8>]) -> [u8; 32] {
        if summary.last() == Some(&b',') {
            summary.pop();
        }
        summary.push(b'}');
        let mut digest = Sha256::new_with_prefix(&self.format.summary_prefix);
        digest.update(self.format.revision.to_be_bytes());
        digest.update(start.to_be_bytes());
        digest.update(&summary);
        for labels in label_sets {
            digest.update(b"\n");
            digest.update(labels);
        }
        digest.finalize().into()
    }

    /// Return the parts of a step span that its template and members do not determine; None if they need events.
    fn step_parts(&self, run: &mut Run, step: &Step, details: &Bound<'_, PyAny>) -> PyResult<Option<Parts>> {
        let position = step.position.unwrap_or(run.start);
        if let Some((parts, usage)) = self.common_parts(step, position) {
            if let Some(usage) = usage {
                run.usages.push((usage.prompt_tokens, usage.completion_tokens, usage.estimated_cost_usd));
                run.models.push(usage.model.to_owned());
            }
            return Ok(Some(parts));
        }
        run.has_details = true;
        details.call_method1("step_parts", (step.text, &step.template.source, position))?.extract()
    }

    /// Return these parts, and the token usage among them; None if they do not have the common form.
    fn common_parts<'a>(&self, step: &Step<'a>, position: u64) -> Option<(Parts, Option<Usage<'a>>)> {
        let Template { is_agent, is_sub_workflow, ref error_type, .. } = *step.template;
        if is_sub_workflow {
            return None;
        }
        let mut attributes = Vec::new();
        let (start, end) = match (step.start, step.end) {
            (Time::Canonical(start), Time::Canonical(end)) if start < end => (start, end),
            (Time::Canonical(start), Time::Canonical(end)) if start == end => {
                put_string(&mut attributes, &self.format.end_key, step.end_text);
                (start, end + 1)
            }
            (Time::Absent, Time::Absent) => {
                attributes.extend_from_slice(&self.format.absent_times);
                (position, position + 1)
            }
            _ => return None,
        };
        let usage = if is_agent { usage::read(step.output)? } else { None };
        if let Some(usage) = &usage {
            self.format.usage_keys.put(&mut attributes, usage)?;
        }
        let keys = &self.format.error_keys;
        let rest = match error_type {
            Some(kind) => Some(keys.put(&mut attributes, &keys.read(step.error)?, kind, end)),
            None => None,
        };
        Some((Parts { start, end, attributes, rest }, usage))
    }

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
            let create = || details.call_method1("step_template", (&text[start..position],))?.extract();
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
                end_text: object.end_text,
                output: object.output,
                error: object.error,
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

/// Set where steps without times lie, span ids as `model.span.step_digest` returns them, and the parents of the rounds of
/// loops.
fn place(steps: &mut [Step], run: &Run) {
    let places: Vec<_> = steps.iter().map(Step::place).collect();
    let positions = positions(&places, run.start, Some(run.end));
    let loops = enclosing_loops(&places, &positions);
    for (step, position) in steps.iter_mut().zip(positions) {
        step.position = position;
        step.span_id = step_id(step, run.seed);
    }
    for (round, outer) in loops {
        let parent_id = steps[outer].span_id;
        let step = &mut steps[round];
        step.parent_id = parent_id;
        step.span_id = step_id(step, run.seed ^ u64::from_be_bytes(parent_id));
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

fn put_hex_string(span: &mut Vec<u8>, key: &[u8], bytes: &[u8]) {
    let mut text = Vec::with_capacity(2 * bytes.len());
    put_hex(&mut text, bytes);
    put_string(span, key, &text);
}
