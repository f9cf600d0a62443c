//! Reads finished runs from OTLP requests: a run whose spans are all in the request becomes a document, which its
//! digest proves. The names of attributes and members come from the tables in `runspan.codec.fields`.
//!
//! The decoder in Python would read the same of every span that is accepted here. It gets all other spans.

mod format;
mod json;
mod run;
mod span;
mod wire;

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use format::{Format, Names, Row, Rules};
use run::{Trace, TraceId};
use wire::{Content, Fields, Found, Unusual, array, once};

/// The parts of a request.
#[derive(Default)]
struct Request<'a> {
    spans: usize,
    /// The different resources.
    resources: Vec<&'a [u8]>,
    traces: Vec<(TraceId, Trace<'a>)>,
}

/// Reads requests.
#[pyclass(frozen)]
pub struct Reader {
    format: Format,
}

#[pymethods]
impl Reader {
    #[new]
    fn new(names: Names, rules: Rules, run: Vec<Row>, step: Vec<Row>, ignored: Vec<String>) -> PyResult<Reader> {
        Ok(Reader { format: Format::new(names, rules, run, step, ignored)? })
    }

    /// Return the number of spans and of traces of a request, its different resources, and its complete runs.
    ///
    /// Return None for bytes without the layout, also if there are more than `max_spans` spans, resources and scopes.
    fn read<'py>(&self, py: Python<'py>, body: &[u8], max_spans: usize) -> Option<Answer<'py>> {
        let (request, runs) = py.detach(|| {
            let request = self.split(body, max_spans).ok()?;
            let runs = request.traces.iter().filter_map(|(trace_id, trace)| self.format.run(*trace_id, trace).ok());
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
                    if scope == self.format.names.scope_step {
                        trace.steps.push(span);
                    } else if scope == self.format.names.scope_run {
                        trace.runs.push(span);
                    } else {
                        trace.is_mixed = true;
                    }
                }
            }
        }
        if count > max_spans { Err(Unusual) } else { Ok(request) }
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
