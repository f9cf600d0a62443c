//! Runs whose spans are all in a request, and the proof of their documents.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::format::Format;
use super::json;
use super::span::{Span, SpanId};
use super::wire::{Found, Unusual, array};
use crate::placement::{Place, enclosing_loops, positions};
use crate::timestamps::Time;

pub type TraceId = [u8; 16];

/// The spans of a trace in the request.
#[derive(Default)]
pub struct Trace<'a> {
    pub resource: usize,
    pub runs: Vec<&'a [u8]>,
    pub steps: Vec<&'a [u8]>,
    /// Whether it has spans of other scopes.
    pub is_mixed: bool,
}

/// A run that was read.
pub struct FoundRun<'a> {
    pub text: Vec<u8>,
    pub summary: Vec<u8>,
    pub run_id: &'a str,
    pub workflow_id: Option<&'a str>,
    pub status: &'a str,
    pub tenant: &'a str,
    pub trace_id: TraceId,
    pub digest: [u8; 32],
    pub step_ids: Vec<u8>,
    pub has_content_ids: bool,
    pub position: u64,
    pub end: Option<u64>,
    pub resource: usize,
}

impl Format {
    /// Read and prove the run of a trace.
    pub fn run<'a>(&self, trace_id: TraceId, trace: &Trace<'a>) -> Found<FoundRun<'a>> {
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
                id: step.value(self.step.id).unwrap_or_default().as_bytes(),
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
        let salt = self.salt(workflow_id).filter(|_| is_clear && are_ended);
        let own_seed = u64::from_be_bytes(array(&ids[24..])?);
        let has_content_ids = salt.is_some_and(|salt| {
            let seed = salt ^ own_seed ^ run.start;
            content_ids(&text, &parts, &places, &step_ids, seed, run.start, end.known())
                .is_some_and(|ids| ids == step_ids)
        });
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

/// The ids that the encoder assigns to steps that have ended, given those of the loops around them.
fn content_ids(
    text: &[u8],
    parts: &[Range<usize>],
    places: &[Place<'_>],
    given: &[SpanId],
    seed: u64,
    start: u64,
    end: Option<u64>,
) -> Option<Vec<SpanId>> {
    let positions = positions(places, start, end);
    let mut seeds: Vec<u64> = positions.iter().map(|position| seed ^ position.unwrap_or(0)).collect();
    for (round, outer) in enclosing_loops(places, &positions) {
        *seeds.get_mut(round)? ^= u64::from_be_bytes(*given.get(outer)?);
    }
    let ids = parts.iter().zip(seeds);
    ids.map(|(part, seed)| Some(xxh3_64_with_seed(text.get(part.clone())?, seed).to_be_bytes())).collect()
}

/// The span ids of a manifest without open steps.
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
